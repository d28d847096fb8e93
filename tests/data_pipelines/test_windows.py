"""Clips of any clock, channels and schema as windows of one run."""

import dataclasses
import fractions

import numpy as np
import pytest

from data_pipelines.clip import Clip, TextEvent, cut, samples_at
from data_pipelines.index import ClipInfo
from data_pipelines.row_layout import TokenSpec
from data_pipelines.windows import ActionError, action_schema, place_actions, read_window

SPEC = TokenSpec(
    patch=4, chunk_frames=2, block=8, hop=100, hops=8, audio_tokens=2, channels=2, action_dim=3, text_bytes=24
)
SCHEMA = ("left", "right", "jump")


def make_clip(frames: int = 40, channels: int = 2, rate: str = "10", sample_rate: int = 4000, names=SCHEMA) -> Clip:
    """A clip with a tone of 110 hertz, in every channel at another phase."""
    rng, rate = np.random.default_rng(0), fractions.Fraction(rate)
    times = np.arange(samples_at(frames, sample_rate, rate))[:, None] / sample_rate
    clip = Clip(
        video=rng.integers(0, 256, (frames, 8, 8, 3), np.uint8),
        audio=np.rint(tone(times, np.arange(channels))).astype(np.int16),
        actions=rng.random((frames, len(names)), np.float32),
        action_names=names,
        events=(TextEvent(0, "sun"),),
        frame_rate=rate,
        sample_rate=sample_rate,
        source="test",
        licence="CC0-1.0",
        seed=0,
        episode="test/000000",
    )
    clip.validate()
    return clip


def tone(times, phases):
    return 20000 * np.sin(2 * np.pi * 110 * times + phases)


def info_of(clip: Clip) -> ClipInfo:
    same = "episode frames frame_rate sample_rate channels action_names events source licence seed".split()  # noqa: SIM905
    return ClipInfo(
        split="train",
        file="f",
        record=0,
        bytes=0,
        height=clip.video.shape[1],
        width=clip.video.shape[2],
        video_codec="zstd",
        **{name: getattr(clip, name) for name in same},
    )


def window_of(clip: Clip, first_chunk: int, chunks: int, spec: TokenSpec = SPEC, schema=SCHEMA, reads=None):
    def read(start, stop):
        if reads is not None:
            reads.append((start, stop))
        return cut(clip, start, stop)

    return read_window(read, info_of(clip), spec, schema, first_chunk=first_chunk, chunks=chunks, sample_id=5)


def test_a_clip_on_the_clock_of_the_run_is_untouched():
    clip, reads = make_clip(), []
    window = window_of(clip, 3, 4, reads=reads)
    assert reads == [(4, 14)]
    np.testing.assert_array_equal(window.clip.audio, clip.audio[2400:5600])
    np.testing.assert_array_equal(window.lead_in, clip.audio[2300:2400])
    np.testing.assert_array_equal(window.clip.video, clip.video[6:14])
    np.testing.assert_array_equal(window.clip.actions, clip.actions[6:14])
    assert (window.sample_id, window.first_chunk, window.table) == (5, 3, 0)
    assert not window_of(clip, 0, 2).lead_in.any()


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    ("rate", "sample_rate"),
    [("10", 48000), ("30000/1001", 44100), ("24000/1001", 22050), ("60", 8000), ("25/2", 11025)],
)
def test_sound_of_another_clock_is_in_time_in_every_window(rate, sample_rate, channels):
    clip = make_clip(150, channels, rate, sample_rate)
    spec = dataclasses.replace(SPEC, channels=1)
    windows = [window_of(clip, first, chunks, spec) for first, chunks in ((0, 20), (20, 7), (27, 40))]
    joined = np.concatenate([window.clip.audio for window in windows])[:, 0]
    assert joined.shape == (67 * 800,)
    # One sample of the run's clock lasts as long as the chunk's frames do, divided by 800.
    times = np.arange(67 * 800) * float(2 / clip.frame_rate / 800)
    expected = np.mean([tone(times, phase) for phase in range(channels)], axis=0)
    middle = slice(100, None)  # the sound begins in the middle of a wave, which is no part of the tone
    noise = np.mean((joined[middle] - expected[middle]) ** 2)
    assert 10 * np.log10(np.mean(expected[middle] ** 2) / noise) > 60  # decibels
    # Border to border exact: what leads into a window is the end of the window before.
    for before, after in zip(windows, windows[1:], strict=False):
        np.testing.assert_array_equal(after.lead_in, before.clip.audio[-100:])
    whole = window_of(clip, 0, 67, spec)
    np.testing.assert_array_equal(whole.clip.audio[:, 0], joined)


@pytest.mark.parametrize(("have", "want"), [(1, 2), (2, 1)])
def test_channels_alone_are_converted_without_a_filter(have, want):
    clip, spec = make_clip(channels=have), dataclasses.replace(SPEC, channels=want)
    window = window_of(clip, 2, 2, spec)
    expected = np.rint(clip.audio[1500:3200].mean(1, keepdims=True)).repeat(want, 1)
    np.testing.assert_array_equal(np.concatenate([window.lead_in, window.clip.audio]), expected)


def test_a_click_on_a_chunks_first_frame_stays_there():
    clip = make_clip(120, 1, "30000/1001", 48000)
    audio = np.zeros_like(clip.audio)
    audio[samples_at(40, 48000, clip.frame_rate)] = 30000
    window = window_of(dataclasses.replace(clip, audio=audio), 15, 10, dataclasses.replace(SPEC, channels=1))
    assert abs(int(np.abs(window.clip.audio[:, 0].astype(int)).argmax()) - 5 * 800) <= 1


def test_a_silent_clip_stays_silent():
    window = window_of(make_clip(channels=0), 1, 3)
    assert not window.sound and window.clip.audio.shape[1] == 0
    assert not window_of(make_clip(), 1, 3, dataclasses.replace(SPEC, audio_tokens=0)).sound


def test_an_image_is_held_for_a_chunk():
    clip = make_clip(frames=1)
    window = window_of(clip, 0, 1)
    np.testing.assert_array_equal(window.clip.video, np.repeat(clip.video, 2, 0))
    assert not window.sound and window.clip.actions.shape == (2, 3) and not window.clip.actions.any()
    assert window.clip.events == clip.events
    window.clip.validate()


def test_actions_stand_in_the_columns_of_the_runs_schema():
    clip = make_clip(names=("jump", "left"))
    placed = window_of(clip, 1, 2).clip.actions
    np.testing.assert_array_equal(placed, np.stack([clip.actions[2:6, 1], np.zeros(4), clip.actions[2:6, 0]], 1))
    with pytest.raises(ActionError, match=r"actions fire are not among those of the run \(left, right, jump\)"):
        place_actions(np.zeros((2, 2), np.float32), ("left", "fire"), SCHEMA, 3)


def test_a_shorter_schema_than_the_tokens_leaves_columns_empty():
    placed = place_actions(np.ones((2, 1), np.float32), ("left",), ("left",), 3)
    np.testing.assert_array_equal(placed, [[1, 0, 0]] * 2)


def test_the_schema_is_in_the_order_first_seen():
    infos = [info_of(make_clip(names=names)) for names in (("b", "a"), ("c",), ("a", "d"), (), ("c",))]
    assert action_schema(infos) == ("b", "a", "c", "d")
