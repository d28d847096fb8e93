"""The video folder: pictures frame-exact, sound in sync, captions in time, whatever the container."""

import fractions
import importlib.util
import pathlib
import pickle
import struct

import av
import numpy as np
import pytest

from data_pipelines.clip import TextEvent, samples_at
from data_pipelines.record import Record, decode
from data_pipelines.source import Rejected
from data_pipelines.sources.videos import VideoFolder

_spec = importlib.util.spec_from_file_location("video_files", pathlib.Path(__file__).with_name("video_files.py"))
files = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(files)

REAL = pathlib.Path(__file__).parents[4] / "shared" / "data" / "real_video"
RATE = files.RATE


def record(folder, **options) -> tuple[list[Record], list[Rejected]]:
    """Records a folder of one file or more; every record must survive its own bytes."""
    source = pickle.loads(pickle.dumps(VideoFolder(str(folder), **options)))
    results = [result for item in source.items() for _, result in source.record([item])]
    records = [result for result in results if isinstance(result, Record)]
    for found in records:
        clip = decode(found.to_bytes())
        assert clip.audio.shape[0] == samples_at(found.frames, found.sample_rate, found.frame_rate)
    for found in results:
        if isinstance(found, Rejected):
            assert "\n" not in found.reason and str(folder) not in found.reason, found
    return records, [result for result in results if isinstance(result, Rejected)]


def record_one(folder, **options) -> Record:
    records, rejected = record(folder, **options)
    assert len(records) == 1 and not rejected, rejected
    return records[0]


def clip_of(found: Record):
    return decode(found.to_bytes())


def times_of(found: Record) -> list[fractions.Fraction]:
    if found.timestamps is None:
        return [number / found.frame_rate for number in range(found.frames)]
    return [tick * found.timestamps.base for tick in found.timestamps.ticks]


def flash_and_beep(path, start=0.0, rate=25, channels=2, sample_rate=RATE, **options):
    """Flashes of two frames, each with a beep that begins on the same instant."""
    frames = [files.picture(48, 64, 235 if number % rate in (15, 16) else 16) for number in range(3 * rate)]
    audio = np.zeros((3 * sample_rate, channels), np.int16)
    beep = files.tone(0.08, rate=sample_rate, channels=channels, frequency=1000, gain=20000)
    for second in range(3):
        at = round((second + 15 / rate) * sample_rate)
        audio[at : at + len(beep)] = beep
    audio = audio[round(start * sample_rate) :]
    return files.write(path, frames, rate=rate, audio=audio, audio_start=start, audio_rate=sample_rate, **options)


