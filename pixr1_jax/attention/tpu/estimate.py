"""Kernels in a static form, for the compiler's cycle estimates.

The estimator counts loops of unknown length as never taken, so here the key blocks of a tile follow from its number and
every loop has a constant length. Each visit does the work of the real kernel, reading its list excepted.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pixr1_jax.attention.blocks import BlockLists, Tail
from pixr1_jax.attention.tpu import backward, forward, schedule, streamed, tangent
from pixr1_jax.attention.tpu.plan import Estimate, Plan, window_count

VARIANTS = ("forward", "forward_online", "forward_streamed", "backward", "tangent", "tangent_still")
TILE_TOKENS = 512


def build(
    variant: str,
    *,
    query_blocks: int,
    key_blocks: int,
    listed: int,
    masked: int = 0,
    block: int = 128,
    dim: int = 128,
    heads: int = 1,
    tail: bool = False,
    dtype=jnp.bfloat16,
):
    """A kernel of one row and the shapes it takes.

    Args:
      variant: One of `VARIANTS`; "tangent" has all keys moving, "tangent_still" none of those listed.
      query_blocks: Query blocks, whole tiles.
      key_blocks: Key blocks.
      listed: Key blocks that each tile reads without a mask, a multiple of `schedule.GROUP`.
      masked: Key blocks that each tile reads with a mask besides.
      block: Tokens in a block.
      dim: Head dimension.
      heads: Heads.
      tail: Whether all key blocks also enter as pseudo-tokens.
      dtype: Of queries, keys and values.

    Returns:
      The function and a tuple of `jax.ShapeDtypeStruct`.
    """
    if variant not in VARIANTS:
        raise ValueError(f"kernel variant {variant!r} is unknown; use one of {VARIANTS}")
    tile = min(TILE_TOKENS // block, schedule.MAX_TILE, query_blocks)
    if query_blocks % tile or listed % schedule.GROUP or listed + masked > key_blocks:
        raise ValueError(
            f"{query_blocks} query blocks must be whole tiles of {tile}, {listed} listed blocks a multiple of "
            f"{schedule.GROUP}, and listed and masked blocks at most {key_blocks}"
        )
    shape: Any = jax.ShapeDtypeStruct
    q = shape((1, heads, query_blocks * block, dim), dtype)
    k = shape((1, heads, key_blocks * block, dim), dtype)
    row = shape((1, 1, query_blocks // tile), jnp.int32)
    entries = shape((*row.shape, max(listed + masked, schedule.GROUP)), jnp.int32)
    lists = BlockLists(entries, entries, row, row, tile)
    pooled = shape((1, heads, key_blocks, dim), dtype)
    pseudo = Tail(pooled, pooled, shape((1, 1, query_blocks, key_blocks), jnp.float32)) if tail else None
    plan = Plan.of(
        q,
        k,
        lists,
        pseudo,
        block=block,
        scale=dim**-0.5,
        max_logit=None if variant == "forward_online" else 40.0,
        bytes_a_value=_bytes_a_value(variant, dtype),
    )
    # Of several windows each is visited by every tile, which finds its share of the listed blocks there.
    steps = schedule.GROUP
    visits = Estimate(-(-listed // (plan.windows * steps)) * steps, masked)
    keys = shape((1, heads, plan.windows * plan.window_tokens, dim), dtype)
    pooled = plan.pooled_shape(dtype)
    weight = shape((1, 1, plan.tiles, plan.windows, plan.tile, plan.tail_rows), jnp.float32)
    tails = (pooled, pooled, weight) if tail else ()
    number = shape((1, heads, 1, 1, q.shape[2]), jnp.float32)
    match variant:
        case "forward" | "forward_online":
            return lambda *x: forward.call(plan, [None, *x], visits), (q, keys, keys, *tails)
        case "forward_streamed":
            return lambda *x: streamed.call(plan, [None, *x], visits), (q, keys, keys, *tails)
        case "backward":
            return lambda *x: backward.call(plan, [None, *x], visits), (q, q, number, number, keys, keys, *tails)
        case _:
            still = 0 if variant == "tangent" else max(plan.window_blocks - schedule.GROUP, 0)
            moving = shape((1, heads, keys.shape[2] - tangent.first_held(plan, still) * block, dim), dtype)
            moves = (q, moving, moving, *((pooled, pooled) if tail else ()))
            return lambda *x: tangent.call(plan, [None, *x], still, visits), (q, keys, keys, *tails, *moves)


def windows(variant: str, *, key_blocks: int, block: int = 128, dim: int = 128, dtype=jnp.bfloat16) -> int:
    """Windows of keys in which `build` has a kernel read them."""
    return window_count(key_blocks, block, dim, _bytes_a_value(variant, dtype))


def _bytes_a_value(variant: str, dtype) -> int:
    """Vector memory that a key's value takes in a kernel, with what stands beside it."""
    size = jnp.dtype(dtype).itemsize
    return {"backward": 2 * size + 8, "tangent": 8 * size, "forward_streamed": 0}.get(variant, 4 * size)
