"""Pictures of the playground agree with the truth beside them."""

import numpy as np
import pytest

from data_pipelines.sources.playground import EVENTS, World, object_names, rollout

WORLD = World(height=64, width=96, frame_rate=12, sample_rate=2400)
DAY = EVENTS.index("day")


def play(world: World, seed: int, frames: int, code: int = DAY, button: int | None = None):
    actions = np.zeros((frames, 3), np.float32)
    if button is not None:
        actions[:, button] = 1
    return rollout(world, seed, actions, np.full(frames, code, np.int32))


def test_boxes_and_visibility_of_balls_agree_with_pixels() -> None:
    checked, hidden = 0, 0
    for seed in range(6):
        state, observed = play(WORLD, seed, 30, button=1)
        frames = np.asarray(observed.frame, np.int32)
        names = object_names(WORLD)
        for ball in range(WORLD.balls):
            colour = np.round(np.asarray(state.layout.ball_colour[ball]) * 255).astype(np.int32)
            row = names.index(f"ball {ball}")
            for frame in range(30):
                match = np.abs(frames[frame] - colour).max(axis=-1) <= 2
                left, top, right, bottom = np.asarray(observed.boxes[frame, row])
                if observed.visible[frame, row]:
                    inside = match[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))]
                    whole = right - left > 8 and bottom - top > 8
                    behind_agent = abs(
                        observed.bodies.position[frame, 0, 0] - observed.bodies.position[frame, 1 + ball, 0]
                    )
                    if whole and behind_agent > 0.15:
                        assert inside.sum() >= 4, (seed, ball, frame)
                        checked += 1
                else:
                    assert not match.any()
                    assert (left, top, right, bottom) == (0, 0, 0, 0)
                    hidden += 1
    assert checked > 100 and hidden > 20


def test_the_box_of_a_ball_is_its_circle_on_the_screen() -> None:
    state, observed = play(WORLD, 3, 1)
    position = np.asarray(observed.bodies.position)[0, 1]
    radius = float(state.layout.ball_radius[0])
    left = float(observed.camera[0]) - WORLD.view_width / 2
    expected = np.array([position[0] - radius - left, 0.88 - position[1] - radius, 0, 0]) * 64
    expected[2:] = expected[:2] + 2 * radius * 64
    np.testing.assert_allclose(observed.boxes[0, 1], expected, atol=1e-3)


@pytest.mark.parametrize("button", [0, 1])
def test_the_camera_follows_and_stops_at_the_ends(button: int) -> None:
    _, observed = play(WORLD, 0, 72, button=button)
    half = WORLD.view_width / 2
    x = np.asarray(observed.bodies.position)[:, 0, 0]
    camera = np.asarray(observed.camera)
    np.testing.assert_allclose(camera, np.clip(x, half, WORLD.length - half), atol=1e-6)
    assert camera[-1] == pytest.approx(half if button == 0 else WORLD.length - half)
    assert abs(x[-1] - camera[-1]) > 0.5
    assert observed.visible[-1, 0]


def test_texts_change_light_and_rain_within_half_a_second() -> None:
    brightness = {}
    for code, text in enumerate(EVENTS):
        frames = np.asarray(play(WORLD, 2, 2, code)[1].frame, float)
        brightness[text] = frames.mean()
    assert brightness["day"] > 1.3 * brightness["dusk"] > 1.3 * 1.3 * brightness["night"]
    assert all(brightness[f"{time} rain"] < brightness[time] for time in ("day", "dusk", "night"))

    codes = np.array([DAY] * 6 + [EVENTS.index("night")] * 10, np.int32)
    _, observed = rollout(WORLD, 2, np.zeros((16, 3), np.float32), codes)
    sky = np.asarray(observed.frame, float)[:, 0, :40].mean(axis=(1, 2))
    assert np.ptp(sky[:6]) == 0
    assert (np.diff(sky[5:12]) < 0).all()
    assert np.ptp(sky[11:]) == 0


def test_rain_falls_and_repeats() -> None:
    _, observed = play(WORLD, 7, 24, EVENTS.index("day rain"))
    _, dry = play(WORLD, 7, 24)
    corner = np.asarray(observed.frame, int)[:, :12]
    # Where nothing else moves, the rain of frame f is the rain of frame f + 8 and not that of f + 1.
    still = (np.ptp(np.asarray(dry.frame, int)[:, :12], axis=0) == 0).all(axis=-1)
    difference = np.abs(np.diff(corner, axis=0)).max(axis=-1)[:, still]
    assert (difference > 20).any(axis=1).all()
    assert np.abs(corner[8:] - corner[:-8])[:, still].max() <= 1


def test_a_larger_picture_shows_the_same_scene() -> None:
    small = np.asarray(play(WORLD, 5, 6)[1].frame, float)
    double = World(height=128, width=192, frame_rate=12, sample_rate=2400)
    large = np.asarray(play(double, 5, 6)[1].frame, float)
    shrunk = large.reshape(6, 64, 2, 96, 2, 3).mean(axis=(2, 4))
    assert np.abs(shrunk - small).mean() < 2


def test_landmarks_stay_and_differ() -> None:
    state, observed = play(WORLD, 1, 40, button=1)
    assert sorted(np.asarray(state.layout.landmark_kind).tolist()) == list(range(6))
    first = object_names(WORLD).index("landmark 0")
    seen = np.asarray(observed.visible)[:, first:]
    assert 1 <= seen.sum(axis=1).mean() <= 4
    # A landmark in full view moves against the camera, pixel for pixel.
    boxes = np.asarray(observed.boxes)[:, first:]
    inner = seen & (boxes[..., 0] > 0) & (boxes[..., 2] < WORLD.width)
    place = boxes[..., 0] + np.asarray(observed.camera)[:, None] * WORLD.height
    for landmark in range(WORLD.landmarks):
        values = place[inner[:, landmark], landmark]
        assert values.size == 0 or np.ptp(values) < 1e-2
