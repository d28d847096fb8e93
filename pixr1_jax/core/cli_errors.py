"""Running a verb from the command line: a mistake of the user is one line on standard error, not a traceback."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, logging

from pixr1_jax.core import config

DEBUG = "PIXR1_DEBUG"


def run(main: Callable[[Sequence[str]], Any]) -> None:
    """Runs a verb's `main(argv)` through `absl.app.run`; does not return.

    ValueError (with its subclasses) and OSError (a missing file, a folder that cannot be written) end the process
    with one line and exit code 1. With PIXR1_DEBUG=1 in the environment they show their traceback.

    Args:
        main: called with the arguments that are left after the flags, the program's name first.
    """
    app.run(functools.partial(_guarded, main), flags_parser=config.parse_flags)


def _guarded(main: Callable[[Sequence[str]], Any], argv: Sequence[str]) -> None:
    if os.environ.get(DEBUG) == "1":
        main(argv)
        return
    # Orbax tells dozens of lines a checkpoint at the level of information.
    logging.set_verbosity(logging.WARNING)
    try:
        main(argv)
    except (ValueError, OSError) as error:
        print(f"error: {describe(error)} ({DEBUG}=1 shows the traceback)", file=sys.stderr)
        raise SystemExit(1) from error


def describe(error: BaseException) -> str:
    """Returns an error's message on one line, or the name of its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
