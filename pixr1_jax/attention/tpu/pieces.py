"""The small pieces of a visit, inside a kernel."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pixr1_jax.attention.tpu import schedule
from pixr1_jax.attention.tpu.plan import Estimate, Plan
from pixr1_jax.attention.tpu.schedule import Entry

LN2 = math.log(2.0)
LOWEST = -1e30  # below every score, and finite so that differences are


def each_tile(plan: Plan, visit: Callable[[jax.Array, Any], None], estimate: Estimate | None) -> None:
    """Calls `visit` with the number of each tile of this step, and the slice of its queries in the step."""

    def one(tile, _):
        visit(tile, pl.ds(pl.multiple_of(tile * plan.tile_tokens, plan.tile_tokens), plan.tile_tokens))

    # The compiler's estimator fails on some loops within loops.
    jax.lax.fori_loop(0, plan.step, one, None, unroll=estimate is not None)


def schedule_of(plan: Plan, list_ref, tile: jax.Array, estimate: Estimate | None) -> schedule.Schedule:
    """The walk of a tile of this step."""
    if estimate is None:
        return schedule.Listed(list_ref, tile)
    tile += pl.program_id(3) * plan.step
    return schedule.Arithmetic(tile, estimate.whole, estimate.masked, plan.window_blocks, plan.tile, plan.block)


def dot(a: jax.Array, b: jax.Array, over_a: int, over_b: int) -> jax.Array:
    """Product over one axis of each, float32; operands in float32 are not rounded."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dimensions = (((over_a,), (over_b,)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def fetch(ref, entries: Sequence[Entry], block: int, first: int = 0) -> jax.Array:
    """Rows of the entries' blocks, [len(entries) * block, dim]; `ref` begins at block `first`."""
    rows = [
        ref[block_rows(jnp.maximum(entry.index - first, 0) if first else entry.index, block), :] for entry in entries
    ]
    return jnp.concatenate(rows, axis=0)


def block_rows(index: jax.Array, block: int):
    """The rows of a block."""
    return pl.ds(pl.multiple_of(index * block, block), block)


def clear_padding(x: jax.Array, entries: Sequence[Entry], block: int) -> jax.Array:
    """Zeros in rows that are not valid or read by nobody: they may hold anything, NaN included."""
    return keep_rows(x, [jnp.where(entry.seen > 0, entry.valid, 0) for entry in entries], block)


def keep_rows(x: jax.Array, counts: Sequence[jax.Array], block: int) -> jax.Array:
    """Zeros in all but the first rows of each block, as many as its count."""
    row = jax.lax.broadcasted_iota(jnp.int32, (block, 1), 0)
    # Selected in float32: v5e has no vectors of bfloat16.
    blocks = [x[i * block : (i + 1) * block].astype(jnp.float32) for i in range(len(counts))]
    kept = [jnp.where(row < count, rows, 0.0) for count, rows in zip(counts, blocks, strict=True)]
    return jnp.concatenate(kept, axis=0).astype(x.dtype)


def mask(entries: Sequence[Entry], plan: Plan) -> jax.Array:
    """Who reads which row of a visit: float32 [keys, queries], ones and zeros."""
    row = jax.lax.broadcasted_iota(jnp.int32, (plan.block, 1), 0)
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, plan.tile_tokens), 1)
    query_block = sum((lane >= i * plan.block).astype(jnp.int32) for i in range(1, plan.tile)) + jnp.zeros_like(lane)
    parts = []
    for entry in entries:
        alive = (row < entry.valid).astype(jnp.float32)
        reads = ((entry.seen >> query_block) & 1).astype(jnp.float32)
        parts.append(alive * reads)
    return jnp.concatenate(parts, axis=0)


def partial_sum(x: jax.Array) -> jax.Array:
    """Sums rows down to the 8 of a vector register, [8, queries]."""
    return x.reshape(x.shape[0] // 8, 8, x.shape[1]).sum(axis=0)


def tail_slices(plan: Plan) -> list[slice]:
    """Rows of pseudo-tokens, a visit's worth at a time."""
    step = 1024
    return [slice(first, min(first + step, plan.tail_rows)) for first in range(0, plan.tail_rows, step)]


def tail_weight(ref, tile: jax.Array, rows: slice, plan: Plan) -> jax.Array:
    """Weights of pseudo-tokens for every query of a tile, float32 [rows, queries]."""
    by_block = ref[tile, :, rows].T  # [rows, tile]
    parts = [jnp.broadcast_to(by_block[:, i : i + 1], (by_block.shape[0], plan.block)) for i in range(plan.tile)]
    return jnp.concatenate(parts, axis=1)
