"""Lists of single query blocks and transposed lists, against plain Python."""

import functools

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pixr1_jax.attention.blocks import block_lists
from pixr1_jax.attention.transposed import query_lists, transpose_lists

BATCH, QUERIES, KEYS, BLOCK = 2, 5, 7, 4


@functools.partial(jax.jit, static_argnames=("tile", "still"))
def _query_lists(seen, valid, *, tile, still=0):
    return query_lists(block_lists(seen, valid, block=BLOCK, tile=tile), valid, block=BLOCK, still=still)


@functools.partial(jax.jit, static_argnames=("tile", "max_keys"))
def _transposed(seen, valid, *, tile=1, max_keys=None):
    tiles = block_lists(seen, valid, block=BLOCK, tile=tile, max_keys=max_keys)
    return transpose_lists(query_lists(tiles, valid, block=BLOCK), KEYS)


def relation(seed: int, density: float, lists: int):
    rng = np.random.default_rng(seed)
    seen = rng.random((BATCH, lists, QUERIES, KEYS)) < density
    return seen, rng.integers(0, BLOCK + 1, (BATCH, KEYS)).astype(np.int32)


def groups(rows, *where: int) -> list[list[int]]:
    """The groups of one row."""
    ends = [0, *np.asarray(rows.ends)[where]]
    return [list(np.asarray(rows.indices)[where][a:b]) for a, b in zip(ends, ends[1:], strict=False)]


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    density=st.sampled_from([0.0, 0.4, 1.0]),
    shape=st.sampled_from([(1, 2, 0), (1, 1, 3), (4, 1, 0), (2, 2, 3)]),
)
def test_each_query_block_has_what_it_reads_in_two_groups(seed, density, shape):
    tile, lists, still = shape
    seen, valid = relation(seed, density, lists)
    rows = _query_lists(seen, valid, tile=tile, still=still)
    assert rows.indices.shape[2] == rows.ends.shape[2] == -(-QUERIES // tile) * tile
    for b, h, i in np.ndindex(BATCH, lists, rows.indices.shape[2]):
        first, second = groups(rows, b, h, i)
        reads = set(np.flatnonzero(seen[b, h, i])) if i < QUERIES else set()
        # A block without a valid token may be named, since it is masked, or be left out.
        assert reads - set(np.flatnonzero(valid[b] == 0)) <= set(first) | set(second) <= reads
        assert len(first) + len(second) == len(set(first) | set(second))
        belongs = (lambda k: k < still) if still else (lambda k, b=b: valid[b, k] == BLOCK)
        assert all(belongs(k) for k in first) and not any(belongs(k) for k in second)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    density=st.sampled_from([0.0, 0.3, 1.0]),
    shape=st.sampled_from([(1, 2), (2, 1)]),
)
def test_transposed_lists_name_the_readers_of_each_key_block(seed, density, shape):
    tile, lists = shape
    seen, _ = relation(seed, density, lists)
    rows = _transposed(seen, np.full((BATCH, KEYS), BLOCK), tile=tile)
    assert rows.indices.shape[:3] == (BATCH, lists, KEYS) and rows.ends.shape == (BATCH, lists, KEYS, 1)
    for b, h, k in np.ndindex(BATCH, lists, KEYS):
        assert groups(rows, b, h, k) == [list(np.flatnonzero(seen[b, h, :, k]))]


def test_entries_beyond_a_list_are_not_transposed():
    """Whatever they name."""
    rows = _transposed(np.ones((BATCH, 1, QUERIES, KEYS), bool), np.full((BATCH, KEYS), BLOCK), max_keys=2)
    counts = np.asarray(rows.ends)[..., 0]
    np.testing.assert_array_equal(counts[..., :2], QUERIES)
    np.testing.assert_array_equal(counts[..., 2:], 0)
