"""`pixr1 distill`: turns the trained model of a work directory into a flow map of 1 to 4 steps.

pixr1 distill --config=FILE --workdir=DIR [--profile=START:END]

The same command continues a run that was stopped or killed. On several machines it is started once on each: TPU pods
and Slurm are recognised, elsewhere --coordinator=HOST:PORT --processes=N --process=I says who is who.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from pixr1_jax.core import cli_errors, distributed
from pixr1_jax.core import config as config_lib
from pixr1_jax.training import loop, profile


def define_flags() -> None:
    """Defines the flags of this verb."""
    config_lib.define_flags()
    profile.define_flag()
    distributed.define_flags()
    flags.DEFINE_integer(
        "stopped_code", 0, "Exit code of a run that a signal stopped before its last step, after it has saved."
    )


def main(argv: Sequence[str]) -> None:
    """Runs the stage."""
    if len(argv) > 1:
        raise ValueError(f"pixr1 distill takes no argument {argv[1]!r}; see pixr1 distill --help")
    config, workdir = config_lib.flag_config(), config_lib.flag_workdir()
    with distributed.join():
        loop.run(config, "distill", workdir, profile.flag_steps())
    if not loop.finished(config, "distill", workdir):
        raise SystemExit(flags.FLAGS.stopped_code)


if __name__ == "__main__":
    define_flags()
    cli_errors.run(main)
