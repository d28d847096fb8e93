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
    batch, queries, heads, dim = q.shape
    mask = dense_mask(lists, key_valid, block)[:, None, :, None]
    q32, k32, v32 = (x.astype(jnp.float32) for x in (q, k, v))
    # Masked values are dropped before the product: padding may hold anything, NaN included.
    alive = (jnp.arange(block) < key_valid[..., None]).reshape(batch, -1)[..., None, None]
    k32, v32 = (jnp.where(alive, x, 0.0) for x in (k32, v32))
    scores = scale * jnp.einsum("bqhd,bkhd->bhqk", q32, k32, precision=jax.lax.Precision.HIGHEST)
    scores = scores.reshape(batch, heads, queries // block, block, -1)
    peak = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True, where=mask, initial=-1e30))
    weights = jnp.where(mask, jnp.exp(jnp.where(mask, scores - peak, 0.0)), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    weights = (weights / jnp.where(total > 0, total, 1.0)).reshape(batch, heads, queries, -1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v32, precision=jax.lax.Precision.HIGHEST).astype(q.dtype)
