"""Errors on the command line: one line and exit code 1, or a traceback on request."""

import os
import subprocess
import sys

import pytest

_VERB = """
import sys
from absl import flags
from pixr1_jax.core import cli_errors
flags.DEFINE_string("what", "", "how to fail")
def main(argv):
    what = flags.FLAGS.what
    if what == "value":
        raise ValueError("first line\\n  second line")
    if what == "file":
        open("/no/such/file")
    if what == "bug":
        raise RuntimeError("a bug")
    print("fine", argv[1:])
cli_errors.run(main)
"""


def _run(what, **environment):
    return subprocess.run(
        [sys.executable, "-c", _VERB, f"--what={what}", "rest"],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


@pytest.mark.parametrize(
    ("what", "line"),
    [("value", "error: first line second line"), ("file", "error: [Errno 2] No such file")],
)
def test_user_errors_are_one_line(what, line):
    result = _run(what)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith(line) and result.stderr.count("\n") == 1


def test_debug_shows_the_traceback():
    result = _run("value", PIXR1_DEBUG="1")
    assert result.returncode == 1 and "Traceback" in result.stderr


def test_other_errors_keep_their_traceback():
    result = _run("bug")
    assert result.returncode == 1 and "Traceback" in result.stderr and "RuntimeError: a bug" in result.stderr


def test_success():
    result = _run("")
    assert (result.returncode, result.stdout) == (0, "fine ['rest']\n")
