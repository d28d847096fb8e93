"""The streaming cache: sinks, a ring of recent chunks, and a bank of memory blocks (decision D8).

Blocks of the cache stand in this order: previous text, text in force, sinks, ring, bank. They carry the same
metadata as blocks of a training row, and the same `visible` decides what is read. Keys are kept without rotation;
at a read each chunk is placed at its distance from the current one, at most `horizon`, so a stream never leaves the
trained range.

Where attention has a budget, the means of each block are cached too, made once when a block enters: their keys are
rotated within the chunk, and time, in which the tokens of a chunk move together, is added at a read.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines import row_layout
from data_pipelines.row_layout import BlockKind, Role, TokenSpec
from pixr1_jax.attention.blocks import Blocks, MemoryPolicy
from pixr1_jax.attention.select import pool
from pixr1_jax.omni import rope
from pixr1_jax.omni.model import OmniConfig, Past


@dataclasses.dataclass(frozen=True)
class CacheLayout:
    """Static places of the cache for one picture size (`grid` patch rows and columns)."""

    tokens: TokenSpec
    memory: MemoryPolicy
    grid: tuple[int, int]

    @property
    def text_blocks(self) -> int:
        """Blocks that hold one text event."""
        return self.tokens.blocks_for(self.tokens.text_bytes)

    @property
    def head_blocks(self) -> int:
        """Head blocks of a chunk."""
        return self.tokens.blocks_for(self.tokens.head_tokens)

    @property
    def chunk_blocks(self) -> int:
        """Blocks of a clean chunk: head, memory, picture."""
        return self.head_blocks + 1 + self.tokens.blocks_for(self.grid[0] * self.grid[1])

    @property
    def first_sink(self) -> int:
        """Place of the first sink block; chunks follow at `chunk_blocks` each."""
        return 2 * self.text_blocks

    @property
    def first_ring(self) -> int:
        """Place of the first ring block."""
        return self.first_sink + self.memory.sinks * self.chunk_blocks

    @property
    def first_bank(self) -> int:
        """Place of the first bank block."""
        return self.first_ring + self.memory.window * self.chunk_blocks

    @property
    def blocks(self) -> int:
        """Blocks of the whole cache."""
        return self.first_bank + self.memory.bank

    def chunk_arrays(self) -> dict[str, np.ndarray]:
        """Layout arrays of one clean chunk at chunk 0, slot 0 (see `RowBuilder`)."""
        builder = row_layout.RowBuilder(self.tokens, self.chunk_blocks)
        place = {"segment": 0, "chunk": 0, "slot": 0, "role": Role.CLEAN}
        builder.add(row_layout.head_run(self.tokens, 0, 0), **place, kind=BlockKind.HEAD)
        builder.add(row_layout.memory_run(self.tokens, 0), **place, kind=BlockKind.MEMORY)
        builder.add(row_layout.picture_run(0, 0, self.grid), **place, kind=BlockKind.PATCH)
        return builder.arrays

    def text_arrays(self) -> dict[str, np.ndarray]:
        """Layout arrays of a full-length text event at chunk 0."""
        builder = row_layout.RowBuilder(self.tokens, self.text_blocks)
        run = row_layout.text_run(0, self.tokens.text_bytes, 0)
        builder.add(run, segment=0, chunk=0, slot=0, role=Role.CLEAN, kind=BlockKind.TEXT)
        return builder.arrays

    def static(self) -> dict[str, np.ndarray]:
        """What never changes: kind int32 [blocks], and positions within the chunk, offset float32 [tokens, 3]."""
        chunk, text = self.chunk_arrays(), self.text_arrays()
        memory = row_layout.memory_run(self.tokens, 0)
        chunks, bank = self.memory.sinks + self.memory.window, self.memory.bank
        return {
            "kind": np.concatenate(
                [
                    np.tile(text["block_kind"], 2),
                    np.tile(chunk["block_kind"], chunks),
                    np.full(bank, BlockKind.MEMORY, np.int32),
                ]
            ),
            "offset": np.concatenate(
                [
                    np.tile(text["position"], (2, 1)),
                    np.tile(chunk["position"], (chunks, 1)),
                    np.tile(memory.position, (bank, 1)),
                ]
            ),
        }


def empty(config: OmniConfig, layout: CacheLayout) -> dict[str, jax.Array]:
    """An empty cache of one stream.

    Returns:
      cache_key, cache_value [layers, tokens, heads, head_dim]; cache_chunk int32 [blocks] (-1 where empty);
      cache_valid int32 [blocks]; cache_until int32 [text blocks], the chunk that ends each text;
      cache_weight float32 [bank], chunks that a bank block stands for; with a budget, cache_mean_key and
      cache_mean_value float32 [layers, blocks, heads, head_dim].
    """
    shape = (config.layers, layout.blocks * layout.tokens.block, config.heads, config.head_dim)
    dtype = jnp.dtype(config.dtype)
    means = {}
    if config.attention.budget is not None:
        by_block = (config.layers, layout.blocks, config.heads, config.head_dim)
        means = {name: jnp.zeros(by_block) for name in ("cache_mean_key", "cache_mean_value")}
    return means | {
        "cache_key": jnp.zeros(shape, dtype),
        "cache_value": jnp.zeros(shape, dtype),
        "cache_chunk": jnp.full(layout.blocks, -1, jnp.int32),
        "cache_valid": jnp.zeros(layout.blocks, jnp.int32),
        "cache_until": jnp.full(2 * layout.text_blocks, row_layout.FOREVER, jnp.int32),
        "cache_weight": jnp.zeros(layout.memory.bank, jnp.float32),
    }


def past(layout: CacheLayout, cache: dict[str, jax.Array], current: jax.Array) -> Past:
    """The cache as `backbone` reads it (batch of one) when `current` is the chunk being made."""
    static = layout.static()
    filled = cache["cache_chunk"] >= 0
    until = jnp.full(layout.blocks, row_layout.FOREVER, jnp.int32)
    blocks = Blocks(
        segment=jnp.where(filled, 0, -1),
        chunk=cache["cache_chunk"],
        role=jnp.full(layout.blocks, Role.CLEAN, jnp.int32),
        kind=jnp.asarray(static["kind"]),
        valid=jnp.where(filled, cache["cache_valid"], 0),
        until=until.at[: layout.first_sink].set(cache["cache_until"]),
    )
    distance = jnp.maximum(cache["cache_chunk"] - current, -layout.memory.horizon).astype(jnp.float32)
    position = jnp.asarray(static["offset"]).at[:, 0].add(jnp.repeat(distance, layout.tokens.block))
    position, blocks = jax.tree.map(lambda x: x[None], (position, blocks))
    means = None
    if "cache_mean_key" in cache:
        key = cache["cache_mean_key"]
        place = jnp.zeros((1, layout.blocks, 3)).at[..., 0].set(distance)
        means = rope.rotate(key, rope.angles(place, key.shape[-1]))[:, None], cache["cache_mean_value"][:, None]
    return Past(cache["cache_key"][:, None], cache["cache_value"][:, None], position, blocks, means)


def _means(layout: CacheLayout, cache, key: jax.Array, value: jax.Array, position: np.ndarray, valid: jax.Array):
    """Means of blocks that enter, by their names in the cache; nothing where the cache keeps none.

    Args:
      layout: Places.
      cache: The cache.
      key: [layers, tokens, heads, head_dim]; `value` likewise.
      value: See `key`.
      position: float32 [tokens, 3], within the chunk.
      valid: int32 [tokens / block].
    """
    if "cache_mean_key" not in cache:
        return {}
    placed = rope.rotate(key.astype(jnp.float32), rope.angles(jnp.asarray(position)[None], key.shape[-1]))
    mean = lambda x: pool(x, valid[None], layout.tokens.block)
    return {"cache_mean_key": mean(placed), "cache_mean_value": mean(value)}


def write_text(
    layout: CacheLayout, cache: dict[str, jax.Array], key: jax.Array, value: jax.Array, length: jax.Array, chunk
) -> dict[str, jax.Array]:
    """Puts a text in force from `chunk` on; the text before it stays readable to earlier chunks.

    Args:
      layout: Places.
      cache: The cache.
      key: [layers, text tokens, heads, head_dim]; `value` likewise.
      value: See `key`.
      length: Bytes of the text, int32; 0 leaves no text in force.
      chunk: First chunk that sees it.
    """
    blocks, block = layout.text_blocks, layout.tokens.block
    valid = jnp.clip(length - block * jnp.arange(blocks), 0, block).astype(jnp.int32)
    chunk_before = cache["cache_chunk"][blocks]
    began = chunk_before < chunk  # a text that no chunk has seen yet is simply replaced

    def shift(x, new, size, end=None):
        """Moves the text in force to the previous place if it began, and puts `new` in its own."""
        earlier, current = x[:size], x[size : 2 * size]
        moved = current if end is None else jnp.full_like(current, end)
        return jnp.concatenate([jnp.where(began, moved, earlier), new, x[2 * size :]]).astype(x.dtype)

    tokens = blocks * block
    by_layer = lambda name, new, size: jnp.moveaxis(
        shift(jnp.moveaxis(cache[name], 1, 0), jnp.moveaxis(new, 1, 0), size), 0, 1
    )
    means = _means(layout, cache, key, value, layout.text_arrays()["position"], valid)
    return cache | {
        **{name: by_layer(name, new, blocks) for name, new in means.items()},
        "cache_key": by_layer("cache_key", key, tokens),
        "cache_value": by_layer("cache_value", value, tokens),
        "cache_chunk": shift(cache["cache_chunk"], jnp.full(blocks, chunk, jnp.int32), blocks),
        "cache_valid": shift(cache["cache_valid"], valid, blocks),
        "cache_until": shift(cache["cache_until"], jnp.full(blocks, row_layout.FOREVER, jnp.int32), blocks, end=chunk),
    }


def write_chunk(
    layout: CacheLayout, cache: dict[str, jax.Array], key: jax.Array, value: jax.Array, chunk: jax.Array
) -> dict[str, jax.Array]:
    """Writes a clean chunk's keys and values [layers, chunk tokens, ...]; what it evicts leaves its memory in the bank.

    A chunk below zero is no chunk: the cache is returned as it was.
    """
    policy = layout.memory
    ring_place = layout.first_ring + (chunk % policy.window) * layout.chunk_blocks
    sink_place = layout.first_sink + chunk * layout.chunk_blocks
    is_sink = chunk < policy.sinks
    evicted = cache["cache_chunk"][ring_place]
    remember = ~is_sink & (chunk >= 0) & (evicted >= 0)
    banked = jax.lax.cond(remember, lambda c: _remember(layout, c, ring_place, evicted), lambda c: c, cache)
    place = jnp.where(is_sink, sink_place, ring_place)
    return jax.lax.cond(chunk >= 0, lambda c: _put(layout, c, key, value, place, chunk), lambda c: c, banked)


def _put(layout: CacheLayout, cache, key, value, place, chunk):
    block = layout.tokens.block
    arrays = layout.chunk_arrays()
    full = jnp.asarray(arrays["block_valid"])
    update = jax.lax.dynamic_update_slice_in_dim
    means = _means(layout, cache, key, value, arrays["position"], full)
    return cache | {
        **{name: update(cache[name], new, place, axis=1) for name, new in means.items()},
        "cache_key": update(cache["cache_key"], key, place * block, axis=1),
        "cache_value": update(cache["cache_value"], value, place * block, axis=1),
        "cache_chunk": update(cache["cache_chunk"], jnp.full(layout.chunk_blocks, chunk), place, axis=0),
        "cache_valid": update(cache["cache_valid"], full, place, axis=0),
    }


def _remember(layout: CacheLayout, cache, ring_place, chunk):
    """Appends the memory block of the chunk at `ring_place` to the bank; a full bank first merges two neighbours."""
    bank, block = layout.memory.bank, layout.tokens.block
    here = slice(layout.first_bank * block, None)
    place = (ring_place + layout.head_blocks) * block

    def entries(name):  # [bank, layers, block, heads, head_dim]
        x = cache[name][:, here]
        return jnp.moveaxis(x.reshape(x.shape[0], bank, block, *x.shape[2:]), 1, 0)

    def newest(name):
        return jax.lax.dynamic_slice_in_dim(cache[name], place, block, axis=1)

    key, value = entries("cache_key"), entries("cache_value")
    age = cache["cache_chunk"][layout.first_bank :]
    weight = cache["cache_weight"]
    count = (weight > 0).sum()
    full = count == bank
    summary = key.astype(jnp.float32).mean(axis=2).reshape(bank, -1)
    summary /= jnp.linalg.norm(summary, axis=-1, keepdims=True) + 1e-6
    pair = jnp.argmax((summary[:-1] * summary[1:]).sum(-1)) if bank > 1 else jnp.array(0)
    slots = jnp.arange(bank)

    def insert(x, new):
        """Merges entries `pair` and `pair + 1` if the bank is full, closes the gap, and puts `new` last."""
        shape = (bank,) + (1,) * (x.ndim - 1)
        w = weight.reshape(shape)
        following = jnp.roll(x, -1, axis=0)
        mean = (x * w + following * jnp.roll(w, -1, axis=0)) / jnp.maximum(w + jnp.roll(w, -1, axis=0), 1e-6)
        shifted = jnp.where((slots < pair).reshape(shape), x, following)
        merged = jnp.where((slots == pair).reshape(shape), mean.astype(x.dtype), shifted)
        kept = jnp.where(full, merged, x)
        return kept.at[jnp.minimum(count, bank - 1)].set(new.astype(x.dtype))

    summed = jnp.where(slots < pair, weight, jnp.roll(weight, -1))
    summed = jnp.where(slots == pair, weight + jnp.roll(weight, -1), summed)
    new_weight = jnp.where(full, summed, weight).at[jnp.minimum(count, bank - 1)].set(1.0)

    # The mean of a merged block is the merger of the means.
    place_of_block = ring_place + layout.head_blocks
    means = {name: jnp.moveaxis(cache[name], 1, 0) for name in ("cache_mean_key", "cache_mean_value") if name in cache}
    means = {
        name: jnp.moveaxis(x.at[layout.first_bank :].set(insert(x[layout.first_bank :], x[place_of_block])), 0, 1)
        for name, x in means.items()
    }

    def flat(x):
        return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], bank * block, *x.shape[3:])

    return (
        cache
        | means
        | {
            "cache_key": cache["cache_key"].at[:, here].set(flat(insert(key, newest("cache_key")))),
            "cache_value": cache["cache_value"].at[:, here].set(flat(insert(value, newest("cache_value")))),
            "cache_chunk": cache["cache_chunk"].at[layout.first_bank :].set(insert(age, chunk)),
            "cache_valid": cache["cache_valid"].at[layout.first_bank :].set(jnp.where(new_weight > 0, block, 0)),
            "cache_weight": new_weight,
        }
    )
