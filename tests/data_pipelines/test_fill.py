"""Filling: every window is placed once, cut or whole, rows hold what they say, and cuts can be dealt back to clips."""

import collections

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.fill import Blocks, Shapes, Stock, fill


@st.composite
def scenes(draw):
    count, longest = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    numbers = lambda low, high: np.array(draw(st.lists(st.integers(low, high), min_size=count, max_size=count)))
    shapes = Shapes(noisy=numbers(1, 9), clean=numbers(1, 9), text=numbers(0, 3))
    cells = st.lists(st.integers(0, 30), min_size=count * longest, max_size=count * longest)
    pieces = np.array(draw(cells)).reshape(count, longest)
    pieces = np.concatenate([np.zeros((count, 1), np.int64), pieces], axis=1)
    clean, noisy = shapes.costs(longest)
    return (
        shapes,
        pieces,
        Blocks(int(clean.max()) + draw(st.integers(1, 20)), int(noisy.max()) + draw(st.integers(0, 20))),
    )


@settings(deadline=None, max_examples=60)
@given(scenes(), st.integers(0, 3))
def test_rows_hold_every_chunk_once_and_are_not_too_full(scene, seed):
    shapes, pieces, blocks = scene
    stock = Stock(pieces)
    patterns = fill(shapes, stock, blocks, seed)
    assert not stock.windows.any()
    placed = np.zeros_like(pieces)
    for pattern in patterns:
        clean = ((pattern.chunks - 1) * shapes.clean[pattern.shape] + shapes.text[pattern.shape]) @ pattern.counts
        noisy = (pattern.chunks * shapes.noisy[pattern.shape]) @ pattern.counts
        assert clean <= blocks.clean and noisy <= blocks.noisy and pattern.rows > 0 and (pattern.counts > 0).all()
        np.add.at(placed, (pattern.shape, pattern.chunks), pattern.rows * pattern.counts)
    # The cuts say of every piece into which windows it went, and together these are the windows placed.
    cut = np.zeros_like(pieces)
    for shape, cuts in enumerate(stock.cuts):
        whole = collections.Counter()
        for lengths, count in cuts.items():
            whole[sum(lengths)] += count
            for length in lengths:
                cut[shape, length] += count
        assert [whole[length] for length in range(pieces.shape[1])] == pieces[shape].tolist()
    np.testing.assert_array_equal(cut, placed)


def test_windows_are_cut_only_where_that_fills_a_row():
    # Rows of 8 noisy and 6 clean blocks: two windows of 4 chunks of one block fit exactly.
    stock = Stock(np.array([[0, 0, 0, 0, 10]]))
    (pattern,) = fill(Shapes(*np.array([[1], [1], [0]])), stock, Blocks(6, 8), seed=0)
    assert (pattern.rows, pattern.chunks.tolist(), pattern.counts.tolist()) == (5, [4], [2])
    # With room for a window and a half, the third is cut in two.
    stock = Stock(np.array([[0, 0, 0, 0, 30]]))
    patterns = fill(Shapes(*np.array([[1], [1], [0]])), stock, Blocks(4, 6), seed=0)
    assert patterns[0].chunks.tolist() == [2, 4] and sum(pattern.rows for pattern in patterns) == 20


def test_the_longest_window_is_bounded_by_both_halves():
    shapes = Shapes(noisy=np.array([2, 2, 2, 9]), clean=np.array([3, 3, 3, 3]), text=np.array([0, 3, 7, 0]))
    assert shapes.longest(Blocks(6, 8), 9).tolist() == [3, 2, 0, 0]
    assert shapes.longest(Blocks(6, 8), 2).tolist() == [2, 2, 0, 0]
