"""A polite stop: SIGTERM or SIGINT asks the training loop to save and leave; a second one leaves at once."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclasses.dataclass
class StopRequest:
    """Whether a stop was asked for.

    Attributes:
        requested: Set by the first signal that this process receives.
    """

    requested: bool = False

    def requested_anywhere(self) -> bool:
        """Returns whether any process of the job was asked to stop.

        A scheduler may signal one process only, or each at a different step, and a save needs all of them.
        Every process must call this at the same steps; with more than one process it is a small collective.
        """
        if jax.process_count() == 1:
            return self.requested
        return bool(np.any(multihost_utils.process_allgather(np.asarray(self.requested))))


@contextlib.contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turns the first SIGTERM or SIGINT into a flag, for the length of a `with` block.

    The second signal raises at once: KeyboardInterrupt for SIGINT, SystemExit with code 128 + n for SIGTERM.
    The former handlers are put back on exit, also after an exception. Enter it after
    `jax.distributed.initialize`, whose own SIGTERM handler it replaces.

    Yields:
        The request, whose `requested` the loop reads between steps.

    Raises:
        ValueError: If called outside the main thread, where Python cannot handle signals.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ValueError("stop_on_signal: signals reach the main thread only; enter it there")
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if not request.requested:
            request.requested = True
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise SystemExit(128 + number)

    former = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in former.items():
            # None stands for a handler that was not installed from Python, which Python cannot put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
