"""`pixr1 distill`: turns the trained model of a work directory into a flow map of 1 to 4 steps.

pixr1 distill --config=FILE --workdir=DIR [--profile=START:END]

The same command continues a run that was stopped or killed.
"""

from __future__ import annotations

from collections.abc import Sequence

from pixr1_jax.core import cli_errors
from pixr1_jax.core import config as config_lib
from pixr1_jax.training import loop, profile


def define_flags() -> None:
    """Defines the flags of this verb."""
    config_lib.define_flags()
    profile.define_flag()


def main(argv: Sequence[str]) -> None:
    """Runs the stage."""
    if len(argv) > 1:
        raise ValueError(f"pixr1 distill takes no argument {argv[1]!r}; see pixr1 distill --help")
    loop.run(config_lib.flag_config(), "distill", config_lib.flag_workdir(), profile.flag_steps())


if __name__ == "__main__":
    define_flags()
    cli_errors.run(main)
