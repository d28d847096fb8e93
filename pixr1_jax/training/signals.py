"""A polite stop: SIGTERM or SIGINT asks the training loop to save and leave; a second one leaves at once."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils


@dataclasses.dataclass
class StopRequest:
    """Whether a stop was asked for.

    Attributes:
        requested: Set by the first signal that this process receives.
    """

    requested: bool = False

    def requested_anywhere(self, step: int) -> bool:
        """Returns whether the run is to stop before this step, alike on all processes.

        A scheduler may signal one process only, or each at a different step, and a save needs all of them. With
        several processes the service of `jax.distributed` carries the notice and finds a step that none has
        passed yet, within seconds and without a collective in between.

        Args:
            step: The number of steps taken; every process calls this at every step.
        """
        if jax.process_count() == 1:
            return self.requested
        return multihost_utils.reached_preemption_sync_point(step)


@contextlib.contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turns the first SIGTERM or SIGINT into a flag, for the length of a `with` block.

    The second signal raises at once: KeyboardInterrupt for SIGINT, SystemExit with code 128 + n for SIGTERM.
    The former handlers are put back on exit, also after an exception. With several processes SIGTERM is left to
    the handler of `jax.distributed`, which tells the other processes, and the first SIGINT is turned into it.

    Yields:
        The request, whose `requested` the loop reads between steps.

    Raises:
        ValueError: If called outside the main thread, where Python cannot handle signals.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ValueError("stop_on_signal: signals reach the main thread only; enter it there")
    request = StopRequest()
    several = jax.process_count() > 1

    def handle(number: int, frame: FrameType | None) -> None:
        if not request.requested:
            request.requested = True
            if several:
                os.kill(os.getpid(), signal.SIGTERM)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise SystemExit(128 + number)

    own = (signal.SIGINT,) if several else (signal.SIGTERM, signal.SIGINT)
    former = {number: signal.signal(number, handle) for number in own}
    try:
        yield request
    finally:
        for number, handler in former.items():
            # None stands for a handler that was not installed from Python, which Python cannot put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
