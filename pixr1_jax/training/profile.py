"""A trace of some steps for XProf (the profiler of TensorBoard): what `--profile=START:END` asks for."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from pathlib import Path
from typing import Any

import jax
from absl import flags

from pixr1_jax.core.config import ConfigError

FOLDER = "profile"
_FLAG = "profile"


@dataclasses.dataclass(frozen=True)
class Steps:
    """Steps `start` to `end`, `end` included, counted as in the metrics: the first step of a run is 1."""

    start: int
    end: int

    @classmethod
    def parse(cls, text: str) -> Steps:
        """Reads START:END.

        Raises:
            ConfigError: It is none.
        """
        found = re.fullmatch(r"(\d+):(\d+)", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ConfigError(f"--profile={text} is no range of steps; give START:END with 1 <= START <= END, as 20:24")
        return cls(int(found[1]), int(found[2]))


def define_flag() -> None:
    """Defines --profile; call it from a verb's `define_flags`."""
    flags.DEFINE_string(
        _FLAG, None, "START:END, both included: an XProf trace of these steps goes to the stage's folder profile/."
    )
    # Else the verb's --help would leave it out, since it is defined in this module and not in the main one.
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[_FLAG])


def flag_steps() -> Steps | None:
    """The steps that --profile names, or None."""
    text = flags.FLAGS[_FLAG].value
    return None if text is None else Steps.parse(text)


class Profiler:
    """Traces some steps of a loop; every process of a job writes its own file."""

    def __init__(self, directory: str | os.PathLike[str], steps: Steps | None, *, done: int, last: int):
        """Checks that the steps will come.

        Args:
            directory: Folder of the stage.
            steps: Which to trace; None traces nothing.
            done: Steps taken before this run goes on.
            last: Last step of the run.

        Raises:
            ConfigError: They are not among the steps that are still to be taken.
        """
        if steps is not None and not done < steps.start <= steps.end <= last:
            left = f"{done + 1}:{last}" if done < last else "none"
            raise ConfigError(f"--profile={steps.start}:{steps.end}: the steps still to be taken are {left}")
        self._folder, self._steps, self._running = Path(directory) / FOLDER, steps, False

    def before(self, step: int, pending: Any) -> None:
        """Begins or ends the trace where it is due.

        Args:
            step: The step that comes next.
            pending: Arrays of the step before it, which belongs to one side of the border.
        """
        if self._steps is None:
            return
        if step == self._steps.start:
            jax.block_until_ready(pending)
            jax.profiler.start_trace(os.fspath(self._folder))
            self._running = True
        elif step == self._steps.end + 1:
            self.stop(pending)

    def stop(self, pending: Any) -> None:
        """Ends the trace if one runs, once `pending` arrays are computed, and writes it."""
        if self._running:
            jax.block_until_ready(pending)
            jax.profiler.stop_trace()
            self._running = False
