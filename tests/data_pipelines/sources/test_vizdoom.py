"""The Doom recorder against the real game: exact lengths, determinism, alignment of action and sound."""

import ctypes
import dataclasses
import fractions
import pathlib
import pickle
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.record import decode, encode
from data_pipelines.source import Rejected
from data_pipelines.sources import vizdoom as doom
from data_pipelines.sources.vizdoom import captions, policies
from data_pipelines.sources.vizdoom import game as game_lib
from data_pipelines.sources.vizdoom import recording as recording_lib

ATTACK = doom.ACTION_NAMES.index("attack")
BASIC = doom.Recording("defend_the_center", seed=3, frames=12)


@pytest.fixture
def game():
    """Skips, and says why, where the game or its sound is not installed."""
    pytest.importorskip("vizdoom", reason="needs ViZDoom: pip install 'pixr1-jax[doom]'")
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libopenal.so.1")
        except OSError:
            pytest.skip("needs the system library libopenal1: without it the game is mute")


def first_difference(left: np.ndarray, right: np.ndarray) -> int:
    """Returns the first index at which two arrays differ along axis 0."""
    return int(np.argmax((left != right).reshape(len(left), -1).any(axis=1)))


def audio_by_frame(clip) -> np.ndarray:
    """Returns the sound as [frames, samples a frame, channels]."""
    return clip.audio.reshape(clip.frames, -1, clip.channels)


@pytest.mark.parametrize(
    ("scenario", "resolution", "sample_rate", "tics", "size", "samples_a_frame"),
    [
        ("defend_the_center", "RES_160X120", 11025, 4, (120, 160), 1260),
        ("defend_the_line", "RES_256X144", 22050, 2, (144, 256), 1260),
        ("freedoom2_map07", "RES_200X125", 44100, 1, (125, 200), 1260),
        ("freedoom1_e1m1", "RES_256X160", 11025, 7, (160, 256), 2205),
    ],
)
def test_sizes_and_sample_counts_are_exact(game, scenario, resolution, sample_rate, tics, size, samples_a_frame):
    clip = doom.record(scenario, seed=1, frames=9, resolution=resolution, sample_rate=sample_rate, tics_per_frame=tics)
    clip.validate()
    assert clip.video.shape == (9, *size, 3) and clip.video.dtype == np.uint8
    assert clip.audio.shape == (9 * samples_a_frame, 2) and clip.audio.dtype == np.int16
    assert clip.frame_rate == fractions.Fraction(35, tics)
    assert clip.sample_rate == sample_rate
    assert clip.source == f"vizdoom:{scenario}"
    assert clip.events[0].frame == 0 and clip.events[0].text.startswith("doom: ")


def test_a_dataset_is_audible_moving_and_of_one_schema(game):
    recordings = [
        doom.Recording(scenario, seed, 16, resolution=resolution)
        for seed, (scenario, resolution) in enumerate(
            (scenario, resolution)
            for scenario in (*doom.SCENARIOS, "freedoom2_map02")
            for resolution in ("RES_160X120", "RES_256X144")
        )
    ]
    clips = list(doom.record_many(recordings))
    assert {clip.action_names for clip in clips} == {doom.ACTION_NAMES}
    assert {clip.video.shape[1:3] for clip in clips} == {(120, 160), (144, 256)}
    assert len({clip.episode for clip in clips}) == len(clips)
    assert all((clip.video[1:] != clip.video[:-1]).any() for clip in clips)
    # A peak of one is the mixer's dither; sounds reach thousands.
    loud = [clip for clip in clips if np.abs(clip.audio.astype(int)).max() > 1000]
    assert len(loud) >= len(clips) // 2


def test_a_seed_fixes_video_and_audio(game):
    first, again = doom.record_many([BASIC, BASIC])
    np.testing.assert_array_equal(first.video, again.video)
    np.testing.assert_array_equal(first.audio, again.audio)
    np.testing.assert_array_equal(first.actions, again.actions)
    for name, fact in first.facts.items():
        assert fact.values.tobytes() == again.facts[name].values.tobytes(), name
        assert (fact.columns, fact.objects) == (again.facts[name].columns, again.facts[name].objects)


