"""Sounds of the playground begin where the truth says, and are what their formula says."""

import jax
import numpy as np
import pytest

from data_pipelines.sources.playground import World, advance, onset_list, reset, rollout

WORLD = World(height=16, width=24, frame_rate=12, sample_rate=6000)


def play(world: World, seed: int, actions: np.ndarray):
    state, observed = rollout(world, seed, actions, np.zeros(len(actions), np.int32))
    return state, observed, np.asarray(observed.audio).reshape(-1, 2)


def test_silence_until_the_declared_onset_then_sound_within_a_sample() -> None:
    heard = 0
    for seed in range(8):
        _, observed, audio = play(WORLD, seed, np.zeros((24, 3), np.float32))
        onsets = onset_list(observed)
        if not onsets:
            continue
        begin = onsets[0].sample
        assert np.abs(audio[: begin + 1]).max() == 0
        assert np.abs(audio[begin + 1]).max() > 1e-3
        heard += 1
    assert heard >= 4


def test_the_onset_is_the_substep_of_the_contact() -> None:
    """At 240 frames a second the first bounce shows in the velocities: at 12 it must be declared then."""
    fine = World(height=16, width=24, frame_rate=240, sample_rate=6000)
    _, watched, _ = play(fine, 0, np.zeros((240, 3), np.float32))
    rises = np.diff(np.asarray(watched.bodies.velocity)[:, 1:, 1], axis=0) > 0.3
    substep, ball = np.argwhere(rises)[0] + [1, 0]
    _, observed, _ = play(WORLD, 0, np.zeros((12, 3), np.float32))
    first = onset_list(observed)[0]
    assert (first.sample, first.body) == (substep * 25, ball + 1)


@pytest.mark.parametrize("sample_rate", [6000, 44100])
def test_sound_is_the_sum_of_its_onsets(sample_rate: int) -> None:
    world = World(height=16, width=24, frame_rate=12, sample_rate=sample_rate)
    rng = np.random.default_rng(0)
    actions = np.repeat(rng.random((9, 3)) < 0.5, 4, axis=0).astype(np.float32)
    state, observed, audio = play(world, 3, actions)
    onsets = onset_list(observed)
    assert len({onset.body for onset in onsets}) == 3
    times = np.arange(len(audio))
    waves = []
    for onset in onsets:
        decay = 0.05 if onset.body == 0 else 0.12
        since = np.maximum(times - onset.sample, 0) / sample_rate
        pitch = float(state.layout.pitch[onset.body])
        waves.append(onset.strength * np.exp(-since / decay) * np.sin(2 * np.pi * pitch * since))
    # Pan is not part of the declared onset, so it is solved for: the rest must vanish.
    waves = np.stack(waves, axis=1)
    linear = np.arctanh(audio.astype(np.float64))
    gains, *_ = np.linalg.lstsq(waves, linear, rcond=None)
    assert np.abs(waves @ gains - linear).max() < 1e-3
    np.testing.assert_allclose((gains**2).sum(axis=1), 1.0, atol=0.02)


def test_sound_goes_on_exactly_over_a_cut() -> None:
    actions = np.zeros((30, 3), np.float32)
    actions[5:, 1] = actions[8:20, 2] = 1
    _, _, whole = play(WORLD, 2, actions)
    state, parts = reset(WORLD, 2), []
    for frame in range(0, 30, 3):
        state, observed = advance(WORLD, state, actions[frame : frame + 3], np.zeros(3, np.int32))
        parts.append(np.asarray(observed.audio).reshape(-1, 2))
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6)


def test_onsets_are_loud_and_never_clip() -> None:
    rng = np.random.default_rng(1)
    batch = jax.vmap(lambda seed, actions: rollout(WORLD, seed, actions, np.zeros(60, np.int32))[1])
    actions = np.repeat(rng.random((12, 12, 3)) < [0.4, 0.4, 0.4], 5, axis=1).astype(np.float32)
    observed = batch(np.arange(12, dtype=np.int32), actions)
    audio = np.asarray(observed.audio).reshape(12, -1, 2)
    assert np.abs(audio).max() < 1
    levels = []
    for clip in range(12):
        for onset in onset_list(jax.tree.map(lambda leaf, clip=clip: leaf[clip], observed)):
            heard = audio[clip, onset.sample : onset.sample + WORLD.samples_per_frame]
            if onset.strength >= 0.22 and len(heard) == WORLD.samples_per_frame:
                levels.append(np.sqrt((heard**2).mean(axis=0)).max())
    assert len(levels) > 100 and min(levels) > 0.05


def test_pan_follows_the_screen_and_pitch_the_radius() -> None:
    sides = []
    for seed in range(12):
        state, observed, audio = play(WORLD, seed, np.zeros((12, 3), np.float32))
        order = np.argsort(np.asarray(state.layout.ball_radius))
        assert (np.diff(np.asarray(state.layout.pitch)[1:][order]) < 0).all()
        assert np.asarray(state.layout.pitch).min() >= 150 and np.asarray(state.layout.pitch).max() <= 1200
        for onset in onset_list(observed)[:1]:
            frame = onset.sample // WORLD.samples_per_frame
            offset = float(observed.bodies.position[frame, onset.body, 0] - observed.camera[frame])
            left, right = (audio[onset.sample : onset.sample + 200] ** 2).sum(axis=0)
            sides.append((offset, right - left))
    assert len(sides) > 6
    assert all(np.sign(offset) == np.sign(balance) for offset, balance in sides if abs(offset) > 0.05)
