"""Backends made of plain XLA functions, for what puts attention together from parts of the keys (see `ring`)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pixr1_jax.attention.backend import Backend
from pixr1_jax.attention.blocks import BlockLists, Tail


def backend(attend: Callable) -> Backend:
    """A backend of a function like `pixr1_jax.attention.gather.attend`, differentiated by JAX; it serves all sizes."""
    plain = _Plain(attend)
    return Backend(plain.forward, plain.backward, plain.tangent, lambda block, tile, compiled: "")


@dataclasses.dataclass(frozen=True)
class _Plain:
    """The functions of a backend; arguments and results as `Backend` says."""

    attend: Callable

    def forward(self, q, k, v, lists: BlockLists, key_valid, tail: Tail | None, *, block, scale, max_logit):
        del max_logit  # a running maximum is kept in any case
        swap = lambda x: jnp.swapaxes(x, 1, 2)
        if tail is not None:
            spare = q.shape[2] // block - tail.weight.shape[2]
            weight = jnp.pad(tail.weight, [(0, 0), (0, 0), (0, spare), (0, 0)])
            tail = Tail(swap(tail.key), swap(tail.value), weight)
        out, lse = self.attend(swap(q), swap(k), swap(v), lists, key_valid, tail, block=block, scale=scale)
        return swap(out), lse

    def backward(self, q, k, v, lists, key_valid, tail: Tail | None, out, lse, d_out, **numbers):
        weight = None if tail is None else tail.weight

        def part(q, k, v, pooled):
            return self.forward(q, k, v, lists, key_valid, _tail(pooled, weight), **numbers)

        # These keys hold a share of the whole softmax, and their own output moves the whole by that share.
        pooled = None if tail is None else (tail.key, tail.value)
        (own_out, own_lse), transpose = jax.vjp(part, q, k, v, pooled)
        share = jnp.exp(own_lse - jnp.where(jnp.isfinite(lse), lse, 0.0))
        d_own = share[..., None] * d_out.astype(jnp.float32)
        d_lse = (d_own * (own_out.astype(jnp.float32) - out.astype(jnp.float32))).sum(axis=-1)
        dq, dk, dv, d_pooled = transpose((d_own.astype(own_out.dtype), d_lse))
        return dq, dk, dv, *(d_pooled or (None, None))

    def tangent(self, q, k, v, dq, dk, dv, lists, key_valid, tail: Tail | None, d_tail, still, **numbers):
        del still  # the direction is zero there
        weight = None if tail is None else tail.weight
        pooled = None if tail is None else (tail.key, tail.value)

        def run(q, k, v, pooled):
            return self.forward(q, k, v, lists, key_valid, _tail(pooled, weight), **numbers)[0]

        return jax.jvp(run, (q, k, v, pooled), (dq, dk, dv, d_tail))


def _tail(pooled: tuple[jax.Array, jax.Array] | None, weight: jax.Array | None) -> Tail | None:
    return None if pooled is None or weight is None else Tail(*pooled, weight)
