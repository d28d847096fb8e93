"""How a TPU kernel walks the list of a tile: what is packed for it, and in which groups it visits the key blocks.

A visit takes a group of key blocks at once, since one block is too little work for a matrix unit: first `WIDE` blocks
that need no mask, as long as there are so many, then `GROUP` at a time, masked by valid lengths and by which query
blocks of the tile read them.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pixr1_jax.attention.blocks import BlockLists

GROUP = 8  # key blocks of a masked visit, a power of two as are those of others: a scalar core has no division
MOST = 16  # key blocks of the largest visit
HEADER = 2  # numbers before the entries: entries without a mask, all entries
MAX_TILE = 8  # query blocks of a tile, a bit each
MAX_BLOCK = 256
MAX_KEY_BLOCKS = 1 << 16


def packed_lists(lists: BlockLists, key_valid: jax.Array, window_blocks: int, windows: int) -> jax.Array:
    """Lists as the kernels read them, one row a tile and window of keys.

    Args:
      lists: Key blocks of each tile.
      key_valid: int32 [batch, key_blocks].
      window_blocks: Key blocks of a window; indices are counted from the window's first.
      windows: Windows; together they cover all key blocks.

    Returns:
      int32 [batch, lists, windows, tiles, 1, HEADER + slots], slots a multiple of `MOST`: the number of entries
      without a mask, the number of entries, and for each entry its index (16 bits), the query blocks that read it (8
      bits) and its valid tokens less one (8 bits).
    """
    batch, heads, tiles, max_keys = lists.indices.shape
    valid = jnp.take_along_axis(key_valid, lists.indices.reshape(batch, -1), axis=1).reshape(lists.indices.shape)
    place = jnp.arange(max_keys)
    listed = (place < lists.counts[..., None]) & (valid > 0)
    unmasked = place < lists.whole[..., None]
    entry = (lists.indices % window_blocks) | (lists.seen << 16) | (jnp.maximum(valid - 1, 0) << 24)
    if windows == 1:
        rows = [(jnp.where(listed, entry, 0), lists.whole, lists.counts)]
    else:
        rows = [
            _of_window(entry, unmasked, listed & (lists.indices // window_blocks == w), window_blocks)
            for w in range(windows)
        ]
    packed = [_row(*row) for row in rows]
    return jnp.stack(packed, axis=2)[..., None, :]


def _of_window(entry, unmasked, here, window_blocks):
    """The entries of one window, moved to the front in their order."""
    order = jnp.argsort(~here, axis=-1, stable=True)[..., : min(window_blocks, here.shape[-1])]
    count = here.sum(axis=-1, dtype=jnp.int32)
    whole = (here & unmasked).sum(axis=-1, dtype=jnp.int32)
    moved = jnp.take_along_axis(entry, order, axis=-1)
    return jnp.where(jnp.arange(order.shape[-1]) < count[..., None], moved, 0), whole, count


def _row(entry, whole, count):
    spare = -entry.shape[-1] % MOST
    entry = jnp.pad(entry, [(0, 0)] * (entry.ndim - 1) + [(0, spare)])
    return jnp.concatenate([whole[..., None], count[..., None], entry], axis=-1).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One key block of a visit, scalars of the kernel.

    Attributes:
      index: Which key block of the window.
      seen: Bit i is set where query block i of the tile reads it.
      valid: Its valid tokens.
    """

    index: jax.Array
    seen: jax.Array
    valid: jax.Array


@dataclasses.dataclass(frozen=True)
class Listed:
    """A schedule read from the packed list of a tile, in scalar memory.

    Attributes:
      ref: The lists of a step, [tiles, 1, slots].
      tile: Which of them.
    """

    ref: jax.Ref
    tile: jax.Array

    def counts(self) -> tuple[jax.Array, jax.Array]:
        """Entries that need no mask, and all entries."""
        return self.ref[self.tile, 0, 0], self.ref[self.tile, 0, 1]

    def entry(self, place: jax.Array) -> Entry:
        """The entry at a place of the list; beyond its end it is read by no query block."""
        packed = self.ref[self.tile, 0, HEADER + place]
        return Entry(packed & 0xFFFF, (packed >> 16) & 0xFF, ((packed >> 24) & 0xFF) + 1)


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """A schedule of `whole` unmasked blocks whose indices follow from the tile, and `masked` others.

    For the compiler's cycle estimates, which count loops of unknown length as never taken.
    """

    tile_number: jax.Array
    whole: int
    masked: int
    key_blocks: int
    query_blocks: int
    block: int

    def counts(self) -> tuple[int, int]:
        """As in `Listed`."""
        return self.whole, self.whole + self.masked

    def entry(self, place: jax.Array) -> Entry:
        """As in `Listed`."""
        index = (self.tile_number * 7 + place) % self.key_blocks
        return Entry(index, jnp.int32((1 << self.query_blocks) - 1), jnp.int32(self.block))


Schedule = Listed | Arithmetic
Carry = tuple[jax.Array, ...]


def walk(schedule: Schedule, carry: Carry, visit: Callable[[Carry, list[Entry], bool], Carry], wide: int) -> Carry:
    """Visits all entries of a schedule.

    Args:
      schedule: The tile's list.
      carry: Accumulators.
      visit: Takes accumulators, entries of a group, and whether they need a mask.
      wide: Entries of a visit that needs no mask, a power of two.

    Returns:
      The accumulators after the last visit.
    """
    whole, count = schedule.counts()
    trips = whole >> (wide.bit_length() - 1)

    def unmasked(trip, carry):
        return visit(carry, [schedule.entry(trip * wide + i) for i in range(wide)], False)

    def masked(trip, carry):
        first = trips * wide + trip * GROUP
        return visit(carry, [schedule.entry(first + i) for i in range(GROUP)], True)

    carry = jax.lax.fori_loop(0, trips, unmasked, carry)
    return jax.lax.fori_loop(0, groups(count - trips * wide, GROUP), masked, carry)


def groups(count: jax.Array | int, size: int) -> jax.Array | int:
    """Groups of `size`, a power of two, that hold `count` entries."""
    return (count + size - 1) >> (size.bit_length() - 1)
