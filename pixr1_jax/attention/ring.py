"""Ring attention over block lists: attention whose queries and keys are spread over the devices of a mesh axis.

Each device keeps its queries, and the shards of keys and values travel round (Liu et al. 2023, arXiv 2310.01889). A
device passes a shard on while it reads it, and waits for the next only then, so it holds two shards at any time. It
reads what its lists name, which may be nothing at all: then it computes nothing. Parts are put together by their
softmax denominators in float32. Backwards the gradients of a shard travel with it, in float32, and the last step
brings them home.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from pixr1_jax.attention import api, kernels, plain
from pixr1_jax.attention.backend import Backend
from pixr1_jax.attention.blocks import BlockLists, Tail
from pixr1_jax.attention.shards import Shards

BACKENDS = api.KERNELS | {name: plain.backend(attend) for name, attend in api.PLAIN.items()}
UNROLLED = 8  # devices of the largest ring whose steps are written out, which spares the loop's copies

_Shard = tuple[jax.Array, jax.Array]  # keys and values


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lists: BlockLists,
    key_valid: jax.Array,
    *,
    axis: str = "context",
    block: int,
    scale: float,
    past: tuple[jax.Array, jax.Array] | None = None,
    tail: Tail | None = None,
    max_logit: float | None = None,
    forward_mode: bool = False,
    implementation: str = "auto",
) -> jax.Array:
    """As `pixr1_jax.attention.api.attend`, the sequence spread over a mesh axis; called inside `jax.shard_map`.

    Key blocks are counted over all devices: first the past blocks of each, device by device, then their own blocks.

    A derivative in forward mode gathers the keys and values of the axis, and their derivatives where they have any, and
    takes one pass over them: its memory is that of one layer's whole sequence, for the device's heads.

    Args:
      q: [batch, query_tokens, heads, dim], this device's queries.
      k: [batch, key_tokens, heads, dim], this device's keys.
      v: [batch, key_tokens, heads, dim].
      lists: What this device's queries read, of all key blocks.
      key_valid: int32 [batch, key_blocks] of all key blocks.
      axis: The mesh axis.
      block: As in `api.attend`.
      scale: As in `api.attend`.
      past: This device's share of the past.
      tail: Its weights are [batch, lists, query_blocks, key_blocks], this device's queries by all key blocks; keys and
        values are of all key blocks, gathered by the caller, and their gradient is that of this device's queries.
      max_logit: As in `api.attend`.
      forward_mode: As in `api.attend`.
      implementation: How a device reads a shard, as in `api.attend`.

    Returns:
      [batch, query_tokens, heads, dim] in the dtype of `q`.

    Raises:
      ValueError: As `api.attend`.
    """
    chex.assert_rank([q, k], 4)
    chex.assert_equal_shape([k, v])
    implementation = api.resolve(implementation, block=block, tile=lists.tile)
    past_tokens = 0 if past is None else past[0].shape[1]
    shards = Shards(jax.lax.axis_size(axis), past_tokens // block, k.shape[1] // block)
    query_blocks, tiles = q.shape[1] // block, lists.counts.shape[2]
    if any(x % block for x in (q.shape[1], k.shape[1], past_tokens)) or -(-query_blocks // lists.tile) != tiles:
        raise ValueError(
            f"ring.attend: on each device {q.shape[1]} queries, {past_tokens} past and {k.shape[1]} own keys must be "
            f"whole blocks of {block}, and the queries {tiles} tiles of {lists.tile} blocks"
        )
    for name, x in (("key_valid", key_valid.shape[1]), ("tail", tail.key.shape[1] if tail else key_valid.shape[1])):
        if x != shards.size * shards.blocks:
            raise ValueError(
                f"ring.attend: {name} has {x} key blocks; {shards.size} devices on axis {axis!r} with {shards.blocks} "
                f"each have {shards.size * shards.blocks}"
            )
    ring = _Ring(BACKENDS[implementation], axis, shards)
    return kernels.attend(
        Backend(ring.forward, ring.backward, ring.tangent, ring.inner.unserved),
        q,
        k,
        v,
        lists,
        key_valid,
        past,
        tail,
        block=block,
        scale=scale,
        max_logit=api.kernel_bound(max_logit),
        forward_mode=forward_mode,
    )


@dataclasses.dataclass(frozen=True)
class _Ring:
    """The functions of a `Backend` whose keys and values are a device's shard, and all else is as `attend` says.

    Attributes:
      inner: Reads one shard.
      axis: The mesh axis.
      shards: How key blocks are spread over it.
    """

    inner: Backend
    axis: str
    shards: Shards

    def forward(self, q, k, v, lists: BlockLists, key_valid, tail: Tail | None, **numbers):
        def read(owner, shard: _Shard):
            out, lse = self.inner.forward(q, *shard, *self.shards.part(lists, key_valid, tail, owner), **numbers)
            return out.astype(jnp.float32), lse

        def add(sums, owner, shard):
            more = lambda sums: _merge(sums, read(owner, shard))
            return jax.lax.cond(self.shards.is_read(lists, tail, owner), more, lambda sums: sums, sums)

        out, lse = self._around((k, v), read, add)
        return out.astype(q.dtype), lse

    def backward(self, q, k, v, lists: BlockLists, key_valid, tail: Tail | None, out, lse, d_out, **numbers):
        pooled = () if tail is None else (tail.key, tail.value)

        def read(d_pooled, owner, shard: _Shard):
            """Gradients of the queries, of the tail (added), and of the shard."""
            part = self.shards.part(lists, key_valid, tail, owner)
            dq, dk, dv, *d_part = self.inner.backward(q, *shard, *part, out, lse, d_out, **numbers)
            put = lambda x, part: self.shards.put(x, part.astype(jnp.float32), owner, axis=2)
            d_pooled = tuple(put(x, part) for x, part in zip(d_pooled, d_part[: len(d_pooled)], strict=True))
            return dq.astype(jnp.float32), d_pooled, (dk.astype(jnp.float32), dv.astype(jnp.float32))

        def first(owner, shard):
            return read(tuple(jnp.zeros(x.shape, jnp.float32) for x in pooled), owner, shard)

        def add(sums, owner, shard):
            dq, d_pooled, d_shard = sums
            # Needed only when the device's own part is done: these travel meanwhile, as the next shard does.
            d_shard = self._pass_on(d_shard)

            def more(dq, d_pooled):
                mine, d_pooled, d_mine = read(d_pooled, owner, shard)
                return dq + mine, d_pooled, d_mine

            def nothing(dq, d_pooled):
                return dq, d_pooled, jax.tree.map(jnp.zeros_like, d_shard)

            is_read = self.shards.is_read(lists, tail, owner)
            dq, d_pooled, d_mine = jax.lax.cond(is_read, more, nothing, dq, d_pooled)
            return dq, d_pooled, jax.tree.map(jnp.add, d_shard, d_mine)

        dq, d_pooled, d_shard = self._around((k, v), first, add)
        dk, dv = self._pass_on(d_shard) if self.shards.size > 1 else d_shard
        d_tail = tuple(x.astype(like.dtype) for x, like in zip(d_pooled, pooled, strict=True)) or (None, None)
        return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), *d_tail

    def tangent(self, q, k, v, dq, dk, dv, lists, key_valid, tail, d_tail, still: int, *, block: int, **numbers):
        at = self.shards.past * block

        def gather(x, moving: bool):
            shape = (*x.shape[:2], self.shards.size * x.shape[2], x.shape[3])
            return jax.lax.all_gather(x, self.axis, axis=2, tiled=True) if moving else kernels.zeros(shape, x)

        def whole(x, still=0):
            """Past rows and then own rows of all devices; what has no derivative is not sent."""
            parts = ((x[:, :, :at], still < self.shards.past), (x[:, :, at:], still < self.shards.blocks))
            return jnp.concatenate([gather(part, moving) for part, moving in parts if part.shape[2]], axis=2)

        move = (dq, whole(dk, still), whole(dv, still))
        still *= self.shards.size
        return self.inner.tangent(
            q, whole(k), whole(v), *move, lists, key_valid, tail, d_tail, still, block=block, **numbers
        )

    def _around(self, shard: _Shard, first: Callable, add: Callable) -> Any:
        """Reads all shards, this device's own first.

        Args:
          shard: Its own.
          first: (its number, its own shard) -> sums.
          add: (sums, number of a shard, shard) -> sums.

        Returns:
          The sums after the last shard, which is that of the next device.
        """
        size, mine = self.shards.size, jax.lax.axis_index(self.axis)
        if size == 1:
            return first(mine, shard)

        def turn(shard, work):
            # No shard is passed on before the last is read: the compiler would let them run ahead and pile up.
            return jax.lax.optimization_barrier((self._pass_on(shard), work(shard)))

        def later(state, distance):
            shard, sums = state
            return turn(shard, lambda shard: add(sums, (mine - distance) % size, shard)), None

        state = turn(shard, lambda shard: first(mine, shard))
        distances = jnp.arange(1, size - 1, dtype=jnp.int32)
        (shard, sums), _ = jax.lax.scan(later, state, distances, unroll=size <= UNROLLED)
        return add(sums, (mine + 1) % size, shard)

    def _pass_on(self, x):
        """Gives arrays to the next device, and takes those of the one before."""
        return jax.lax.ppermute(x, self.axis, [(i, (i + 1) % self.shards.size) for i in range(self.shards.size)])


def _merge(one, other):
    """Outputs [batch, heads, queries, dim] of two sets of keys by the logarithms of their denominators."""
    lse = jnp.logaddexp(one[1], other[1])
    base = jnp.where(jnp.isfinite(lse), lse, 0.0)
    return sum(out * jnp.exp(part - base)[..., None] for out, part in (one, other)), lse
