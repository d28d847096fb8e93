"""The forward kernel with a directional derivative: both in one pass over the list."""

import functools

import jax
import jax.numpy as jnp

from pixr1_jax.attention.blocks import BlockLists, Tail
from pixr1_jax.attention.gpu import common
from pixr1_jax.attention.gpu.common import LOG2_E, TAIL_KEYS, Room, Sizes
from pixr1_jax.attention.transposed import query_lists


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
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """`forward` and its derivative in the direction (dq, dk, dv, d_tail).

    Args:
      q: As in `forward`, as are k, v, lists, key_valid, tail, block, scale, max_logit and interpret.
      k: [batch, heads, key_tokens, dim].
      v: [batch, heads, key_tokens, dim].
      dq: Tangent of q.
      dk: Tangent of k.
      dv: Tangent of v.
      lists: Key blocks of each tile of query blocks.
      key_valid: int32 [batch, key_blocks].
      tail: Optional pseudo-tokens.
      d_tail: Tangents of the tail's key and value; None where they are zero.
      still: So many key blocks at the beginning have tangents of zero, which are not read.
      block: Tokens in a block.
      scale: Factor on the scores.
      max_logit: Optional bound on the absolute scaled scores.
      interpret: Run the kernel in XLA, on any device.

    Returns:
      The output and its tangent, both like q.
    """
    room = Room(block, q.shape[-1])
    sizes = sizes_for(q.dtype, q.shape[-1]).fit(room)
    # All key blocks are masked: next to four products or more, a mask costs nothing. So one group may stand for both.
    reads = query_lists(lists, key_valid, block=block, still=still)
    query_blocks = q.shape[2] // block
    q, k, v, dq, dk, dv = (room.pad(x) for x in (q, k, v, dq, dk, dv))
    programs = room.tokens // sizes.own
    inputs = [(x, common.part(x, sizes.own)) for x in (q, dq)]
    inputs += [(x, common.whole(x)) for x in (k, v, dk, dv, key_valid[:, None])]
    inputs += [(x, common.row(x, programs)) for x in (reads.indices, reads.ends)]
    if tail is not None:
        tail = room.pad_tail(tail, query_blocks)
        inputs += [(tail.weight, common.row(tail.weight, programs))]
        inputs += [(x, common.whole(x)) for x in (tail.key, tail.value)]
        if d_tail is not None:
            inputs += [(x, common.whole(x)) for x in map(room.pad_pooled, d_tail)]
    shape = jax.ShapeDtypeStruct(q.shape, q.dtype)
    options = {"scale": scale, "bounded": common.is_bounded(max_logit), "still": still > 0}
    kernel = functools.partial(_kernel, room=room, sizes=sizes, **options)
    outputs = [(shape, common.part(shape, sizes.own))] * 2
    results = common.launch(
        kernel, q.shape[2] // sizes.own, inputs, outputs, sizes, name="block_list_tangent", interpret=interpret
    )
    out, d_out = (room.crop(x) for x in results)
    return out, d_out


def sizes_for(dtype, dim: int) -> Sizes:
    """How the kernel is cut, chosen so that nothing spills on Hopper."""
    if dtype == jnp.float32:
        return Sizes(own=32, step=32, warps=4, stages=1)
    return Sizes(own=128 if dim <= 128 else 64, step=64, warps=8, stages=2)


def _kernel(
    q, dq, k, v, dk, dv, valid, indices, ends, *rest, room: Room, sizes: Sizes, scale: float, bounded: bool, still: bool
):
    *tail, out, d_out = rest
    queries, d_queries = q[...], dq[...]
    parts = room.tokens // sizes.step

    def absorb(state, keys, values, moves, alive, weight=None):
        """Takes keys and values [keys, dim], and their tangents where `moves` has them, into the softmax."""
        total, acc, d_total, d_acc, peak = state
        scores = scale * LOG2_E * common.product(queries, keys, (1, 1))
        d_scores = common.product(d_queries, keys, (1, 1))
        if moves is not None:
            d_scores += common.product(queries, moves[0], (1, 1))
        scores = jnp.where(alive[None], scores, -jnp.inf)
        peak, change = common.raise_peak(peak, scores)
        weights = common.powers(scores, peak)
        if weight is not None:
            weights *= weight[None]
        d_weights = weights * (scale * d_scores)
        total = common.rescaled(total, change) + weights.sum(axis=1)
        d_total = common.rescaled(d_total, change) + d_weights.sum(axis=1)
        weights = weights.astype(values.dtype)
        acc = common.rescaled(acc, change) + common.product(weights, values, (1, 0))
        d_acc = common.rescaled(d_acc, change) + common.product(d_weights.astype(values.dtype), values, (1, 0))
        if moves is not None:
            d_acc += common.product(weights, moves[1], (1, 0))
        return total, acc, d_total, d_acc, peak

    def listed(index, at, state, moving: bool):
        limit = valid[index] - at * sizes.step
        load = lambda x: common.read(x, index * parts + at, sizes.step, limit)
        moves = (load(dk), load(dv)) if moving else None
        return absorb(state, load(k), load(v), moves, jnp.arange(sizes.step) < limit)

    zeros = lambda *shape: jnp.zeros((sizes.own, *shape), jnp.float32)
    dim = q.shape[-1]
    state = (zeros(), zeros(dim), zeros(), zeros(dim), common.no_peak(sizes.own, bounded))
    first = 0
    if still:
        first = ends[0]
        state = common.visit(indices, 0, first, parts, functools.partial(listed, moving=False), state)
    state = common.visit(indices, first, ends[1], parts, functools.partial(listed, moving=True), state)
    if tail:
        weight, pooled_key, pooled_value, *d_pooled = tail

        def pooled(i, state):
            share, keys, values, *moves = (
                common.read(x, i, TAIL_KEYS) for x in (weight, pooled_key, pooled_value, *d_pooled)
            )
            return absorb(state, keys, values, moves or None, share > 0, share)

        state = jax.lax.fori_loop(0, weight.shape[0] // TAIL_KEYS, pooled, state)
    total, acc, d_total, d_acc, _ = state
    inverse = jnp.where(total > 0, 1.0 / jnp.where(total > 0, total, 1.0), 0.0)
    mean = acc * inverse[:, None]
    out[...] = mean.astype(out.dtype)
    d_out[...] = (d_acc * inverse[:, None] - mean * (d_total * inverse)[:, None]).astype(d_out.dtype)
