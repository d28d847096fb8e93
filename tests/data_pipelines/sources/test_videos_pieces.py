"""How the video folder cuts files into pieces, and which of them it copies."""

import fractions
import importlib.util
import pathlib
import shutil

import av
import numpy as np
import pytest

from data_pipelines.clip import TextEvent
from data_pipelines.record import Record, decode
from data_pipelines.source import Rejected
from data_pipelines.sources.videos import VideoFolder

_spec = importlib.util.spec_from_file_location("video_files", pathlib.Path(__file__).with_name("video_files.py"))
files = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(files)


def record(folder, **options) -> tuple[list[Record], list[str]]:
    source = VideoFolder(str(folder), **options)
    results = [result for item in source.items() for _, result in source.record([item])]
    return (
        [result for result in results if isinstance(result, Record)],
        [result.reason for result in results if isinstance(result, Rejected)],
    )


def video_of(found: Record) -> np.ndarray:
    """The coded frames: what a clip shows where none is left out or shown twice."""
    assert found.timestamps is None or len(found.timestamps.ticks) == found.frames
    return decode(found.to_bytes()).video


def starts(records) -> list[int]:
    return [int(found.episode.rsplit("#", 1)[1]) for found in records]


COPIED = {
    "h264.mp4": {"gop": 12},
    "h264-no-b.mkv": {"gop": 12, "options": {"bf": "0"}},
    "h264.ts": {"gop": 12},
    "h264.flv": {"gop": 12},
    "h264-10-bit.mp4": {"gop": 12, "pixels": "yuv420p10le"},
    "h264-444.mkv": {"gop": 12, "pixels": "yuv444p"},
    "hevc.mp4": {"codec": "libx265", "gop": 12, "options": {"x265-params": "log-level=none:open-gop=0:keyint=12"}},
    "hevc.ts": {"codec": "libx265", "gop": 12, "options": {"x265-params": "log-level=none:open-gop=0:keyint=12"}},
    "vp9.webm": {"codec": "libvpx-vp9", "gop": 12, "options": {"cpu-used": "8"}},
    "vp9-alt-ref.webm": {"codec": "libvpx-vp9", "gop": 20, "options": {"cpu-used": "5", "auto-alt-ref": "1"}},
    "vp8.webm": {"codec": "libvpx", "gop": 12, "options": {"cpu-used": "8", "auto-alt-ref": "1"}},
    "av1.mp4": None,  # stands beside this file: the encoder, SVT-AV1, makes root's processes real-time ones for good
    "mpeg4.avi": {"codec": "mpeg4", "gop": 12},
    "mpeg2.mpg": {"codec": "mpeg2video", "gop": 12},
    "mjpeg.mov": {"codec": "mjpeg", "pixels": "yuvj420p"},
}


@pytest.mark.parametrize("name", COPIED)
def test_copies_decode_to_the_same_pictures(tmp_path, name):
    if COPIED[name] is None:
        shutil.copy(pathlib.Path(__file__).with_name(name), tmp_path)
    else:
        files.write(tmp_path / name, files.moving(40), **COPIED[name])
    (found,), problems = record(tmp_path)
    assert found.video_codec == "copy" and not problems
    np.testing.assert_array_equal(video_of(found), files.straight(tmp_path / name)[1])
    clip = decode(found.to_bytes(), 17, 29)
    np.testing.assert_array_equal(clip.video, video_of(found)[17:29])


@pytest.mark.parametrize(
    "options",
    [
        {"options": {"x264-params": "open-gop=1:bframes=3:keyint=12"}, "gop": 12},
        {"codec": "libx265", "options": {"x265-params": "log-level=none:open-gop=1:keyint=12:bframes=4"}, "gop": 12},
        {"codec": "mpeg2video", "gop": 12, "options": {"bf": "2"}},
        {"options": {"x264-params": "intra-refresh=1:keyint=12"}},
        {"gop": 250},
    ],
)
@pytest.mark.parametrize("name", ["a.mp4", "a.ts"])
def test_what_cannot_be_copied_is_encoded_anew(tmp_path, name, options):
    files.write(tmp_path / name, files.moving(80), **options)
    (found,), _ = record(tmp_path, cuts=False)
    images = files.straight(tmp_path / name)[1]
    video = video_of(found)
    assert video.shape == images.shape
    assert np.abs(video.astype(int) - images).mean() < 6
    if found.video_codec == "copy":
        np.testing.assert_array_equal(video, images)


def test_an_edit_list_hides_frames(tmp_path):
    files.write(tmp_path / "whole.mkv", files.moving(40), gop=20, options={"bf": "0"})
    with av.open(str(tmp_path / "whole.mkv")) as given, av.open(str(tmp_path / "a.mp4"), "w") as made:
        stream = made.add_stream_from_template(given.streams.video[0], opaque=True)
        for packet in given.demux():
            if packet.size:
                # Negative times are cut by an edit list.
                packet.pts, packet.dts = packet.pts - 280, packet.pts - 280
                packet.stream = stream
                made.mux(packet)
    (tmp_path / "whole.mkv").unlink()
    times, images = files.straight(tmp_path / "a.mp4")
    assert len(times) == 33
    records, problems = record(tmp_path)
    video = np.concatenate([video_of(found) for found in records])
    assert len(video) == 33 and not problems
    assert np.abs(video.astype(int) - images).mean() < 6
    # The hidden frames belong to the first group of pictures.
    assert [found.video_codec for found in records] == ["h264_420", "copy"]


