"""Bootstrap intervals over clips (Efron 1979): how far a score would move with other clips."""

from __future__ import annotations

import dataclasses

import numpy as np

RESAMPLES = 10_000
_LEVEL = 95.0
# Resamples drawn at a time: bounds the memory of the index array.
_BATCH = 1000


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A score and its 95 % interval; None where it is not defined for these clips.

    Attributes:
        mean: the score over all clips.
        low: lower end of the interval.
        high: upper end.
        clips: number of clips that count.
    """

    mean: float | None
    low: float | None
    high: float | None
    clips: int


def mean(values: np.ndarray, *, seed: int) -> Estimate:
    """Estimates the mean over clips.

    Args:
        values: `[clips]`; clips whose value is not finite (the score is not defined for them) are left out.
        seed: of the resampling.
    """
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    return ratio(values, np.ones_like(values), seed=seed)


def ratio(numerators: np.ndarray, denominators: np.ndarray, *, seed: int) -> Estimate:
    """Estimates sum(numerators) / sum(denominators) over clips, for counts such as hits of events.

    Args:
        numerators: `[clips]`.
        denominators: `[clips]`, none negative.
        seed: of the resampling.
    """
    numerators, denominators = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    clips = len(numerators)
    if clips == 0 or denominators.sum() == 0:
        return Estimate(None, None, None, clips)
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(RESAMPLES // _BATCH):
        picks = rng.integers(clips, size=(_BATCH, clips))
        below = denominators[picks].sum(axis=1)
        drawn = numerators[picks].sum(axis=1)[below > 0] / below[below > 0]
        parts.append(drawn)
    tail = (100 - _LEVEL) / 2
    low, high = np.percentile(np.concatenate(parts), [tail, 100 - tail])
    return Estimate(float(numerators.sum() / denominators.sum()), float(low), float(high), clips)
