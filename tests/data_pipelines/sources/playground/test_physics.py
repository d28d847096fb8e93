"""Rules of the playground: buttons move the agent, balls obey gravity and never gain energy by themselves."""

import numpy as np

from data_pipelines.sources.playground import World, rollout, rollout_batch

WORLD = World(height=16, width=24, frame_rate=12, sample_rate=2400, balls=3)
GRAVITY = 3.6


def held(frames: int, *buttons: int) -> np.ndarray:
    actions = np.zeros((frames, 3), np.float32)
    actions[:, list(buttons)] = 1
    return actions


def play(actions: np.ndarray, seed: int = 0):
    return rollout(WORLD, seed, actions, np.zeros(len(actions), np.int32))[1]


def test_buttons_move_the_agent() -> None:
    still, left, right, both, jump = (
        np.asarray(play(held(18, *buttons)).bodies.position)[:, 0]
        for buttons in ((), (0,), (1,), (0, 1), (2,))
    )
    assert np.ptp(still, axis=0).max() == 0
    np.testing.assert_array_equal(both, still)
    # 1.5 s at 0.6 units/s, less the 0.1 s of acceleration.
    np.testing.assert_allclose(right[-1, 0] - still[-1, 0], 0.87, atol=0.01)
    np.testing.assert_allclose(still[-1, 0] - left[-1, 0], 0.87, atol=0.01)
    height = jump[:, 1] - still[:, 1]
    assert 0.3 < height.max() <= 0.371
    assert jump[:, 0].max() == still[0, 0]


def test_the_agent_lands_on_platforms_from_above_only() -> None:
    stood = set()
    for seed in range(6):
        rng = np.random.default_rng(seed)
        actions = np.repeat(rng.random((20, 3)) < [0.5, 0.5, 0.8], 6, axis=0).astype(np.float32)
        state, observed = rollout(WORLD, seed, actions, np.zeros(len(actions), np.int32))
        feet = np.asarray(observed.bodies.position)[:, 0, 1] - 0.1
        layout = state.layout
        tops = np.asarray(layout.platform_centre)[:, 1] + np.asarray(layout.platform_half)[:, 1]
        levels = np.append(tops, 0.0)
        ground = feet[np.asarray(observed.bodies.grounded)]
        nearest = np.abs(ground[:, None] - levels).argmin(axis=1)
        np.testing.assert_allclose(ground, levels[nearest], atol=1e-5)
        stood |= {bool(index < len(tops)) for index in nearest}
    assert stood == {False, True}


def test_walls_and_ground_hold_everything() -> None:
    rng = np.random.default_rng(0)
    actions = np.repeat(rng.random((16, 12, 3)) < [0.3, 0.8, 0.4], 12, axis=1).astype(np.float32)
    seeds = np.arange(16, dtype=np.int32)
    state, observed = rollout_batch(WORLD, seeds, actions, np.zeros(actions.shape[:2], np.int32))
    position = np.asarray(observed.bodies.position)
    assert np.isfinite(position).all()
    radius = np.asarray(state.layout.ball_radius)[:, None]
    assert (position[:, :, 1:, 1] - radius > -1e-3).all()
    assert (position[..., 0] > 0.1).all() and (position[..., 0] < WORLD.length - 0.1).all()
    assert position[:, :, 0, 0].max() > WORLD.length - 0.2


def test_balls_without_input_only_lose_energy() -> None:
    seeds = np.arange(32, dtype=np.int32)
    state, observed = rollout_batch(
        WORLD, seeds, np.zeros((32, 120, 3), np.float32), np.zeros((32, 120), np.int32)
    )
    velocity = np.asarray(observed.bodies.velocity)[:, :, 1:]
    height = np.asarray(observed.bodies.position)[:, :, 1:, 1]
    mass = np.asarray(state.layout.ball_radius)[:, None] ** 2
    energy = (mass * (0.5 * (velocity**2).sum(-1) + GRAVITY * height)).sum(-1)
    assert (np.diff(energy, axis=1) <= 1e-4 * energy[:, :1]).all()
    # Yet things keep happening: after five seconds most worlds still have a moving ball.
    speed = np.sqrt((velocity**2).sum(-1))
    assert (speed[:, 48:60].max(axis=(1, 2)) > 0.2).mean() > 0.7


def test_free_fall_is_the_parabola() -> None:
    fine = World(height=16, width=24, frame_rate=240, sample_rate=2400, balls=1)
    _, observed = rollout(fine, 1, held(40), np.zeros(40, np.int32))
    position = np.asarray(observed.bodies.position)[:, 1]
    velocity = np.asarray(observed.bodies.velocity)[:, 1]
    seconds = np.arange(40) / 240
    expected = position[0] + velocity[0] * seconds[:, None]
    expected[:, 1] -= 0.5 * GRAVITY * seconds**2
    np.testing.assert_allclose(position, expected, atol=1e-4)


def test_walking_into_a_ball_kicks_it() -> None:
    kicked = 0
    for seed in range(4):
        # After eight seconds the balls lie still; then the agent walks right.
        observed = play(np.concatenate([held(120), held(48, 1)]), seed)
        speed = np.asarray(observed.bodies.velocity)[:, 1:]
        before, after = np.abs(speed[115:120]).max(axis=(0, 2)), speed[120:].max(axis=0)
        kicked += int(((before < 0.05) & (after[:, 0] > 0.5) & (after[:, 1] > 0.5)).any())
    assert kicked >= 2


def test_walking_away_and_back_returns_to_the_same_place() -> None:
    actions = np.concatenate([held(30, 0), held(3), held(30, 1), held(3)])
    x = np.asarray(play(actions).bodies.position)[:, 0, 0]
    assert abs(x[30] - x[0]) > 1
    np.testing.assert_allclose(x[-1], play(held(1)).bodies.position[0, 0, 0], atol=1e-4)
