"""Files that the video folder must survive: each ends in the report, and what is whole of it in the records."""

import fractions
import importlib.util
import os
import pathlib
import pickle
import struct

import av
import numpy as np
import pytest

from data_pipelines.record import Record, decode
from data_pipelines.source import Rejected
from data_pipelines.sources.videos import VideoFolder

_spec = importlib.util.spec_from_file_location("video_files", pathlib.Path(__file__).with_name("video_files.py"))
files = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(files)


def record(folder, **options) -> tuple[list[Record], list[str]]:
    source = VideoFolder(str(folder), **options)
    results = [result for item in source.items() for _, result in source.record([item])]
    records = [result for result in results if isinstance(result, Record)]
    for found in records:
        decode(found.to_bytes())
    rejected = [result for result in results if isinstance(result, Rejected)]
    for found in rejected:
        assert "\n" not in found.reason and str(folder) not in found.reason and found.reason
        found.name.encode()
    return records, [found.reason for found in rejected]


def good(path, frames=50, **options):
    audio = files.tone(frames / 25, rate=options.get("audio_rate", files.RATE))
    return files.write(path, files.moving(frames), audio=audio, gop=12, **options)


NO_VIDEO = {
    "text.mp4": b"This is no video.\n" * 200,
    "zero.mp4": b"",
    "zeros.mkv": bytes(100_000),
    "one.mp4": b"\0",
    "noise.avi": np.random.default_rng(0).bytes(100_000),
    "json.webm": b'{"a": 1}',
    "html.mp4": b"<!DOCTYPE html><html><body>404</body></html>",
    "box.mp4": struct.pack(">I4s", 0xFFFFFFFF, b"ftyp") + b"isom" + bytes(100),
    "box64.mp4": struct.pack(">I4sQ", 1, b"moov", 2**62) + bytes(100),
    "moov.mp4": struct.pack(">I4s4sI4s", 20, b"ftyp", b"isom", 0, b"isom") + struct.pack(">I4s", 2**32 - 1, b"moov"),
    "ebml.mkv": b"\x1a\x45\xdf\xa3\x01\xff\xff\xff\xff\xff\xff\xff",
    "riff.avi": b"RIFF\xff\xff\xff\xffAVI LIST\xff\xff\xff\xffhdrlavih\xff\xff\xff\xff" + bytes(64),
    "art.nfo": b"\x1b[31mhello\x1b[0m\n" * 100,
    "list.m3u8": b"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\ngood.mp4\n#EXT-X-ENDLIST\n",
    "list.ffconcat": b"ffconcat version 1.0\nfile 'good.mp4'\n",
    "dash.mpd": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period></Period></MPD>',
    "image.svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>',
    "zip.mp4": b"PK\x03\x04" + bytes(60),
    "subtitles.srt": b"1\n00:00:01,000 --> 00:00:02,000\nhello\n\n",
    "huge.bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 10**6, 0, 0, 54, 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0),
    "huge.png": b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBBI", 13, b"IHDR", 60000, 60000, 8, 2, 0, 0, 0, 0),
    "huge.y4m": b"YUV4MPEG2 W60000 H60000 F25:1 Ip A1:1 C420\nFRAME\n" + bytes(1000),
}


def test_what_is_no_video_is_reported_and_the_rest_is_recorded(tmp_path):
    for name, data in NO_VIDEO.items():
        (tmp_path / name).write_bytes(data)
    good(tmp_path / "good.mp4")
    source = VideoFolder(str(tmp_path))
    found = {}
    for item in source.items():
        for same, result in source.record([item]):
            assert same is item
            found.setdefault(item.name, []).append(type(result))
    assert found == {name: [Rejected] for name in NO_VIDEO} | {"good.mp4": [Record]}


def test_all_items_in_one_call_come_in_order(tmp_path):
    good(tmp_path / "b.mp4")
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "c.mp4").write_bytes(b"x")
    source = VideoFolder(str(tmp_path))
    assert [item.name for item, _ in source.record(source.items())] == ["a.mp4", "b.mp4", "c.mp4"]


