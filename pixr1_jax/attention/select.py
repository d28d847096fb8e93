"""Adaptive sparsity with nothing thrown away (decision D9).

Of the key blocks that a query block sees, some are always read: its own chunk, the text in force, sinks, heads, and
the same place one chunk earlier. The others are scored, pooled queries times pooled keys, and the best of them are
read too. What is left over enters the same softmax as one pseudo-token a block, its mean key and mean value counting
as its tokens do: a budget changes how exactly a block is read and never whether. The choice carries no gradient; the
means do.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.row_layout import BlockKind, Role
from pixr1_jax.attention.blocks import BlockLists, Blocks, MemoryPolicy, Tail, block_lists

_KERNEL_BLOCK = 64  # from this block size on, kernels read `_TOGETHER` key blocks in one product
_TOGETHER = 8


@dataclasses.dataclass(frozen=True)
class Budget:
    """How many key blocks are read in full besides those that always are.

    Attributes:
      clean: Blocks for clean queries, by layer; one number stands for all layers.
      noisy: Blocks for noisy queries, likewise.
      early: Further blocks for chunks 0, 1, ... of a stream, whose errors all later chunks inherit.
      group: Successive query blocks of a chunk that choose together.
      ramp_steps: Steps of training over which the budget falls from everything to what is said here.
    """

    clean: tuple[int, ...]
    noisy: tuple[int, ...]
    early: tuple[int, ...]
    group: int
    ramp_steps: int

    def __post_init__(self):
        if not self.clean or not self.noisy or min(*self.clean, *self.noisy, *self.early, self.ramp_steps) < 0:
            raise ValueError(
                "a budget needs numbers of blocks (clean, noisy) and none of its numbers below 0; got "
                f"clean={self.clean}, noisy={self.noisy}, early={self.early}, ramp_steps={self.ramp_steps}"
            )
        if self.group < 1:
            raise ValueError(f"budget.group={self.group}; use at least 1")

    @property
    def most(self) -> int:
        """The most blocks that any query block chooses once the ramp is over."""
        return max(*self.clean, *self.noisy) + max(self.early, default=0)

    def check(self, layers: int, block: int) -> None:
        """Raises ValueError where the budget does not fit a model of `layers` layers and blocks of `block` tokens."""
        for name in ("clean", "noisy"):
            count = len(getattr(self, name))
            if count not in (1, layers):
                raise ValueError(f"budget.{name} has {count} numbers; give 1, or {layers}, one a layer")
        odd = [n for n in (*self.clean, *self.noisy, *self.early) if n % _TOGETHER]
        if block >= _KERNEL_BLOCK and odd:
            raise ValueError(
                f"budget names {odd[0]} blocks; with blocks of {block} tokens, of which kernels read {_TOGETHER} "
                f"together, use multiples of {_TOGETHER}"
            )

    def ramp(self, step: jax.Array) -> jax.Array | None:
        """How far the budget is in force at a training step, float32 from 0 to 1; None where there is no ramp."""
        return jnp.minimum(1.0, step / self.ramp_steps) if self.ramp_steps else None

    def always(self, policy: MemoryPolicy, *, chunk: int, head: int, text: int) -> int:
        """The most key blocks that a query block always reads.

        Args:
          policy: The memory policy.
          chunk: Blocks of the largest clean chunk.
          head: Head blocks of a chunk.
          text: Blocks of the longest text.
        """
        return chunk * (1 + policy.sinks) + text + head * policy.window + self.group


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Candidates:
    """What selection knows before any query: the same for all layers, but for `keep`.

    Attributes:
      always: bool [batch, query_blocks, key_blocks], always read.
      free: bool [batch, query_blocks, key_blocks], seen, and read if chosen.
      mates: float32 [batch, query_blocks, query_blocks], 1 where two query blocks choose together.
      query_valid: int32 [batch, query_blocks], valid tokens.
      key_valid: int32 [batch, key_blocks], likewise.
      keep: int32 [layers, batch, query_blocks], how many are chosen.
      most: Static bound on `keep`.
    """

    always: jax.Array
    free: jax.Array
    mates: jax.Array
    query_valid: jax.Array
    key_valid: jax.Array
    keep: jax.Array
    most: int = dataclasses.field(metadata={"static": True})

    def reordered(self, order: np.ndarray) -> "Candidates":
        """The candidates of a row whose block i is block `order[i]` of this one."""
        pair = lambda x: x[:, order][:, :, order]
        return dataclasses.replace(
            self,
            always=pair(self.always),
            free=pair(self.free),
            mates=pair(self.mates),
            query_valid=self.query_valid[:, order],
            key_valid=self.key_valid[:, order],
            keep=self.keep[..., order],
        )


def candidates(
    query: Blocks,
    key: Blocks,
    seen: jax.Array,
    policy: MemoryPolicy,
    budget: Budget,
    *,
    layers: int,
    ramp: jax.Array | None = None,
) -> Candidates:
    """Divides what is seen into what is always read and what may be chosen.

    Args:
      query: Blocks [batch, query_blocks].
      key: Blocks [batch, key_blocks].
      seen: bool [batch, query_blocks, key_blocks].
      policy: The memory policy, for its sinks.
      budget: How many are chosen.
      layers: Layers of the model.
      ramp: See `Budget.ramp`; None where the budget is fully in force.
    """
    q = jax.tree.map(lambda x: x[..., :, None], query)
    k = jax.tree.map(lambda x: x[..., None, :], key)
    age = q.chunk - k.chunk
    own = (age == 0) & (q.role == k.role)
    place = lambda blocks: _place(blocks.segment, blocks.chunk, blocks.role, blocks.kind)
    same_place = (age == 1) & (q.kind == k.kind) & (place(query)[0][..., :, None] == place(key)[0][..., None, :])
    kinds = (k.kind == BlockKind.TEXT) | (k.kind == BlockKind.HEAD)
    always = seen & (own | kinds | (k.chunk < policy.sinks) | same_place)
    # Groups are counted from a chunk's beginning, so that a row of many chunks and a stream form the same ones.
    within, start = _place(query.segment, query.chunk, query.role, query.kind == BlockKind.TEXT)
    group = start + within // budget.group
    mates = group[..., :, None] == group[..., None, :]
    # Mates see the same, and read always what one of them does: then they choose among the same.
    always = seen & (jnp.einsum("bqp,bpk->bqk", mates.astype(jnp.float32), always.astype(jnp.float32)) > 0)

    by_layer = lambda numbers: jnp.broadcast_to(jnp.array(numbers, jnp.int32), layers)[:, None, None]
    keep = jnp.where(query.role == Role.NOISY, by_layer(budget.noisy), by_layer(budget.clean))
    early = jnp.array([*budget.early, 0], jnp.int32)
    keep += early[jnp.clip(query.chunk, 0, len(budget.early))]
    free, most = seen & ~always, min(budget.most, key.count)
    if ramp is not None:
        most = key.count
        spare = jnp.maximum(free.sum(axis=-1, dtype=jnp.int32) - keep, 0)
        keep += jnp.ceil((1.0 - ramp) * spare).astype(jnp.int32)
    return Candidates(always, free, mates.astype(jnp.float32), query.valid, key.valid, keep, most)


def _place(*marks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Place of each block in its run of blocks with the same marks, and where the run starts, int32 [..., blocks]."""
    index = jnp.arange(marks[0].shape[-1], dtype=jnp.int32)
    changes = [jnp.concatenate([jnp.ones_like(x[..., :1], bool), x[..., 1:] != x[..., :-1]], axis=-1) for x in marks]
    begins = jnp.stack(changes).any(axis=0)
    start = jax.lax.cummax(jnp.where(begins, index, 0), axis=begins.ndim - 1)
    return index - start, start


