"""Frame rates from timestamps: what rate a video has, and whether its frames sit on a constant clock."""

from __future__ import annotations

import fractions
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from data_pipelines.record import Timestamps

_NTSC = fractions.Fraction(1000, 1001)
_WHOLE_RATES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 16, 20, 24, 25, 30, 48, 50, 60, 72, 90, 100, 120, 144, 200, 240)
_STANDARD_RATES = (
    *(fractions.Fraction(rate) for rate in _WHOLE_RATES),
    fractions.Fraction(25, 2),
    *(rate * _NTSC for rate in (12, 15, 24, 30, 48, 60, 120, 240)),
)
# A rate is a standard one if it is as near as this.
_NEAR = 1.12
_MAX_RATE = fractions.Fraction(1000)


def frame_rate(
    ticks: np.ndarray, base: fractions.Fraction, declared: Sequence[fractions.Fraction]
) -> fractions.Fraction:
    """Returns the frame rate of a video.

    It is the first of the declared rates that explains the timestamps, then the first of the standard ones; else
    the standard rate nearest the usual step between frames.

    Args:
        ticks: int64 `[frames]`, strictly rising timestamps.
        base: seconds a tick.
        declared: the rates that the file gives, the most trustworthy first.
    """
    if len(ticks) < 2:
        # A tick is the shortest that a frame can last.
        return min(next((rate for rate in declared if 1 <= rate <= 240), fractions.Fraction(25)), 1 / base)
    steps = np.diff(ticks)
    median = float(np.median(steps))
    usual = steps[(steps >= median / 2) & (steps <= median * 1.5)].mean() * float(base)
    near = sorted(_STANDARD_RATES, key=lambda rate: abs(np.log(float(rate) * usual)))
    for rate in itertools.chain(declared, near[:3]):
        if _explains(rate, ticks, base):
            return rate
    if max(float(near[0]) * usual, 1 / (float(near[0]) * usual)) <= _NEAR:
        return near[0]
    return min(_MAX_RATE, fractions.Fraction(1 / usual).limit_denominator(1001) or fractions.Fraction(1, 1001))


def _explains(rate: fractions.Fraction, ticks: np.ndarray, base: fractions.Fraction) -> bool:
    """Whether every frame sits on the clock of a rate, as near as its time base can say, most without a gap."""
    period = 1 / float(rate * base)  # in ticks
    times = (ticks - ticks[0]).astype(np.float64)
    numbers = np.rint(times / period)
    near = np.abs(times - numbers * period) <= min(1.0, period / 4) + 1e-6
    steps = np.diff(numbers)
    return bool(near.all() and (steps >= 1).all() and np.median(steps) == 1)


def timestamps(
    ticks: Iterable[int], stop: int, base: fractions.Fraction, rate: fractions.Fraction
) -> Timestamps | None:
    """Returns the timestamps of a piece, or None if each frame fills one step of the clock, to the tick.

    Args:
        ticks: timestamps of its frames.
        stop: end of the last.
        base: seconds a tick.
        rate: frames a second of the clock.
    """
    absolute = [int(tick) for tick in ticks]
    relative = tuple(tick - absolute[0] for tick in absolute)
    step = base * rate
    bounds = (*relative, stop - absolute[0])
    if all(tick * step.numerator == number * step.denominator for number, tick in enumerate(bounds)):
        return None
    return Timestamps(relative, bounds[-1], base)
