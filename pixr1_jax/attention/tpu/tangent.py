"""Forward pass with its directional derivative in one sweep, as flow-map training and its time derivative need it.

Key blocks at the front of a row often stand still (a clean context): there the derivative costs as much again as the
output, two products more, and elsewhere four.
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


def tangent(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    dq: jax.Array,
    dk: jax.Array,
    dv: jax.Array,
    lists: BlockLists,
    key_valid: jax.Array,
    tail: Tail | None,
    d_tail: tuple[jax.Array, jax.Array] | None,
    still: int,
    *,
    block: int,
    scale: float,
    max_logit: float | None,
) -> tuple[jax.Array, jax.Array]:
    """Output of `forward` and its derivative along a direction.

    Args:
      q: As in `forward`, and so on up to `v`.
      k: See `q`.
      v: See `q`.
      dq: Direction of `q`.
      dk: Direction of `k`.
      dv: Direction of `v`.
      lists: As in `forward`, and so on up to `tail`.
      key_valid: See `lists`.
      tail: See `lists`.
      d_tail: Directions of the tail's keys and values.
      still: Key blocks at the front whose directions are zero.
      block: As in `forward`, and so on.
      scale: See `block`.
      max_logit: See `block`.

    Returns:
      Output and derivative, in the dtype of `q`.
    """
    sizes = {"block": block, "scale": scale, "max_logit": max_logit}
    key_blocks = k.shape[2] // block
    # Directions are held only where keys move, but of several windows each holds all of its own.
    size = k.dtype.itemsize
    held = 4 * size * (2 * key_blocks - still) // key_blocks
    plan = Plan.of(q, k, lists, tail, bytes_a_value=held, **sizes)
    if plan.windows > 1:
        plan = Plan.of(q, k, lists, tail, bytes_a_value=8 * size, **sizes)
    operands = windows.operands(plan, q, k, v, lists, key_valid, tail)
    directions = [dq, *(windows.padded_keys(plan, x)[:, :, first_held(plan, still) * block :] for x in (dk, dv))]
    if tail is not None:
        assert d_tail is not None, "a tail moves with its keys"
        directions += [windows.pooled_rows(plan, x) for x in d_tail]
    out, d_out, lse, d_lse = call(plan, operands + directions, still)
    lse, d_lse = lse[:, :, :, 0], d_lse[:, :, :, 0]
    if plan.windows == 1:
        return out[:, :, 0], d_out[:, :, 0]
    share = windows.shares(lse, jax.nn.logsumexp(lse, axis=2))
    # The share of a window moves by how much faster its denominator grows than all of them.
    d_share = share * (d_lse - (share * d_lse).sum(axis=2, keepdims=True))
    d_out = (d_out * share[..., None] + out * d_share[..., None]).sum(axis=2)
    return (out * share[..., None]).sum(axis=2).astype(q.dtype), d_out.astype(q.dtype)


def call(plan: Plan, operands: Sequence[Any], still: int, estimate: Estimate | None = None):
    """The kernel over all tiles and windows."""
    partial_dtype = plan.dtype if plan.windows == 1 else jnp.float32
    moving = plan.key_spec(first=first_held(plan, still))
    tail = 2 if plan.tail_rows else 0
    return pallas_call(
        plan,
        functools.partial(_kernel, still=still),
        estimate=estimate,
        in_specs=[
            plan.list_spec(),
            plan.query_spec(),
            plan.key_spec(),
            plan.key_spec(),
            *plan.tail_specs(),
            plan.query_spec(),
            moving,
            moving,
            *[plan.pooled_spec()] * tail,
        ],
        out_specs=[plan.partial_spec(), plan.partial_spec(), plan.row_spec(), plan.row_spec()],
        out_shape=[plan.partial_shape(partial_dtype)] * 2 + [plan.row_shape()] * 2,
        products=6,
    )(*operands)


def _kernel(list_ref, q_ref, k_ref, v_ref, *refs, plan: Plan, still: int, estimate):
    tail_refs, refs = (refs[:3], refs[3:]) if plan.tail_rows else ((), refs)
    dq_ref, dk_ref, dv_ref, *refs = refs
    d_tail_refs, (out_ref, d_out_ref, lse_ref, d_lse_ref) = refs[:-4], refs[-4:]
    first, all_move = first_held(plan, still), still == 0
    # Counted from the window's first block.
    moving_from = still - pl.program_id(2) * plan.window_blocks if plan.windows > 1 else still

    def attend(tile, here):
        add = functools.partial(_add, plan, q_ref[here, :], dq_ref[here, :])

        def moved(carry, entries, k, v, mask):
            dk, dv = (pieces.fetch(ref, entries, plan.block, first) for ref in (dk_ref, dv_ref))
            if mask is not None or not all_move:
                # Entries that nobody reads name block 0, which may hold anything.
                counts = [
                    jnp.where((entry.seen > 0) & (entry.index >= moving_from), entry.valid, 0) for entry in entries
                ]
                dk, dv = (pieces.keep_rows(x, counts, plan.block) for x in (dk, dv))
            return add(carry, k, v, dk, dv, mask)

        def visit(carry, entries, masked):
            k, v = (pieces.fetch(ref, entries, plan.block) for ref in (k_ref, v_ref))
            mask = None
            if masked:
                k, v = (pieces.clear_padding(x, entries, plan.block) for x in (k, v))
                mask = pieces.mask(entries, plan)
            if all_move:
                return moved(carry, entries, k, v, mask)
            if estimate is not None:
                return add(carry, k, v, None, None, mask)
            last = functools.reduce(jnp.maximum, [entry.index for entry in entries])
            return jax.lax.cond(
                last >= moving_from,
                lambda carry: moved(carry, entries, k, v, mask),
                lambda carry: add(carry, k, v, None, None, mask),
                carry,
            )

        queries = plan.tile_tokens
        wide, narrow = jnp.zeros((plan.dim, queries), jnp.float32), jnp.zeros((8, queries), jnp.float32)
        carry = (wide, narrow, wide, narrow)
        if plan.online:
            carry = (*carry, jnp.full((1, queries), pieces.LOWEST, jnp.float32))
        if tail_refs:
            key_ref, value_ref, weight_ref = tail_refs
            for rows in pieces.tail_slices(plan):
                k, v, dk, dv = (ref[rows, :] for ref in (key_ref, value_ref, *d_tail_refs))
                carry = add(carry, k, v, dk, dv, pieces.tail_weight(weight_ref, tile, rows, plan))
        steps = pieces.schedule_of(plan, list_ref, tile, estimate)
        out, total, d_out, d_total, *peak = schedule.walk(steps, carry, visit, WIDE)

        total, d_total = (x.sum(axis=0, keepdims=True) for x in (total, d_total))
        inverse = jnp.where(total > 0, 1.0 / total, 0.0)
        out, d_lse = out * inverse, d_total * inverse
        out_ref[here, :] = out.T.astype(out_ref.dtype)
        d_out_ref[here, :] = (d_out * inverse - out * d_lse).T.astype(d_out_ref.dtype)
        lse = jnp.log(total)
        lse_ref[:, here] = lse + pieces.LN2 * peak[0] if plan.online else lse
        d_lse_ref[:, here] = d_lse

    pieces.each_tile(plan, attend, estimate)


def first_held(plan: Plan, still: int) -> int:
    """The first key block whose direction is held in vector memory: one at least, and of several windows all."""
    return min(still, plan.window_blocks - 1) if plan.windows == 1 else 0


def _add(plan, q, dq, carry, k, v, dk, dv, weight):
    """Adds key rows to the sums of outputs and of their derivatives; `dk` and `dv` are None where nothing moves."""
    out, total, d_out, d_total, *peak = carry
    scores = pieces.dot(k, q, 1, 1) * (plan.scale / pieces.LN2)  # base-2 logits, [keys, queries]
    d_scores = pieces.dot(k, dq, 1, 1)
    if dk is not None:
        d_scores += pieces.dot(dk, q, 1, 1)
    if plan.online:
        if weight is not None:
            scores = jnp.where(weight > 0, scores, pieces.LOWEST)
        higher = jnp.maximum(peak[0], scores.max(axis=0, keepdims=True))
        shrink = jnp.exp2(peak[0] - higher)
        out, total, d_out, d_total = (x * shrink for x in (out, total, d_out, d_total))
        peak = [higher]
        scores -= higher
    p = jnp.exp2(scores)
    if weight is not None:
        p *= weight
    dp = p * (plan.scale * d_scores)
    low = p.astype(v.dtype)
    out += pieces.dot(v, low, 0, 0)
    total += pieces.partial_sum(p)
    d_out += pieces.dot(v, dp.astype(v.dtype), 0, 0)
    d_total += pieces.partial_sum(dp)
    if dv is not None:
        d_out += pieces.dot(dv, low, 0, 0)
    return (out, total, d_out, d_total, *peak)
