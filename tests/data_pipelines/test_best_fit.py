"""Best fit on classes of windows against best fit one window at a time."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.best_fit import fill_rows


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_fill_rows_equals_best_fit_decreasing_one_window_at_a_time(data):
    classes = data.draw(st.integers(1, 4))
    numbers = st.lists(st.integers(0, 9), min_size=2, max_size=2).filter(any)
    costs = np.array(data.draw(st.lists(numbers, min_size=classes, max_size=classes)))
    sizes = np.array(data.draw(st.lists(st.integers(1, 20), min_size=classes, max_size=classes)))
    capacity = costs.max(0) + np.array(data.draw(st.lists(st.integers(0, 9), min_size=2, max_size=2)))
    groups = fill_rows(costs, sizes, capacity)
    np.testing.assert_array_equal(sum(rows * counts for rows, counts in groups), sizes)
    assert all((counts @ costs <= capacity).all() and counts.any() for _, counts in groups)

    scale = np.maximum(capacity, 1)
    free: list[np.ndarray] = []
    for kind in sorted(range(classes), key=lambda kind: -(costs[kind] / scale).max()):
        for _ in range(sizes[kind]):
            fitting = [row for row in range(len(free)) if (costs[kind] <= free[row]).all()]
            if not fitting:
                free.append(capacity.copy())
            best = min(fitting, key=lambda row: (free[row] / scale).sum()) if fitting else -1
            free[best] -= costs[kind]
    # Ties may be broken either way, so the number of rows may differ by a little where they occur.
    assert abs(sum(rows for rows, _ in groups) - len(free)) <= classes


def test_a_million_windows_are_planned_and_addressed_quickly():
    costs = np.array([[16, 40], [16, 90], [7, 31]])
    groups = fill_rows(costs, np.array([10**6, 10**6, 10**5]), np.array([64, 200]))
    assert sum(rows for rows, _ in groups) < 10**6 and len(groups) < 10
