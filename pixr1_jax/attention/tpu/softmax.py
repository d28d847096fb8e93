"""The running softmax of a tile, scores held as [keys, queries].

Scores stand transposed so that sums over keys are plain vector additions. Where the logits are bounded (QK-norm), the
exponentials need no shift at all, and a visit is two products, an exponential, an addition and a cast.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from pixr1_jax.attention.tpu import pieces
from pixr1_jax.attention.tpu.plan import Plan
from pixr1_jax.attention.tpu.schedule import Carry


def empty(plan: Plan) -> Carry:
    """Sums of no keys: weighted values [dim, queries], weights [8, queries], and the running maximum if one is kept."""
    queries = plan.tile_tokens
    carry = (jnp.zeros((plan.dim, queries), jnp.float32), jnp.zeros((8, queries), jnp.float32))
    return (*carry, jnp.full((1, queries), pieces.LOWEST, jnp.float32)) if plan.online else carry


def add(plan: Plan, q: jax.Array, carry: Carry, k: jax.Array, v: jax.Array, weight: jax.Array | None) -> Carry:
    """Adds key rows [keys, dim] to the sums of a tile; `weight` float32 [keys, queries], or None for ones."""
    out, total, *peak = carry
    scores = pieces.dot(k, q, 1, 1) * (plan.scale / pieces.LN2)  # base-2 logits
    if plan.online:
        if weight is not None:
            scores = jnp.where(weight > 0, scores, pieces.LOWEST)
        higher = jnp.maximum(peak[0], scores.max(axis=0, keepdims=True))
        shrink = jnp.exp2(peak[0] - higher)
        out, total, peak = out * shrink, total * shrink, [higher]
        scores -= higher
    p = jnp.exp2(scores)
    if weight is not None:
        p *= weight
    total += pieces.partial_sum(p)
    out += pieces.dot(v, p.astype(v.dtype), 0, 0)
    return (out, total, *peak)


def add_tail(plan: Plan, add: Callable, carry: Carry, refs, tile: jax.Array) -> Carry:
    """Adds the pseudo-tokens of a window, if there are any: references to their keys, values and weights."""
    if not refs:
        return carry
    key_ref, value_ref, weight_ref = refs
    for rows in pieces.tail_slices(plan):
        carry = add(carry, key_ref[rows, :], value_ref[rows, :], pieces.tail_weight(weight_ref, tile, rows, plan))
    return carry


def finish(plan: Plan, carry: Carry) -> tuple[jax.Array, jax.Array]:
    """Output [queries, dim] and the logarithm of the denominator [1, queries]; zeros and -inf where nothing is read."""
    out, total, *peak = carry
    total = total.sum(axis=0, keepdims=True)
    lse = jnp.log(total)
    return jnp.where(total > 0, out / total, 0.0).T, lse + pieces.LN2 * peak[0] if plan.online else lse
