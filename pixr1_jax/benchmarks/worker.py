"""The process that compiles for a TPU that is not there; started by `pixr1_jax.benchmarks.aot` and talked to by lines.

The compiler's profiler must be switched on before libtpu loads, changes what is compiled, and ends the process on some
programs. So it never runs in the process that asks. A request and its answer are one line of JSON each.
"""

import json
import os
import pkgutil
import sys
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pixr1_jax.benchmarks import hlo, planned, traffic
from pixr1_jax.core.chips import CHIPS


def main() -> None:
    """Answers requests until standard input ends."""
    # libtpu writes to standard output at times, so the answers get a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            request = json.loads(line)
            answer = _TASKS[request.pop("task")](**request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {str(error).strip()[:600]}"}
        print(json.dumps(answer), file=answers, flush=True)


def compile_one(chip: str, build: str, arguments: dict[str, Any], cost: bool) -> dict[str, Any]:
    """Compiles one program for one chip.

    Args:
      chip: A name of `CHIPS`.
      build: "module:function"; called with `arguments`, it returns a function and its arguments' shapes.
      arguments: See above.
      cost: Whether to read the costs; without it the answer says only that it compiled.

    Returns:
      "temporary" (bytes of HBM beside arguments and results); with `cost` also "cycles", "hbm" and "vmem" (bytes),
      and "uncounted", the operations without an estimate that may take time.
    """
    topology = topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[chip].topology)
    mesh = Mesh(np.array(topology.devices[:1]), ("device",))
    sharding = NamedSharding(mesh, PartitionSpec())
    # Some kernels ask for the chip while they are traced, and find it through this mesh.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        function, shapes = pkgutil.resolve_name(build)(**arguments)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tuple(shapes))
        compiled = jax.jit(function).lower(*shapes).compile()
        moved = traffic.pallas_bytes(function, *shapes) if cost else 0
    memory = compiled.memory_analysis()
    answer: dict[str, Any] = {"temporary": memory.temp_size_in_bytes if memory is not None else 0}
    if not cost:
        return answer
    operations = hlo.operations(compiled.as_text() or "")
    kernels = [operation for operation in operations if operation.kind == "pallas"]
    blank = [operation.name for operation in kernels if not operation.cycles]
    if blank:
        raise ValueError(f"the compiler gives no cycles for {', '.join(blank)}")
    answer["cycles"] = sum(operation.cycles or 0 for operation in operations)
    answer["vmem"] = max((operation.vmem for operation in operations), default=0)
    answer["hbm"] = moved + sum(operation.hbm for operation in operations if operation.kind != "pallas")
    beside = ("copy-start", "slice-start", "pallas")
    answer["uncounted"] = [x.name for x in operations if x.cycles is None and x.kind not in beside]
    return answer


_TASKS = {"program": compile_one, "step": planned.compile_step, "kernels": planned.compile_kernels}

if __name__ == "__main__":
    main()
