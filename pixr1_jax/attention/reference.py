"""The oracle: dense float32 attention under the mask that block lists describe."""

import jax
import jax.numpy as jnp

from pixr1_jax.attention.blocks import BlockLists, Tail


def block_mask(lists: BlockLists, query_blocks: int, key_blocks: int) -> jax.Array:
    """Which key blocks each query block reads, bool [batch, lists, query_blocks, key_blocks]."""
    bits = jnp.arange(lists.tile)[:, None]
    listed = jnp.arange(lists.indices.shape[-1]) < lists.counts[..., None]
    by_block = ((lists.seen[..., None, :] >> bits) & 1).astype(bool) & listed[..., None, :]
    named = jax.nn.one_hot(lists.indices, key_blocks, dtype=jnp.bool_)
    # [batch, lists, tiles, tile, key_blocks], a sum of products without one.
    mask = jnp.einsum("bltuk,bltkn->bltun", by_block.astype(jnp.int32), named.astype(jnp.int32)) > 0
    return mask.reshape(*mask.shape[:2], -1, key_blocks)[:, :, :query_blocks]


def dense_mask(lists: BlockLists, key_valid: jax.Array, query_blocks: int, block: int) -> jax.Array:
    """The token mask of block lists.

    Args:
      lists: Lists of all tiles.
      key_valid: int32 [batch, key_blocks], valid tokens of each key block.
      query_blocks: Query blocks of a row.
      block: Tokens in a block.

    Returns:
      bool [batch, lists, query_blocks, key_tokens]; all tokens of a query block share a row.
    """
    key_blocks = key_valid.shape[-1]
    tokens = jnp.arange(block) < key_valid[..., None]
    mask = block_mask(lists, query_blocks, key_blocks)[..., None] & tokens[:, None, None]
    return mask.reshape(*mask.shape[:3], key_blocks * block)


def token_mask(reads: jax.Array, key_valid: jax.Array, block: int) -> jax.Array:
    """The token mask of a block relation, for dense peers.

    Args:
      reads: bool [batch, lists, query_blocks, key_blocks].
      key_valid: int32 [batch, key_blocks], valid tokens of each key block.
      block: Tokens in a block.

    Returns:
      bool [batch, lists, query_tokens, key_tokens].
    """
    alive = (jnp.arange(block) < key_valid[..., None]).reshape(key_valid.shape[0], 1, 1, -1)
    return jnp.repeat(jnp.repeat(reads, block, axis=2), block, axis=3) & alive


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
    """Softmax attention, computed densely in float32; arguments and results as of `gather.attend`."""
    batch, queries, heads, _ = q.shape
    mask = dense_mask(lists, key_valid, queries // block, block)[..., None, :]
    # Padding may hold anything, NaN included: it is cleared, since a weight of zero alone would keep it.
    alive = (jnp.arange(block) < key_valid[..., None]).reshape(batch, -1)[..., None, None]
    q32, k32, v32 = q.astype(jnp.float32), *(jnp.where(alive, x.astype(jnp.float32), 0.0) for x in (k, v))
    scores = _scores(q32, k32, scale, block)
    bias = jnp.where(mask, 0.0, -1e30)
    readable = mask.any(axis=-1, keepdims=True)
    if tail is not None:
        weight = tail.weight[..., None, :]
        scores = jnp.concatenate([scores, _scores(q32, tail.key.astype(jnp.float32), scale, block)], axis=-1)
        tail_bias = jnp.where(weight > 0, jnp.log(jnp.maximum(weight, 1e-9)), -1e30)
        bias = jnp.concatenate([bias, tail_bias], axis=-1)
        readable |= (weight > 0).any(axis=-1, keepdims=True)
        v32 = jnp.concatenate([v32, tail.value.astype(jnp.float32)], axis=1)
    scores += bias
    peak = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.where(readable, jnp.exp(scores - peak), 0.0)
    total = jnp.where(readable, weights.sum(axis=-1, keepdims=True), 1.0)
    lse = jnp.where(readable, jnp.log(total) + peak, -jnp.inf).reshape(batch, heads, queries)
    weights /= total
    weights = weights.reshape(batch, heads, queries, -1)
    out = jnp.einsum("bhqk,bkhd->bqhd", weights, v32, precision=jax.lax.Precision.HIGHEST)
    return out.astype(q.dtype), lse


def _scores(q: jax.Array, k: jax.Array, scale: float, block: int) -> jax.Array:
    """[batch, heads, query_blocks, block, keys]."""
    scores = scale * jnp.einsum("bqhd,bkhd->bhqk", q, k, precision=jax.lax.Precision.HIGHEST)
    return scores.reshape(*scores.shape[:2], -1, block, scores.shape[-1])
