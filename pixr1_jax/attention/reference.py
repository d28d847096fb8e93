"""The oracle: dense float32 attention under the mask that block lists describe."""

import jax
import jax.numpy as jnp

from pixr1_jax.attention.blocks import BlockLists


def dense_mask(lists: BlockLists, key_valid: jax.Array, block: int) -> jax.Array:
    """The token mask of block lists.

    Args:
      lists: [batch, query_blocks, max_keys].
      key_valid: int32 [batch, key_blocks], valid tokens of each key block.
      block: Tokens in a block.

    Returns:
      bool [batch, query_blocks, key_tokens]; all tokens of a query block share a row.
    """
    key_blocks = key_valid.shape[-1]
    listed = jnp.arange(lists.indices.shape[-1]) < lists.counts[..., None]
    named = jax.nn.one_hot(lists.indices, key_blocks, dtype=jnp.bool_) & listed[..., None]
    tokens = jnp.arange(block) < key_valid[..., None]
    mask = named.any(axis=-2)[..., None] & tokens[:, None]
    return mask.reshape(*mask.shape[:2], key_blocks * block)


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, lists: BlockLists, key_valid: jax.Array, *, block: int, scale: float
) -> jax.Array:
    """Softmax attention, computed densely in float32; see `pixr1_jax.attention.api.attend`."""
    batch, queries, heads, _ = q.shape
    mask = dense_mask(lists, key_valid, block)
    readable = jnp.repeat(mask.any(axis=-1), block, axis=-1)[..., None, None]
    mask = mask[:, None, :, None]
    # Padding may hold anything, NaN included: it is cleared, since a weight of zero alone would keep it.
    alive = (jnp.arange(block) < key_valid[..., None]).reshape(batch, -1)[..., None, None]
    q32, k32, v32 = q.astype(jnp.float32), *(jnp.where(alive, x.astype(jnp.float32), 0.0) for x in (k, v))
    exact = jax.lax.Precision.HIGHEST
    scores = scale * jnp.einsum("bqhd,bkhd->bhqk", q32, k32, precision=exact)
    scores = scores.reshape(batch, heads, queries // block, block, -1) + jnp.where(mask, 0.0, -1e30)
    peak = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - peak).reshape(batch, heads, queries, -1)
    total = weights.sum(axis=-1).transpose(0, 2, 1)[..., None]
    out = jnp.einsum("bhqk,bkhd->bqhd", weights, v32, precision=exact) / total
    return jnp.where(readable, out, 0.0).astype(q.dtype)
