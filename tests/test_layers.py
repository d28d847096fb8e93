"""The imports between modules follow the layers in pyproject.toml, and every module has its layer."""

import pathlib
import re
import subprocess
import sys
import tomllib

import grimp
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = CONFIG["tool"]["importlinter"]["root_packages"]


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(*PACKAGES, include_external_packages=True, cache_dir=None)


def test_contracts_of_pyproject_hold():
    command = [str(pathlib.Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_module_has_a_layer(graph):
    (contract,) = (one for one in CONFIG["tool"]["importlinter"]["contracts"] if one["type"] == "layers")
    listed = {name for layer in contract["layers"] for name in re.findall(r"[\w.]+", layer)}
    found = set()
    for package in PACKAGES:
        # A package is one layer, or each of its children is in one.
        found |= {package} if package in listed else graph.find_children(package)
    assert found <= listed


def test_runner_imports_jax_and_numpy_only(graph):
    imported = graph.find_modules_directly_imported_by("pixr1_jax.engine.runner")
    assert {name.split(".")[0] for name in imported} - sys.stdlib_module_names <= {"jax", "numpy"}


def test_core_knows_no_model(graph):
    imported = {
        name.split(".")[0]
        for module in graph.find_descendants("pixr1_jax.core")
        for name in graph.find_modules_directly_imported_by(module)
        if not name.startswith("pixr1_jax.core")
    }
    assert not imported & set(PACKAGES)
