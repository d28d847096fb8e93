"""`pixr1 bench`: what parts of the system cost on this machine, or on TPUs as their compiler expects.

pixr1 bench kernels --out=DIR [--aot=v5e,v5p,v6e] [--quick]
    Attention, estimated for TPUs by their compiler or timed on this device.

pixr1 bench data --config=FILE --workdir=DIR [--needs=TOKENS_PER_SECOND] [--out=DIR] [--quick]
    How fast this host reads the run's datasets, against what a step needs: --needs, else what the run's own training
    wrote into train/metrics.jsonl.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from absl import flags

from pixr1_jax.benchmarks import aot, estimates, feed, kernels
from pixr1_jax.core import cli_errors
from pixr1_jax.core import config as config_lib


def define_flags() -> None:
    """Defines the flags of the verb."""
    config_lib.define_flags()
    flags.DEFINE_string("out", None, "folder for the JSON file and the plot")
    flags.DEFINE_float("needs", None, "data: tokens a second that a trainer takes")
    flags.DEFINE_string("aot", None, "TPU generations to compile for without a device, such as v5e,v5p,v6e")
    flags.DEFINE_bool("quick", False, "fewer and shorter measurements")


def main(argv: Sequence[str]) -> None:
    """Runs the verb with absl's flags."""
    command = shlex.join(["pixr1", "bench", *sys.argv[1:]])
    match argv[1:]:
        case ["kernels"]:
            _kernels(command)
        case ["data"]:
            config, workdir = config_lib.flag_config(), config_lib.flag_workdir()
            feed.run(config, workdir, command, out=flags.FLAGS.out, needs=flags.FLAGS.needs, quick=flags.FLAGS.quick)
        case _:
            raise ValueError(f"pixr1 bench takes `kernels` or `data`, not {' '.join(argv[1:]) or 'nothing'}")


def _kernels(command: str) -> None:
    values = flags.FLAGS
    if values.out is None:
        raise ValueError("--out is missing; give a folder for the JSON file and the plot")
    if values.aot is None:
        kernels.run_here(values.out, command, quick=values.quick)
        return
    chips = aot.check_chips(values.aot)
    sweep = estimates.Sweep(chips)
    if values.quick:
        densities = kernels.QUICK_DENSITIES
        sweep = estimates.Sweep(chips, dims=(128,), densities=densities, tail_densities=(), peers=False)
    kernels.run_aot(sweep, values.out, command)


if __name__ == "__main__":
    define_flags()
    cli_errors.run(main)
