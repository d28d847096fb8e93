"""The streaming cache against a plain list of what was written: ring, sinks, bank, texts."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.row_layout import FOREVER, BlockKind
from pixr1_jax.attention.select import pool
from pixr1_jax.omni import memory, rope
from pixr1_jax.omni.memory import CacheLayout


@pytest.fixture(scope="module")
def make(tiny):
    """(config, layout) by memory policy; functions of a layout are compiled once."""

    @functools.cache
    def build(budget=False, **policy):
        attention = tiny.attention(**({"noisy": (1,)} if budget else {}))
        config = tiny.config(memory=tiny.policy(**policy), attention=attention)
        return config, CacheLayout(config.tokens, config.memory, (2, 3))

    return build


_write_chunk = jax.jit(memory.write_chunk, static_argnums=0)
_write_text = jax.jit(memory.write_text, static_argnums=0)


def keys_of(config, layout, chunk, seed=0):
    """Keys and values of a clean chunk, random by its number."""
    rng = np.random.default_rng([seed, chunk])
    shape = (config.layers, layout.chunk_blocks * layout.tokens.block, config.heads, config.head_dim)
    return rng.standard_normal(shape).astype(np.float32), rng.standard_normal(shape).astype(np.float32)


def text_of(config, layout, seed):
    rng = np.random.default_rng([7, seed])
    shape = (config.layers, layout.text_blocks * layout.tokens.block, config.heads, config.head_dim)
    return rng.standard_normal(shape).astype(np.float32), rng.standard_normal(shape).astype(np.float32)


def stream(config, layout, chunks):
    cache = memory.empty(config, layout)
    for chunk in range(chunks):
        cache = _write_chunk(layout, cache, *keys_of(config, layout, chunk), jnp.int32(chunk))
    return cache


def blocks_at(layout, cache, first, count):
    """Keys of blocks, [layers, count * block, ...], and their chunk numbers."""
    tokens = slice(first * layout.tokens.block, (first + count) * layout.tokens.block)
    return np.asarray(cache["cache_key"])[:, tokens], np.asarray(cache["cache_chunk"])[first : first + count]


def memory_block(layout, array):
    """The memory block of a chunk's keys or values."""
    block = layout.tokens.block
    return array[:, layout.head_blocks * block : (layout.head_blocks + 1) * block]


def bank_oracle(config, layout, evicted):
    """The bank as a list: append; when full, first merge the two neighbours of most similar mean keys."""
    bank = []
    for chunk in evicted:
        key, value = (memory_block(layout, x) for x in keys_of(config, layout, chunk))
        if len(bank) == config.memory.bank and len(bank) > 1:
            summary = [entry["key"].mean(axis=1).ravel() for entry in bank]
            cosine = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in itertools.pairwise(summary)]
            i = int(np.argmax(cosine))
            a, b = bank[i : i + 2]
            total = a["weight"] + b["weight"]
            mix = {n: (a[n] * a["weight"] + b[n] * b["weight"]) / total for n in ("key", "value", "chunk")}
            bank[i : i + 2] = [mix | {"chunk": int(mix["chunk"]), "weight": total}]
        elif len(bank) == config.memory.bank:
            bank.pop()
        bank.append({"key": key, "value": value, "chunk": chunk, "weight": 1.0})
    return bank


def test_layout_places_follow_one_another(make):
    _, layout = make(window=3, sinks=2, bank=5)
    assert (layout.text_blocks, layout.head_blocks, layout.chunk_blocks) == (2, 1, 4)
    assert (layout.first_sink, layout.first_ring, layout.first_bank, layout.blocks) == (4, 12, 24, 29)
    static = layout.static()
    text, head, mem, patch = BlockKind.TEXT, BlockKind.HEAD, BlockKind.MEMORY, BlockKind.PATCH
    assert static["kind"].tolist() == [text] * 4 + [head, mem, patch, patch] * 5 + [mem] * 5
    assert static["offset"].shape == (29 * 4, 3)
    assert (static["offset"][:, 0] >= 0).all() and (static["offset"][:, 0] < 1).all()


