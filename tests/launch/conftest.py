import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

CONFIG = """
import runpy
from ml_collections import ConfigDict

def get_config(variant=""):
    config = runpy.run_path({quickstart!r})["get_config"](variant)
    with config.unlocked():
        config.mesh.slice, config.mesh.data, config.mesh.fsdp, config.mesh.tensor = -1, 1, 64, 4
        config.launch = ConfigDict({{"bucket": "gs://bucket-of-ours/pixr1", "image": "eu-docker.pkg.dev/p/r/pixr1:1",
                                    "queue": "tpus", "priority": "high", "project": "p", "zone": "us-east5-b",
                                    "max_restarts": 7, "grace_seconds": 90}})
    return config
"""


@pytest.fixture
def here() -> dict[str, int]:
    """Fields that lay the mesh of configs/pod.py over the devices of this machine."""
    return {"mesh.slice": 1, "mesh.data": -1, "mesh.fsdp": 1, "mesh.tensor": 1}


@pytest.fixture
def repository(tmp_path, monkeypatch) -> pathlib.Path:
    """A folder with configs/pod.py, made the current one."""
    (tmp_path / "configs").mkdir()
    text = CONFIG.format(quickstart=str(ROOT / "configs" / "quickstart.py"))
    (tmp_path / "configs" / "pod.py").write_text(textwrap.dedent(text))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pixr1():
    """Runs the command: arguments in, exit code, standard output and error out."""

    def run(*arguments: str, **variables: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "pixr1_jax.cli", *arguments],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | variables,
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout, done.stderr

    return run
