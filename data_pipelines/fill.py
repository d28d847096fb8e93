"""Rows filled to the brim: windows are cut where a row needs them cut.

A row has two capacities, the blocks of its clean and of its noisy half. A window of n chunks takes n noisy and n - 1
clean ones, so the two are full at once only where long and short windows meet in the right measure. The planner works
on sorts of windows, not on windows: it looks for a set of sorts that leaves next to nothing of a row, lays out as many
such rows as there are windows for, and goes on with what is left. So its cost grows with the number of sorts.
"""

import collections
import dataclasses

import numpy as np

from data_pipelines.draws import Purpose, draw

# A pattern is the best of this many random fillings at a time, each from this many sorts of windows; where more than
# a share of the row stays empty it is tried again with other sorts.
_FILLINGS, _SORTS, ATTEMPTS, _GOOD = 48, 96, 4, 0.003


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Blocks of the two halves of a row.

    Attributes:
      clean: Of the clean half.
      noisy: Of the noisy half.
    """

    clean: int
    noisy: int


@dataclasses.dataclass(frozen=True, eq=False)
class Shapes:
    """What windows of each shape take: n chunks take n noisy, and n - 1 clean and the text.

    Attributes:
      noisy: int64 [shapes], noisy blocks of a chunk.
      clean: int64 [shapes], clean blocks of a chunk.
      text: int64 [shapes], text blocks of a window, at most.
    """

    noisy: np.ndarray
    clean: np.ndarray
    text: np.ndarray

    def costs(self, longest: int) -> np.ndarray:
        """Clean and noisy blocks of a window, int64 [2, shapes, longest + 1] by its chunks."""
        chunks = np.arange(longest + 1)
        clean = np.maximum(chunks - 1, 0) * self.clean[:, None] + self.text[:, None]
        return np.stack([clean, chunks * self.noisy[:, None]])

    def longest(self, blocks: Blocks, most: int) -> np.ndarray:
        """Chunks of the longest window that fits a row, up to `most`, int64 [shapes]; 0 where none fits."""
        by_noisy = blocks.noisy // self.noisy
        by_clean = np.where(self.text <= blocks.clean, (blocks.clean - self.text) // self.clean + 1, 0)
        return np.minimum(np.minimum(by_noisy, by_clean), most)


@dataclasses.dataclass(frozen=True, eq=False)
class Pattern:
    """Rows that hold the same sorts of windows.

    Attributes:
      rows: How many rows.
      shape: int64 [sorts].
      chunks: int64 [sorts], length of the windows.
      counts: int64 [sorts], windows of each sort in one row.
    """

    rows: int
    shape: np.ndarray
    chunks: np.ndarray
    counts: np.ndarray


class Stock:
    """Windows that no row has yet, by shape and length, and how the pieces that they came from were cut.

    Attributes:
      windows: int64 [shapes, longest + 1].
      cuts: For each shape, how many pieces were cut into windows of which (falling) lengths.
    """

    def __init__(self, pieces: np.ndarray):
        """Takes the pieces to begin with, int64 [shapes, longest + 1] by length."""
        self.windows = pieces.copy()
        self.cuts: list[collections.Counter[tuple[int, ...]]] = [collections.Counter() for _ in pieces]
        for shape, length in zip(*np.nonzero(pieces), strict=True):
            self.cuts[shape][(int(length),)] = int(pieces[shape, length])

    def take(self, shape: int, chunks: int, count: int) -> None:
        """Takes windows, cutting the longest ones where there are too few of that length."""
        row = self.windows[shape]
        for length in (chunks, *range(len(row) - 1, chunks, -1)):
            taken = min(count, int(row[length]))
            row[length] -= taken
            count -= taken
            if taken and length > chunks:
                row[length - chunks] += taken
                self._cut(shape, length, chunks, taken)
        assert not count, "the planner takes no more than there is"

    def _cut(self, shape: int, length: int, chunks: int, count: int) -> None:
        """Notes that windows became two; windows of a length are alike, so it may be said of any piece that has one."""
        cuts = self.cuts[shape]
        while count:
            for lengths, pieces in list(cuts.items()):
                if length in lengths and count:
                    here = min(count, pieces)
                    parts = list(lengths)
                    parts.remove(length)
                    cuts[lengths] -= here
                    cuts[tuple(sorted([*parts, chunks, length - chunks], reverse=True))] += here
                    count -= here


def fill(shapes: Shapes, stock: Stock, blocks: Blocks, seed: int, attempts: int = ATTEMPTS) -> list[Pattern]:
    """Lays out rows that together hold every window of the stock once, cut as they need it.

    Args:
      shapes: What windows take; every window of the stock must fit an empty row.
      stock: The windows; empty afterwards.
      blocks: Capacities of a row.
      seed: Of the random choices.
      attempts: Tries at most for each pattern.
    """
    costs = shapes.costs(stock.windows.shape[1] - 1)
    capacity = np.array([blocks.clean, blocks.noisy])
    random = _Random(seed)
    patterns = []
    while stock.windows.any():
        tries = (_pattern(costs, capacity, stock.windows, random) for _ in range(attempts))
        best, least = next(tries)
        while least > _GOOD * capacity.sum() and (other := next(tries, None)):
            best, least = min((best, least), other, key=lambda found: found[1])
        for sort in np.argsort(-best.chunks, kind="stable"):  # what is long cannot be cut from what is short
            stock.take(int(best.shape[sort]), int(best.chunks[sort]), int(best.rows * best.counts[sort]))
        patterns.append(best)
    return patterns


def _pattern(costs: np.ndarray, capacity: np.ndarray, windows: np.ndarray, random: "_Random") -> tuple[Pattern, int]:
    """A pattern of the largest window left and what fills its row best, and the blocks that stay empty."""
    chunks = np.arange(windows.shape[1])
    at_least = np.cumsum(windows[:, ::-1], axis=1)[:, ::-1]  # windows of a length can be cut from all that are longer
    need = np.where(windows > 0, (costs / np.maximum(capacity, 1)[:, None, None]).max(0), -1.0)
    largest = np.unravel_index(need.argmax(), need.shape)
    left = (windows * chunks).sum(1) * costs[1, :, 1]  # blocks left of each shape, in about

    shape, length = np.nonzero((at_least > 0) & (chunks > 0))
    if len(shape) > _SORTS:
        # Sorts of which much is left, and what need not be cut, are taken more often.
        often = np.sqrt(left[shape]) * np.where(windows[shape, length] > 0, 4.0, 1.0)
        chosen = np.argpartition(random.take(len(shape)) / often, _SORTS)[:_SORTS]
        chosen.sort()
        shape, length = shape[chosen], length[chosen]
    others = (shape != largest[0]) | (length != largest[1])
    shape, length = np.append(shape[others], largest[0]), np.append(length[others], largest[1])
    cost, whole, supply = costs[:, shape, length], windows[shape, length], at_least[shape, length]
    size = cost.sum(0).astype(np.float64)
    weight_whole, weight_cut = size * np.sqrt(left[shape]), size**2

    free = np.repeat(capacity[:, None], _FILLINGS, axis=1) - cost[:, -1:]  # [2, fillings]
    counts = np.zeros((_FILLINGS, len(shape)), np.int64)
    counts[:, -1] = 1
    used = np.zeros((_FILLINGS, len(windows)), np.int64)
    used[:, largest[0]] = 1
    rows = np.arange(_FILLINGS)
    while True:
        fits = (cost[:, None, :] <= free[:, :, None]).all(0) & (used[:, shape] < supply)
        fits_whole = fits & (counts < whole)
        any_whole = fits_whole.any(1, keepdims=True)
        weights = np.where(any_whole, np.where(fits_whole, weight_whole, 0.0), np.where(fits, weight_cut, 0.0))
        edges = np.cumsum(weights, axis=1)
        going = edges[:, -1] > 0
        if not going.any():
            break
        pick = (edges <= random.take(_FILLINGS)[:, None] * edges[:, -1:]).sum(1)
        at, pick = rows[going], np.minimum(pick[going], len(shape) - 1)
        counts[at, pick] += 1
        used[at, shape[pick]] += 1
        free[:, at] -= cost[:, pick]

    empty = free.sum(0)
    best = int(empty.argmin())
    sorts = np.flatnonzero(counts[best])
    found = Pattern(1, shape[sorts], length[sorts], counts[best, sorts])
    return dataclasses.replace(found, rows=_repeats(found, windows, at_least)), int(empty[best])


def _repeats(pattern: Pattern, windows: np.ndarray, at_least: np.ndarray) -> int:
    """How many rows like it there are windows for, with no more cuts than it takes."""
    most = np.iinfo(np.int64).max
    for shape, chunks, count in zip(pattern.shape, pattern.chunks, pattern.counts, strict=True):
        longer = pattern.counts[(pattern.shape == shape) & (pattern.chunks >= chunks)].sum()
        most = min(most, at_least[shape, chunks] // longer)
        if windows[shape, chunks]:
            most = min(most, max(1, windows[shape, chunks] // count))
    return int(most)


class _Random:
    """A stream of random numbers of [0, 1)."""

    _BLOCK = 2**14

    def __init__(self, seed: int):
        self._seed, self._number = seed, 0
        self._kept = np.zeros(0)

    def take(self, count: int) -> np.ndarray:
        """The next numbers, float64 [count]."""
        while len(self._kept) < count:
            words = draw(self._seed, self._number, Purpose.FILL, self._BLOCK)
            self._kept = np.concatenate([self._kept, (words >> np.uint64(11)) * 2.0**-53])
            self._number += 1
        taken, self._kept = self._kept[:count], self._kept[count:]
        return taken