def test_the_truth_of_a_frame_is_that_of_its_picture(game):
    recording = doom.Recording("defend_the_center", seed=5, frames=30)
    actions = np.zeros((30, len(doom.ACTION_NAMES)), np.float32)
    actions[6, ATTACK] = 1
    clip = doom.replay(recording, actions)
    state = dict(zip(clip.facts["variables"].columns, clip.facts["variables"].values.T, strict=True))
    # One shot: a cartridge fewer from then on.
    assert (np.diff(state["selected_weapon_ammo"]) < 0).sum() == 1
    assert 5 <= np.flatnonzero(np.diff(state["selected_weapon_ammo"]))[0] <= 8
    assert state["health"][0] == 100 and (state["position_x"] == state["position_x"][0]).all()

    labels = clip.facts["labels"]
    named = {column: labels.values[..., number] for number, column in enumerate(labels.columns)}
    there = ~np.isnan(named["object"])
    assert {labels.objects[int(number)] for number in named["object"][there]} == set(labels.objects)
    assert {"DoomPlayer"} < set(labels.objects)
    height, width = clip.video.shape[1:3]
    assert (named["left"][there] + named["width"][there] <= width).all()
    assert (named["top"][there] + named["height"][there] <= height).all()
    # A thing stays what it is for as long as it has its number, and the largest comes first.
    names = {}
    for identity, number in zip(named["id"][there], named["object"][there], strict=True):
        assert names.setdefault(identity, number) == number
    areas = np.where(there, named["width"] * named["height"], 0)
    assert (np.diff(areas, axis=1) <= 0).all()
    window = decode(encode(clip).to_bytes(), 7, 19)
    assert window.facts["labels"].values.tobytes() == labels.values[7:19].tobytes()


@pytest.mark.parametrize("change", [{"seed": 4}, {"split": "validation"}])
def test_seed_and_split_change_the_game(game, change):
    other = dataclasses.replace(BASIC, **change)
    left, right = (doom.replay(recording, doom.sample_actions(BASIC)) for recording in (BASIC, other))
    assert (left.video != right.video).any()


def test_replay_returns_the_recorded_clip(game):
    recording = doom.Recording("basic", seed=2, frames=48)
    clip = next(doom.record_many([recording]))
    # The first policy shoots the monster, which ends the game, so this clip is of a later one.
    assert (clip.actions != doom.sample_actions(recording)).any()
    again = doom.replay(recording, clip.actions)
    np.testing.assert_array_equal(clip.video, again.video)
    np.testing.assert_array_equal(clip.audio, again.audio)


@pytest.mark.parametrize("scenario", ["defend_the_center", "basic", "defend_the_line", "deathmatch", "freedoom2_map01"])
def test_one_shot_is_seen_and_heard_at_once(game, scenario):
    recording = doom.Recording(scenario, seed=5, frames=16)
    still = np.zeros((16, len(doom.ACTION_NAMES)), np.float32)
    shot = still.copy()
    shot[6, ATTACK] = 1
    quiet, fired = doom.replay(recording, still), doom.replay(recording, shot)
    assert first_difference(quiet.video, fired.video) in (6, 7)
    assert first_difference(audio_by_frame(quiet), audio_by_frame(fired)) in (6, 7)


def test_one_shot_is_seen_and_heard_in_the_same_tic(game):
    recording = doom.Recording("defend_the_center", seed=5, frames=40, tics_per_frame=1)
    still = np.zeros((40, len(doom.ACTION_NAMES)), np.float32)
    shot = still.copy()
    shot[20, ATTACK] = 1
    quiet, fired = doom.replay(recording, still), doom.replay(recording, shot)
    seen = first_difference(quiet.video, fired.video)
    assert 20 <= seen <= 28
    assert first_difference(audio_by_frame(quiet), audio_by_frame(fired)) == seen


