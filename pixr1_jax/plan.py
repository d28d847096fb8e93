"""`pixr1 plan`: what a step needs of a TPU slice, from its compiler and with no TPU.

pixr1 plan --config=FILE [--topology=v5p:4x4x4] [--num_slices=N] [--step=train|distill|stream] [--search] [--full]
           [--json=FILE]

Compiles the real step ahead of time and tells memory by what takes it, operations, collectives, and the bound that
compute, HBM and the networks set. Without --topology it is the config's `plan.topology`. --search tries every mesh
shape and recommends one. The exit status is 0 where the step fits and 3 where it does not.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

import rich.console
from absl import flags

from pixr1_jax.benchmarks import plans
from pixr1_jax.benchmarks.aot import Compiler
from pixr1_jax.core import cli_errors
from pixr1_jax.core import config as config_lib

DOES_NOT_FIT = 3


def define_flags() -> None:
    """Defines the flags of the verb."""
    config_lib.define_flags()
    flags.DEFINE_string("topology", None, "TPU slice, such as v5p:4x4x4, v6e:16x16 or v6e-256")
    flags.DEFINE_integer("num_slices", None, "slices of that topology, joined by the data centre's network")
    flags.DEFINE_string("step", "train", f"what is compiled, one of {', '.join(plans.STEPS)}")
    flags.DEFINE_bool("search", False, "try every mesh shape")
    flags.DEFINE_bool("full", False, "compile with the effort of a run, which takes many times longer")
    flags.DEFINE_string("json", None, "file for the table")


def main(argv: Sequence[str]) -> None:
    """Runs the verb with absl's flags."""
    values = flags.FLAGS
    if len(argv) > 1:
        raise ValueError(f"pixr1 plan takes no argument {argv[1]!r}; see pixr1 plan --help")
    config = config_lib.flag_config()
    asked = plans.question(config, values.topology, values.num_slices, values.step, not values.full)
    if values.search and values.step == "stream":
        raise ValueError("--search is for steps on a mesh; a stream runs on one chip")
    console = rich.console.Console()
    with Compiler(plans.TIMEOUT) as compiler:
        if values.search:
            rows = plans.search(compiler, config, asked)
            plans.show_search(rows, console)
        else:
            rows = [plans.ask(compiler, config, asked)]
    if not rows or "error" in rows[0]:
        raise ValueError("no mesh shape could be compiled" + (f": {rows[0]['error']}" if rows else ""))
    plans.show(rows[0], asked, console)
    if values.search and rows[0]["fits"]:
        sizes = " ".join(f"--config.mesh.{name}={size}" for name, size in rows[0]["mesh"].items())
        console.print(f"recommended: {sizes}", markup=False, soft_wrap=True)
    console.print(plans.NOTE)
    if values.json:
        plans.write(values.json, plans.whole(config, asked, shlex.join(["pixr1", "plan", *sys.argv[1:]]), rows))
        console.print(f"wrote {values.json}")
    if not rows[0]["fits"]:
        raise SystemExit(DOES_NOT_FIT)


if __name__ == "__main__":
    define_flags()
    cli_errors.run(main)
