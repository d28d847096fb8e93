"""Block-list attention in plain XLA: gathers the listed key blocks of each query block.

Runs on any device, differentiates forwards and backwards, and costs what the lists cost. Query blocks are
visited in groups under `lax.scan` with rematerialisation, so memory is bounded by a group.
"""

import jax
import jax.numpy as jnp

from pixr1_jax.attention.blocks import BlockLists

_GROUP_SCORES = 1 << 22  # attention scores that one group may hold, a few tens of MiB in float32


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, lists: BlockLists, key_valid: jax.Array, *, block: int, scale: float
) -> jax.Array:
    """Softmax attention over listed blocks; see `pixr1_jax.attention.api.attend`."""
    batch, queries, heads, dim = q.shape
    query_blocks, max_keys = lists.indices.shape[1:]
    groups = _groups(query_blocks, batch * heads * block * max_keys * block)
    alive = (jnp.arange(block) < key_valid[..., None]).reshape(batch, -1)[..., None, None]
    k, v = (jnp.where(alive, x, 0) for x in (k, v))
    k, v = (x.reshape(batch, -1, block, heads, dim) for x in (k, v))
    q = q.reshape(batch, query_blocks, block, heads, dim)

    def group(q, indices, counts):
        """Q [batch, group, block, heads, dim] against its listed blocks."""
        return _attend_group(q, k, v, indices, counts, key_valid, scale)

    if groups == 1:
        out = group(q, lists.indices, lists.counts)
        return out.reshape(batch, queries, heads, dim)

    def split(x):
        return jnp.moveaxis(x.reshape(batch, groups, query_blocks // groups, *x.shape[2:]), 1, 0)

    step = jax.checkpoint(lambda _, inputs: (None, group(*inputs)))
    _, out = jax.lax.scan(step, None, (split(q), split(lists.indices), split(lists.counts)))
    return jnp.moveaxis(out, 0, 1).reshape(batch, queries, heads, dim)


def _groups(query_blocks: int, scores_per_block: int) -> int:
    """The smallest number of equal groups whose scores fit the budget."""
    for groups in range(1, query_blocks):
        if query_blocks % groups == 0 and query_blocks // groups * scores_per_block <= _GROUP_SCORES:
            return groups
    return query_blocks


def _attend_group(q, k, v, indices, counts, key_valid, scale):
    pick = jax.vmap(lambda x, where: x[where])  # over the batch
    keys, values = pick(k, indices), pick(v, indices)  # [batch, group, max_keys, block, heads, dim]
    listed = jnp.arange(indices.shape[-1]) < counts[..., None]
    valid = jnp.where(listed, pick(key_valid, indices), 0)
    mask = jnp.arange(k.shape[2]) < valid[..., None]  # [batch, group, max_keys, block]
    mask = mask.reshape(*mask.shape[:2], 1, 1, -1)
    scores = scale * jnp.einsum("bgqhd,bgnkhd->bghqnk", q, keys, preferred_element_type=jnp.float32)
    scores = scores.reshape(*scores.shape[:4], -1)
    peak = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True, where=mask, initial=-1e30))
    weights = jnp.where(mask, jnp.exp(jnp.where(mask, scores - peak, 0.0)), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    weights = (weights / jnp.where(total > 0, total, 1.0)).astype(v.dtype)
    values = values.reshape(*values.shape[:2], -1, *values.shape[4:])
    return jnp.einsum("bghqk,bgkhd->bgqhd", weights, values)
