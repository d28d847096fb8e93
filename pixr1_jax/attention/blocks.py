"""Who sees whom, decided per pair of blocks, and its compressed form: block lists (decisions D5-D8).

`visible` is the one definition of visibility, used for training rows and for the serving cache alike.
`block_lists` turns any such relation into what attention reads: for every tile of query blocks the indices
of the key blocks that it attends to.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.row_layout import BlockKind, Role


@dataclasses.dataclass(frozen=True)
class MemoryPolicy:
    """What a chunk sees of its past (D8).

    Attributes:
      window: The last `window` chunks are seen in full.
      sinks: The first `sinks` chunks of a stream are always seen in full.
      bank: Memory blocks of older chunks that a stream keeps; training rows are short enough to keep all.
      horizon: Largest distance in chunks that positions may express; older keys are placed there.
    """

    window: int
    sinks: int
    bank: int
    horizon: int

    def __post_init__(self):
        if self.window < 1 or self.sinks < 0 or self.bank < 1:
            raise ValueError(f"memory policy needs window >= 1, sinks >= 0, bank >= 1; got {self}")
        if self.horizon <= self.window:
            raise ValueError(f"memory.horizon={self.horizon} must exceed memory.window={self.window}")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Blocks:
    """Metadata of blocks, each int32 [..., blocks]; meanings as in `data_pipelines.row_layout`."""

    segment: jax.Array
    chunk: jax.Array
    role: jax.Array
    kind: jax.Array
    valid: jax.Array
    until: jax.Array

    @classmethod
    def of(cls, arrays) -> "Blocks":
        """Takes the `block_*` arrays of a packed row or batch."""
        return cls(**{field.name: arrays[f"block_{field.name}"] for field in dataclasses.fields(cls)})

    @property
    def count(self) -> int:
        """Number of blocks."""
        return self.segment.shape[-1]

    def __getitem__(self, where: slice | np.ndarray) -> "Blocks":
        return jax.tree.map(lambda x: x[..., where], self)

    def __add__(self, other: "Blocks") -> "Blocks":
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=-1), self, other)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockLists:
    """Key blocks that each tile of query blocks reads.

    A tile is `tile` query blocks in a row, read together since a matrix unit wants more queries than a block has. Its
    list is the union of what its blocks see; `seen` says for each entry which of them do. The entries that all of them
    see, and whose tokens are all valid, come first: they need no mask.

    Attributes:
      indices: int32 [batch, lists, tiles, max_keys], key blocks; `lists` is 1, or the heads where each has its own.
        Entries at or beyond the count are 0 and not read.
      seen: int32 [batch, lists, tiles, max_keys], bit i is set where query block i of the tile reads the entry.
      counts: int32 [batch, lists, tiles].
      whole: int32 [batch, lists, tiles], how many entries at the beginning need no mask.
      tile: Query blocks of a tile; the last tile of a row may have fewer.
    """

    indices: jax.Array
    seen: jax.Array
    counts: jax.Array
    whole: jax.Array
    tile: int = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tail:
    """Key blocks that enter the softmax as one pseudo-token each (D9).

    Attributes:
      key: [batch, key_blocks, heads, dim], the mean key of each block.
      value: [batch, key_blocks, heads, dim], its mean value.
      weight: float32 [batch, lists, query_blocks, key_blocks], how many tokens the pseudo-token stands for, 0 where
        it is not read; `lists` as in `BlockLists`.
    """

    key: jax.Array
    value: jax.Array
    weight: jax.Array


def visible(query: Blocks, key: Blocks, policy: MemoryPolicy, hide_text: jax.Array | None = None) -> jax.Array:
    """Whether each query block sees each key block.

    A clean block sees its own clean chunk, a noisy block its own noisy chunk. Both see of the clean past: the last
    `window` chunks and the first `sinks` in full, of all others the memory blocks, and the text in force.
    Text blocks see only their own event, so their keys do not depend on when they are read.

    Args:
      query: Blocks [..., query_blocks].
      key: Blocks [..., key_blocks].
      policy: The memory policy.
      hide_text: Optional bool [..., query_blocks]: queries that do not see text (guidance).

    Returns:
      bool [..., query_blocks, key_blocks].
    """
    q = jax.tree.map(lambda x: x[..., :, None], query)
    k = jax.tree.map(lambda x: x[..., None, :], key)
    age = q.chunk - k.chunk
    present = (q.segment == k.segment) & (k.segment >= 0) & (q.valid > 0) & (k.valid > 0)
    is_text = k.kind == BlockKind.TEXT
    own = (age == 0) & (q.role == k.role)
    whole = (age > 0) & ((age <= policy.window) | (k.chunk < policy.sinks))
    remembered = (age > 0) & (k.kind == BlockKind.MEMORY)
    content = ~is_text & (own | ((k.role == Role.CLEAN) & (whole | remembered)))
    text = is_text & (age >= 0) & (q.chunk < k.until)
    if hide_text is not None:
        text &= ~hide_text[..., :, None]
    same_event = is_text & (age == 0)
    return present & jnp.where(q.kind == BlockKind.TEXT, same_event, content | text)


def block_lists(
    seen: jax.Array, key_valid: jax.Array, *, block: int, max_keys: int | None = None, tile: int = 1
) -> BlockLists:
    """Compresses a visibility relation.

    Args:
      seen: bool [batch, query_blocks, key_blocks], or [batch, heads, query_blocks, key_blocks].
      key_valid: int32 [batch, key_blocks], valid tokens of each key block.
      block: Tokens in a block.
      max_keys: Static bound on the key blocks of one query block, derived by the caller from the layout.
      tile: Query blocks that share a list.

    Returns:
      Lists whose indices ascend, first among the entries that need no mask, then among the others.
    """
    if seen.ndim == 3:
        seen = seen[:, None]
    *lead, query_blocks, key_blocks = seen.shape
    tiles = -(-query_blocks // tile)
    seen = jnp.pad(seen, [(0, 0)] * len(lead) + [(0, tiles * tile - query_blocks), (0, 0)])
    bits = jnp.arange(tile, dtype=jnp.int32)[:, None]
    seen_by = jnp.left_shift(seen.reshape(*lead, tiles, tile, key_blocks).astype(jnp.int32), bits).sum(axis=-2)
    full = (key_valid == block)[:, None, None]
    everyone = (1 << tile) - 1
    # Blocks beyond the row's end read nothing, and need no mask either: what they compute is thrown away.
    last = everyone >> (tiles * tile - query_blocks)
    wanted = jnp.full((tiles, 1), everyone, jnp.int32).at[-1].set(last)
    whole = (seen_by == wanted) & full
    rank = jnp.where(whole, 0, jnp.where(seen_by > 0, 1, 2))
    bound = key_blocks if max_keys is None else min(tile * max_keys, key_blocks)
    order = jnp.argsort(rank, axis=-1, stable=True)[..., :bound].astype(jnp.int32)
    counts = jnp.minimum((seen_by > 0).sum(axis=-1, dtype=jnp.int32), bound)
    listed = jnp.arange(bound) < counts[..., None]
    return BlockLists(
        indices=jnp.where(listed, order, 0),
        seen=jnp.where(listed, jnp.take_along_axis(seen_by, order, axis=-1), 0),
        counts=counts,
        whole=jnp.minimum(whole.sum(axis=-1, dtype=jnp.int32), counts),
        tile=tile,
    )
