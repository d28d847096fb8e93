"""Forward pass on TPU over keys that stay in vector memory, and the choice between that and fetching them."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pixr1_jax.attention.blocks import BlockLists, Tail
from pixr1_jax.attention.tpu import pieces, schedule, softmax, streamed, windows
from pixr1_jax.attention.tpu.plan import Estimate, Plan, pallas_call

WIDE = schedule.MOST
# A block fetched by a tile of its own costs about this much more than its share of a window that all tiles read.
_STREAMED = 2


def forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lists: BlockLists,
    key_valid: jax.Array,
    tail: Tail | None,
    *,
    block: int,
    scale: float,
    max_logit: float | None,
) -> tuple[jax.Array, jax.Array]:
    """Attention over block lists.

    Args:
      q: [batch, heads, query_tokens, dim], whole tiles.
      k: [batch, heads, key_tokens, dim].
      v: [batch, heads, key_tokens, dim].
      lists: Key blocks of each tile.
      key_valid: int32 [batch, key_blocks].
      tail: Optional pseudo-tokens, key and value [batch, heads, key_blocks, dim].
      block: Tokens in a block.
      scale: Factor on the scores.
      max_logit: Bound on the absolute scores, or None where there is none.

    Returns:
      Output as `q`, and the logarithm of the softmax's denominator, float32 [batch, heads, query_tokens], -inf where
      nothing is read.
    """
    sizes = {"block": block, "scale": scale, "max_logit": max_logit}
    tiles, most = lists.indices.shape[2:]
    if _STREAMED * tiles * most < key_valid.shape[1]:
        plan = Plan.of(q, k, lists, tail, bytes_a_value=0, **sizes)
        kernel = streamed.call
    else:
        # Keys and values, each twice, so that the next head's arrive while this one's are read.
        plan = Plan.of(q, k, lists, tail, bytes_a_value=4 * k.dtype.itemsize, **sizes)
        kernel = call
    out, lse = kernel(plan, windows.operands(plan, q, k, v, lists, key_valid, tail))
    return windows.merge(out, lse, q.dtype)


def call(plan: Plan, operands: Sequence[Any], estimate: Estimate | None = None):
    """The kernel over all tiles and windows: outputs [batch, heads, windows, ...] to be merged."""
    partial_dtype = plan.dtype if plan.windows == 1 else jnp.float32
    return pallas_call(
        plan,
        _kernel,
        estimate=estimate,
        in_specs=[plan.list_spec(), plan.query_spec(), plan.key_spec(), plan.key_spec(), *plan.tail_specs()],
        out_specs=[plan.partial_spec(), plan.row_spec()],
        out_shape=[plan.partial_shape(partial_dtype), plan.row_shape()],
        products=2,
    )(*operands)


def _kernel(list_ref, q_ref, k_ref, v_ref, *refs, plan: Plan, estimate: Estimate | None):
    *tail_refs, out_ref, lse_ref = refs

    def attend(tile, here):
        add = functools.partial(softmax.add, plan, q_ref[here, :])

        def visit(carry, entries, masked):
            k, v = (pieces.fetch(ref, entries, plan.block) for ref in (k_ref, v_ref))
            mask = None
            if masked:
                k, v = (pieces.clear_padding(x, entries, plan.block) for x in (k, v))
                mask = pieces.mask(entries, plan)
            return add(carry, k, v, mask)

        carry = softmax.add_tail(plan, add, softmax.empty(plan), tail_refs, tile)
        carry = schedule.walk(pieces.schedule_of(plan, list_ref, tile, estimate), carry, visit, WIDE)
        out, lse_ref[:, here] = softmax.finish(plan, carry)
        out_ref[here, :] = out.astype(out_ref.dtype)

    pieces.each_tile(plan, attend, estimate)
