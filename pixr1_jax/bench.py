"""`pixr1 bench kernels`: what attention costs, estimated for TPUs by their compiler or timed on this device.

pixr1 bench kernels --out=DIR [--aot=v5e,v5p,v6e] [--quick]
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from absl import flags

from pixr1_jax.benchmarks import aot, estimates, kernels
from pixr1_jax.core import cli_errors


def define_flags() -> None:
    """Defines the flags of the verb."""
    flags.DEFINE_string("out", None, "folder for the JSON file and the plot", required=True)
    flags.DEFINE_string("aot", None, "TPU generations to compile for without a device, such as v5e,v5p,v6e")
    flags.DEFINE_bool("quick", False, "fewer densities, one head dimension, no dense peers under --aot")


def main(argv: Sequence[str]) -> None:
    """Runs the verb with absl's flags."""
    if argv[1:] != ["kernels"]:
        raise ValueError(f"pixr1 bench takes `kernels`, not {' '.join(argv[1:]) or 'nothing'}")
    values = flags.FLAGS
    command = shlex.join(["pixr1", "bench", *sys.argv[1:]])
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
