"""Resampling: true to a sine, the same wherever it is asked for, and in time."""

import fractions

import numpy as np
import pytest

from data_pipelines import sound

RATES = [(48000, 16000), (44100, 48000), (8000, 48000), (48000, 24000), (22050, 32000), (30720, 48000), (11025, 44100)]


def sine(frequency: float, times: np.ndarray) -> np.ndarray:
    return 20000 * np.sin(2 * np.pi * frequency * times + 0.3)


@pytest.mark.parametrize(("old", "new"), RATES)
@pytest.mark.parametrize("share", [0.01, 0.3, 0.8])  # of the lower Nyquist frequency
def test_a_sine_keeps_its_shape(old, new, share):
    frequency = share * min(old, new) / 2
    audio = np.rint(sine(frequency, np.arange(old) / old))[:, None].astype(np.int16)
    ratio, start = fractions.Fraction(new, old), fractions.Fraction(old, 4)
    found = sound.to_int16(sound.resample(audio, start, ratio, new // 2))[:, 0]
    expected = sine(frequency, 0.25 + np.arange(new // 2) / new)
    noise = np.mean((found - expected) ** 2)
    assert 10 * np.log10(np.mean(expected**2) / noise) > 80  # decibels


@pytest.mark.parametrize("high", [17000, 23000])
def test_what_the_new_rate_cannot_hold_is_removed(high):
    audio = sine(high, np.arange(48000) / 48000)[:, None]
    found = sound.resample(audio, fractions.Fraction(1000), fractions.Fraction(1, 3), 12000)
    assert np.abs(found).max() < 2  # of 20000


@pytest.mark.parametrize("ratio", ["160/147", "500/1001", "1/3", "6", "123456/234567"])
def test_neighbouring_stretches_are_one(ratio):
    ratio = fractions.Fraction(ratio)
    audio = np.random.default_rng(0).integers(-(2**15), 2**15, (4000, 2)).astype(np.int16)
    whole = sound.resample(audio, fractions.Fraction(0), ratio, 900)
    margin, first = sound.margin(ratio), 400
    place = first / ratio
    offset = max(int(place) - margin, 0)  # read no more than is said to be needed
    after = int((first + 200) / ratio) + margin + 1
    part = sound.resample(audio[offset:after], place - offset, ratio, 200)
    # A ratio of long fractions is rounded, so there an instant may be off by less than a thousandth of a sample.
    tolerance = 0 if max(ratio.numerator, ratio.denominator) < 2**14 else 60
    np.testing.assert_allclose(part, whole[first : first + 200], rtol=0, atol=tolerance)


def test_a_click_stays_where_it_was():
    audio = np.zeros((48000, 1))
    audio[4800] = 10000  # at 0.1 s
    found = sound.resample(audio, fractions.Fraction(0), fractions.Fraction(147, 160), 44100)[:, 0]
    assert np.abs(found).argmax() == 4410


def test_silence_is_around_the_sound():
    audio = np.full((100, 1), 1000.0)
    found = sound.resample(audio, fractions.Fraction(-500), fractions.Fraction(2), 2400)[:, 0]
    assert not found[:900].any() and not found[-900:].any()
    np.testing.assert_allclose(found[1090:1110], 1000, atol=1)


def test_channels_are_averaged_or_repeated():
    stereo = np.array([[100, 201], [-3, -4], [2**15 - 1, 2**15 - 1]], np.int16)
    mono = sound.to_int16(sound.mix(stereo, 1))
    np.testing.assert_array_equal(mono, [[150], [-4], [2**15 - 1]])  # halves go to even numbers
    np.testing.assert_array_equal(sound.to_int16(sound.mix(mono, 2)), np.repeat(mono, 2, 1))
    np.testing.assert_array_equal(sound.to_int16(sound.mix(stereo, 2)), stereo)


def test_what_is_too_loud_is_clipped():
    np.testing.assert_array_equal(sound.to_int16(np.array([[4e4], [-4e4]])), [[2**15 - 1], [-(2**15)]])
