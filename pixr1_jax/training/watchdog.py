"""A watchdog: a run that hangs says where, and ends, so that whoever started it can start it again.

A lost collective, a dead disk or a deadlock in the input leave a process waiting for ever, and a month of a
pod with it. The loop says what it does next; when that takes longer than its bound, the stacks of all threads
are written and the process ends with code 124, as `timeout` does.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
import typing
from types import TracebackType
from typing import TextIO

EXIT_CODE = 124
_GRACE = 30.0  # seconds after the bound until the fallback in C, which needs no interpreter


class Watchdog:
    """Watches one thread for the length of a `with` block; `at` says what it begins.

    It ends the process, with exit code 124, and nothing is cleaned up: a saved checkpoint is whole at all times.
    """

    def __init__(self, max_step_seconds: float, max_first_step_seconds: float):
        """Sets the bounds.

        Args:
            max_step_seconds: Of each thing within a step: waiting for data, the step, a save; 0 for none.
            max_first_step_seconds: Of the first step, which compiles; 0 for none.

        Raises:
            ValueError: If one is negative.
        """
        for name, value in (
            ("max_step_seconds", max_step_seconds),
            ("max_first_step_seconds", max_first_step_seconds),
        ):
            if value < 0:
                raise ValueError(f"{name} is {value}; give seconds, or 0 for no bound")
        self._usual, self._first = max_step_seconds, max_first_step_seconds
        self._now = ("", 0.0, 0.0)  # what, since when, its bound
        self._condition, self._over = threading.Condition(), False
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._condition:
            self._over = True
            self._condition.notify()
        self._thread.join()

    def at(self, what: str, *, first: bool = False) -> None:
        """Says what begins now; what was before is done.

        Args:
            what: For the message, as in "step 12".
            first: Whether it is the first step.
        """
        self._now = (what, time.monotonic(), self._first if first else self._usual)

    def _watch(self) -> None:
        try:
            while not self._over:
                what, began, seconds = self._now
                left = began + seconds - time.monotonic()
                if seconds:
                    if left <= 0:
                        self._end(what, seconds)
                    # If a thread hangs in C and keeps the interpreter, this one cannot run.
                    faulthandler.dump_traceback_later(left + _GRACE, exit=True, file=_stderr())
                else:
                    faulthandler.cancel_dump_traceback_later()
                with self._condition:
                    if not self._over:
                        self._condition.wait(min(left, 1.0) if seconds else 1.0)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _end(self, what: str, seconds: float) -> None:
        line = f"error: {what} has taken longer than {seconds:g} s; the stacks of all threads follow, the run ends"
        print(line, file=_stderr(), flush=True)
        faulthandler.dump_traceback(file=_stderr(), all_threads=True)
        os._exit(EXIT_CODE)


def _stderr() -> TextIO:
    # faulthandler writes to a file descriptor, which a replaced sys.stderr may not have.
    return typing.cast(TextIO, sys.__stderr__)
