"""Policies press keys, and recorded clips hold what a rollout gives."""

import fractions

import numpy as np
import pytest

from data_pipelines.sources.playground import (
    ACTION_NAMES,
    EVENTS,
    POLICIES,
    World,
    event_codes,
    record,
    record_many,
    rollout,
)

WORLD = World(height=24, width=40, frame_rate=12, sample_rate=6000)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_policies_are_deterministic_and_well_formed(name: str) -> None:
    first, second = (POLICIES[name](WORLD, np.random.default_rng(3), 97) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1] == second[1]
    actions, events = first
    assert actions.shape == (97, 3) and actions.dtype == np.float32
    assert set(np.unique(actions)) <= {0.0, 1.0}
    assert events[0].frame == 0 and {event.text for event in events} <= set(EVENTS)
    assert len(event_codes(WORLD, events, 97)) == 97


def test_policies_keep_the_keys_busy() -> None:
    def held(name: str) -> np.ndarray:
        return np.mean([POLICIES[name](WORLD, np.random.default_rng(s), 96)[0].mean(0) for s in range(20)], axis=0)

    assert held("wander")[:2].sum() > 0.7
    assert held("return")[:2].sum() > 0.7
    assert held("jump")[2] > 0.2
    assert held("still").sum() == 0


def test_return_comes_back_to_where_it_began() -> None:
    for seed in range(4):
        actions, _ = POLICIES["return"](WORLD, np.random.default_rng(seed), 120)
        _, observed = rollout(WORLD, seed, actions, np.zeros(120, np.int32))
        x = np.asarray(observed.bodies.position)[:, 0, 0]
        away = np.abs(x - x[0])
        far = int(np.argmax(away > 0.8))
        assert far > 0
        assert away[far:].min() < 0.06


def test_a_recorded_clip_is_the_rollout_of_its_seed_actions_and_events() -> None:
    clip = record(WORLD, 7, "mixed", 20, split="train")
    clip.validate()
    assert clip.action_names == ACTION_NAMES
    assert clip.frame_rate == fractions.Fraction(12) and clip.sample_rate == 6000
    assert (clip.source, clip.licence, clip.seed, clip.episode) == (
        "playground",
        "CC0-1.0",
        7,
        "playground/train/000007",
    )
    _, observed = rollout(WORLD, clip.seed, clip.actions, event_codes(WORLD, clip.events, 20))
    assert np.abs(clip.video.astype(int) - np.asarray(observed.frame, int)).max() <= 1
    boxes = clip.facts["boxes"].values
    np.testing.assert_array_equal(~np.isnan(boxes).any(-1), np.asarray(observed.visible))
    np.testing.assert_allclose(np.nan_to_num(boxes), np.asarray(observed.boxes), atol=1e-3)
    bodies = np.concatenate([observed.bodies.position, observed.bodies.velocity], axis=-1)
    np.testing.assert_allclose(clip.facts["bodies"].values, bodies, atol=1e-3)
    np.testing.assert_allclose(clip.facts["camera"].values[:, 0], observed.camera, atol=1e-3)
    audio = np.asarray(observed.audio).reshape(-1, 2) * 32767
    assert clip.audio.shape == (20 * 500, 2)
    assert np.abs(clip.audio - audio).max() <= 2


def test_many_clips_come_in_order_whatever_the_batch() -> None:
    seeds = [4, 9, 2, 30, 11]
    clips = list(record_many(WORLD, iter(seeds), "wander", 20, split="test", batch=2))
    assert [clip.seed for clip in clips] == seeds
    alone = record(WORLD, 11, "wander", 20, split="test")
    assert np.abs(alone.video.astype(int) - clips[-1].video.astype(int)).max() <= 1
    np.testing.assert_array_equal(alone.actions, clips[-1].actions)


def test_bad_recordings_are_refused() -> None:
    with pytest.raises(ValueError, match="does not know the policy 'fly'; use one of wander"):
        record_many(WORLD, [0], "fly", 4, split="train")
    with pytest.raises(ValueError, match="at least 1 frame"):
        record_many(WORLD, [0], "still", 0, split="train")
    with pytest.raises(ValueError, match="seed -1 is out of range"):
        record(WORLD, -1, "still", 4, split="train")
