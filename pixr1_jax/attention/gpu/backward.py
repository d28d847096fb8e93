"""The backward kernels: queries' gradient by the list, keys' and values' by the transposed list, and the tail's.

Each gradient is summed by the one program that owns it, so there are no atomic additions and results repeat bit by bit.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pixr1_jax.attention.blocks import BlockLists, Tail
from pixr1_jax.attention.gpu import common
from pixr1_jax.attention.gpu.common import LOG2_E, TAIL_KEYS, Room, Sizes
from pixr1_jax.attention.transposed import RowLists, query_lists, transpose_lists


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
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array | None]:
    """Gradients of `forward`.

    Args:
      q: As in `forward`, as are k, v, lists, key_valid, tail, block, scale and interpret.
      k: [batch, heads, key_tokens, dim].
      v: [batch, heads, key_tokens, dim].
      lists: Key blocks of each tile of query blocks.
      key_valid: int32 [batch, key_blocks].
      tail: Optional pseudo-tokens.
      out: The output of `forward`.
      lse: Its second output.
      d_out: Gradient of the output.
      block: Tokens in a block.
      scale: Factor on the scores.
      max_logit: Not needed, since `lse` bounds the scores.
      interpret: Run the kernels in XLA, on any device.

    Returns:
      Gradients of q, k, v, and of the tail's key and value (None without a tail), each like its input.
    """
    del max_logit
    room = Room(block, q.shape[-1])
    query_blocks, key_blocks = q.shape[2] // block, k.shape[2] // block
    reads = query_lists(lists, key_valid, block=block)
    readers = transpose_lists(reads, key_blocks)
    # The part of the scores' gradient that all keys share; a row that reads nothing has no scores.
    shared = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1)
    logs = jnp.where(jnp.isfinite(lse), lse * LOG2_E, 0.0)
    q, k, v, d_out, shared, logs = (room.pad(x) for x in (q, k, v, d_out, shared, logs))
    padded = None if tail is None else room.pad_tail(tail, query_blocks)
    queries = (q, d_out, logs, shared)
    options = {"scale": scale, "room": room, "interpret": interpret}
    dq = _query_gradient(queries, k, v, reads, key_valid, padded, **options)
    dk, dv = _key_gradients(queries, k, v, readers, key_valid, **options)
    dq, dk, dv = (room.crop(x) for x in (dq, dk, dv))
    if tail is None or padded is None:
        return dq, dk, dv, None, None
    d_tail = _tail_gradients(queries, padded, **options)
    crop = lambda x: x[:, :, : tail.key.shape[2], : room.dim]
    return dq, dk, dv, *(crop(x) for x in d_tail)


def sizes_for(dtype, dim: int) -> Sizes:
    """How the kernels of queries and of keys are cut, chosen so that nothing spills on Hopper."""
    if dtype == jnp.float32:
        return common.FLOAT32_SIZES
    return Sizes(own=128, step=64 if dim <= 128 else 32, warps=8, stages=2)


def tail_sizes(dtype) -> Sizes:
    """How the kernel of pseudo-tokens is cut, chosen so that nothing spills on Hopper."""
    if dtype == jnp.float32:
        return common.FLOAT32_SIZES
    return Sizes(own=TAIL_KEYS, step=64, warps=8, stages=2)


def _query_gradient(queries, k, v, reads: RowLists, key_valid, tail: Tail | None, *, scale, room: Room, interpret):
    """The gradient of q; `queries` are q, d_out, logs and shared."""
    q = queries[0]
    sizes = sizes_for(q.dtype, q.shape[-1]).fit(room)
    programs = room.tokens // sizes.own
    inputs = [(x, common.part(x, sizes.own)) for x in queries]
    inputs += [(x, common.whole(x)) for x in (k, v, key_valid[:, None])]
    inputs += [(x, common.row(x, programs)) for x in (reads.indices, reads.ends)]
    if tail is not None:
        inputs += [(x, common.whole(x)) for x in (tail.key, tail.value)]
        inputs += [(tail.weight, common.row(tail.weight, programs))]
    dq = jax.ShapeDtypeStruct(q.shape, q.dtype)
    kernel = functools.partial(_query_kernel, room=room, sizes=sizes, scale=scale)
    outputs = [(dq, common.part(dq, sizes.own))]
    return common.launch(
        kernel, q.shape[2] // sizes.own, inputs, outputs, sizes, name="block_list_dq", interpret=interpret
    )[0]


def _query_kernel(q, d_out, logs, shared, k, v, valid, indices, ends, *rest, room: Room, sizes: Sizes, scale: float):
    *tail, dq = rest
    queries, d_outs, log, common_part = q[...], d_out[...], logs[...][:, None], shared[...][:, None]
    parts = room.tokens // sizes.step

    def add(acc, keys, values, alive=None, weight=None):
        scores = scale * LOG2_E * common.product(queries, keys, (1, 1)) - log
        if alive is not None:
            scores = jnp.where(alive[None], scores, -jnp.inf)
        weights = jnp.exp2(scores)
        if weight is not None:
            weights *= weight[None]
        d_scores = weights * (common.product(d_outs, values, (1, 1)) - common_part)
        return acc + common.product(d_scores.astype(keys.dtype), keys, (1, 0))

    def unmasked(index, at, acc):
        at = index * parts + at
        return add(acc, common.read(k, at, sizes.step), common.read(v, at, sizes.step))

    def masked(index, at, acc):
        limit = valid[index] - at * sizes.step
        keys, values = (common.read(x, index * parts + at, sizes.step, limit) for x in (k, v))
        return add(acc, keys, values, alive=jnp.arange(sizes.step) < limit)

    acc = jnp.zeros(queries.shape, jnp.float32)
    first = 0
    if room.is_exact:
        first = ends[0]
        acc = common.visit(indices, 0, first, parts, unmasked, acc)
    acc = common.visit(indices, first, ends[1], parts, masked, acc)
    if tail:
        *pooled, weight = tail
        pseudo = lambda acc, share, keys, values: add(acc, keys, values, alive=share > 0, weight=share)
        acc = common.visit_tail(weight, pooled, sizes.step, pseudo, acc)
    dq[...] = (scale * acc).astype(dq.dtype)


def _key_gradients(queries, k, v, readers: RowLists, key_valid, *, scale, room: Room, interpret):
    """The gradients of k and v."""
    sizes = sizes_for(k.dtype, k.shape[-1]).fit(room)
    programs = room.tokens // sizes.own
    valid = key_valid[:, None, :, None]
    inputs = [(x, common.part(x, sizes.own)) for x in (k, v)]
    inputs += [(x, common.whole(x)) for x in queries]
    inputs += [(x, common.row(x, programs)) for x in (valid, readers.indices, readers.ends)]
    shape = jax.ShapeDtypeStruct(k.shape, k.dtype)

    def gradients(*wanted: str):
        kernel = functools.partial(_key_kernel, room=room, sizes=sizes, scale=scale, wanted=wanted)
        outputs = [(shape, common.part(shape, sizes.own))] * len(wanted)
        name = f"block_list_d{''.join(wanted)}"
        return common.launch(kernel, k.shape[2] // sizes.own, inputs, outputs, sizes, name=name, interpret=interpret)

    if k.shape[-1] <= 128:
        return gradients("k", "v")
    # The sums of both would not fit in registers; apart they cost five products instead of four.
    return *gradients("k"), *gradients("v")


def _key_kernel(
    k, v, q, d_out, logs, shared, valid, indices, ends, *outputs, room: Room, sizes: Sizes, scale: float, wanted
):
    parts = room.tokens // sizes.step
    at = jax.lax.rem(pl.program_id(0), jnp.int32(room.tokens // sizes.own))  # which part of a block is the program's
    limit = valid[0] - at * sizes.own
    keys, values = (common.read(x, 0, sizes.own, limit) for x in (k, v))

    # What padding sums is anything at all, but only in rows of its own, which are cleared at the end.
    def add(index, at, sums):
        return _add_reader(sums, keys, values, (q, d_out, logs, shared), index * parts + at, sizes.step, scale)

    sums = {name: jnp.zeros(keys.shape, jnp.float32) for name in wanted}
    sums = common.visit(indices, 0, ends[0], parts, add, sums)
    alive = jnp.arange(sizes.own) < limit
    for name, output in zip(wanted, outputs, strict=True):
        # A product besides the selection: ptxas runs the matrix products of the loop one by one where their sums are
        # only selected from. So the factor of values, which is 1, is spelled such that no compiler sees it.
        factor = (scale if name == "k" else 1.0) * jnp.clip(limit - jnp.arange(sizes.own), 0, 1).astype(jnp.float32)
        output[...] = jnp.where(alive[:, None], sums[name] * factor[:, None], 0.0).astype(output.dtype)


def _add_reader(sums, keys, values, queries, at, size: int, scale: float, weight=None):
    """Adds to the gradients of keys and values [keys, dim] what `size` queries from `at * size` on give.

    Args:
      sums: Those of the two gradients that are wanted, by name "k" or "v".
      keys: [keys, dim].
      values: [keys, dim].
      queries: References to q, d_out, logs and shared.
      at: Which part of the queries.
      size: Queries of a part.
      scale: Factor on the scores.
      weight: Optional weights [keys] of pseudo-tokens.

    Returns:
      The new sums; that of the keys lacks the factor `scale`.
    """
    q, d_out, log, shared = (common.read(x, at, size) for x in queries)
    scores = scale * LOG2_E * common.product(keys, q, (1, 1)) - log[None]  # [keys, queries]
    if weight is not None:
        scores = jnp.where(weight[:, None] > 0, scores, -jnp.inf)
    weights = jnp.exp2(scores)
    if weight is not None:
        weights *= weight[:, None]
    new = {}
    if "v" in sums:
        new["v"] = sums["v"] + common.product(weights.astype(d_out.dtype), d_out, (1, 0))
    if "k" in sums:
        d_scores = weights * (common.product(values, d_out, (1, 1)) - shared[None])
        new["k"] = sums["k"] + common.product(d_scores.astype(q.dtype), q, (1, 0))
    return new


def _tail_gradients(queries, tail: Tail, *, scale, room: Room, interpret):
    """The gradients of the tail's key and value, to which every query may add."""
    sizes = tail_sizes(tail.key.dtype).fit(room)
    inputs = [(x, common.part(x, sizes.own)) for x in (tail.key, tail.value)]
    weight = jnp.swapaxes(tail.weight, -1, -2)  # so that a program's weights are rows, as its keys are
    inputs += [(weight, common.part(weight, sizes.own))]
    inputs += [(x, common.whole(x)) for x in queries]
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (tail.key, tail.value)]
    outputs = [(x, common.part(x, sizes.own)) for x in shapes]
    kernel = functools.partial(_tail_kernel, room=room, sizes=sizes, scale=scale)
    programs = tail.key.shape[2] // sizes.own
    return common.launch(kernel, programs, inputs, outputs, sizes, name="block_list_dtail", interpret=interpret)


def _tail_kernel(key, value, weight, q, d_out, logs, shared, d_key, d_value, *, room: Room, sizes: Sizes, scale: float):
    keys, values = key[...], value[...]
    parts = room.tokens // sizes.step

    def add(i, sums):
        shares = weight[:, i if parts == 1 else jax.lax.div(i, jnp.int32(parts))]
        return _add_reader(sums, keys, values, (q, d_out, logs, shared), i, sizes.step, scale, shares)

    sums = {name: jnp.zeros(keys.shape, jnp.float32) for name in ("k", "v")}
    sums = jax.lax.fori_loop(0, q.shape[0] // sizes.step, add, sums)
    d_key[...] = (scale * sums["k"]).astype(d_key.dtype)
    d_value[...] = sums["v"].astype(d_value.dtype)
