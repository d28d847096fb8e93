"""Arrays by window of keys: what goes into the kernels, and what comes out of them, merged."""

import jax
import jax.numpy as jnp

from pixr1_jax.attention.blocks import BlockLists, Tail
from pixr1_jax.attention.tpu import schedule
from pixr1_jax.attention.tpu.plan import Plan


def operands(plan: Plan, q, k, v, lists: BlockLists, key_valid, tail: Tail | None) -> list[jax.Array]:
    """What every kernel reads first: packed lists, queries, keys, values, pseudo-tokens."""
    packed = schedule.packed_lists(lists, key_valid, plan.window_blocks, plan.windows)
    return [packed, q, *(padded_keys(plan, x) for x in (k, v)), *tail_operands(plan, tail)]


def padded_keys(plan: Plan, x: jax.Array) -> jax.Array:
    """Keys or values of whole windows."""
    spare = plan.windows * plan.window_tokens - x.shape[2]
    return jnp.pad(x, [(0, 0), (0, 0), (0, spare), (0, 0)]) if spare else x


def pooled_rows(plan: Plan, x: jax.Array) -> jax.Array:
    """Pseudo-tokens [batch, heads, key_blocks, dim] by window, each padded to whole vectors."""
    return _by_window(plan, x, axis=2)


def _by_window(plan: Plan, x: jax.Array, axis: int) -> jax.Array:
    """Splits an axis of key blocks into windows of `tail_rows`."""
    pad = lambda x, axis, size: jnp.pad(x, [(0, size - x.shape[i] if i == axis else 0) for i in range(x.ndim)])
    x = pad(x, axis, plan.windows * plan.window_blocks)
    x = x.reshape(*x.shape[:axis], plan.windows, plan.window_blocks, *x.shape[axis + 1 :])
    return pad(x, axis + 1, plan.tail_rows)


def unpooled(plan: Plan, x: jax.Array) -> jax.Array:
    """The inverse of `pooled_rows`."""
    x = x[:, :, :, : plan.window_blocks].reshape(plan.batch, plan.heads, -1, plan.dim)
    return x[:, :, : plan.key_blocks]


def tail_operands(plan: Plan, tail: Tail | None) -> list[jax.Array]:
    """Keys, values and weights of the pseudo-tokens, for `Plan.tail_specs`."""
    if tail is None:
        return []
    spare = plan.tiles * plan.tile - tail.weight.shape[2]
    weight = jnp.pad(tail.weight.astype(jnp.float32), [(0, 0), (0, 0), (0, spare), (0, 0)])
    weight = weight.reshape(*weight.shape[:2], plan.tiles, plan.tile, -1)
    weight = jnp.swapaxes(_by_window(plan, weight, axis=4), 3, 4)  # [batch, lists, tiles, windows, tile, tail_rows]
    return [pooled_rows(plan, tail.key), pooled_rows(plan, tail.value), weight]


def merge(out: jax.Array, lse: jax.Array, dtype) -> tuple[jax.Array, jax.Array]:
    """Results of windows into one: outputs [batch, heads, windows, queries, dim] by their denominators."""
    lse = lse[:, :, :, 0]
    if out.shape[2] == 1:
        return out[:, :, 0].astype(dtype), lse[:, :, 0]
    total = jax.nn.logsumexp(lse, axis=2)
    share = shares(lse, total)
    return (out * share[..., None]).sum(axis=2).astype(dtype), total


def shares(lse: jax.Array, total: jax.Array) -> jax.Array:
    """Part of each window in the softmax, [batch, heads, windows, queries]; zeros where nothing is read."""
    read = jnp.isfinite(total)[:, :, None]
    return jnp.where(read, jnp.exp(lse - jnp.where(read, total[:, :, None], 0.0)), 0.0)
