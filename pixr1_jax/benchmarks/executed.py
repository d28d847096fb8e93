"""Operations that a traced program executes, recomputation included: its products, and kernels by what they read."""

import math
from collections.abc import Callable, Mapping
from typing import Any


def executed_flops(jaxpr: Any, reads: Mapping[tuple[int, int], float], block: int) -> float:
    """Operations of one call, over all devices.

    Matrix products count two operations a multiply-add; loops of known length count as often as they run, of a branch
    the dearest side. An attention kernel counts its products over the key blocks that are read, not those that its
    lists have room for.

    Args:
      jaxpr: A closed jaxpr.
      reads: Mean key blocks that a query block reads, by the query and key blocks of the pass. A pass over parts of
        them reads in proportion.
      block: Tokens in a block.
    """
    return _flops(jaxpr.jaxpr, lambda params, avals: _kernel(params, avals, reads, block))


def _flops(jaxpr: Any, kernel: Callable[[dict[str, Any], list[Any]], float]) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        avals = [variable.aval for variable in equation.invars]
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            depth = math.prod(avals[0].shape[axis] for axis in contracted)
            total += 2.0 * depth * math.prod(equation.outvars[0].aval.shape)
        elif name == "pallas_call":
            total += kernel(params, avals)
        elif name == "scan":
            total += params["length"] * _flops(params["jaxpr"].jaxpr, kernel)
        elif name == "cond":
            total += max(_flops(branch.jaxpr, kernel) for branch in params["branches"])
        elif name == "shard_map":
            total += params["mesh"].size * _flops(params["jaxpr"], kernel)
        else:
            total += sum(_flops(inner, kernel) for inner in _inner(params))
    return total


def _inner(params: Mapping[str, Any]):
    """The jaxprs of a call; of a rule for derivatives only the function itself."""
    for name, value in params.items():
        if name in ("jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd", "transpose", "cost_estimate", "grid_mapping"):
            continue
        for inner in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield inner


def _kernel(params: dict[str, Any], avals: list[Any], reads: Mapping[tuple[int, int], float], block: int) -> float:
    estimate = params["cost_estimate"]
    if estimate is None or not estimate.transcendentals:
        return 0.0
    heads_first = [aval.shape for aval in avals if len(aval.shape) == 4]
    batch, heads, queries, dim = heads_first[0]
    keys = max(shape[2] for shape in heads_first)
    products = estimate.flops / (2.0 * estimate.transcendentals * dim)
    found = reads.get((queries // block, keys // block))
    if found is None:
        (_, all_keys), most = max(reads.items(), key=lambda item: item[0])
        found = most * (keys // block) / all_keys
    return 2.0 * products * batch * heads * queries * found * block * dim


def kernels(jaxpr: Any) -> list[Any]:
    """The calls of Pallas kernels in a closed jaxpr that are compiled, not interpreted."""
    found = []

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "pallas_call":
                found.extend([equation] * (not equation.params["interpret"]))
                continue
            for value in equation.params.values():
                for inner in value if isinstance(value, tuple | list) else (value,):
                    inner = getattr(inner, "jaxpr", inner)
                    if hasattr(inner, "eqns"):
                        walk(inner)

    walk(jaxpr.jaxpr)
    return found


def kernel_name(call: Any) -> str:
    """Names a kernel's program: its blocks, and whether heads share lists; rows and heads only lengthen its grid."""
    lists, *others = [variable.aval for variable in (*call.invars, *call.outvars)]
    shapes = [f"{aval.dtype}{list(aval.shape[2:])}" for aval in (lists, *others)]
    shared = "shared lists" if lists.shape[1] == 1 else "lists of each head"
    return f"{call.params.get('name') or 'kernel'} with {shared}: {', '.join(shapes)}"