def beeps(audio: np.ndarray, sample_rate: int) -> list[float]:
    """Seconds at which beeps begin."""
    loud = np.abs(audio.astype(int)).max(axis=1) > 6000
    at = np.flatnonzero(loud)
    return [float(first) / sample_rate for first in at[np.diff(at, prepend=-sample_rate) > sample_rate // 4]]


def flashes(video: np.ndarray, frame_rate) -> list[float]:
    bright = video.mean(axis=(1, 2, 3)) > 128
    return [float(first / frame_rate) for first in np.flatnonzero(bright & ~np.roll(bright, 1))]


SYNC = {
    "h264-aac.mp4": {},
    "h264-aac.mkv": {},
    "h264-aac.ts": {},
    "h264-mp3.mp4": {"audio_codec": "libmp3lame"},
    "h264-flac.mkv": {"audio_codec": "flac"},
    "h264-ac3.mp4": {"audio_codec": "ac3"},
    "hevc-opus.mp4": {"codec": "libx265", "audio_codec": "libopus"},
    "vp9-opus.webm": {"codec": "libvpx-vp9", "audio_codec": "libopus", "options": {"cpu-used": "8"}},
    "vp8-opus.webm": {"codec": "libvpx", "audio_codec": "libopus", "options": {"cpu-used": "8"}},
    "mpeg4-pcm.avi": {"codec": "mpeg4", "audio_codec": "pcm_s16le"},
    "mpeg4-b-frames.avi": {"codec": "mpeg4", "audio_codec": "pcm_s16le", "options": {"bf": "2"}},
    "mpeg2-mp2.mpg": {"codec": "mpeg2video", "audio_codec": "mp2"},
    "mjpeg-pcm.mov": {"codec": "mjpeg", "pixels": "yuvj420p", "audio_codec": "pcm_s16le"},
    "flv1-mp3.flv": {"codec": "flv", "audio_codec": "libmp3lame", "sample_rate": 44100},
    "mpeg4-aac.3gp": {"codec": "mpeg4"},
    "mpeg4-pcm.nut": {"codec": "mpeg4", "audio_codec": "pcm_s24le"},
    "wmv2-mp3.asf": {"codec": "wmv2", "audio_codec": "libmp3lame"},
}


@pytest.mark.parametrize("name", SYNC)
@pytest.mark.parametrize("start", [0.0, 0.3])
def test_flash_and_beep_stay_together(tmp_path, name, start):
    if start and name.endswith(".avi"):
        pytest.skip("the muxer of AVI loses when a stream starts")
    flash_and_beep(tmp_path / name, start=start, **SYNC[name])
    found = record_one(tmp_path)
    clip = clip_of(found)
    seen, heard = flashes(clip.video, clip.frame_rate), beeps(clip.audio, clip.sample_rate)
    assert len(seen) == 3 and np.allclose(seen, [0.6, 1.6, 2.6], atol=0.05), seen
    np.testing.assert_allclose(heard, seen, atol=0.005)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_a_late_picture_is_time_zero_of_the_sound(tmp_path, name):
    flash_and_beep(tmp_path / "whole.mkv")
    _shift_video(tmp_path / "whole.mkv", tmp_path / name, 0.4)
    if name != "whole.mkv":
        (tmp_path / "whole.mkv").unlink()
    clip = clip_of(record_one(tmp_path))
    seen, heard = flashes(clip.video, clip.frame_rate), beeps(clip.audio, clip.sample_rate)
    assert len(seen) == 3
    # Pictures were moved by 0.4 s and the sound was not.
    np.testing.assert_allclose(heard[-2:], np.array(seen[-2:]) - 0.4, atol=0.005)


def _shift_video(source, target, seconds):
    with av.open(str(source)) as given, av.open(str(target), "w") as made:
        streams = {stream.index: made.add_stream_from_template(stream, opaque=True) for stream in given.streams}
        for packet in given.demux():
            if not packet.size:
                continue
            if packet.stream.type == "video":
                packet.pts += round(seconds / packet.time_base)
                packet.dts = None if packet.dts is None else packet.dts + round(seconds / packet.time_base)
            packet.stream = streams[packet.stream.index]
            made.mux(packet)


VARIABLE = [0, 40, 80, 200, 240, 250, 300, 420, 500, 1000, 1033, 1067, 1100, 1500]


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.webm"])
@pytest.mark.parametrize("copy", [True, False])
def test_variable_timestamps_are_exact(tmp_path, name, copy):
    codec = {"a.webm": "libvpx-vp9"}.get(name, "libx264")
    frames = files.moving(len(VARIABLE))
    files.write(tmp_path / name, frames, codec=codec, ticks=VARIABLE, base=fractions.Fraction(1, 1000))
    times, images = files.straight(tmp_path / name)
    found = record_one(tmp_path, copy=copy)
    assert found.timestamps is not None
    assert times_of(found) == [time - times[0] for time in times]
    assert found.video_codec == ("copy" if copy else "h264_420")
    clip = clip_of(found)
    middles = [(step + fractions.Fraction(1, 2)) / found.frame_rate for step in range(found.frames)]
    shown = [max(0, sum(time < middle for time in times_of(found)) - 1) for middle in middles]
    difference = np.abs(clip.video.astype(int) - images[shown]).mean(axis=(1, 2, 3))
    assert difference.max() < (1e-9 if copy else 6)


@pytest.mark.parametrize("rate", ["30000/1001", "24000/1001", "25", "60", "12.5", "15", "7", "1/2", "90"])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_frame_rates_are_kept(tmp_path, name, rate):
    rate = fractions.Fraction(rate)
    files.write(tmp_path / name, files.moving(20), rate=rate)
    if name == "a.ts" and rate < 1:
        pytest.skip("transport streams have no such rate")
    found = record(tmp_path, max_seconds=100)[0][0]
    assert found.frame_rate == rate and found.frames == 20
    np.testing.assert_allclose([float(time) for time in times_of(found)], np.arange(20) / float(rate), atol=0.001)
    if name == "a.mp4":
        assert found.timestamps is None


def test_containers_without_timestamps(tmp_path):
    frames = files.moving(75)
    flash_and_beep(tmp_path / "a.avi", audio_codec="pcm_s16le")
    files.write(tmp_path / "b.h264", frames, format="h264", gop=12)
    avi, raw = record(tmp_path)[0]
    clip = clip_of(avi)
    assert avi.frames == raw.frames == 75 and avi.timestamps is None is raw.timestamps
    np.testing.assert_allclose(flashes(clip.video, clip.frame_rate), [0.6, 1.6, 2.6])
    np.testing.assert_allclose(beeps(clip.audio, clip.sample_rate), [0.6, 1.6, 2.6], atol=0.005)
    np.testing.assert_allclose(clip_of(raw).video.mean(axis=(1, 2, 3)), [image.mean() for image in frames], atol=3)


def test_timestamps_far_from_zero(tmp_path):
    ticks = [3_600_000 + 40 * number for number in range(75)]
    base = fractions.Fraction(1, 1000)
    audio = files.tone(3)
    files.write(
        tmp_path / "a.mkv", files.moving(75), ticks=ticks, base=base, audio=audio, audio_start=3600, audio_codec="flac"
    )
    clip = clip_of(record_one(tmp_path))
    assert clip.frames == 75
    np.testing.assert_array_equal(clip.audio, audio)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(OSError):
        VideoFolder(str(tmp_path / "nothing")).items()


@pytest.mark.parametrize(("rotation", "flip"), [(90, False), (180, False), (270, False), (0, True), (90, True)])
def test_pictures_are_turned_upright(tmp_path, rotation, flip):
    image = files.picture(32, 48, 30)
    image[:16, :24] = [220, 40, 40]  # top left red
    image[:16, 24:] = [40, 220, 40]  # top right green
    files.write(tmp_path / "a.mp4", [image] * 15, rotation=rotation, flip=flip, aspect=fractions.Fraction(4, 3))
    found = record_one(tmp_path)
    clip = clip_of(found)
    with av.open(str(tmp_path / "a.mp4")) as container:
        frame = next(container.decode(video=0))
    expected = np.rot90(image, k=frame.rotation // 90) if not flip else None
    if expected is not None:
        assert clip.video.shape[1:] == expected.shape
        assert np.abs(clip.video[5].astype(int) - expected).mean() < 12
    transposed = rotation % 180 == 90
    assert (found.height, found.width) == ((48, 32) if transposed else (32, 48))
    assert found.pixel_aspect == (fractions.Fraction(3, 4) if transposed else fractions.Fraction(4, 3))
    assert found.video_codec == "h264_420"
    if flip:
        corners = {
            "top left": clip.video[5, 4, 4],
            "top right": clip.video[5, 4, -5],
            "bottom left": clip.video[5, -5, 4],
            "bottom right": clip.video[5, -5, -5],
        }
        red = next(name for name, pixel in corners.items() if pixel[0] > 150)
        green = next(name for name, pixel in corners.items() if pixel[1] > 150)
        assert (red, green) != ("top left", "top right")


@pytest.mark.parametrize(
    ("codec", "pixels", "size"),
    [
        ("libx264", "yuv420p10le", (48, 64)),
        ("libx265", "yuv420p10le", (48, 64)),
        ("libx264", "yuv444p", (47, 65)),
        ("libvpx-vp9", "yuv420p", (37, 53)),
        ("ffv1", "yuv422p16le", (37, 53)),
        ("ffv1", "gray", (33, 35)),
        ("ffv1", "bgra", (33, 35)),
        ("ffv1", "bgr0", (1, 1)),
        ("ffv1", "gray", (5, 64)),
        ("prores_ks", "yuv422p10le", (48, 64)),
        ("rawvideo", "yuyv422", (40, 80)),
    ],
)
def test_any_pixels_and_sizes(tmp_path, codec, pixels, size):
    frames = files.moving(15, *size)
    files.write(tmp_path / "a.mkv", frames, codec=codec, pixels=pixels)
    images = files.straight(tmp_path / "a.mkv")[1]
    found = record_one(tmp_path)
    assert (found.height, found.width, found.frames) == (*size, 15)
    difference = np.abs(clip_of(found).video.astype(int) - images).mean()
    assert difference < (1e-9 if found.video_codec == "copy" else 12)


def test_mono_stays_mono_and_keeps_its_rate(tmp_path):
    audio = files.tone(2, rate=22050, channels=1)
    files.write(tmp_path / "a.mkv", files.moving(50), audio=audio, audio_codec="flac", audio_rate=22050, layout="mono")
    clip = clip_of(record_one(tmp_path))
    assert (clip.sample_rate, clip.channels) == (22050, 1)
    np.testing.assert_array_equal(clip.audio, audio)


def test_lossless_sound_is_bit_exact(tmp_path):
    audio = np.random.default_rng(0).integers(-(2**15), 2**15, (2 * RATE, 2), np.int16)
    files.write(tmp_path / "a.mkv", files.moving(50), audio=audio, audio_codec="pcm_s16le")
    np.testing.assert_array_equal(clip_of(record_one(tmp_path)).audio, audio)


@pytest.mark.parametrize("codec", ["pcm_u8", "pcm_s32le", "pcm_f32le", "pcm_f64le", "pcm_s24le", "pcm_alaw"])
def test_sample_formats(tmp_path, codec):
    audio = files.tone(2)
    files.write(tmp_path / "a.mov", files.moving(50), audio=audio, audio_codec=codec)
    found = clip_of(record_one(tmp_path)).audio
    assert np.abs(found.astype(int) - audio).max() < (400 if codec in ("pcm_u8", "pcm_alaw") else 2)


def test_surround_is_mixed_to_stereo(tmp_path):
    audio = np.zeros((2 * RATE, 6), np.int16)
    audio[:, 0] = files.tone(2, channels=1)[:, 0]  # front left
    files.write(tmp_path / "a.mkv", files.moving(50), audio=audio, audio_codec="flac", layout="5.1")
    clip = clip_of(record_one(tmp_path))
    assert clip.channels == 2 and np.abs(clip.audio[:, 0]).max() > 2000 and not clip.audio[:, 1].any()


def test_no_sound(tmp_path):
    files.write(tmp_path / "a.mp4", files.moving(15))
    assert record_one(tmp_path).channels == 0


def test_short_and_long_sound_fill_the_pictures(tmp_path):
    files.write(tmp_path / "short.mkv", files.moving(50), audio=files.tone(0.5), audio_codec="flac")
    files.write(tmp_path / "long.mkv", files.moving(50), audio=files.tone(5), audio_codec="flac")
    records, _ = record(tmp_path)
    long, short = map(clip_of, records)
    assert long.audio.shape == short.audio.shape == (2 * RATE, 2)
    assert not short.audio[RATE // 2 :].any() and short.audio[: RATE // 2].any() and long.audio[-100:].any()


def test_a_gap_in_the_sound_is_silence(tmp_path):
    audio = files.tone(2)
    path = files.write(tmp_path / "whole.mkv", files.moving(50), audio=audio, audio_codec="pcm_s16le")
    with av.open(str(path)) as given, av.open(str(tmp_path / "a.mkv"), "w") as made:
        streams = {stream.index: made.add_stream_from_template(stream, opaque=True) for stream in given.streams}
        for packet in given.demux():
            gone = packet.stream.type == "audio" and packet.pts is not None and 0.5 < packet.pts * packet.time_base < 1
            if packet.size and not gone:
                packet.stream = streams[packet.stream.index]
                made.mux(packet)
    path.unlink()
    found = clip_of(record_one(tmp_path)).audio
    quiet = np.flatnonzero(found.any(axis=1) == 0)
    assert 0.4 < len(quiet) / RATE < 0.6
    # Timestamps of milliseconds say where it goes on.
    part = slice(int(1.1 * RATE), int(1.9 * RATE))
    assert any(np.array_equal(np.roll(found, lag, axis=0)[part], audio[part]) for lag in range(-48, 49))


def test_one_picture_is_a_clip_of_one_frame(tmp_path):
    image = files.scene(40, 56, 3)
    files.write(tmp_path / "a.png", [image], codec="png", pixels="rgb24", format="image2")
    files.write(tmp_path / "b.jpg", [image], codec="mjpeg", pixels="yuvj420p", format="image2")
    png, jpg = record(tmp_path)[0]
    assert (png.frames, png.height, png.width, png.channels) == (1, 40, 56, 0)
    assert np.abs(clip_of(png).video[0].astype(int) - image).mean() < 6
    assert jpg.frames == 1 and jpg.video_codec == "copy"


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_pictures_of_phones_are_turned_upright(tmp_path, orientation, turns):
    image = files.scene(40, 56, 3)
    path = files.write(tmp_path / "a.jpg", [image], codec="mjpeg", pixels="yuvj420p", format="image2")
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    exif = b"Exif\0\0" + b"II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:])
    video = clip_of(record_one(tmp_path)).video
    expected = np.rot90(image, turns)
    assert video[0].shape == expected.shape and np.abs(video[0].astype(int) - expected).mean() < 8


def test_a_file_shorter_than_the_shortest_piece_is_kept(tmp_path):
    files.write(tmp_path / "a.mp4", files.moving(4))
    assert record_one(tmp_path).frames == 4


def test_equal_files_give_equal_bytes(tmp_path):
    flash_and_beep(tmp_path / "a.mp4")
    files.write(tmp_path / "b.webm", files.moving(30), codec="libvpx-vp9")
    first, again = (b"".join(found.to_bytes() for found in record(tmp_path)[0]) for _ in range(2))
    assert first == again


def test_items_are_files_in_order_and_split_by_name(tmp_path):
    (tmp_path / "sub" / ".cache").mkdir(parents=True)
    for name in ("b.mp4", "sub/a.mov", "a", ".hidden.mp4", "sub/.cache/x.mp4", "b.txt", "notes.CSV", "ü b.webm"):
        (tmp_path / name).write_bytes(b"x")
    items = VideoFolder(str(tmp_path)).items()
    assert [item.name for item in items] == ["a", "b.mp4", "sub/a.mov", "ü b.webm"]
    everything = VideoFolder(str(tmp_path), test_share=1.0).items()
    assert {item.split for item in everything} == {"test"}
    assert [item.split for item in items] == [item.split for item in VideoFolder(str(tmp_path)).items()]


def test_captions_beside_a_file(tmp_path):
    files.write(tmp_path / "a.mp4", files.moving(50))
    files.write(tmp_path / "b.mp4", files.moving(50))
    (tmp_path / "a.txt").write_text("﻿a cat\n", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"time": 1, "text": "später"}\n\n{"time": 0, "text": "zuerst"}\n')
    one, two = record(tmp_path)[0]
    assert one.events == (TextEvent(0, "a cat"),)
    assert two.events == (TextEvent(0, "zuerst"), TextEvent(25, "später"))
    assert (one.source, one.licence, one.episode) == ("videos:a.mp4", "unknown", "videos/a.mp4#0000")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_table_of_captions(tmp_path, kind):
    (tmp_path / "sub").mkdir()
    files.write(tmp_path / "sub" / "a.mp4", files.moving(50))
    files.write(tmp_path / "b.mp4", files.moving(50))
    table = {
        "csv": 'file,text,time,licence\nsub/a.mp4,"one, two",,CC0\nsub/a.mp4,three,0.4,CC0\nb.mp4,four,,\n',
        "jsonl": '{"file": "sub/a.mp4", "text": "one, two", "licence": "CC0"}\n'
        '{"file": "./sub/a.mp4", "text": "three", "time": 0.4}\n{"file": "b.mp4", "text": "four"}',
    }[kind]
    (tmp_path / f"captions.{kind}").write_text(table)
    b, a = record(tmp_path, licence="mine")[0]
    assert a.events == (TextEvent(0, "one, two"), TextEvent(10, "three")) and a.licence == "CC0"
    assert b.events == (TextEvent(0, "four"),) and b.licence == "mine"


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("a.jsonl", '{"time": 0, "text": "x"}\nnonsense', 2),
        ("a.jsonl", '{"time": -1, "text": "x"}', 1),
        ("a.jsonl", '{"time": NaN, "text": "x"}', 1),
        ("a.jsonl", '{"time": true, "text": "x"}', 1),
        ("a.jsonl", '{"time": 0}', 1),
        ("a.jsonl", '["x"]', 1),
        ("a.jsonl", '{"text": "\\ud800"}', 1),
        ("captions.csv", "name,text\nx,y", 1),
        ("captions.csv", "file,text\na.mp4,b,c", 2),
        ("captions.csv", "file,text,time\na.mp4,b,soon", 2),
        ("captions.csv", 'file,text\n"a.mp4', 2),
        ("captions.jsonl", '{"text": "b"}', 1),
    ],
)
def test_bad_captions_are_named_with_their_line(tmp_path, name, text, line):
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name} line {line}"):
        VideoFolder(str(tmp_path)).items()


def test_captions_that_are_no_text(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "a.txt").write_bytes(b"fine\n\xff\xfe")
    with pytest.raises(ValueError, match="a.txt line 2"):
        VideoFolder(str(tmp_path)).items()


@pytest.mark.parametrize(
    "fields",
    [
        {"test_share": 2},
        {"max_seconds": 0},
        {"min_seconds": 20},
        {"max_group_seconds": 0},
        {"cut_threshold": 0},
        {"max_pixels": 0},
    ],
)
def test_fields_are_checked(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        VideoFolder("x", **fields)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real clips in {REAL}")
def test_real_clips(tmp_path):
    (tmp_path / "water.mp4").symlink_to(REAL / "mdn_stream-of-water.mp4")
    (tmp_path / "roar.mp3").write_bytes((REAL / "mdn_cc0_t-rex-roar.mp3").read_bytes())
    (tmp_path / "stream.mp4").write_bytes((REAL / "mdn_stream-of-water.mp4").read_bytes())
    records, rejected = record(tmp_path)
    times, images = files.straight(tmp_path / "stream.mp4")
    assert [found.name for found in rejected] == ["roar.mp3", "water.mp4"]
    assert times_of(records[0]) == [time - times[0] for time in times]
    video = clip_of(records[0]).video
    assert np.abs(video[::10].astype(int) - images[::10]).mean() < 4