def test_a_new_cache_is_empty(make):
    config, layout = make(window=2, sinks=1, bank=3)
    blocks = memory.past(layout, memory.empty(config, layout), jnp.int32(0)).blocks
    assert (np.asarray(blocks.segment) == -1).all() and (np.asarray(blocks.valid) == 0).all()


@pytest.mark.parametrize("chunks", [1, 2, 3, 5, 9])
def test_sinks_and_ring_hold_the_first_and_the_last_chunks(make, chunks):
    config, layout = make(window=2, sinks=1, bank=8)
    cache = stream(config, layout, chunks)
    size = layout.chunk_blocks
    key, number = blocks_at(layout, cache, layout.first_sink, size)
    np.testing.assert_array_equal(number, 0)
    np.testing.assert_array_equal(key, keys_of(config, layout, 0)[0])
    held = {}
    for place in range(2):
        key, number = blocks_at(layout, cache, layout.first_ring + place * size, size)
        assert len(set(number.tolist())) == 1
        held[int(number[0])] = key
    expected = [chunk for chunk in range(chunks)[-2:] if chunk >= 1]
    assert sorted(chunk for chunk in held if chunk >= 0) == expected
    for chunk in expected:
        np.testing.assert_array_equal(held[chunk], keys_of(config, layout, chunk)[0])


@pytest.mark.parametrize(("bank", "chunks"), [(8, 9), (3, 5), (3, 7), (3, 14), (2, 9), (1, 6)])
def test_bank_appends_and_merges_like_a_list(make, bank, chunks):
    config, layout = make(window=2, sinks=1, bank=bank)
    cache = stream(config, layout, chunks)
    expected = bank_oracle(config, layout, range(1, chunks - 2))
    key, number = blocks_at(layout, cache, layout.first_bank, bank)
    block = layout.tokens.block
    value = np.asarray(cache["cache_value"])[:, layout.first_bank * block :]
    weight, valid = np.asarray(cache["cache_weight"]), np.asarray(cache["cache_valid"])[layout.first_bank :]
    assert (valid == np.where(np.arange(bank) < len(expected), block, 0)).all()
    for i, entry in enumerate(expected):
        here = slice(i * block, (i + 1) * block)
        np.testing.assert_allclose(key[:, here], entry["key"], atol=1e-5)
        np.testing.assert_allclose(value[:, here], entry["value"], atol=1e-5)
        assert weight[i] == entry["weight"] and number[i] == entry["chunk"]
    if bank > 1:  # with room for one there is nothing to merge with
        assert weight.sum() == chunks - 3  # every evicted chunk is still in some entry
    assert (np.diff([entry["chunk"] for entry in expected]) > 0).all()


def test_a_chunk_below_zero_writes_nothing(make):
    config, layout = make(window=2, sinks=1, bank=3)
    for cache in (memory.empty(config, layout), stream(config, layout, 5)):
        after = _write_chunk(layout, cache, *keys_of(config, layout, 99), jnp.int32(-1))
        for name, value in cache.items():
            np.testing.assert_array_equal(after[name], value)


def test_past_places_keys_at_their_distance_within_the_horizon(make):
    config, layout = make(window=2, sinks=1, bank=8, horizon=5)
    cache = stream(config, layout, 9)
    past = memory.past(layout, cache, jnp.int32(9))
    time = np.asarray(past.position)[0, :, 0] - layout.static()["offset"][:, 0]
    block = layout.tokens.block
    expected = np.repeat(np.maximum(np.asarray(cache["cache_chunk"]) - 9, -5), block)
    np.testing.assert_allclose(time, expected)
    assert time[layout.first_sink * block] == -5 and time.min() == -5
    np.testing.assert_array_equal(past.position[0, :, 1:], layout.static()["offset"][:, 1:])


