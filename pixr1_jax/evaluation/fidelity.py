"""Fidelity: how near dreamed frames are to recorded ones, PSNR and SSIM by the distance from the context."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from pixr1_jax.evaluation import bootstrap

HORIZONS = (1, 8, 32, 64)
# Equal pictures have infinite PSNR, which no mean survives; eight bits resolve little above this.
PSNR_CAP = 60.0

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def horizons(frames: int) -> tuple[int, ...]:
    """Returns the horizons, in frames after the context, that lie within a dream of `frames` frames."""
    return tuple(horizon for horizon in HORIZONS if horizon <= frames)


def at_horizons(scores: np.ndarray, wanted: Sequence[int]) -> np.ndarray:
    """Picks `[..., horizons]` of `[..., frames]`: horizon 1 is the first frame after the context."""
    return scores[..., np.asarray(wanted) - 1]


def copy_last(context: np.ndarray, frames: int) -> np.ndarray:
    """Returns the baseline that knows nothing of motion: the last frame of the context, again and again.

    Args:
        context: uint8 `[context_frames, height, width, 3]`.
        frames: how many to return.
    """
    return np.broadcast_to(context[-1], (frames, *context.shape[1:]))


def psnr(truth: np.ndarray, dream: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each frame, over all its pixels and channels.

    Args:
        truth: uint8 `[frames, height, width, 3]`.
        dream: the same shape.

    Returns:
        dB `[frames]`, at most PSNR_CAP.

    Raises:
        ValueError: the shapes differ.
    """
    _check_shapes(truth, dream)
    error = truth.astype(np.float64) - dream
    mse = (error**2).mean(axis=(1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(mse, 255**2 / 10 ** (PSNR_CAP / 10)))


def ssim(truth: np.ndarray, dream: np.ndarray) -> np.ndarray:
    """Structural similarity of each frame (Wang, Bovik, Sheikh, Simoncelli 2004).

    As published: Gaussian window of 11 x 11, sigma 1.5, only where it lies wholly inside the picture, K1 = 0.01,
    K2 = 0.03; here on each colour channel, then averaged. Along a side shorter than 11 the window has the largest
    odd length that fits, with the same sigma.

    Args:
        truth: uint8 `[frames, height, width, 3]`.
        dream: the same shape.

    Returns:
        `[frames]`, 1 for equal frames.

    Raises:
        ValueError: the shapes differ.
    """
    _check_shapes(truth, dream)
    # Frame by frame, so that a long clip of large pictures needs the memory of one.
    return np.array([_ssim(*pair) for pair in zip(truth, dream, strict=True)])


def summarise(psnrs: np.ndarray, ssims: np.ndarray, *, seed: int) -> dict[str, Any]:
    """Sums up the scores of many clips.

    Args:
        psnrs: dB `[clips, frames]`.
        ssims: `[clips, frames]`.
        seed: of the bootstrap.

    Returns:
        JSON-able: for "psnr" and "ssim" an estimate over clips by horizon, and under "per_clip" the arrays.
    """
    wanted = horizons(psnrs.shape[1])
    summary: dict[str, Any] = {
        name: {str(h): dataclasses.asdict(bootstrap.mean(scores[:, h - 1], seed=seed)) for h in wanted}
        for name, scores in (("psnr", psnrs), ("ssim", ssims))
    }
    return summary | {"per_clip": {"psnr": psnrs.tolist(), "ssim": ssims.tolist()}}


def _ssim(truth: np.ndarray, dream: np.ndarray) -> float:
    x, y = truth.astype(np.float64), dream.astype(np.float64)
    mean_x, mean_y, square_x, square_y, product = _blur(np.stack([x, y, x * x, y * y, x * y]))
    variance_x, variance_y = square_x - mean_x**2, square_y - mean_y**2
    covariance = product - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    return float((similarity / ((mean_x**2 + mean_y**2 + _C1) * (variance_x + variance_y + _C2))).mean())


def _blur(images: np.ndarray) -> np.ndarray:
    """Gaussian means `[images, rows, columns, channels]`, where the window lies wholly inside."""
    for axis in (1, 2):
        size = min(_WINDOW, (images.shape[axis] - 1) // 2 * 2 + 1)
        offsets = np.arange(size) - size // 2
        weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
        windows = np.lib.stride_tricks.sliding_window_view(images, size, axis=axis)
        images = windows @ (weights / weights.sum())
    return images


def _check_shapes(truth: np.ndarray, dream: np.ndarray) -> None:
    if truth.shape != dream.shape or truth.ndim != 4:
        raise ValueError(
            f"frames of shapes {list(truth.shape)} and {list(dream.shape)} cannot be compared; give two "
            "[frames, height, width, 3]"
        )