def pool(x: jax.Array, valid: jax.Array, block: int) -> jax.Array:
    """Mean over the valid tokens of each block.

    Args:
      x: [batch, tokens, heads, dim].
      valid: int32 [batch, blocks].
      block: Tokens in a block.

    Returns:
      float32 [batch, blocks, heads, dim], zero where nothing is valid.
    """
    x = x.reshape(x.shape[0], -1, block, *x.shape[2:]).astype(jnp.float32)
    alive = (jnp.arange(block) < valid[..., None])[..., None, None]
    return jnp.where(alive, x, 0.0).sum(axis=2) / jnp.maximum(valid, 1)[..., None, None]


def choose(query: jax.Array, key: jax.Array, candidates: Candidates, keep: jax.Array) -> jax.Array:
    """Which key blocks each query block reads in full.

    Args:
      query: Mean queries of each block, float32 [batch, query_blocks, heads, dim].
      key: Mean keys, float32 [batch, key_blocks, heads, dim].
      candidates: What may be chosen.
      keep: int32 [batch, query_blocks], how many are chosen in this layer.

    Returns:
      bool [batch, heads, query_blocks, key_blocks]. Of equal scores the first key block wins.
    """
    always, free = candidates.always[:, None], candidates.free[:, None]
    if not candidates.most:
        return jnp.broadcast_to(always, (always.shape[0], query.shape[2], *always.shape[2:]))
    query, key = jax.lax.stop_gradient((query, key))
    weight = candidates.mates * candidates.query_valid[:, None].astype(jnp.float32)
    weight /= jnp.maximum(weight.sum(axis=-1, keepdims=True), 1.0)
    exact = jax.lax.Precision.HIGHEST
    query = jnp.einsum("bqp,bphd->bqhd", weight, query, precision=exact)
    score = jnp.where(free, jnp.einsum("bqhd,bkhd->bhqk", query, key, precision=exact), -jnp.inf)
    values, places = jax.lax.top_k(score, candidates.most)
    # The last that is kept divides the others: better ones, and equal ones that stand before it.
    last = jnp.clip(keep - 1, 0, candidates.most - 1)[:, None, :, None]
    edge, edge_place = (jnp.take_along_axis(x, last, axis=-1) for x in (values, places))
    better = (score > edge) | ((score == edge) & (jnp.arange(score.shape[-1]) <= edge_place))
    return always | (free & better & (keep > 0)[:, None, :, None])


def select(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    candidates: Candidates,
    keep: jax.Array,
    *,
    block: int,
    tile: int,
    max_keys: int | None,
) -> tuple[BlockLists, Tail]:
    """Lists and tail of one layer.

    Args:
      query: [batch, query_tokens, heads, dim], as attention reads them.
      key: Mean keys of each block as attention reads them, float32 [batch, key_blocks, heads, dim].
      value: Mean values, likewise.
      candidates: What may be chosen.
      keep: int32 [batch, query_blocks], how many are chosen in this layer.
      block: Tokens in a block.
      tile: Query blocks that share a list.
      max_keys: Static bound on the key blocks that one query block reads in full.
    """
    chosen = choose(pool(query, candidates.query_valid, block), key, candidates, keep)
    lists = block_lists(chosen, candidates.key_valid, block=block, max_keys=max_keys, tile=tile)
    left = candidates.free[:, None] & ~chosen
    weight = jnp.where(left, candidates.key_valid[:, None, None, :].astype(jnp.float32), 0.0)
    return lists, Tail(key.astype(query.dtype), value.astype(query.dtype), weight)
