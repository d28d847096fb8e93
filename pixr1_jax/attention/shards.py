"""Key blocks that are spread over devices: which device holds which, and what queries read of one device's share."""

import dataclasses

import jax
import jax.numpy as jnp

from pixr1_jax.attention.blocks import BlockLists, Tail


@dataclasses.dataclass(frozen=True)
class Shards:
    """Equal shares of the key blocks, one a device.

    In the global order come the past blocks of all devices, device by device, then their own blocks, likewise. A shard
    is the past and then the own blocks of one device.

    Attributes:
      size: Devices.
      past: Past blocks of a shard.
      own: Own blocks of a shard.
    """

    size: int
    past: int
    own: int

    @property
    def blocks(self) -> int:
        """Key blocks of a shard."""
        return self.past + self.own

    def take(self, x: jax.Array, shard: jax.Array, axis: int) -> jax.Array:
        """The blocks of one shard, of an array whose `axis` counts all key blocks."""
        runs = [(shard * self.past, self.past), (self.size * self.past + shard * self.own, self.own)]
        parts = [jax.lax.dynamic_slice_in_dim(x, first, count, axis) for first, count in runs if count]
        return jnp.concatenate(parts, axis=axis)

    def put(self, x: jax.Array, part: jax.Array, shard: jax.Array, axis: int) -> jax.Array:
        """Replaces the blocks of one shard; the inverse of `take`."""
        update = jax.lax.dynamic_update_slice_in_dim
        old, own = jnp.split(part, [self.past], axis=axis)
        x = update(x, old, shard * self.past, axis) if self.past else x
        return update(x, own, self.size * self.past + shard * self.own, axis)

    def find(self, block: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The shard that holds a key block, and its place there; int32 each."""
        past, first = max(self.past, 1), self.size * self.past
        is_past = block < first
        shard = jnp.where(is_past, block // past, (block - first) // self.own)
        return shard, jnp.where(is_past, block % past, self.past + (block - first) % self.own)

    def is_read(self, lists: BlockLists, tail: Tail | None, shard: jax.Array) -> jax.Array:
        """Whether any list or pseudo-token names a block of the shard, bool []."""
        listed = jnp.arange(lists.indices.shape[-1]) < lists.counts[..., None]
        named = (listed & (self.find(lists.indices)[0] == shard)).any()
        return named if tail is None else named | (self.take(tail.weight, shard, 3) > 0).any()

    def part(
        self, lists: BlockLists, key_valid: jax.Array, tail: Tail | None, shard: jax.Array
    ) -> tuple[BlockLists, jax.Array, Tail | None]:
        """Lists, valid tokens and tail over the blocks of one shard, in its own count.

        Args:
          lists: Of all key blocks.
          key_valid: int32 [batch, key_blocks] of all.
          tail: Key and value [batch, heads, key_blocks, dim] of all, or None.
          shard: Which, int32 [].
        """
        owner, place = self.find(lists.indices)
        rank = jnp.arange(lists.indices.shape[-1])
        here = (rank < lists.counts[..., None]) & (owner == shard)
        entries = [jnp.where(here, x, 0) for x in (place, lists.seen)]
        # Moved to the front in their order, so those that need no mask still come first.
        _, place, seen = jax.lax.sort((~here, *entries), num_keys=1, is_stable=True)
        most = min(self.blocks, place.shape[-1])
        mine = BlockLists(
            indices=place[..., :most],
            seen=seen[..., :most],
            counts=here.sum(axis=-1, dtype=jnp.int32),
            whole=(here & (rank < lists.whole[..., None])).sum(axis=-1, dtype=jnp.int32),
            tile=lists.tile,
        )
        if tail is not None:
            tail = Tail(*(self.take(x, shard, axis) for x, axis in ((tail.key, 2), (tail.value, 2), (tail.weight, 3))))
        return mine, self.take(key_valid, shard, 1), tail
