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
        config.mesh = ConfigDict({{"slice": -1, "data": 1, "fsdp": 64, "context": 1, "tensor": 4}})
        config.launch = ConfigDict({{"bucket": "gs://bucket-of-ours/pixr1", "image": "eu-docker.pkg.dev/p/r/pixr1:1",
                                    "queue": "tpus", "priority": "high", "project": "p", "zone": "us-east5-b",
                                    "max_restarts": 7, "grace_seconds": 90}})
    return config
"""


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
