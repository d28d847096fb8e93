"""PSNR and SSIM against the published formulas, written out pixel by pixel."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixr1_jax.evaluation import fidelity


def _ssim_by_hand(x, y):
    """Every window, every pixel, by loops over windows; the variance from deviations, not from squares."""
    x, y = x.astype(float), y.astype(float)
    rows, columns = (min(11, size if size % 2 else size - 1) for size in x.shape[:2])
    down, across = np.arange(rows) - rows // 2, np.arange(columns) - columns // 2
    weights = np.exp(-(down[:, None] ** 2 + across[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    values = []
    for channel in range(3):
        for top in range(x.shape[0] - rows + 1):
            for left in range(x.shape[1] - columns + 1):
                a = x[top : top + rows, left : left + columns, channel]
                b = y[top : top + rows, left : left + columns, channel]
                ma, mb = (weights * a).sum(), (weights * b).sum()
                va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
                cov = (weights * (a - ma) * (b - mb)).sum()
                c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
                values.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return np.mean(values)


@pytest.mark.parametrize("size", [(16, 14), (11, 11), (12, 7), (4, 5), (1, 1), (2, 30)])
def test_ssim_is_the_published_formula(size):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 256, (2, *size, 3), np.uint8)
    dream = np.clip(truth + rng.normal(0, 30, truth.shape), 0, 255).astype(np.uint8)
    expected = [_ssim_by_hand(*pair) for pair in zip(truth, dream, strict=True)]
    np.testing.assert_allclose(fidelity.ssim(truth, dream), expected, rtol=1e-9)
    np.testing.assert_allclose(fidelity.ssim(truth, truth), 1, rtol=1e-12)


def test_psnr_values():
    truth = np.full((3, 4, 4, 3), 100, np.uint8)
    dream = truth.copy()
    dream[1] += 10
    dream[2, 0, 0, 0] = 101
    mse = 1 / 48
    expected = [60.0, 10 * math.log10(255**2 / 100), min(60.0, 10 * math.log10(255**2 / mse))]
    np.testing.assert_allclose(fidelity.psnr(truth, dream), expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 255))
def test_psnr_is_symmetric_and_falls_with_the_error(seed, step):
    truth = np.random.default_rng(seed).integers(0, 256, (1, 5, 6, 3), np.uint8)
    dream = np.roll(truth, step % 6, axis=2)
    assert fidelity.psnr(truth, dream) == fidelity.psnr(dream, truth)
    assert fidelity.psnr(truth, dream) <= fidelity.psnr(truth, truth) == fidelity.PSNR_CAP


def test_horizons_count_from_the_context():
    scores = np.arange(40)[None]
    assert fidelity.horizons(40) == (1, 8, 32)
    np.testing.assert_array_equal(fidelity.at_horizons(scores, fidelity.horizons(40)), [[0, 7, 31]])


def test_copy_last():
    context = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    np.testing.assert_array_equal(fidelity.copy_last(context, 5), np.full((5, 2, 2, 3), 2))


def test_summary_keeps_clips():
    psnrs = np.stack([np.full(8, 20.0), np.full(8, 30.0)])
    summary = fidelity.summarise(psnrs, psnrs / 100, seed=0)
    assert set(summary["psnr"]) == {"1", "8"}
    assert summary["psnr"]["8"]["mean"] == 25 and summary["psnr"]["8"]["low"] == 20
    assert summary["per_clip"]["ssim"][1][0] == pytest.approx(0.3)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="cannot be compared"):
        fidelity.psnr(np.zeros((1, 2, 2, 3), np.uint8), np.zeros((1, 2, 3, 3), np.uint8))
