"""Best-fit decreasing: windows of given sizes into as few rows as it takes."""

import numpy as np


def fill_rows(costs: np.ndarray, sizes: np.ndarray, capacity: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Best-fit decreasing vector packing, on groups of equal rows instead of single rows.

    Args:
      costs: int64 [classes, capacities], what one window of a class takes; each must fit an empty row.
      sizes: int64 [classes], how many windows there are.
      capacity: int64 [capacities] of a row.

    Returns:
      Groups of rows: how many, and the windows of each class in one, int64 [classes]; together every window once.
    """
    scale = np.maximum(capacity, 1)
    rows: dict[tuple[int, ...], int] = {}  # windows of each class in a row -> rows like it
    for kind in np.argsort(-(costs / scale).max(1), kind="stable"):
        left = int(sizes[kind])
        while left:
            counts, room = _tightest(rows, costs, capacity, scale, int(kind))
            available = rows.pop(counts, None)
            # Best fit goes on with the row it has just used, so whole rows fill up together.
            full = left // room if available is None else min(left // room, available)
            taken = [(full, room)] if full else [(1, left)]
            if available is not None and available > taken[0][0]:
                taken.append((available - taken[0][0], 0))
            for number, added in taken:
                key = (*counts[:kind], counts[kind] + added, *counts[kind + 1 :])
                rows[key] = rows.get(key, 0) + number
                left -= number * added
    return [(number, np.array(counts, np.int64)) for counts, number in sorted(rows.items())]


def _tightest(
    rows: dict[tuple[int, ...], int], costs: np.ndarray, capacity: np.ndarray, scale: np.ndarray, kind: int
) -> tuple[tuple[int, ...], int]:
    """The fullest sort of row that takes a window of class `kind`, or an empty one, and how many it takes."""
    needs = costs[kind] > 0
    best, least = ((0,) * len(costs), int((capacity[needs] // costs[kind][needs]).min())), np.inf
    for counts in rows:
        free = capacity - np.array(counts) @ costs
        room, slack = int((free[needs] // costs[kind][needs]).min()), float((free / scale).sum())
        if room and slack < least:
            best, least = (counts, room), slack
    return best