@pytest.mark.parametrize("scenario", ["defend_the_center", "freedoom2_map02"])
def test_frames_of_four_tics_are_four_frames_of_one_tic(game, scenario):
    coarse = doom.Recording(scenario, seed=9, frames=10)
    fine = dataclasses.replace(coarse, frames=40, tics_per_frame=1)
    actions = doom.sample_actions(coarse)
    four, one = doom.replay(coarse, actions), doom.replay(fine, np.repeat(actions, 4, axis=0))
    np.testing.assert_array_equal(four.video, one.video[3::4])
    np.testing.assert_array_equal(four.audio, one.audio)


def test_recording_leaves_nothing_behind(game, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    doom.record("basic", seed=0, frames=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="hides OpenAL from the Linux loader")
def test_missing_openal_is_an_error_and_not_silence(game, tmp_path, monkeypatch):
    (tmp_path / "libopenal.so.1").write_text("not a library")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    armed = np.zeros((12, len(doom.ACTION_NAMES)), np.float32)
    armed[2, ATTACK] = 1
    with pytest.raises(RuntimeError, match="defend_the_center.*install the system library libopenal1"):
        doom.replay(BASIC, armed)
    with pytest.raises(RuntimeError, match="a clip with shots.*install the system library libopenal1"):
        doom.check_sound.__wrapped__()
    unarmed = [doom.Recording("health_gathering", seed, 4) for seed in range(2)]
    with pytest.raises(RuntimeError, match="every clip up to this one.*libopenal1"):
        list(doom.record_many(unarmed))


def test_an_early_end_is_an_error(game):
    recording = doom.Recording("take_cover", seed=0, frames=1200)
    with pytest.raises(doom.EpisodeEndedError, match=r"the game ended in frame \d+ of 1200"):
        doom.replay(recording, np.zeros((1200, len(doom.ACTION_NAMES)), np.float32))


def test_an_unknown_resolution_names_the_known_ones(game):
    with pytest.raises(ValueError, match="resolution is 'RES_17X13'; use one of .*RES_160X120"):
        doom.record("basic", seed=0, frames=1, resolution="RES_17X13")


def test_missing_vizdoom_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "vizdoom", None)
    with pytest.raises(ImportError, match=r"pip install 'pixr1-jax\[doom\]'.*libopenal1"):
        doom.record("basic", seed=0, frames=1)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("scenario", "doom3", "scenario is 'doom3'; use one of basic"),
        ("scenario", "freedoom2_map33", "scenario is 'freedoom2_map33'"),
        ("seed", -1, "seed is -1"),
        ("frames", 0, "frames is 0"),
        ("split", "a/b", "split is 'a/b'"),
        ("resolution", "160x120", "resolution is '160x120'"),
        ("sample_rate", 16000, "sample_rate is 16000; use one of"),
        ("tics_per_frame", 0, "tics_per_frame is 0"),
        ("policy", "best", "policy is 'best'; use one of mixed, explore"),
        ("captions", "all", "captions is 'all'; use one of scenario, state"),
        ("caption_seconds", -1.0, "caption_seconds is -1.0"),
        ("min_frames", 13, "min_frames is 13; use 1 to frames, which is 12, or None"),
    ],
)
def test_bad_fields_are_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BASIC, **{field: value})


def test_actions_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"defend_the_center.*: actions have shape \[3, 8\]; use \[12, 8\]"):
        doom.replay(BASIC, np.zeros((3, 8), np.float32))


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    frames=st.integers(1, 200),
    tics=st.integers(1, 35),
    scenario=st.sampled_from([*doom.SCENARIOS, "freedoom1_e4m9", "freedoom2_map32"]),
)
def test_policy_presses_what_the_scenario_is_about_and_never_opposites(seed, frames, tics, scenario):
    recording = doom.Recording(scenario, seed, frames, tics_per_frame=tics)
    actions = doom.sample_actions(recording)
    assert actions.shape == (frames, len(doom.ACTION_NAMES))
    assert set(np.unique(actions)) <= {0.0, 1.0}
    pressed = {name for name, column in zip(doom.ACTION_NAMES, actions.T, strict=True) if column.any()}
    assert pressed <= set(doom.find_scenario(scenario).buttons)
    for left, right in ((0, 1), (2, 3), (4, 5)):
        assert not (actions[:, left] * actions[:, right]).any()
    np.testing.assert_array_equal(actions, doom.sample_actions(recording))


