"""What a Pallas kernel reads and writes in HBM, from its grid and block specs."""

import math
from typing import Any

import jax
import jax.core as core
import numpy as np


def pallas_bytes(function, *shapes: Any) -> int:
    """Returns the bytes that the Pallas calls of a function move between HBM and a core.

    A pipelined operand is moved when its block changes from one grid step to the next, so one that stays is read once
    and one that comes back is read again. A kernel that copies by itself must say how much, by
    `cost_estimate.bytes_accessed`. That counts only there: elsewhere such estimates know of no second reading.

    Args:
      function: What is compiled.
      *shapes: Its arguments, arrays or `ShapeDtypeStruct`s.

    Raises:
      ValueError: A kernel's operand stays in HBM, or its blocks depend on data, and it has no cost estimate.
    """
    return sum(_call(equation.params) for equation in _pallas_calls(jax.make_jaxpr(function)(*shapes).jaxpr))


def _pallas_calls(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation
            continue
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _pallas_calls(inner)


def _call(params: dict[str, Any]) -> int:
    try:
        return _pipelined(params)
    except ValueError:
        if params["cost_estimate"] is None:
            raise
        return params["cost_estimate"].bytes_accessed


def _pipelined(params: dict[str, Any]) -> int:
    grid_mapping = params["grid_mapping"]
    name = params.get("name") or "a kernel"
    if grid_mapping.num_index_operands:
        raise ValueError(f"{name} chooses blocks by prefetched scalars; give its pallas_call a cost_estimate")
    steps = np.indices(grid_mapping.grid).reshape(len(grid_mapping.grid), -1)
    return sum(_operand(mapping, steps, name) for mapping in grid_mapping.block_mappings)


def _operand(mapping, steps: np.ndarray, name: str) -> int:
    space = str(getattr(mapping.transformed_block_aval, "memory_space", ""))
    if space.lower() in ("any", "hbm"):
        raise ValueError(f"{name} copies from HBM by itself; give its pallas_call a cost_estimate")
    sizes = [getattr(size, "block_size", 1) for size in mapping.block_shape]
    index_map = mapping.index_map_jaxpr
    at = jax.vmap(lambda *step: core.eval_jaxpr(index_map.jaxpr, index_map.consts, *step))
    where = np.stack(np.broadcast_arrays(*at(*steps.astype(np.int32))), axis=-1)
    changes = 1 + int(np.any(where[1:] != where[:-1], axis=-1).sum())
    return changes * math.prod(sizes) * mapping.array_aval.dtype.itemsize
