"""Sound on the clock of a run: other sample rates and channels, exact at any instant.

Sample i of the new clock sounds at one place of the old one, an exact fraction, whichever stretch it is asked for in.
So no error of sync adds up along a clip. The filter is a Kaiser-windowed sinc, applied in phases
(`scipy.signal.upfirdn`).
"""

import fractions
import functools
import math

import numpy as np
from scipy import signal

# Zero crossings of the sinc on each side, the pass band as a share of the lower Nyquist frequency, and the window:
# images and aliases of what is in the pass band are below the noise of 16 bits.
_CROSSINGS, _PASS, _BETA = 32, 0.95, 10.0
# Most phases of a filter; a ratio of longer fractions is rounded, by less than 1e-8 of itself, and a place by less than
# 1e-4 of a sample. Common rates have fewer, but for 44.1 kHz with frames of 1001 ticks.
_PHASES = 2**14


def margin(ratio: fractions.Fraction) -> int:
    """Samples of the old clock that a sample of the new one depends on, on each side; `ratio` as in `resample`."""
    return math.ceil(_CROSSINGS * max(1, 1 / ratio)) + 1


def resample(audio: np.ndarray, start: fractions.Fraction, ratio: fractions.Fraction, count: int) -> np.ndarray:
    """Puts sound on a new clock.

    Args:
      audio: int16 or float [samples, channels]; silence goes before and follows.
      start: Place in `audio` of the first new sample, in old samples; may be negative. It is rounded to a multiple of
        1 / ratio.numerator, which it is where sample 0 of the new clock is at a whole old sample.
      ratio: New samples for an old one, positive.
      count: New samples to make.

    Returns:
      float64 [count, channels] in the units of `audio`; sample i is the sound at `start + i / ratio`.
    """
    ratio = _rounded(ratio)
    up, down = ratio.numerator, ratio.denominator
    taps = _filter(up, down)
    half = len(taps) // 2
    # In steps of 1 / up of an old sample: output i is the sum over old samples k of taps[half + place + i down - k up].
    place = round(start * up)
    first = (place - half) // up
    last = (place + (count - 1) * down + half) // up + 1
    here = np.zeros((last - first, audio.shape[1]))
    inside = slice(max(first, 0), max(min(last, len(audio)), max(first, 0)))
    here[inside.start - first : inside.stop - first] = audio[inside]
    # upfirdn starts at the first sample it is given; zeros before the taps move the first output to a multiple of down.
    lead = half + place - first * up
    shift = -lead % down
    out = signal.upfirdn(np.concatenate([np.zeros(shift), taps]), here, up, down, axis=0)
    skipped = (lead + shift) // down
    return out[skipped : skipped + count]


def mix(audio: np.ndarray, channels: int) -> np.ndarray:
    """Sound of `channels` channels, float64: itself, or the mean of its channels in every one."""
    audio = audio.astype(np.float64)
    if audio.shape[1] == channels:
        return audio
    return np.repeat(audio.mean(axis=1, keepdims=True), channels, axis=1)


def to_int16(audio: np.ndarray) -> np.ndarray:
    """Rounds and clips to int16."""
    return np.clip(np.rint(audio), -(2**15), 2**15 - 1).astype(np.int16)


def _rounded(ratio: fractions.Fraction) -> fractions.Fraction:
    if max(ratio.numerator, ratio.denominator) <= _PHASES:
        return ratio
    return 1 / (1 / ratio).limit_denominator(_PHASES) if ratio > 1 else ratio.limit_denominator(_PHASES)


@functools.lru_cache(maxsize=16)
def _filter(up: int, down: int) -> np.ndarray:
    half = _CROSSINGS * max(up, down)
    cycles = np.arange(-half, half + 1) * (_PASS / max(up, down))
    taps = np.sinc(cycles) * np.kaiser(len(cycles), _BETA)
    return taps * (up / taps.sum())
