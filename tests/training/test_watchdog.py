"""The watchdog: silent while things go on, a named end with the stacks where they do not."""

import subprocess
import sys
import time

import pytest

from pixr1_jax.training.watchdog import EXIT_CODE, Watchdog

_HANGS = """
import threading, time
from pixr1_jax.training.watchdog import Watchdog
def waits_for_ever():
    {hang}
with Watchdog(0.4, 60.0) as watchdog:
    watchdog.at("step 1", first=True)
    time.sleep(0.8)
    for step in range(2, 6):
        watchdog.at(f"step {{step}}")
        time.sleep(0.2)
    watchdog.at("reading the batch of step 6")
    print("hangs", flush=True)
    waits_for_ever()
"""


def test_what_hangs_is_named_with_its_stack_and_the_process_ends():
    start = time.monotonic()
    command = [sys.executable, "-c", _HANGS.format(hang="threading.Lock().acquire() and threading.Event().wait()")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == EXIT_CODE == 124
    assert result.stdout == "hangs\n"  # not before: the first step has a bound of its own
    first, *stacks = result.stderr.splitlines()
    assert first.startswith("error: reading the batch of step 6 has taken longer than 0.4 s")
    assert any("in waits_for_ever" in line for line in stacks)
    assert time.monotonic() - start < 30


def test_a_thread_that_keeps_the_interpreter_is_ended_too():
    hang = "import ctypes; ctypes.PyDLL(None).sleep(1000)"  # PyDLL does not release the interpreter
    code = "import pixr1_jax.training.watchdog as module; module._GRACE = 0.5\n" + _HANGS.format(hang=hang)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode != 0
    assert "in waits_for_ever" in result.stderr


def test_no_bound_and_the_end_of_the_block():
    with Watchdog(0.0, 0.0) as watchdog:
        watchdog.at("anything")
        time.sleep(0.05)
    watchdog = Watchdog(0.1, 0.1)
    with watchdog:
        watchdog.at("short")
    time.sleep(0.3)


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (1.0, -1.0)])
def test_negative_bounds_are_named(bounds):
    with pytest.raises(ValueError, match="step_seconds is -1.0; give seconds, or 0 for no bound"):
        Watchdog(*bounds)
