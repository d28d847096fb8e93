"""Atari against the real emulator: exact lengths, determinism, alignment of action and sound."""

import dataclasses
import fractions
import pickle
import sys

import numpy as np
import pytest

from data_pipelines.record import decode, encode
from data_pipelines.source import Rejected
from data_pipelines.sources import ale
from data_pipelines.sources.ale import ACTION_NAMES, AleSource

SEEDS = {"train": range(0, 4, 2), "test": range(1, 3, 2)}
SOURCE = AleSource(("pong",), SEEDS, frames=24, min_frames=24)
FIRE = ACTION_NAMES.index("fire")


@pytest.fixture
def games():
    """Skips, and says why, where the emulator is not installed."""
    pytest.importorskip("ale_py", reason="needs ale-py: pip install 'pixr1-jax[games]'")


def record(source) -> list:
    return [result for _, result in source.record(source.items())]


@pytest.mark.parametrize(
    ("game", "height", "skip"),
    [("pong", 210, 1), ("air_raid", 250, 4), ("carnival", 214, 3), ("journey_escape", 230, 7)],
)
def test_sizes_and_sample_counts_are_exact(games, game, height, skip):
    source = dataclasses.replace(SOURCE, games=(game,), frame_skip=skip, seeds={"train": [0]})
    (clip,) = record(source)
    clip.validate()
    assert clip.video.shape == (24, height, 160, 3)
    assert clip.audio.shape == (24 * 512 * skip, 1) and clip.sample_rate == 30720
    assert clip.frame_rate == fractions.Fraction(60, skip)
    assert clip.action_names == ("up", "down", "left", "right", "fire")
    assert clip.source == f"ale:{game}" and "local use" in clip.licence
    assert clip.events[0].text == f"atari: {game.replace('_', ' ')}"


def test_a_seed_fixes_video_and_audio_and_another_changes_them(games):
    items = SOURCE.items()
    clips = record(SOURCE)
    # One recorded alone, by another copy, in another order, is the same.
    again = [clip for _, clip in pickle.loads(pickle.dumps(SOURCE)).record(items[::-1])][::-1]
    for item, clip, other in zip(items, clips, again, strict=True):
        assert clip.episode == item.name and clip.seed in SEEDS[item.split]
        np.testing.assert_array_equal(clip.video, other.video)
        np.testing.assert_array_equal(clip.audio, other.audio)
        np.testing.assert_array_equal(clip.actions, other.actions)
    assert len({clip.video.tobytes() for clip in clips}) == len(clips)
    # The clips begin in different states.
    assert len({clip.video[0].tobytes() for clip in clips}) > 1


def test_replay_and_the_record_return_the_clip(games):
    clip = record(SOURCE)[0]
    video, audio = SOURCE.replay("pong", clip.seed, clip.actions)
    back = decode(encode(clip).to_bytes())
    for one in (video, back.video):
        np.testing.assert_array_equal(clip.video, one)
    for one in (audio, back.audio):
        np.testing.assert_array_equal(clip.audio, one)


def test_frames_of_four_are_four_frames_of_one(games):
    coarse = dataclasses.replace(SOURCE, warm_up=0)
    fine = dataclasses.replace(coarse, frame_skip=1)
    clip = record(coarse)[0]
    video, audio = fine.replay("pong", clip.seed, np.repeat(clip.actions, 4, axis=0))
    np.testing.assert_array_equal(clip.video, video[3::4])
    np.testing.assert_array_equal(clip.audio, audio)


@pytest.mark.parametrize("game", ["space_invaders", "asteroids"])
def test_one_shot_is_seen_and_heard_in_the_same_frame(games, game):
    source = dataclasses.replace(SOURCE, frame_skip=1, warm_up=0)
    still = np.zeros((200, 5), np.float32)
    shot = still.copy()
    shot[150:156, FIRE] = 1
    (quiet, silence), (fired, bang) = (source.replay(game, 0, actions) for actions in (still, shot))
    seen = int(np.argmax((quiet != fired).any(axis=(1, 2, 3))))
    heard = int(np.argmax((silence != bang).any(axis=1))) // 512
    assert seen == heard == 151


