"""The verbs from the command line: help that lists their flags, and one-line errors."""

import os
import subprocess
import sys

import pytest


def _run(verb, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"pixr1_jax.{verb}", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


@pytest.mark.parametrize("verb", ["stream", "evaluate"])
def test_command_line(verb, tmp_path):
    missing = tmp_path / "none"
    flags = [f"--artifact={missing}", f"--out={tmp_path / 'out'}"] + [f"--data={missing}"] * (verb == "evaluate")
    result = _run(verb, *flags)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {missing}/manifest.json: no such file") and result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []

    assert "argument 'stray'" in _run(verb, *flags, "stray").stderr
    help_text = _run(verb, "--help").stdout
    assert "--artifact" in help_text and "--guidance" in help_text