def test_text_in_force_and_the_one_before_it(make):
    config, layout = make(window=2, sinks=0, bank=3)
    first, second, third, fourth = (text_of(config, layout, i) for i in range(4))
    size = layout.text_blocks

    def place(cache, which):
        key, number = blocks_at(layout, cache, which * size, size)
        until = np.asarray(cache["cache_until"])[which * size : (which + 1) * size]
        valid = np.asarray(cache["cache_valid"])[which * size : (which + 1) * size]
        return key, number.tolist(), until.tolist(), valid.tolist()

    cache = _write_text(layout, memory.empty(config, layout), *first, jnp.int32(5), jnp.int32(0))
    key, number, until, valid = place(cache, 1)
    np.testing.assert_array_equal(key, first[0])
    assert (number, until, valid) == ([0, 0], [FOREVER] * 2, [4, 1])

    cache = _write_text(layout, cache, *second, jnp.int32(4), jnp.int32(3))
    key, number, until, valid = place(cache, 0)  # chunk 2 is still pending and reads it
    np.testing.assert_array_equal(key, first[0])
    assert (number, until, valid) == ([0, 0], [3, 3], [4, 1])
    key, number, until, valid = place(cache, 1)
    np.testing.assert_array_equal(key, second[0])
    assert (number, until, valid) == ([3, 3], [FOREVER] * 2, [4, 0])

    # Changed again before any chunk was made: the first text stays, the second was never seen.
    cache = _write_text(layout, cache, *third, jnp.int32(6), jnp.int32(3))
    np.testing.assert_array_equal(place(cache, 0)[0], first[0])
    assert place(cache, 0)[1:3] == ([0, 0], [3, 3])
    np.testing.assert_array_equal(place(cache, 1)[0], third[0])

    # No text from chunk 4 on; the third stays readable to chunk 3.
    cache = _write_text(layout, cache, *fourth, jnp.int32(0), jnp.int32(4))
    np.testing.assert_array_equal(place(cache, 0)[0], third[0])
    assert place(cache, 0)[2] == [4, 4] and place(cache, 1)[3] == [0, 0]


def test_writing_a_text_leaves_the_chunks_alone(make):
    config, layout = make(window=2, sinks=1, bank=3)
    cache = stream(config, layout, 6)
    after = _write_text(layout, cache, *text_of(config, layout, 0), jnp.int32(3), jnp.int32(6))
    tokens = layout.first_sink * layout.tokens.block
    for name in ("cache_key", "cache_value"):
        np.testing.assert_array_equal(after[name][:, tokens:], cache[name][:, tokens:])
    for name in ("cache_chunk", "cache_valid"):
        np.testing.assert_array_equal(after[name][layout.first_sink :], cache[name][layout.first_sink :])


def test_cache_takes_the_compute_dtype(make, tiny):
    config, layout = make(window=2, sinks=1, bank=2)
    low = dataclasses.replace(config, dtype="bfloat16")
    cache = memory.empty(low, layout)
    for chunk in range(7):
        key, value = (jnp.asarray(x, jnp.bfloat16) for x in keys_of(config, layout, chunk))
        cache = _write_chunk(layout, cache, key, value, jnp.int32(chunk))
    assert {cache[name].dtype for name in ("cache_key", "cache_value")} == {jnp.dtype(jnp.bfloat16)}
    assert np.asarray(cache["cache_weight"]).sum() == 4


@pytest.mark.parametrize("chunks", [1, 5, 9])
def test_means_are_those_of_the_keys_as_they_are_read(make, chunks):
    """Made once when a block enters, they stay true through eviction, mergers in the bank, and time."""
    config, layout = make(budget=True, window=2, sinks=1, bank=3, horizon=5)
    cache = stream(config, layout, chunks)
    for when in (0, chunks - 1):
        cache = _write_text(layout, cache, *text_of(config, layout, when), jnp.int32(5), jnp.int32(when))
    past = memory.past(layout, cache, jnp.int32(chunks))
    assert past.pooled is not None
    for layer in range(config.layers):
        keys = rope.rotate(past.key[layer], rope.angles(past.position, config.head_dim))
        for mean, tokens in zip(past.pooled, (keys, past.value[layer]), strict=True):
            expected = pool(tokens, past.blocks.valid, layout.tokens.block)
            np.testing.assert_allclose(mean[layer], expected, atol=1e-5)
    dense, _ = make(window=2, sinks=1, bank=3, horizon=5)
    assert set(cache) - set(memory.empty(dense, layout)) == {"cache_mean_key", "cache_mean_value"}
