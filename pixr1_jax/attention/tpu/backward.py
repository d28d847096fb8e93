"""Backward pass on TPU in one sweep: gradients of queries by tile, of keys and values summed in vector memory.

The grid of a TPU runs in order, so the gradients of a window's keys and values can be added to as the tiles pass by: no
transposed lists, no atomics, and the scores are computed once.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pixr1_jax.attention.blocks import BlockLists, Tail
from pixr1_jax.attention.tpu import pieces, schedule, windows
from pixr1_jax.attention.tpu.plan import Estimate, Plan, pallas_call

WIDE = 8


def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lists: BlockLists,
    key_valid: jax.Array,
    tail: Tail | None,
    out: jax.Array,
    lse: jax.Array,
    d_out: jax.Array,
    *,
    block: int,
    scale: float,
    max_logit: float | None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array | None]:
    """Gradients of `forward`.

    Args:
      q: As in `forward`, and so on up to `tail`.
      k: See `q`.
      v: See `q`.
      lists: See `q`.
      key_valid: See `q`.
      tail: See `q`.
      out: Output of `forward`.
      lse: As given by `forward`.
      d_out: Gradient of `out`.
      block: As in `forward`, and so on.
      scale: See `block`.
      max_logit: See `block`.

    Returns:
      Gradients of q, k, v, and of the tail's keys and values or None, in their dtypes.
    """
    size = k.dtype.itemsize
    sizes = {"block": block, "scale": scale, "max_logit": max_logit}
    # Keys and values once, and both gradients in float32.
    plan = Plan.of(q, k, lists, tail, bytes_a_value=2 * size + 8, **sizes)
    read = jnp.isfinite(lse)
    d_out = d_out.astype(jnp.float32)
    if plan.online:
        shift = jnp.where(read, lse / pieces.LN2, -pieces.LOWEST)
    else:
        # The kernel's exponentials are not divided by the denominator; what they are multiplied with is.
        d_out *= jnp.where(read, jnp.exp(-lse), 0.0)[..., None]
        shift = jnp.zeros_like(lse)
    d_out = d_out.astype(q.dtype)
    delta = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1)
    rows = [x[:, :, None, None] for x in (delta, shift)]
    packed, q_, *rest = windows.operands(plan, q, k, v, lists, key_valid, tail)
    dq, dk, dv, *d_tail = call(plan, [packed, q_, d_out, *rows, *rest])
    dq = dq.sum(axis=2).astype(q.dtype)
    dk, dv = (x[:, :, : k.shape[2]].astype(k.dtype) for x in (dk, dv))
    if tail is None:
        return dq, dk, dv, None, None
    d_tail_key, d_tail_value = (windows.unpooled(plan, x).astype(tail.key.dtype) for x in d_tail)
    return dq, dk, dv, d_tail_key, d_tail_value


def call(plan: Plan, operands: Sequence[Any], estimate: Estimate | None = None):
    """The kernel over all tiles and windows."""
    keys = jax.ShapeDtypeStruct((plan.batch, plan.heads, plan.windows * plan.window_tokens, plan.dim), jnp.float32)
    pooled = plan.pooled_shape(jnp.float32)
    partial_dtype = plan.dtype if plan.windows == 1 else jnp.float32
    tail = 2 if plan.tail_rows else 0
    in_specs = [plan.list_spec(), plan.query_spec(), plan.query_spec(), plan.row_spec_of_row(), plan.row_spec_of_row()]
    return pallas_call(
        plan,
        _kernel,
        estimate=estimate,
        in_specs=[*in_specs, plan.key_spec(once=True), plan.key_spec(once=True), *plan.tail_specs()],
        out_specs=[
            plan.partial_spec(),
            plan.key_spec(once=True),
            plan.key_spec(once=True),
            *[plan.pooled_spec()] * tail,
        ],
        out_shape=[plan.partial_shape(partial_dtype), keys, keys, *[pooled] * tail],
        products=5,
    )(*operands)


def _kernel(list_ref, q_ref, d_out_ref, delta_ref, shift_ref, k_ref, v_ref, *refs, plan: Plan, estimate):
    tail_refs, (dq_ref, dk_ref, dv_ref, *d_tail_refs) = (refs[:3], refs[3:]) if plan.tail_rows else ((), refs)

    @pl.when(pl.program_id(3) == 0)
    def _():
        for ref in (dk_ref, dv_ref, *d_tail_refs):
            ref[...] = jnp.zeros_like(ref)

    def attend(tile, here):
        rows_of = (q_ref[here, :], d_out_ref[here, :], delta_ref[:, here], shift_ref[:, here])
        add = functools.partial(_add, plan, *rows_of)

        def visit(carry, entries, masked):
            k, v = (pieces.fetch(ref, entries, plan.block) for ref in (k_ref, v_ref))
            mask = None
            if masked:
                k, v = (pieces.clear_padding(x, entries, plan.block) for x in (k, v))
                mask = pieces.mask(entries, plan)
            dq, dk, dv = add(carry[0], k, v, mask)
            for i, entry in enumerate(entries):
                part, rows = slice(i * plan.block, (i + 1) * plan.block), pieces.block_rows(entry.index, plan.block)
                dk_ref[rows, :] += dk[part]
                dv_ref[rows, :] += dv[part]
            return (dq,)

        dq = jnp.zeros((plan.dim, plan.tile_tokens), jnp.float32)
        if tail_refs:
            key_ref, value_ref, weight_ref = tail_refs
            for rows in pieces.tail_slices(plan):
                weight = pieces.tail_weight(weight_ref, tile, rows, plan)
                dq, dk, dv = add(dq, key_ref[rows, :], value_ref[rows, :], weight)
                d_tail_refs[0][rows, :] += dk
                d_tail_refs[1][rows, :] += dv
        (dq,) = schedule.walk(pieces.schedule_of(plan, list_ref, tile, estimate), (dq,), visit, WIDE)
        dq_ref[here, :] = (plan.scale * dq).T.astype(dq_ref.dtype)

    pieces.each_tile(plan, attend, estimate)


def _add(plan, q, d_out, delta, shift, dq, k, v, weight):
    """Adds the part of key rows [keys, dim] to the queries' gradient; returns theirs and the values' gradient too."""
    scores = pieces.dot(k, q, 1, 1) * (plan.scale / pieces.LN2)
    if plan.online:
        scores -= shift
    p = jnp.exp2(scores)
    if weight is not None:
        p *= weight
    dv = pieces.dot(p.astype(v.dtype), d_out, 1, 0)
    d_scores = (p * (pieces.dot(v, d_out, 1, 1) - delta)).astype(k.dtype)
    dk = plan.scale * pieces.dot(d_scores, q, 1, 0)
    return dq + pieces.dot(k, d_scores, 0, 0), dk, dv
