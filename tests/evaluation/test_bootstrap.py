"""Bootstrap intervals against the normal theory and exact cases."""

import numpy as np
import pytest

from pixr1_jax.evaluation import bootstrap


def test_interval_is_that_of_the_normal_theory():
    values = np.random.default_rng(0).normal(3, 2, 400)
    estimate = bootstrap.mean(values, seed=1)
    half = 1.96 * values.std() / np.sqrt(400)
    assert estimate.mean == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.02)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.02)
    assert estimate == bootstrap.mean(values, seed=1) != bootstrap.mean(values, seed=2)


def test_undefined_clips_are_left_out():
    estimate = bootstrap.mean(np.array([1.0, np.nan, 3.0]), seed=0)
    assert (estimate.mean, estimate.clips) == (2.0, 2)
    assert bootstrap.mean(np.array([np.nan]), seed=0) == bootstrap.Estimate(None, None, None, 0)


def test_ratio_is_of_sums():
    estimate = bootstrap.ratio(np.array([1.0, 0.0, 9.0]), np.array([2.0, 0.0, 10.0]), seed=0)
    assert estimate.mean == pytest.approx(10 / 12)
    assert estimate.low is not None and estimate.high is not None
    assert 0.5 <= estimate.low < estimate.high <= 0.9
    assert bootstrap.ratio(np.zeros(3), np.zeros(3), seed=0).mean is None


def test_equal_clips_have_no_spread():
    estimate = bootstrap.mean(np.full(8, 0.25), seed=0)
    assert (estimate.mean, estimate.low, estimate.high) == (0.25, 0.25, 0.25)
