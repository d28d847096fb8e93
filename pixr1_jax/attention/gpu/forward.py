"""The forward kernel: one program for the queries of one block, a loop over its list, then over the tail."""

import functools

import jax
import jax.numpy as jnp

from pixr1_jax.attention.blocks import BlockLists, Tail
from pixr1_jax.attention.gpu import common
from pixr1_jax.attention.gpu.common import LOG2_E, Room, Sizes
from pixr1_jax.attention.transposed import query_lists


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
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Attention over block lists.

    Args:
      q: [batch, heads, query_tokens, dim], a whole number of tiles.
      k: [batch, heads, key_tokens, dim].
      v: [batch, heads, key_tokens, dim].
      lists: Key blocks of each tile of query blocks.
      key_valid: int32 [batch, key_blocks], valid tokens of each key block.
      tail: Optional pseudo-tokens; key and value [batch, heads, key_blocks, dim].
      block: Tokens in a block.
      scale: Factor on the scores.
      max_logit: Bound on the absolute scaled scores, at most 40, with which no running maximum is kept; None for none.
      interpret: Run the kernel in XLA, on any device.

    Returns:
      The output like q, and the natural logarithm of the softmax's denominator, float32 [batch, heads, query_tokens];
      zeros and -inf where nothing is read.
    """
    room = Room(block, q.shape[-1])
    sizes = sizes_for(q.dtype, q.shape[-1]).fit(room)
    reads = query_lists(lists, key_valid, block=block)
    query_blocks = q.shape[2] // block
    q, k, v = (room.pad(x) for x in (q, k, v))
    programs = room.tokens // sizes.own  # of a query block
    inputs = [
        (q, common.part(q, sizes.own)),
        (k, common.whole(k)),
        (v, common.whole(v)),
        (reads.indices, common.row(reads.indices, programs)),
        (reads.ends, common.row(reads.ends, programs)),
        (key_valid[:, None], common.whole(key_valid[:, None])),
    ]
    if tail is not None:
        tail = room.pad_tail(tail, query_blocks)
        inputs += [(tail.key, common.whole(tail.key)), (tail.value, common.whole(tail.value))]
        inputs += [(tail.weight, common.row(tail.weight, programs))]
    out = jax.ShapeDtypeStruct(q.shape, q.dtype)
    lse = jax.ShapeDtypeStruct(q.shape[:3], jnp.float32)
    kernel = functools.partial(_kernel, room=room, sizes=sizes, factor=scale * LOG2_E, bounded=max_logit is not None)
    outputs = [(out, common.part(out, sizes.own)), (lse, common.part(lse, sizes.own))]
    results = common.launch(
        kernel, q.shape[2] // sizes.own, inputs, outputs, sizes, name="block_list_forward", interpret=interpret
    )
    out, lse = (room.crop(x) for x in results)
    return out, lse


def sizes_for(dtype, dim: int) -> Sizes:
    """How the kernel is cut, chosen so that nothing spills on Hopper."""
    if dtype == jnp.float32:
        return common.FLOAT32_SIZES
    return Sizes(own=128, step=64, warps=8, stages=2 if dim > 128 else 3)


def _kernel(q, k, v, indices, ends, valid, *rest, room: Room, sizes: Sizes, factor: float, bounded: bool):
    *tail, out, lse = rest
    queries = q[...]
    parts = room.tokens // sizes.step

    def absorb(state, keys, values, alive=None, weight=None):
        """Takes keys and values [keys, dim] into the softmax."""
        total, acc, peak = state
        scores = factor * common.product(queries, keys, (1, 1))
        if alive is not None:
            scores = jnp.where(alive[None], scores, -jnp.inf)
        peak, change = common.raise_peak(peak, scores)
        weights = common.powers(scores, peak)
        if weight is not None:
            weights *= weight[None]
        weights = weights.astype(values.dtype)
        # What is summed is what is multiplied, after rounding: a key that is read alone has a share of exactly one.
        total = common.rescaled(total, change) + weights.astype(jnp.float32).sum(axis=1)
        acc = common.rescaled(acc, change) + common.product(weights, values, (1, 0))
        return total, acc, peak

    def unmasked(index, at, state):
        at = index * parts + at
        return absorb(state, common.read(k, at, sizes.step), common.read(v, at, sizes.step))

    def masked(index, at, state):
        limit = valid[index] - at * sizes.step
        keys, values = (common.read(x, index * parts + at, sizes.step, limit) for x in (k, v))
        return absorb(state, keys, values, alive=jnp.arange(sizes.step) < limit)

    zeros = lambda *shape: jnp.zeros((sizes.own, *shape), jnp.float32)
    state = (zeros(), zeros(q.shape[-1]), common.no_peak(sizes.own, bounded))
    first = 0
    if room.is_exact:
        first = ends[0]
        state = common.visit(indices, 0, first, parts, unmasked, state)
    state = common.visit(indices, first, ends[1], parts, masked, state)
    if tail:
        *pooled, weight = tail
        pseudo = lambda state, share, keys, values: absorb(state, keys, values, alive=share > 0, weight=share)
        state = common.visit_tail(weight, pooled, sizes.step, pseudo, state)
    total, acc, peak = state
    some = total > 0
    out[...] = (acc / jnp.where(some, total, 1.0)[:, None]).astype(out.dtype)
    logarithm = jnp.log2(jnp.where(some, total, 1.0)) + (0.0 if peak is None else peak)
    lse[...] = jnp.where(some, logarithm / LOG2_E, -jnp.inf)
