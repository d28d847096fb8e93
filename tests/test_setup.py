"""The scripts that make the environment: what they install, when, and what they then run. Nothing is downloaded."""

import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Stands for the environment's programs: notes how it was called.
FAKE = """#!/bin/bash
echo "$(basename "$0") $*" >>"$(dirname "$0")/calls"
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout in a folder with a space in its name, its environment made of fakes."""
    root = tmp_path / "a checkout"
    programs = root / ".venv" / "bin"
    programs.mkdir(parents=True)
    (root / "scripts").mkdir()
    for name in ("quickstart", "runtests", "pyproject.toml", "requirements.lock", "scripts/setup.sh"):
        shutil.copy(ROOT / name, root / name)
    for name in ("python", "pixr1", "ruff", "pyright", "lint-imports", "pytest"):
        (programs / name).write_text(FAKE)
        (programs / name).chmod(0o755)
    return root


def run(root: pathlib.Path, script: str, *arguments: str) -> list[str]:
    """Runs a script from another folder; returns the calls of programs in the environment."""
    calls = root / ".venv" / "bin" / "calls"
    calls.unlink(missing_ok=True)
    subprocess.run([str(root / script), *arguments], cwd="/", check=True, capture_output=True)
    return calls.read_text().splitlines()


def installs(calls: list[str]) -> list[str]:
    return [call for call in calls if " install " in call]


def test_quickstart_installs_once(checkout):
    first, second = run(checkout, "quickstart"), run(checkout, "quickstart")
    (install,) = installs(first)
    assert f"--constraint {checkout}/requirements.lock" in install and install.endswith(f"--editable {checkout}")
    assert second == ["pixr1 quickstart --config=configs/quickstart.py --workdir=runs/quickstart"]


def test_changed_requirements_install_again(checkout):
    run(checkout, "quickstart")
    with (checkout / "requirements.lock").open("a") as lock:
        lock.write("another==1.0\n")
    assert len(installs(run(checkout, "quickstart"))) == 1


def test_a_failed_install_is_tried_again(checkout):
    python = checkout / ".venv" / "bin" / "python"
    python.write_text(FAKE + '[[ "$*" != *install* ]]\n')
    with pytest.raises(subprocess.CalledProcessError):
        run(checkout, "quickstart")
    python.write_text(FAKE)
    assert len(installs(run(checkout, "quickstart"))) == 1


def test_tests_need_more_than_the_quickstart(checkout):
    run(checkout, "quickstart")
    (install,) = installs(run(checkout, "runtests"))
    assert install.endswith(f"--editable {checkout}[dev,beam,doom,games,tfds,tpu,videos]")
    assert not installs(run(checkout, "runtests")) and not installs(run(checkout, "quickstart"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("--config=x.py", "--config.a=1"), "--workdir=runs/quickstart --config=x.py --config.a=1"),
        (("--workdir", "w"), "--config=configs/quickstart.py --workdir w"),
        (("--config.a=1",), "--config=configs/quickstart.py --workdir=runs/quickstart --config.a=1"),
        (("--config=x.py", "--workdir=w"), "--config=x.py --workdir=w"),
    ],
)
def test_quickstart_passes_arguments_on(checkout, given, expected):
    assert run(checkout, "quickstart", *given)[-1] == f"pixr1 quickstart {expected}"


def test_runtests_runs_every_check_and_passes_arguments_to_pytest(checkout):
    calls = run(checkout, "runtests", "-k", "one")[-5:]
    python = checkout / ".venv" / "bin" / "python"
    assert calls == ["ruff check .", "ruff format --check .", f"pyright --pythonpath {python}", "lint-imports "] + [
        "pytest -n 2 --dist loadfile --no-loadscope-reorder -k one"
    ]
