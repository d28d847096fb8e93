"""The playground as a pure function: same inputs give same worlds, whatever the frame rate, size or cut."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.clip import TextEvent
from data_pipelines.sources.playground import (
    EVENTS,
    World,
    advance,
    event_code,
    event_codes,
    object_names,
    reset,
    rollout,
    rollout_batch,
    step,
)

WORLD = World(height=32, width=48, frame_rate=12, sample_rate=6000)
FRAMES = 40


def random_actions(seed: int, frames: int) -> np.ndarray:
    """Buttons [frames, 3] that change every fourth frame."""
    rng = np.random.default_rng(seed)
    return np.repeat(rng.random((-(-frames // 4), 3)) < [0.4, 0.5, 0.3], 4, axis=0)[:frames].astype(np.float32)


def run(world: World, seed: int, actions: np.ndarray, code: int = 0):
    return rollout(world, seed, actions, np.full(len(actions), code, np.int32))


def assert_trees_equal(first, second, **tolerance) -> None:
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), **tolerance)


def test_equal_inputs_give_equal_bits_and_other_seeds_other_worlds() -> None:
    actions = random_actions(0, FRAMES)
    first, second, other = (run(WORLD, seed, actions)[1] for seed in (5, 5, 6))
    assert_trees_equal(first, second, rtol=0, atol=0)
    assert np.abs(np.asarray(first.frame, int) - np.asarray(other.frame, int)).mean() > 5


def test_batch_agrees_with_single_rollouts() -> None:
    actions = np.stack([random_actions(seed, FRAMES) for seed in range(3)])
    codes = np.tile(np.array([0, 1, 5], np.int32)[:, None], (1, FRAMES))
    _, batch = rollout_batch(WORLD, np.arange(3, dtype=np.int32), actions, codes)
    _, single = rollout(WORLD, 2, actions[2], codes[2])
    np.testing.assert_allclose(batch.bodies.position[2], single.bodies.position, atol=1e-5)
    np.testing.assert_allclose(batch.audio[2], single.audio, atol=1e-4)
    assert np.abs(np.asarray(batch.frame[2], int) - np.asarray(single.frame, int)).max() <= 1


@pytest.mark.parametrize(
    "other",
    [
        World(height=32, width=48, frame_rate=24, sample_rate=6000),
        World(height=45, width=61, frame_rate=12, sample_rate=48000),
        World(height=20, width=80, frame_rate=48, sample_rate=12000),
    ],
)
def test_states_do_not_depend_on_frame_rate_size_or_sample_rate(other: World) -> None:
    actions = random_actions(1, FRAMES)
    _, expected = run(WORLD, 9, actions)
    ratio = other.frame_rate // WORLD.frame_rate
    _, observed = run(other, 9, np.repeat(actions, ratio, axis=0))
    for name in ("position", "velocity", "stride"):
        found = np.asarray(getattr(observed.bodies, name))[ratio - 1 :: ratio]
        np.testing.assert_allclose(found, getattr(expected.bodies, name), atol=2e-5)
    assert np.ptp(np.asarray(expected.bodies.position)[:, 1:, 1], axis=0).min() > 0.2


def test_a_rollout_in_pieces_is_the_whole_rollout() -> None:
    actions = random_actions(2, FRAMES)
    codes = np.repeat(np.array([0, 5], np.int32), FRAMES // 2)
    end, whole = rollout(WORLD, 4, actions, codes)
    state = reset(WORLD, 4)
    pieces = []
    for cut in (slice(0, 13), slice(13, FRAMES)):
        state, piece = advance(WORLD, state, actions[cut], codes[cut])
        pieces.append(piece)
    assert_trees_equal(state, end, atol=1e-6)
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *pieces)
    assert_trees_equal(joined, whole, atol=1e-6, rtol=1e-6)


def test_step_is_one_frame_of_the_rollout() -> None:
    actions = random_actions(3, 8)
    _, whole = run(WORLD, 8, actions)
    state = reset(WORLD, 8)
    for frame, action in enumerate(actions):
        state, observed = step(WORLD, state, action, 0)
        np.testing.assert_allclose(observed.bodies.position, whole.bodies.position[frame], atol=1e-6)
        assert np.abs(np.asarray(observed.frame, int) - np.asarray(whole.frame[frame], int)).max() <= 1


def test_reset_takes_traced_seeds() -> None:
    states = jax.vmap(lambda seed: reset(WORLD, seed))(np.array([3, 4], np.int32))
    assert_trees_equal(jax.tree.map(lambda leaf: leaf[1], states), reset(WORLD, 4), atol=1e-6)


@settings(max_examples=3, deadline=None)
@given(height=st.integers(8, 40), width=st.integers(8, 60), frame_rate=st.sampled_from([1, 10, 16, 60, 240]))
def test_any_size_and_rate(height: int, width: int, frame_rate: int) -> None:
    world = World(height=height, width=width, frame_rate=frame_rate, sample_rate=9600)
    _, observed = run(world, 0, random_actions(0, 3), code=4)
    assert observed.frame.shape == (3, height, width, 3)
    assert observed.frame.dtype == np.uint8
    assert observed.audio.shape == (3, 9600 // frame_rate, 2)
    names = object_names(world)
    assert observed.visible.shape == (3, len(names))
    assert observed.boxes.shape == (3, len(names), 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frame_rate": 25}, "World.frame_rate is 25; use a divisor of the physics rate 240"),
        ({"frame_rate": 0}, "World.frame_rate is 0"),
        ({"sample_rate": 6001}, "World.sample_rate 6001 is not a multiple of World.frame_rate 12"),
        ({"sample_rate": 1200}, "World.sample_rate is 1200; use at least 2400"),
        ({"height": 4}, "World.height is 4"),
        ({"width": 400}, "narrower than the view"),
        ({"balls": 0}, "World.balls is 0"),
        ({"length": 1.0}, "World.length is 1.0"),
    ],
)
def test_bad_worlds_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(WORLD, **change)


def test_event_codes_follow_the_text_in_force() -> None:
    events = [TextEvent(0, "day"), TextEvent(3, "night rain")]
    assert event_codes(WORLD, events, 5).tolist() == [EVENTS.index("day")] * 3 + [EVENTS.index("night rain")] * 2
    assert all(len(text.encode("ascii")) <= 24 and text == text.lower() for text in EVENTS)


def test_bad_events_are_refused() -> None:
    with pytest.raises(ValueError, match="does not know the event text 'fog'; use one of day, dusk"):
        event_code("fog")
    for frames in ([], [1], [0, 3, 2], [0, 9]):
        with pytest.raises(ValueError, match="playground event"):
            event_codes(WORLD, [TextEvent(frame, "day") for frame in frames], 5)