@pytest.mark.parametrize("name", ["a.txt.bin", "a.jpg", "noextension", "a.mp3", "a.%03d.png", "a:b.mp4", "http:a"])
def test_names_have_no_say(tmp_path, name):
    good(tmp_path / "a.mp4", format="mp4").rename(tmp_path / name)
    records, problems = record(tmp_path)
    assert [found.frames for found in records] == [50] and not problems


def test_a_name_that_is_no_unicode(tmp_path):
    path = os.fsencode(tmp_path) + b"/a\xff\n.mp4"
    good(tmp_path / "a.mp4")
    os.rename(tmp_path / "a.mp4", path)
    items = VideoFolder(str(tmp_path)).items()
    assert pickle.loads(pickle.dumps(items)) == items
    records, problems = record(tmp_path)
    assert len(records) == 1 and not problems


def test_links_and_special_files(tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.mkdir()
    folder.mkdir()
    good(outside / "a.mp4")
    good(folder / "inside.mp4")
    (folder / "dangling.mp4").symlink_to(folder / "nothing.mp4")
    (folder / "leaves.mp4").symlink_to(outside / "a.mp4")
    (folder / "linked.mp4").symlink_to("inside.mp4")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "folder").symlink_to(outside)
    (folder / "up").symlink_to(folder)
    os.mkfifo(folder / "pipe.mp4")
    source = VideoFolder(str(folder))
    results = [(item.name, type(result)) for item, result in source.record(source.items())]
    names = ["dangling.mp4", "folder", "inside.mp4", "leaves.mp4", "linked.mp4", "loop.mp4", "pipe.mp4", "up"]
    assert results == [(name, Record if name in ("inside.mp4", "linked.mp4") else Rejected) for name in names]


def test_a_file_that_only_the_table_names(tmp_path):
    good(tmp_path / "a.mp4")
    (tmp_path / "captions.csv").write_text("file,text\na.mp4,x\ngone.mp4,y\n../out.mp4,z\n")
    records, problems = record(tmp_path)
    assert len(records) == 1 and len(problems) == 2


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.ts", "a.avi", "a.mp4", "a.flv", "a.mpg", "a.nut"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.9])
def test_a_file_cut_short_gives_its_whole_frames_and_a_report(tmp_path, name, share):
    options = {
        "a.webm": {"codec": "libvpx-vp9", "audio_codec": "libopus"},
        "a.avi": {"codec": "mpeg4", "audio_codec": "pcm_s16le"},
        "a.mpg": {"codec": "mpeg2video", "audio_codec": "mp2"},
        "a.flv": {"audio_rate": 44100},
        "a.nut": {"codec": "mpeg4", "audio_codec": "pcm_s16le"},
    }.get(name, {})
    if name == "a.mp4":
        options["container_options"] = {"movflags": "faststart"}
    path = good(tmp_path / name, frames=75, **options)
    images = files.straight(path)[1]
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    records, problems = record(tmp_path)
    assert problems or name in ("a.mpg", "a.nut"), "the report says nothing"
    if share > 0.5:
        assert records
    start = 0
    for found in records:
        video = decode(found.to_bytes()).video
        if found.timestamps is None:
            assert np.abs(video.astype(int) - images[start : start + found.frames]).mean() < 6
        start += found.frames


def test_a_file_without_its_index_is_rejected(tmp_path):
    path = good(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes()[:-2000])
    records, problems = record(tmp_path)
    assert not records and len(problems) == 1


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.ts", "a.avi", "a.webm"])
@pytest.mark.parametrize("seed", range(6))
def test_flipped_bits_never_raise(tmp_path, name, seed):
    options = {
        "a.webm": {"codec": "libvpx-vp9", "audio_codec": "libopus"},
        "a.avi": {"codec": "mpeg4", "audio_codec": "libmp3lame"},
    }.get(name, {})
    path = good(tmp_path / name, **options)
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    where = rng.integers(0, len(data) if seed % 2 else 2000, 10 * (1 + seed))
    for at in where:
        data[at] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    records, problems = record(tmp_path)
    assert records or problems


