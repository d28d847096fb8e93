"""Rules of the playground: buttons move the agent, balls obey gravity and never gain energy by themselves."""

from typing import NamedTuple

import numpy as np
import pytest

from data_pipelines.sources.playground import World, rollout, rollout_batch

WORLD = World(height=16, width=24, frame_rate=12, sample_rate=2400, balls=3)
GRAVITY = 3.6
BATCH, FRAMES, STILL = 32, 192, 132


class Plays(NamedTuple):
    radius: np.ndarray  # [batch, balls]
    tops: np.ndarray  # [batch, platforms]
    position: np.ndarray  # [batch, frames, 1 + balls, 2]
    velocity: np.ndarray
    grounded: np.ndarray  # [batch, frames]


def run(actions: np.ndarray) -> Plays:
    """Rollouts of seeds 0, 1, ... by day: one shape for all tests, so that one program is compiled."""
    padded = np.zeros((BATCH, FRAMES, 3), np.float32)
    padded[: len(actions), : actions.shape[1]] = actions
    seeds = np.arange(BATCH, dtype=np.int32)
    state, observed = rollout_batch(WORLD, seeds, padded, np.zeros((BATCH, FRAMES), np.int32))
    layout, bodies = state.layout, observed.bodies
    tops = np.asarray(layout.platform_centre)[..., 1] + np.asarray(layout.platform_half)[..., 1]
    moving = (np.asarray(bodies.position), np.asarray(bodies.velocity), np.asarray(bodies.grounded))
    return Plays(np.asarray(layout.ball_radius), tops, *moving)


@pytest.fixture(scope="module")
def rest_then_walk() -> Plays:
    """Nothing is pressed for eleven seconds; then half of the agents walk left, half right."""
    actions = np.zeros((BATCH, FRAMES, 3), np.float32)
    actions[::2, STILL:, 0] = 1
    actions[1::2, STILL:, 1] = 1
    return run(actions)


@pytest.fixture(scope="module")
def busy() -> Plays:
    """Every agent presses at random, and drifts right."""
    rng = np.random.default_rng(0)
    held = rng.random((BATCH, FRAMES // 12, 3)) < [0.3, 0.8, 0.5]
    return run(np.repeat(held, 12, axis=1).astype(np.float32))


def test_buttons_move_the_agent() -> None:
    actions = np.zeros((5, 18, 3), np.float32)
    for row, buttons in enumerate(((), (0,), (1,), (0, 1), (2,))):
        actions[row][:, list(buttons)] = 1
    agent = run(actions).position[:5, :18, 0]
    still, left, right, both, jump = agent - agent[:, :1]
    assert not still.any() and not both.any()
    # After the first frame 17 / 12 s at 0.6 units/s, less what the start costs.
    np.testing.assert_allclose(right[-1, 0], 0.84, atol=0.02)
    np.testing.assert_allclose(left[-1, 0], -0.84, atol=0.02)
    # Before it can land on a platform.
    height = agent[4, :7, 1] - 0.1
    assert 0.33 < height.max() <= 0.371
    assert np.ptp(jump[:, 0]) == 0


def test_the_agent_stands_on_ground_and_platforms_only(busy: Plays) -> None:
    stood = set()
    for position, grounded, tops in zip(busy.position, busy.grounded, busy.tops, strict=True):
        levels = np.append(tops, 0.0)
        feet = position[grounded, 0, 1] - 0.1
        nearest = np.abs(feet[:, None] - levels).argmin(axis=1)
        np.testing.assert_allclose(feet, levels[nearest], atol=1e-5)
        stood |= {bool(index < len(tops)) for index in nearest}
    assert stood == {False, True}


def test_walls_and_ground_hold_everything(busy: Plays) -> None:
    assert np.isfinite(busy.position).all() and np.isfinite(busy.velocity).all()
    assert (busy.position[:, :, 1:, 1] - busy.radius[:, None] > -1e-3).all()
    assert (busy.position[..., 0] > 0.1).all() and (busy.position[..., 0] < WORLD.length - 0.1).all()
    assert busy.position[:, :, 0, 0].max() > WORLD.length - 0.2
    assert np.linalg.norm(busy.velocity, axis=-1).max() < 2.5


def test_balls_without_input_only_lose_energy(rest_then_walk: Plays) -> None:
    velocity = rest_then_walk.velocity[:, :STILL, 1:]
    height = rest_then_walk.position[:, :STILL, 1:, 1]
    mass = rest_then_walk.radius[:, None] ** 2
    energy = (mass * (0.5 * (velocity**2).sum(-1) + GRAVITY * height)).sum(-1)
    share = energy / energy[:, :1]
    # Rolling over a round corner is exact to a part in a thousand; over a second nothing is gained.
    assert np.diff(share, axis=1).max() < 1e-3
    assert (share[:, 12:] - share[:, :-12]).max() <= 1e-4
    # Yet things keep happening for seconds, and then come to rest.
    speed = np.linalg.norm(velocity, axis=-1)
    assert (speed[:, 48:60].max(axis=(1, 2)) > 0.2).mean() > 0.8
    assert (speed[:, -6:].max(axis=(1, 2)) < 0.1).mean() > 0.5


def test_walking_into_a_resting_ball_kicks_it_forward_and_up(rest_then_walk: Plays) -> None:
    resting = np.max(np.abs(rest_then_walk.velocity[:, STILL - 6 : STILL, 1:]), axis=(1, 3)) < 0.05
    way = np.where(np.arange(BATCH) % 2 == 0, -1.0, 1.0)[:, None]
    walk = rest_then_walk.velocity[:, STILL:, 1:]
    kicked = np.any((walk[..., 0] * way[:, None] > 0.6) & (walk[..., 1] > 0.8), axis=1)
    offset = rest_then_walk.position[:, STILL, 1:] - rest_then_walk.position[:, STILL, :1]
    ahead = (offset[..., 0] * way > 0.2) & (offset[..., 0] * way < 1.5) & (np.abs(offset[..., 1]) < 0.1)
    chosen = np.nonzero(np.logical_and(resting, ahead))
    assert len(chosen[0]) > 8
    assert np.asarray(kicked)[chosen].mean() > 0.8


def test_free_fall_is_the_parabola() -> None:
    fine = World(height=16, width=24, frame_rate=240, sample_rate=2400, balls=1)
    _, observed = rollout(fine, 1, np.zeros((40, 3), np.float32), np.zeros(40, np.int32))
    position = np.asarray(observed.bodies.position)[:, 1]
    velocity = np.asarray(observed.bodies.velocity)[:, 1]
    seconds = np.arange(40) / 240
    expected = position[0] + velocity[0] * seconds[:, None]
    expected[:, 1] -= 0.5 * GRAVITY * seconds**2
    np.testing.assert_allclose(position, expected, atol=1e-4)


def test_walking_away_and_back_returns_to_the_same_place() -> None:
    actions = np.zeros((1, 66, 3), np.float32)
    actions[0, :30, 0] = actions[0, 33:63, 1] = 1
    x = run(actions).position[0, :, 0, 0]
    # The first frame walks 0.02 units while it gathers speed: 0.6 / 12 less the 0.1 s ramp.
    start = x[0] + 0.6 / 12 - 0.6 * 0.1 / 2 + 0.5 * 6 * (0.1 - 1 / 12) ** 2
    assert x[0] - x[29] > 1.2
    assert abs(float(x[65]) - float(start)) < 0.005