def test_policy_varies_and_holds_its_buttons():
    actions = [doom.sample_actions(doom.Recording("deathmatch", seed, 400)) for seed in range(8)]
    assert len({one.tobytes() for one in actions}) == 8
    stacked = np.stack(actions)
    assert (stacked.mean(axis=(0, 1)) > 0.03).all()
    changes = (stacked[:, 1:] != stacked[:, :-1]).mean(axis=(0, 1))
    assert (changes < 0.5).all()


def test_every_configuration_and_screen_size_that_vizdoom_has_is_known(game):
    import vizdoom

    bundled = {path.stem for path in pathlib.Path(vizdoom.scenarios_path).glob("*.cfg")}
    assert {scenario.config for scenario in doom.SCENARIOS.values()} == bundled == {*doom.SCENARIOS}
    assert tuple(vizdoom.ScreenResolution.__members__) == doom.RESOLUTIONS


@pytest.mark.parametrize("part", range(4))
def test_every_freedoom_map_and_every_screen_size_is_played(game, part):
    for number, name in [*enumerate(doom.FREEDOOM_MAPS)][part::4]:
        resolution = doom.RESOLUTIONS[number % len(doom.RESOLUTIONS)]
        clip = doom.record(name, seed=number, frames=2, resolution=resolution)
        clip.validate()
        width, height = map(int, resolution.removeprefix("RES_").split("X"))
        assert clip.video.shape == (2, height, width, 3)
        assert clip.video.std() > 1


EXPLORE = doom.Recording("freedoom2_map20", seed=2, frames=100, policy="explore", captions="state")


def test_exploring_and_describing_leave_the_game_as_it_is(game):
    first, again = doom.record_many([EXPLORE, EXPLORE])
    plain = doom.replay(dataclasses.replace(EXPLORE, policy="mixed", captions="scenario"), first.actions)
    described = doom.replay(EXPLORE, first.actions)
    for clip in (again, plain, described):
        np.testing.assert_array_equal(first.video, clip.video)
        np.testing.assert_array_equal(first.audio, clip.audio)
        np.testing.assert_array_equal(first.actions, clip.actions)
    assert first.events == described.events
    assert [event.text for event in plain.events] == ["doom: freedoom2 map20"]


