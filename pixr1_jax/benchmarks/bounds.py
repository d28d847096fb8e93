"""From what a compiled step does to the least time that it can take: the roofline of compute, HBM, ICI and DCN."""

from collections.abc import Mapping
from typing import Any

from pixr1_jax.core.chips import CHIPS

GIB = 2**30


def report(facts: Mapping[str, Any], generation: str) -> dict[str, Any]:
    """What `pixr1 plan` says of one step, as numbers for JSON.

    Args:
      facts: What `planned.compile_step` returns.
      generation: Of the chips, a key of `CHIPS`.

    Returns:
      "fits", "peak_hbm_gib" (per chip; what is needed where it does not fit), "limit_hbm_gib" (of a program that does
      not fit, as the compiler has it, else of the chip), "memory_gib" by part, "flops_per_step" (useful, all chips),
      "executed_flops", and where it fits "collectives", "seconds" by resource, "bound" (the resource that takes longest
      and its seconds), "mfu_bound" and "frames_per_second_bound".
    """
    chip = CHIPS[generation]
    oom = facts.get("oom")
    memory = {name: amount / GIB for name, amount in facts["memory"].items() if amount}
    peak = oom["needed"] / GIB if oom else sum(memory.values())
    chips = 1
    for size in facts["mesh"].values():
        chips *= size
    useful = facts["flops"] or facts["executed_flops"]
    table: dict[str, Any] = {
        "fits": oom is None,
        "peak_hbm_gib": round(peak, 3),
        "limit_hbm_gib": round((oom["limit"] if oom else chip.hbm) / GIB, 3),
        "memory_gib": {name: round(amount, 4) for name, amount in memory.items()},
        "parameters": facts["parameters"],
        "chips": chips,
        "mesh": facts["mesh"],
        "frames_per_step": facts["frames"],
        "flops_per_step": useful,
        "executed_flops": facts["executed_flops"],
        "compile_seconds": facts["seconds"],
    }
    if oom:
        return table
    sent = lambda name: sum(amounts.get(name, 0.0) for amounts in facts["collectives"].values())
    seconds = {
        "compute": facts["executed_flops"] / chips / chip.peak,
        "hbm": facts["hbm_bytes"] / chip.bandwidth,
        "ici": sent("bytes") / chip.ici,
        "dcn": sent("dcn_bytes") / chip.dcn,
    }
    longest = max(seconds, key=lambda name: seconds[name])
    table |= {
        "collectives": facts["collectives"],
        "hbm_bytes": facts["hbm_bytes"],
        "kernel_calls": facts["kernels"],
        "unknown_loops": facts["unknown_loops"],
        "fused_cycles": facts["cycles"],
        "seconds": {name: float(f"{value:.4g}") for name, value in seconds.items()},
        "bound": {"by": longest, "seconds": float(f"{seconds[longest]:.4g}")},
        "mfu_bound": round(useful / (chips * chip.peak * seconds[longest]), 4),
        "frames_per_second_bound": float(f"{facts['frames'] / seconds[longest]:.4g}"),
    }
    return table
