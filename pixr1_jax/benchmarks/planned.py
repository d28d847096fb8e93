"""Compiles a step of a config for hardware that is not there, and says what it found; runs in the worker."""

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import topologies
from ml_collections import ConfigDict

from pixr1_jax.benchmarks import executed, module
from pixr1_jax.core import topology as topology_lib
from pixr1_jax.core.chips import CHIPS
from pixr1_jax.engine import plan as engine_plan
from pixr1_jax.training import plan as training_plan
from pixr1_jax.training.plan import Program

Step = Literal["train", "distill", "stream"]
# Compiles many times faster than the effort of a run.
QUICK: dict[str, Any] = {"exec_time_optimization_effort": -1.0}
_AMOUNT = r"([\d.]+)([KMGT])"
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def compile_step(config: Mapping[str, Any], topology: str, num_slices: int, step: Step, quick: bool) -> dict[str, Any]:
    """Compiles a step.

    Args:
      config: The experiment, as plain values.
      topology: A name of `pixr1_jax.core.topology`.
      num_slices: Slices of that topology.
      step: Which step; "stream" runs on one chip.
      quick: Whether the compiler should hurry.

    Returns:
      Facts of the program and what the compiler made of it, bytes and operations; "oom" instead of the compiler's where
      it needs more memory than there is.
    """
    devices = _devices(topology, num_slices)
    settings = training_plan.for_tpu(ConfigDict(dict(config)))
    if step == "stream":
        program = engine_plan.streaming(settings, devices[0])
    else:
        program = training_plan.training(settings, step, devices)
    return _facts(program, settings.tokens.block, 1 if step == "stream" else num_slices, quick)


def compile_kernels(config: Mapping[str, Any], step: Step, chips: Sequence[str]) -> dict[str, Any]:
    """Compiles each attention kernel of a step alone, for several generations.

    Args:
      config: The experiment, as plain values.
      step: Which step; on the config's mesh, of which `plan.topology` says how many chips it has.
      chips: Names of `CHIPS`.

    Returns:
      "kernels": names of the kernels found; "errors": what did not compile, by generation and name.
    """
    settings = training_plan.for_tpu(ConfigDict(dict(config)))
    devices = _devices(settings.plan.topology, settings.plan.num_slices)
    if step == "stream":
        program = engine_plan.streaming(settings, devices[0])
    else:
        program = training_plan.training(settings, step, devices)
    with jax.sharding.use_abstract_mesh(program.mesh.abstract_mesh):
        calls = {
            executed.kernel_name(call): call
            for call in executed.kernels(program.function.trace(*program.arguments).jaxpr)
        }
    errors = {}
    for chip in chips:
        mesh = jax.sharding.Mesh(np.array(_devices(CHIPS[chip].topology, 1)[:1]), ("device",))
        here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        for name, call in calls.items():
            if (chip, name) in _COMPILED:
                continue
            shapes = [
                jax.ShapeDtypeStruct(variable.aval.shape, variable.aval.dtype, sharding=here)
                for variable in call.invars
            ]
            run = jax.jit(lambda *arrays, call=call: call.primitive.bind(*arrays, **call.params))
            try:
                with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                    run.lower(*shapes).compile(compiler_options=QUICK)
                _COMPILED.add((chip, name))
            except Exception as error:
                errors[f"{chip} {name}"] = str(error).strip()[:600]
    return {"kernels": sorted(calls), "errors": errors}


_COMPILED: set[tuple[str, str]] = set()  # what is the same in two configs is compiled once


def _devices(name: str, num_slices: int) -> Sequence[Any]:
    wanted = topology_lib.parse(name)
    # libtpu knows no slice of less than a host.
    whole = CHIPS[wanted.generation].topology if wanted.chips == 1 else wanted.name
    more = {"num_slices": num_slices} if num_slices > 1 else {}
    found = topologies.get_topology_desc(platform="tpu", topology_name=whole, **more).devices
    return found[:1] if wanted.chips == 1 else found


def _facts(program: Program, block: int, slices: int, quick: bool) -> dict[str, Any]:
    began = time.monotonic()
    # Some kernels ask for the chip while they are traced, and find it through this mesh.
    with jax.sharding.use_abstract_mesh(program.mesh.abstract_mesh):
        traced = program.function.trace(*program.arguments)
        lowered = traced.lower()
    facts: dict[str, Any] = {
        "parameters": program.parameters,
        "memory": dict(program.parts),
        "flops": program.flops,
        "executed_flops": executed.executed_flops(traced.jaxpr, program.reads, block),
        "frames": program.frames,
        "mesh": dict(zip(program.mesh.axis_names, program.mesh.devices.shape, strict=True)),
    }
    try:
        compiled = lowered.compile(compiler_options=QUICK if quick else None)
    except jax.errors.JaxRuntimeError as error:
        facts["oom"] = out_of_memory(str(error), sum(program.parts.values()))
        if facts["oom"] is None:
            raise
        return facts | {"seconds": round(time.monotonic() - began, 1)}
    memory = compiled.memory_analysis()
    assert memory is not None
    named = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    facts["memory"] |= {
        "other arguments and results": max(named - sum(program.parts.values()), 0),
        # Of what lives at one time: `temp_size_in_bytes` came out above the memory of a chip that the program fitted.
        "temporaries": max(memory.peak_memory_in_bytes - named, 0),
        "program": memory.generated_code_size_in_bytes,
    }
    work = module.work(compiled.as_text() or "", program.mesh.size, slices)
    facts |= {
        "collectives": {kind: dict(amounts) for kind, amounts in work.collectives.items()},
        "hbm_bytes": work.hbm,
        "cycles": None if quick else work.cycles,
        "kernels": work.kernels,
        "unknown_loops": work.unknown_loops,
        "seconds": round(time.monotonic() - began, 1),
    }
    return facts


def out_of_memory(message: str, held: int) -> dict[str, float] | None:
    """Bytes needed and there, if a compiler's message says that memory does not suffice; else None.

    Args:
      message: Of the error.
      held: Bytes of the arguments, which one of the two messages leaves out.
    """
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    bytes_of = lambda found: float(found[0]) * _UNITS[found[1]]
    used = re.search(rf"Used {_AMOUNT} of {_AMOUNT} hbm", message)
    if used:
        return {"needed": bytes_of(used.groups()[:2]), "limit": bytes_of(used.groups()[2:])}
    temporaries = re.search(rf"temporaries \({_AMOUNT}\) exceeds available HBM \({_AMOUNT}\)", message)
    if temporaries:
        return {"needed": held + bytes_of(temporaries.groups()[:2]), "limit": bytes_of(temporaries.groups()[2:])}
    return None