def _patched(path, kind: bytes, offset: int, value: bytes):
    """Overwrites bytes after the first box or tag of a kind."""
    data = bytearray(path.read_bytes())
    at = data.index(kind) + len(kind) + offset
    data[at : at + len(value)] = value
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("kind", "offset", "value"),
    [
        (b"stsz", 8, struct.pack(">I", 2**32 - 1)),  # number of samples
        (b"stsz", 4, struct.pack(">II", 2**31, 2**31)),  # size and number of samples
        (b"stsz", 12, struct.pack(">I", 2**32 - 1)),  # size of the first
        (b"stts", 8, struct.pack(">I", 2**32 - 1)),  # samples of the first duration
        (b"stts", 12, struct.pack(">I", 2**31 - 1)),  # the first duration
        (b"stts", 12, struct.pack(">I", 0)),
        (b"stco", 8, struct.pack(">I", 2**32 - 1)),  # where the first samples are
        (b"stco", 4, struct.pack(">I", 2**32 - 1)),  # number of chunks
        (b"mdhd", 12, struct.pack(">I", 0)),  # time base
        (b"mdhd", 12, struct.pack(">I", 2**32 - 1)),
        (b"avc1", 24, struct.pack(">HH", 65535, 65535)),  # width and height
        (b"avc1", 24, struct.pack(">HH", 0, 0)),
        (b"avcC", 1, b"\xff" * 12),
        (b"moov", -8, struct.pack(">I", 2**32 - 1)),  # size of the box
        (b"mdat", -8, struct.pack(">I", 2**32 - 1)),
        (b"trak", -8, struct.pack(">I", 12)),
        (b"elst", 4, struct.pack(">IIi", 1, 2**31 - 1, 2**31 - 1)),
    ],
)
def test_boxes_that_lie(tmp_path, kind, offset, value):
    _patched(good(tmp_path / "a.mp4"), kind, offset, value)
    records, problems = record(tmp_path)
    assert records or problems


def test_frames_that_are_too_large(tmp_path):
    good(tmp_path / "a.mp4")
    records, problems = record(tmp_path, max_pixels=64 * 48 - 1)
    assert not records and "64 x 48" in problems[0]
    assert len(record(tmp_path, max_pixels=64 * 48)[0]) == 1


