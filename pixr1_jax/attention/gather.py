"""Block-list attention in plain XLA: gathers the listed key blocks of each tile of query blocks.

Runs on any device, differentiates forwards and backwards to any order, and costs what the lists cost. Tiles are visited
in groups under `lax.scan` with rematerialisation, so memory is bounded by a group.
"""

import jax
import jax.numpy as jnp

from pixr1_jax.attention.blocks import BlockLists, Tail

_GROUP_SCORES = 1 << 22  # attention scores that one group may hold, a few tens of MiB in float32


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lists: BlockLists,
    key_valid: jax.Array,
    tail: Tail | None,
    *,
    block: int,
    scale: float,
) -> tuple[jax.Array, jax.Array]:
    """Softmax attention over listed blocks.

    Args:
      q: As in `pixr1_jax.attention.api.attend`, and so on.
      k: See `q`.
      v: See `q`.
      lists: See `q`.
      key_valid: See `q`.
      tail: See `q`.
      block: See `q`.
      scale: See `q`.

    Returns:
      Output, and the logarithm of the softmax's denominator, float32 [batch, heads, query_tokens], -inf where nothing
      is read.
    """
    batch, queries, heads, dim = q.shape
    tiles, max_keys = lists.indices.shape[2:]
    tokens = lists.tile * block  # of a tile
    alive = (jnp.arange(block) < key_valid[..., None]).reshape(batch, -1)[..., None, None]
    by_head = lambda x: jnp.moveaxis(x.reshape(batch, -1, block, heads, dim), 3, 1).reshape(-1, block * dim)
    # [batch * heads * key_blocks, block * dim]; padding is cleared, since a weight of zero alone would keep a NaN.
    k, v = (by_head(jnp.where(alive, x, 0)) for x in (k, v))
    q = jnp.pad(q, [(0, 0), (0, tiles * tokens - queries), (0, 0), (0, 0)])
    q = jnp.moveaxis(q.reshape(batch, tiles, tokens, heads, dim), 3, 1)
    weight = None
    if tail is not None:
        weight = tail.weight
        weight = jnp.pad(weight, [(0, 0), (0, 0), (0, tiles * lists.tile - weight.shape[2]), (0, 0)])
        weight = weight.reshape(*weight.shape[:2], tiles, lists.tile, -1)
        tail = Tail(jnp.swapaxes(tail.key, 1, 2), jnp.swapaxes(tail.value, 1, 2), weight)
    parts = (q, lists.indices, lists.seen, lists.counts, weight)

    def group(parts):
        """A few tiles, [batch, heads or 1, tiles, ...] each."""
        q, indices, seen, counts, weight = parts
        return _attend_tiles(q, indices, seen, counts, weight, k, v, key_valid, tail, scale)

    read = max_keys * block + (key_valid.shape[1] if tail is not None else 0)
    groups = _groups(tiles, batch * heads * tokens * read)
    if groups == 1:
        out, lse = group(parts)
    else:
        split = lambda x: jnp.moveaxis(x.reshape(*x.shape[:2], groups, tiles // groups, *x.shape[3:]), 2, 0)
        step = jax.checkpoint(lambda _, parts: (None, group(parts)))
        _, results = jax.lax.scan(step, None, jax.tree.map(split, parts))
        out, lse = (jnp.moveaxis(x, 0, 2) for x in results)
    out = jnp.moveaxis(out.reshape(batch, heads, -1, dim), 1, 2)[:, :queries]
    return out, lse.reshape(batch, heads, -1)[:, :, :queries]


def _groups(tiles: int, scores_per_tile: int) -> int:
    """The smallest number of equal groups whose scores fit the budget."""
    for groups in range(1, tiles):
        if tiles % groups == 0 and tiles // groups * scores_per_tile <= _GROUP_SCORES:
            return groups
    return tiles


def _attend_tiles(q, indices, seen, counts, weight, k, v, key_valid, tail: Tail | None, scale):
    batch, heads, *_, dim = q.shape
    key_blocks = key_valid.shape[1]
    block = k.shape[1] // dim
    tile = q.shape[3] // block
    # One flat index of whole rows: the transpose, a scatter, is several times faster than that of a batched gather.
    first = key_blocks * jnp.arange(batch * heads).reshape(batch, heads, 1, 1)
    rows = (indices + first).reshape(-1)
    pick = lambda x: x.at[rows].get(mode="promise_in_bounds").reshape(*q.shape[:3], -1, dim)
    keys, values = pick(k), pick(v)  # [batch, heads, tiles, max_keys * block, dim]
    valid = jax.vmap(lambda x, where: x[where])(key_valid, indices)
    listed = jnp.arange(indices.shape[-1]) < counts[..., None]
    alive = (jnp.arange(block) < valid[..., None]) & listed[..., None]  # [batch, lists, tiles, max_keys, block]
    reads = (seen[..., None, :] >> jnp.arange(tile)[:, None]) & 1  # [batch, lists, tiles, tile, max_keys]
    mask = (reads[..., None] > 0) & alive[..., None, :, :]
    mask = mask.reshape(*mask.shape[:3], tile, 1, -1)
    product = lambda keys: scale * jnp.einsum("bhtqd,bhtkd->bhtqk", q, keys, preferred_element_type=jnp.float32)
    by_block = lambda x: x.reshape(*x.shape[:3], tile, block, x.shape[-1])
    scores = by_block(product(keys))
    if tail is not None:
        pooled = scale * jnp.einsum("bhtqd,bhkd->bhtqk", q, tail.key, preferred_element_type=jnp.float32)
        scores = jnp.concatenate([scores, by_block(pooled)], axis=-1)
        shares = jnp.concatenate([jnp.where(mask, 1.0, 0.0), weight[..., None, :]], axis=-1)
    else:
        shares = jnp.where(mask, 1.0, 0.0)
    peak = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True, where=shares > 0, initial=-1e30))
    weights = jnp.where(shares > 0, shares * jnp.exp(jnp.where(shares > 0, scores - peak, 0.0)), 0.0)
    total = weights.sum(axis=-1).reshape(*q.shape[:4], 1)
    read = total > 0
    total = jnp.where(read, total, 1.0)
    lse = jnp.where(read, jnp.log(total) + peak.reshape(total.shape), -jnp.inf)[..., 0]
    weights = weights.astype(v.dtype).reshape(*q.shape[:4], -1)
    listed_keys = keys.shape[3]
    mix = lambda spec, weights, values: jnp.einsum(spec, weights, values, preferred_element_type=jnp.float32)
    out = mix("bhtqk,bhtkd->bhtqd", weights[..., :listed_keys], values)
    if tail is not None:
        out += mix("bhtqk,bhkd->bhtqd", weights[..., listed_keys:], tail.value)
    return (out / total).astype(q.dtype), lse