def test_silence_is_zero_and_a_run_is_heard(games):
    source = dataclasses.replace(SOURCE, games=("tetris", "freeway"), seeds={"train": range(0, 4, 2)})
    tetris, freeway = record(source)
    assert not tetris.audio.any()
    assert np.abs(freeway.audio.astype(int)).max() > 1000


def test_an_emulator_without_sound_is_an_error(games, monkeypatch):
    monkeypatch.setattr(ale._Console, "play", lambda *_: np.zeros(512, np.int16))
    with pytest.raises(RuntimeError, match="the sound of freeway is all zeros"):
        ale.check_sound.__wrapped__()


@pytest.mark.parametrize("action_set", ["minimal", "full"])
def test_actions_are_those_of_the_set_held_and_without_opposites(games, action_set):
    source = dataclasses.replace(SOURCE, games=("freeway",), seeds={"train": [0]}, action_set=action_set, frames=400)
    (clip,) = record(source)
    assert set(np.unique(clip.actions)) <= {0.0, 1.0}
    assert not (clip.actions[:, 0] * clip.actions[:, 1]).any()
    assert not (clip.actions[:, 2] * clip.actions[:, 3]).any()
    pressed = {name for name, column in zip(ACTION_NAMES, clip.actions.T, strict=True) if column.any()}
    assert pressed == ({"up", "down"} if action_set == "minimal" else set(ACTION_NAMES))
    assert (clip.actions[1:] != clip.actions[:-1]).any(axis=1).mean() < 0.5


def test_a_clip_ends_with_its_game_and_short_ones_are_rejected(games):
    source = AleSource(("klax", "pong"), {"train": [108, 0]}, frames=60, min_frames=1)
    klax, pong = record(source)
    assert 1 <= klax.frames < 60 and pong.frames == 60
    klax, pong = record(dataclasses.replace(source, min_frames=60))
    assert isinstance(klax, Rejected) and klax.name == "ale/train/klax/000108"
    assert "over within" in klax.reason and "min_frames is 60" in klax.reason
    assert pong.frames == 60


def test_games_for_two_are_refused_and_unknown_ones_named(games):
    with pytest.raises(ValueError, match="games has 'combat', which needs two players"):
        dataclasses.replace(SOURCE, games=("pong", "combat"))
    with pytest.raises(ValueError, match="games has 'doom'; use one of adventure, "):
        dataclasses.replace(SOURCE, games=("doom",)).items()
    assert not set(ale.all_games()) & set(ale.TWO_PLAYER_GAMES)
    assert len(ale.all_games()) >= 100


def test_actions_that_cannot_be_played_are_refused(games):
    with pytest.raises(ValueError, match=r"actions have shape \[3, 8\]; use \[frames, 5\]"):
        SOURCE.replay("pong", 0, np.zeros((3, 8), np.float32))
    with pytest.raises(ValueError, match="a joystick has no opposites"):
        SOURCE.replay("pong", 0, np.ones((3, 5), np.float32))


def test_missing_ale_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(ValueError, match=r"needs ale-py: pip install 'pixr1-jax\[games\]'"):
        SOURCE.items()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("games", (), "games is empty"),
        ("games", ("pong", "pong"), "name each once"),
        ("seeds", {"train": [1], "test": [1]}, "seeds has 1 in 'train' and 'test'"),
        ("frames", 0, "frames is 0"),
        ("min_frames", 25, "min_frames is 25; use at most frames, which is 24"),
        ("frame_skip", 0, "frame_skip is 0"),
        ("warm_up", -1, "warm_up is -1"),
        ("action_set", "all", "action_set is 'all'"),
    ],
)
def test_bad_fields_are_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SOURCE, **{field: value})