def test_sound_alone(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        for frame in files._sound_frames(files.tone(1), 48000, "stereo", stream, 0):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert record(tmp_path) == ([], ["no video"])


def test_one_of_several_sounds_is_taken(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        sounds = [container.add_stream("pcm_s16le", rate=48000, layout="stereo") for _ in range(2)]
        for number, image in enumerate(files.moving(25)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number
            container.mux(video.encode(frame))
        container.mux(video.encode())
        for frequency, sound in zip((440, 880), sounds, strict=True):
            for part in files._sound_frames(files.tone(1, frequency=frequency), 48000, "stereo", sound, 0):
                container.mux(sound.encode(part))
            container.mux(sound.encode())
    (found,), problems = record(tmp_path)
    assert not problems
    audio = decode(found.to_bytes()).audio
    assert any(np.array_equal(audio, files.tone(1, frequency=frequency)) for frequency in (440, 880))


def test_sound_whose_timestamps_make_no_sense(tmp_path):
    audio = files.tone(2)
    path = files.write(tmp_path / "whole.mkv", files.moving(50), audio=audio, audio_codec="pcm_s16le")
    with av.open(str(path)) as given, av.open(str(tmp_path / "a.nut"), "w") as made:
        streams = {stream.index: made.add_stream_from_template(stream, opaque=True) for stream in given.streams}
        start = 0
        for packet in given.demux():
            if packet.size:
                if packet.stream.type == "audio":
                    # A tick after the one before, which lasts much longer.
                    packet.pts = packet.dts = start
                    start += 1
                packet.stream = streams[packet.stream.index]
                made.mux(packet)
    path.unlink()
    records, _ = record(tmp_path)
    assert [found.frames for found in records] == [50]


def test_a_cover_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.m4a"), "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=48000)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(files.scene(48, 64, 0), format="rgb24").reformat(format="yuvj420p")
        frame.pts = 0
        container.mux([*cover.encode(frame), *cover.encode()])
        for part in files._sound_frames(files.tone(1), 48000, "stereo", sound, 0):
            container.mux(sound.encode(part))
        container.mux(sound.encode())
    records, problems = record(tmp_path)
    assert not records and problems == ["no video, only covers, thumbnails or tiles of a picture"]


def test_a_video_track_without_frames(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("flac", rate=48000)
        for frame in files._sound_frames(files.tone(1), 48000, "stereo", sound, 0):
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
    records, problems = record(tmp_path)
    assert not records and len(problems) == 1


@pytest.mark.parametrize(("name", "size"), [("a.mp4", (24, 32)), ("a.ts", (48, 64))])
def test_the_default_one_of_several_streams_else_the_largest(tmp_path, name, size):
    with av.open(str(tmp_path / name), "w") as container:
        streams = []
        for height, width in ((24, 32), (48, 64), (24, 32)):
            stream = container.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            streams.append(stream)
        for stream in streams:
            for number, image in enumerate(files.moving(25, stream.height, stream.width)):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts = number
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    (found,), problems = record(tmp_path)
    assert (found.height, found.width) == size and not problems


def test_broken_sound_does_not_take_the_pictures_with_it(tmp_path):
    path = good(tmp_path / "a.mkv", audio_codec="flac")
    with av.open(str(path)) as container:
        places = [packet for packet in container.demux(audio=0) if packet.size][5:8]
        data = path.read_bytes()
        for packet in places:
            data = data.replace(bytes(packet), bytes(packet.size))
    path.write_bytes(data)
    records, problems = record(tmp_path)
    assert [found.frames for found in records] == [50] and len(problems) == 1 and "sound" in problems[0]


def test_timestamps_that_do_not_rise(tmp_path):
    path = files.write(tmp_path / "a.mpg", files.moving(50), codec="mpeg2video")
    path.write_bytes(path.read_bytes() * 2)
    records, problems = record(tmp_path)
    assert sum(found.frames for found in records) == 50
    assert problems == ["frames dropped because their timestamps do not rise: 50"]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.webp", "a.bmp", "a.tiff"])
def test_pictures_cut_short(tmp_path, name):
    codec, pixels = {
        "a.png": ("png", "rgb24"),
        "a.jpg": ("mjpeg", "yuvj420p"),
        "a.gif": ("gif", "rgb8"),
        "a.webp": ("libwebp", "yuv420p"),
        "a.bmp": ("bmp", "bgr24"),
        "a.tiff": ("tiff", "rgb24"),
    }[name]
    format_name = "gif" if name == "a.gif" else "image2"
    path = files.write(tmp_path / name, [files.scene(64, 64, 1)], codec=codec, pixels=pixels, format=format_name)
    records, problems = record(tmp_path)
    assert [found.frames for found in records] == [1] and not problems
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    records, problems = record(tmp_path)
    assert not records and problems


def test_a_stream_that_begins_within_a_group(tmp_path):
    path = good(tmp_path / "a.ts", frames=75)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        at = packets[5].pos
    path.write_bytes(path.read_bytes()[at:])
    records, problems = record(tmp_path)
    assert records and records[0].frames >= 60 and not problems


def test_a_rate_that_lies(tmp_path):
    files.write(
        tmp_path / "a.mkv", files.moving(50), rate=fractions.Fraction(10**6), ticks=[n * 40000 for n in range(50)]
    )
    records, _ = record(tmp_path)
    assert [found.frames for found in records] == [50] and records[0].frame_rate == 25


def test_sound_at_a_rate_that_flac_cannot_store(tmp_path):
    audio = files.tone(2, rate=70_001)
    files.write(tmp_path / "a.mkv", files.moving(50), audio=audio, audio_codec="pcm_s16le", audio_rate=70_001)
    records, problems = record(tmp_path)
    assert records[0].channels == 0 and "70001" in problems[0]