def test_copying_can_be_switched_off(tmp_path):
    files.write(tmp_path / "a.mp4", files.moving(40), gop=12)
    assert record(tmp_path, copy=False)[0][0].video_codec == "h264_420"


@pytest.mark.parametrize("gop", [12, 250])
@pytest.mark.parametrize("copy", [True, False])
def test_pieces_end_at_cuts_and_lose_no_frame(tmp_path, gop, copy):
    lengths = [31, 40, 25, 50]
    frames = [image for seed, length in enumerate(lengths) for image in files.moving(length, seed=seed)]
    files.write(tmp_path / "a.mp4", frames, gop=gop, options={"sc_threshold": "0"})
    images = files.straight(tmp_path / "a.mp4")[1]
    records, problems = record(tmp_path, copy=copy)
    assert not problems and starts(records) == list(range(len(records)))
    ends = np.cumsum([found.frames for found in records])
    assert set(np.cumsum(lengths)) <= set(ends.tolist())
    assert copy or len(records) == 4
    video = np.concatenate([video_of(found) for found in records])
    assert np.abs(video.astype(int) - images).mean() < 6
    assert any(found.video_codec == "copy" for found in records) == (copy and gop == 12)
    assert all(found.frames >= 12.5 for found in records)


def test_cuts_can_be_switched_off(tmp_path):
    files.write(tmp_path / "a.mp4", files.moving(30) + files.moving(30, seed=1))
    assert [found.frames for found in record(tmp_path)[0]] == [30, 30]
    assert [found.frames for found in record(tmp_path, cuts=False)[0]] == [60]


def test_flashes_and_noise_are_no_cuts(tmp_path):
    noise = list(np.random.default_rng(0).integers(0, 256, (60, 48, 64, 3), np.uint8))
    files.write(tmp_path / "noise.mp4", noise)
    flashes = [files.picture(48, 64, 235 if number % 20 in (9, 10) else 16) for number in range(60)]
    files.write(tmp_path / "flashes.mp4", flashes)
    strobe = [files.picture(48, 64, 235 if number % 2 else 16) for number in range(60)]
    files.write(tmp_path / "strobe.mp4", strobe)
    records, problems = record(tmp_path)
    assert [found.frames for found in records] == [60, 60, 60] and not problems


def test_short_shots_are_dropped_and_counted(tmp_path):
    frames = files.moving(30) + files.moving(5, seed=1) + files.moving(5, seed=2) + files.moving(30, seed=3)
    files.write(tmp_path / "a.mp4", frames)
    records, problems = record(tmp_path, copy=False)
    assert [found.frames for found in records] == [30, 30]
    assert problems == ["pieces dropped because they are shorter than 0.5 s: 2, of 10 frames in all"]


@pytest.mark.parametrize("copy", [True, False])
def test_long_shots_are_cut_to_length_with_their_sound_and_captions(tmp_path, copy):
    audio = np.random.default_rng(0).integers(-(2**15), 2**15, (25 * 8000, 1), np.int16)
    files.write(
        tmp_path / "a.mkv",
        files.moving(250, 16, 32),
        rate=10,
        gop=10,
        audio=audio,
        audio_codec="pcm_s16le",
        audio_rate=8000,
        layout="mono",
    )
    (tmp_path / "a.jsonl").write_text('{"time": 0, "text": "one"}\n{"time": 12, "text": "two"}')
    records, _ = record(tmp_path, copy=copy)
    assert all(found.frames <= 100 for found in records) and sum(found.frames for found in records) == 250
    assert len(records) == 3
    assert all((found.video_codec == "copy") == copy for found in records)
    np.testing.assert_array_equal(np.concatenate([decode(found.to_bytes()).audio for found in records]), audio)
    begins = np.cumsum([0] + [found.frames for found in records])
    for found, begin in zip(records, begins, strict=False):
        end = begin + found.frames
        expected = [TextEvent(0, "one" if begin < 120 else "two")]
        expected += [TextEvent(120 - int(begin), "two")] if begin < 120 < end else []
        assert found.events == tuple(expected)


def test_a_long_pause_between_frames_cuts(tmp_path):
    ticks = [number * 40 for number in range(20)] + [3_600_000 + number * 40 for number in range(20)]
    files.write(tmp_path / "a.mkv", files.moving(40), ticks=ticks, base=fractions.Fraction(1, 1000), gop=20)
    records, _ = record(tmp_path)
    assert [found.frames for found in records] == [20, 20]


def test_a_change_of_size_cuts(tmp_path):
    for number, size in enumerate([(48, 64), (32, 96)]):
        files.write(tmp_path / f"{number}.h264", files.moving(25, *size), format="h264", options={"bf": "0"})
    data = b"".join((tmp_path / f"{number}.h264").read_bytes() for number in range(2))
    for number in range(2):
        (tmp_path / f"{number}.h264").unlink()
    (tmp_path / "a.h264").write_bytes(data)
    records, _ = record(tmp_path)
    assert [(found.height, found.width, found.frames) for found in records] == [(48, 64, 25), (32, 96, 25)]
    for found in records:
        video_of(found)


def test_memory_does_not_grow_with_length(tmp_path):
    import tracemalloc

    peaks = []
    for seconds in (4, 16):
        folder = tmp_path / str(seconds)
        folder.mkdir()
        frames = [files.picture(240, 320, number % 200) for number in range(25)] * seconds
        files.write(folder / "a.mkv", frames, audio=files.tone(seconds), audio_codec="pcm_s16le")
        source = VideoFolder(str(folder), max_seconds=2.0, copy=False, cuts=False)
        tracemalloc.start()
        for _ in source.record(source.items()):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]
