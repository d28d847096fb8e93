"""Block lists rearranged for kernels that work on one query block, or on one key block, at a time."""

import dataclasses

import jax
import jax.numpy as jnp

from pixr1_jax.attention.blocks import BlockLists


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowLists:
    """For each row the entries that it names, in groups that follow one another.

    Attributes:
      indices: int32 [batch, lists, rows, entries]; 0 beyond the last group, and not read.
      ends: int32 [batch, lists, rows, groups], where each group ends; the last is the number of entries.
    """

    indices: jax.Array
    ends: jax.Array


def query_lists(lists: BlockLists, key_valid: jax.Array, *, block: int, still: int = 0) -> RowLists:
    """The key blocks that each single query block reads.

    Args:
      lists: Lists of tiles.
      key_valid: int32 [batch, key_blocks], valid tokens of each key block.
      block: Tokens in a block.
      still: The groups are key blocks before this one, then the others. If 0, they are key blocks that need no mask,
        then the others.

    Returns:
      Lists of two groups, a row for each query block of each tile.
    """
    if lists.tile == 1 and not still:
        return RowLists(lists.indices, jnp.stack([lists.whole, lists.counts], axis=-1))
    listed = jnp.arange(lists.indices.shape[-1]) < lists.counts[..., None]
    valid = jax.vmap(lambda valid, where: valid[where])(key_valid, lists.indices)
    second = lists.indices >= still if still else valid < block
    bits = jnp.arange(lists.tile)[:, None]
    reads = ((lists.seen[..., None, :] >> bits) & 1 > 0) & (listed & (valid > 0))[..., None, :]
    group = jnp.where(reads, second[..., None, :].astype(jnp.int32), 2)
    rows = lambda x: jnp.broadcast_to(x, reads.shape).reshape(*reads.shape[:2], -1, reads.shape[-1])
    return _compact(rows(lists.indices[..., None, :]), rows(group), groups=2)


def transpose_lists(reads: RowLists, key_blocks: int) -> RowLists:
    """The query blocks that read each key block.

    Args:
      reads: The key blocks that each query block reads, none of them twice.
      key_blocks: Key blocks of a row.

    Returns:
      Lists of one group, a row for each key block, whose entries ascend.
    """
    *lead, query_blocks, entries = reads.indices.shape
    listed = jnp.arange(entries) < reads.ends[..., -1:]
    # What is not listed is put beyond the end, each at its own place, since places must differ.
    place = jnp.where(listed, reads.indices, key_blocks + jnp.arange(entries)).reshape(-1, entries)
    read = jnp.zeros((place.shape[0], key_blocks), bool)
    read = read.at[jnp.arange(place.shape[0])[:, None], place].set(True, mode="drop", unique_indices=True)
    read = jnp.swapaxes(read.reshape(*lead, query_blocks, key_blocks), -1, -2)
    queries = jnp.broadcast_to(jnp.arange(query_blocks, dtype=jnp.int32), read.shape)
    return _compact(queries, jnp.where(read, 0, 1), groups=1)


def _compact(entries: jax.Array, group: jax.Array, *, groups: int) -> RowLists:
    """Sorts int32 entries [batch, lists, rows, n] by group, stably; those of group `groups` are dropped."""
    count = entries.shape[-1]
    member = group[..., None] == jnp.arange(groups)
    ends = jnp.cumsum(member.sum(axis=-2, dtype=jnp.int32), axis=-1)
    starts = jnp.concatenate([jnp.zeros_like(ends[..., :1]), ends[..., :-1]], axis=-1)
    rank = jnp.cumsum(member, axis=-2, dtype=jnp.int32) - 1 + starts[..., None, :]
    place = jnp.where(member, rank, 0).sum(axis=-1)
    place = jnp.where(member.any(axis=-1), place, count + jnp.arange(count)).reshape(-1, count)
    packed = jnp.zeros(place.shape, jnp.int32)
    rows = jnp.arange(place.shape[0])[:, None]
    packed = packed.at[rows, place].set(entries.reshape(place.shape), mode="drop", unique_indices=True)
    return RowLists(packed.reshape(entries.shape), ends)
