"""The forward kernel with a directional derivative: both in one pass over the list.

Beyond a head of 128 the sums of both do not fit in registers. Then the forward kernel runs first, and a second pass
knows the softmax's denominators; that costs seven products a step instead of six.
"""

import functools

import jax
import jax.numpy as jnp

from pixr1_jax.attention.blocks import BlockLists, Tail
from pixr1_jax.attention.gpu import common
from pixr1_jax.attention.gpu.common import LOG2_E, Room, Sizes
from pixr1_jax.attention.gpu.forward import forward
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
    reads = query_lists(lists, key_valid, block=block, still=still)
    own = [room.pad(x) for x in (q, dq)]
    kernel = functools.partial(_one_pass, bounded=max_logit is not None)
    shape = jax.ShapeDtypeStruct(own[0].shape, q.dtype)
    shapes = [shape, shape]
    known = None
    if q.shape[-1] > 128:
        options = {"block": block, "scale": scale, "max_logit": max_logit, "interpret": interpret}
        known, lse = forward(q, k, v, lists, key_valid, tail, **options)
        own += [room.pad(x) for x in (known, jnp.where(jnp.isfinite(lse), lse * LOG2_E, 0.0))]
        kernel, shapes = _second_pass, [shape]
    programs = room.tokens // sizes.own
    inputs = [(x, common.part(x, sizes.own)) for x in own]
    inputs += [(x, common.whole(x)) for x in (*(room.pad(x) for x in (k, v, dk, dv)), key_valid[:, None])]
    inputs += [(x, common.row(x, programs)) for x in (reads.indices, reads.ends)]
    if tail is not None:
        tail = room.pad_tail(tail, q.shape[2] // block)
        inputs += [(tail.weight, common.row(tail.weight, programs))]
        pooled = (tail.key, tail.value, *map(room.pad_pooled, d_tail or ()))
        inputs += [(x, common.whole(x)) for x in pooled]
    results = common.launch(
        functools.partial(kernel, room=room, sizes=sizes, scale=scale, still=still > 0),
        shape.shape[2] // sizes.own,
        inputs,
        [(x, common.part(x, sizes.own)) for x in shapes],
        sizes,
        name="block_list_tangent",
        interpret=interpret,
    )
    results = [room.crop(x) for x in results]
    return (results[0], results[1]) if known is None else (known, results[0])


def sizes_for(dtype, dim: int) -> Sizes:
    """How the kernel is cut, chosen so that nothing spills on Hopper; float32 does spill beyond a head of 64."""
    if dtype == jnp.float32:
        return common.FLOAT32_SIZES
    return Sizes(own=128, step=64 if dim <= 128 else 16, warps=8, stages=2)


def _one_pass(q, dq, *refs, room: Room, sizes: Sizes, scale: float, still: bool, bounded: bool):
    *keys_and_lists, out, d_out = refs
    queries, d_queries = q[...], dq[...]

    def absorb(state, keys, values, moves, alive, weight):
        total, acc, d_total, d_acc, peak = state
        scores = jnp.where(alive[None], scale * LOG2_E * common.product(queries, keys, (1, 1)), -jnp.inf)
        d_scores = _score_tangents(queries, d_queries, keys, moves)
        peak, change = common.raise_peak(peak, scores)
        weights = common.powers(scores, peak)
        if weight is not None:
            weights *= weight[None]
        d_weights = (weights * (scale * d_scores)).astype(values.dtype)
        weights = weights.astype(values.dtype)
        # What is summed is what is multiplied, after rounding, as in the forward kernel.
        total = common.rescaled(total, change) + weights.astype(jnp.float32).sum(axis=1)
        d_total = common.rescaled(d_total, change) + d_weights.astype(jnp.float32).sum(axis=1)
        acc = common.rescaled(acc, change) + common.product(weights, values, (1, 0))
        d_acc = common.rescaled(d_acc, change) + common.product(d_weights, values, (1, 0))
        if moves is not None:
            d_acc += common.product(weights, moves[1], (1, 0))
        return total, acc, d_total, d_acc, peak

    zeros = lambda *shape: jnp.zeros((sizes.own, *shape), jnp.float32)
    dim = q.shape[-1]
    state = (zeros(), zeros(dim), zeros(), zeros(dim), common.no_peak(sizes.own, bounded))
    total, acc, d_total, d_acc, _ = _walk(absorb, state, *keys_and_lists, room=room, sizes=sizes, still=still)
    inverse = jnp.where(total > 0, 1.0 / jnp.where(total > 0, total, 1.0), 0.0)
    mean = acc * inverse[:, None]
    out[...] = mean.astype(out.dtype)
    d_out[...] = (d_acc * inverse[:, None] - mean * (d_total * inverse)[:, None]).astype(d_out.dtype)


def _second_pass(q, dq, out, logs, *refs, room: Room, sizes: Sizes, scale: float, still: bool):
    *keys_and_lists, d_out = refs
    queries, d_queries, log = q[...], dq[...], logs[...][:, None]

    def absorb(state, keys, values, moves, alive, weight):
        d_total, d_acc = state
        scores = jnp.where(alive[None], scale * LOG2_E * common.product(queries, keys, (1, 1)) - log, -jnp.inf)
        weights = jnp.exp2(scores)
        if weight is not None:
            weights *= weight[None]
        d_weights = (weights * (scale * _score_tangents(queries, d_queries, keys, moves))).astype(values.dtype)
        d_total += d_weights.astype(jnp.float32).sum(axis=1)
        d_acc += common.product(d_weights, values, (1, 0))
        if moves is not None:
            d_acc += common.product(weights.astype(values.dtype), moves[1], (1, 0))
        return d_total, d_acc

    state = (jnp.zeros((sizes.own,), jnp.float32), jnp.zeros(queries.shape, jnp.float32))
    d_total, d_acc = _walk(absorb, state, *keys_and_lists, room=room, sizes=sizes, still=still)
    d_out[...] = (d_acc - out[...].astype(jnp.float32) * d_total[:, None]).astype(d_out.dtype)


def _score_tangents(queries, d_queries, keys, moves):
    """[queries, keys], without the scale; the keys stand still where `moves` is None."""
    d_scores = common.product(d_queries, keys, (1, 1))
    return d_scores if moves is None else d_scores + common.product(queries, moves[0], (1, 1))


def _walk(absorb, state, k, v, dk, dv, valid, indices, ends, *tail, room: Room, sizes: Sizes, still: bool):
    """Calls `absorb(state, keys, values, moves, alive, weight)` for all that a query block reads.

    All of it is masked: next to four products or more, a mask costs nothing.
    """
    parts = room.tokens // sizes.step

    def listed(index, at, state, moving: bool):
        limit = valid[index] - at * sizes.step
        load = lambda x: common.read(x, index * parts + at, sizes.step, limit)
        moves = (load(dk), load(dv)) if moving else None
        return absorb(state, load(k), load(v), moves, jnp.arange(sizes.step) < limit, None)

    first = 0
    if still:
        first = ends[0]
        state = common.visit(indices, 0, first, parts, functools.partial(listed, moving=False), state)
    state = common.visit(indices, first, ends[1], parts, functools.partial(listed, moving=True), state)
    if not tail:
        return state

    def pseudo(state, share, keys, values, *moves):
        return absorb(state, keys, values, moves or None, share > 0, share)

    return common.visit_tail(tail[0], tail[1:], sizes.step, pseudo, state)
