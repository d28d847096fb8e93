"""Who sees whom, decided per pair of blocks, and its compressed form: block lists (decisions D5-D8).

`visible` is the one definition of visibility, used for training rows and for the serving cache alike.
`block_lists` turns any such relation into what attention reads: for every query block the indices of
the key blocks that it attends to, and how many there are.
"""

import dataclasses

import jax
import jax.numpy as jnp

from data_pipelines.packing import BlockKind, Role


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
    """Metadata of blocks, each int32 [..., blocks]; meanings as in `data_pipelines.packing`."""

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

    def __getitem__(self, where: slice) -> "Blocks":
        return jax.tree.map(lambda x: x[..., where], self)

    def __add__(self, other: "Blocks") -> "Blocks":
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=-1), self, other)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockLists:
    """Key blocks of every query block.

    Attributes:
      indices: int32 [..., query_blocks, max_keys]; entries at or beyond the count are 0 and not read.
      counts: int32 [..., query_blocks].
    """

    indices: jax.Array
    counts: jax.Array


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


def block_lists(seen: jax.Array, max_keys: int) -> BlockLists:
    """Compresses a visibility relation, keeping the order of keys.

    Args:
      seen: bool [..., query_blocks, key_blocks].
      max_keys: Static bound on the keys of one query block; the caller derives it from the layout.

    Returns:
      Lists whose indices ascend.
    """
    max_keys = min(max_keys, seen.shape[-1])
    order = jnp.argsort(~seen, axis=-1, stable=True)[..., :max_keys].astype(jnp.int32)
    counts = seen.sum(axis=-1, dtype=jnp.int32)
    listed = jnp.arange(max_keys) < counts[..., None]
    return BlockLists(indices=jnp.where(listed, order, 0), counts=jnp.minimum(counts, max_keys))
