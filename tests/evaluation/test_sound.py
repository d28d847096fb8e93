"""Sound scores on signals whose answer is known, and on the playground, whose contacts are."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.sources import playground
from pixr1_jax.evaluation import sound as sound_lib

RATE = 6000


def _strikes(times, seconds=4.0, channels=1, level=0.5):
    sound = np.zeros((int(seconds * RATE), channels), np.float32)
    for index, time in enumerate(times):
        at = np.arange(len(sound) - int(time * RATE))
        tone = level * np.exp(-at / (0.15 * RATE)) * np.sin(2 * np.pi * (300 + 90 * index) * at / RATE)
        sound[int(time * RATE) :, index % channels] += tone
    return sound


def test_distance_of_a_change_of_level():
    # Far above the floor, half the amplitude is 6.02 dB less in every bin.
    noise = np.random.default_rng(0).normal(0, 0.1, (RATE, 2)).astype(np.float32)
    assert sound_lib.log_spectral_distance(noise, noise) == 0
    assert sound_lib.log_spectral_distance(noise, noise / 2) == pytest.approx(20 * np.log10(2), abs=0.02)


def test_distance_by_hand():
    rng = np.random.default_rng(1)
    truth, dream = rng.normal(0, 0.1, (2, 600, 2))
    truth[300:] *= 1e-4
    window = np.sin(np.pi * np.arange(256) / 256) ** 2
    per_time = []
    powers = {}
    for name, signal in (("truth", truth), ("dream", dream)):
        powers[name] = [
            [np.abs(np.fft.rfft(signal[start : start + 256, channel] * window)) ** 2 for channel in range(2)]
            for start in range(0, 600 - 255, 64)
        ]
    floor = np.max(powers["truth"]) * 1e-6
    for true, dreamed in zip(powers["truth"], powers["dream"], strict=True):
        for a, b in zip(true, dreamed, strict=True):
            decibels = 10 * np.log10(np.maximum(a, floor)) - 10 * np.log10(np.maximum(b, floor))
            per_time.append(np.sqrt(np.mean(decibels**2)))
    assert sound_lib.log_spectral_distance(truth, dream) == pytest.approx(np.mean(per_time))


def test_silence():
    strikes, silence = _strikes([1.0]), np.zeros((4 * RATE, 1), np.float32)
    assert 0 < sound_lib.log_spectral_distance(strikes, silence) <= 60
    assert np.isnan(sound_lib.log_spectral_distance(silence, strikes))
    assert np.isnan(sound_lib.log_spectral_distance(np.zeros((0, 2)), np.zeros((0, 2))))
    match = sound_lib.match_onsets(strikes, silence, RATE, 0.05)
    assert match == sound_lib.Matches(hits=0, truth=1, dream=0, chance=0.0)
    assert sound_lib.match_onsets(silence, strikes, RATE, 0.05).truth == 0


def test_sound_shorter_than_a_window():
    sound = np.full((50, 1), 0.1, np.float32)
    assert sound_lib.log_spectral_distance(sound, sound) == 0
    assert len(sound_lib.onsets(sound, RATE, peak=sound_lib.peak_power(sound, RATE))) == 0


@pytest.mark.parametrize("level", [0.01, 0.5])
def test_onsets_are_found_where_they_are(level):
    times = [0.5, 0.9, 1.05, 2.2, 3.3]
    sound = _strikes(times, channels=2, level=level)
    found = sound_lib.onsets(sound, RATE, peak=sound_lib.peak_power(sound, RATE))
    np.testing.assert_allclose(found, times, atol=0.012)


def test_shifted_onsets_hit_by_tolerance():
    truth, late = _strikes([0.5, 1.5, 2.5]), _strikes([0.57, 1.57, 2.57])
    assert sound_lib.match_onsets(truth, truth, RATE, 0.05).hits == 3
    assert sound_lib.match_onsets(truth, late, RATE, 0.05).hits == 0
    match = sound_lib.match_onsets(truth, late, RATE, 0.1)
    assert (match.hits, match.truth, match.dream) == (3, 3, 3)
    # Three strikes a second apart in four seconds: a random shift hits 0.2 s of each second, three quarters of them.
    assert 0.2 < match.chance < 0.7


def test_quiet_noise_makes_no_onsets():
    truth = _strikes([0.5, 1.5, 2.5])
    noisy = truth + np.random.default_rng(0).normal(0, 0.003, truth.shape).astype(np.float32)
    match = sound_lib.match_onsets(truth, noisy, RATE, 0.05)
    assert (match.hits, match.dream) == (3, 3)


@given(
    st.lists(st.integers(0, 60), max_size=5, unique=True),
    st.lists(st.integers(0, 60), max_size=5, unique=True),
    st.integers(0, 12),
)
def test_hits_are_the_largest_matching(wanted, found, tolerance):
    """Every way to pair the two, tried."""
    wanted, found = sorted(wanted), sorted(found)
    short, long = sorted((wanted, found), key=len)
    best = max(
        sum(abs(a - b) <= tolerance for a, b in zip(short, chosen, strict=True))
        for chosen in itertools.permutations(long, len(short))
    )
    assert sound_lib.count_hits(np.array(wanted, float), np.array(found, float), tolerance) == best


def test_playground_contacts_are_heard():
    world = playground.World(height=16, width=24, frame_rate=12, sample_rate=RATE)
    actions, events = playground.POLICIES["wander"](world, np.random.default_rng(3), 72)
    _, observed = playground.rollout(world, 3, actions, playground.event_codes(world, events, 72))
    sound = np.asarray(observed.audio).reshape(-1, 2)
    strikes = [onset.sample / RATE for onset in playground.onset_list(observed) if onset.strength > 0.05]
    true = [time for index, time in enumerate(strikes) if index == 0 or time - strikes[index - 1] > 0.06]
    found = sound_lib.onsets(sound, RATE, peak=sound_lib.peak_power(sound, RATE))
    hits = sound_lib.count_hits(np.array(true), found, 0.03)
    assert len(true) > 10
    assert hits >= 0.85 * len(true) and hits >= 0.95 * len(found)


def test_summary():
    matches = [sound_lib.Matches(2, 4, 2, 0.5), sound_lib.Matches(1, 2, 4, 0.5)]
    summary = sound_lib.summarise([1.0, float("nan")], {0.05: matches}, seed=0)
    assert summary["log_spectral_distance"]["mean"] == 1 and summary["log_spectral_distance"]["clips"] == 1
    rates = summary["onsets"]["50ms"]
    assert rates["precision"]["mean"] == rates["recall"]["mean"] == rates["f1"]["mean"] == 0.5
    assert rates["chance_f1"]["mean"] == pytest.approx(2 * 1 / 12)
    assert rates["per_clip"]["dream"] == [2, 4]


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="cannot be compared"):
        sound_lib.log_spectral_distance(np.zeros((9, 2)), np.zeros((9, 1)))