def places_visited(recording) -> int:
    """Returns how many squares of 128 units the player sets foot on."""
    player, visited = policies.make_player(recording, 0), set()

    def act(frame, look):
        visited.add(tuple((look().position // 128).tolist()))
        return player(frame, look)

    game_lib.play(recording, act)
    return len(visited)


def test_exploring_gets_further(game):
    visited = {
        policy: sum(
            places_visited(doom.Recording(scenario, seed, 200, policy=policy, min_frames=50))
            for scenario in ("freedoom2_map01", "freedoom2_map20", "deathmatch")
            for seed in range(3)
        )
        for policy in ("mixed", "explore")
    }
    assert visited["explore"] > 1.3 * visited["mixed"]


def test_where_there_is_nowhere_to_go_exploring_is_the_mixed_policy(game):
    mixed, explore = doom.record_many([BASIC, dataclasses.replace(BASIC, policy="explore")])
    np.testing.assert_array_equal(mixed.actions, explore.actions)


def test_captions_tell_the_state_when_it_has_changed(game):
    clip = doom.record_one(dataclasses.replace(BASIC, frames=70, captions="state", min_frames=40))
    texts = [event.text for event in clip.events]
    assert clip.events[0].frame == 0 and len(texts) >= 2
    assert all(text.startswith("doom: defend the center; health ") for text in texts)
    assert any("; sees: " in text for text in texts) and all(", ammo " in text for text in texts)
    assert not any("Puff" in text or "Dead" in text or "Player" in text for text in texts)
    assert all(a != b for a, b in zip(texts, texts[1:], strict=False))
    frames = [event.frame for event in clip.events]
    assert min(np.diff(frames)) >= 2 * clip.frame_rate
    often = doom.record_one(dataclasses.replace(BASIC, captions="state", caption_seconds=0.0, frames=40))
    assert len(often.events) > 2


@settings(deadline=None, max_examples=30)
@given(texts=st.lists(st.sampled_from("ab"), min_size=1, max_size=40), seconds=st.floats(0, 3))
def test_captions_are_the_texts_thinned_out(texts, seconds):
    recording = dataclasses.replace(BASIC, captions="state", caption_seconds=seconds)
    events = captions.events(texts, recording)
    assert events[0].frame == 0
    assert all(texts[event.frame] == event.text for event in events)
    for one, after in zip(events, events[1:], strict=False):
        assert one.text != after.text and after.frame - one.frame >= seconds * recording.frame_rate


SOURCE = doom.VizdoomSource(
    ("basic", "deathmatch"),
    {"train": range(0, 10, 2), "test": range(1, 3, 2)},
    frames=10,
    resolutions=("RES_160X120", "RES_256X144"),
)


def test_a_source_takes_scenarios_and_then_resolutions_in_turn():
    assert [(item.split, item.name) for item in SOURCE.items()] == [
        ("train", "vizdoom/train/basic/160x120/000000"),
        ("train", "vizdoom/train/deathmatch/160x120/000002"),
        ("train", "vizdoom/train/basic/256x144/000004"),
        ("train", "vizdoom/train/deathmatch/256x144/000006"),
        ("train", "vizdoom/train/basic/160x120/000008"),
        ("test", "vizdoom/test/basic/160x120/000001"),
    ]


def test_a_source_gives_the_recorded_clips_whatever_the_order(game):
    items = SOURCE.items()
    clips = [clip for _, clip in SOURCE.record(items)]
    again = [clip for _, clip in pickle.loads(pickle.dumps(SOURCE)).record(items[::-1])][::-1]
    plain = list(doom.record_many([item.what for item in items]))
    for item, clip, other, third in zip(items, clips, again, plain, strict=True):
        assert clip.episode == item.name
        for same in (other, third, decode(encode(clip).to_bytes())):
            np.testing.assert_array_equal(clip.video, same.video)
            np.testing.assert_array_equal(clip.audio, same.audio)
            np.testing.assert_array_equal(clip.actions, same.actions)


def test_a_game_that_ends_early_is_rejected_or_ends_the_clip(game, monkeypatch):
    monkeypatch.setattr(recording_lib, "_ATTEMPTS", 2)
    short = doom.VizdoomSource(("predict_position", "my_way_home"), {"train": [0, 2]}, frames=50)
    rejected, clip = [result for _, result in short.record(short.items())]
    assert isinstance(rejected, Rejected) and rejected.name == "vizdoom/train/predict_position/160x120/000000"
    assert "ended before frame 50 in each of 2 tries" in rejected.reason
    assert clip.frames == 50
    early = dataclasses.replace(short, min_frames=8)
    (item, ended), _ = early.record(early.items())
    ended.validate()
    assert 8 <= ended.frames < 50
    again = doom.replay(item.what, ended.actions)
    np.testing.assert_array_equal(ended.video, again.video)
    np.testing.assert_array_equal(ended.audio, again.audio)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("scenarios", (), "scenarios is empty"),
        ("scenarios", ("basic", "doom3"), "scenario is 'doom3'"),
        ("resolutions", ("RES_1X1",), "resolution is 'RES_1X1'; use one of RES_160X120"),
        ("seeds", {"train": [2], "test": [2]}, "seeds has 2 in 'train' and 'test'"),
        ("frames", 0, "frames is 0"),
        ("policy", "best", "policy is 'best'"),
    ],
)
def test_bad_fields_of_a_source_are_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SOURCE, **{field: value})
