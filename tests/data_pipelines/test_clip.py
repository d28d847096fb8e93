"""The clip record: what goes in comes out, windows are slices, and damage is found."""

import dataclasses
import fractions
import io
import json
import struct
import zlib

import av
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest

from data_pipelines import record as record_lib
from data_pipelines import video as video_lib
from data_pipelines.clip import Clip, ClipError, TextEvent, samples_at, window_events
from data_pipelines.facts import Fact
from data_pipelines.record import decode

# (frame rate, sample rate, frames that hold a whole number of samples)
CLOCKS = [
    (fractions.Fraction(10), 8000, 1),
    (fractions.Fraction(24), 44100, 2),
    (fractions.Fraction(30000, 1001), 30000, 1),
    (fractions.Fraction(3, 2), 16000, 3),
    (fractions.Fraction(60), 48000, 1),
    (fractions.Fraction(1, 2), 1, 1),
    (fractions.Fraction(50), 96000, 1),
]
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def make_clip(frames=12, height=5, width=7, channels=1, clock=CLOCKS[0], actions=2, seed=0, **changes) -> Clip:
    rng = np.random.default_rng(seed)
    frame_rate, sample_rate, _ = clock
    clip = Clip(
        video=rng.integers(0, 256, (frames, height, width, 3), np.uint8),
        audio=rng.integers(-(2**15), 2**15, (int(frames * sample_rate / frame_rate), channels), np.int16),
        actions=rng.normal(size=(frames, actions)).astype(np.float32),
        action_names=tuple(f"action {i}" for i in range(actions)),
        events=(TextEvent(0, "Grüße, 世界 🎈\n"), TextEvent(frames // 2, "")) if frames > 1 else (),
        frame_rate=frame_rate,
        sample_rate=sample_rate,
        source="test",
        licence="CC0-1.0",
        seed=seed,
        episode=f"test/train/{seed:06d}",
        facts={
            "state": Fact(rng.normal(size=(frames, 2)).astype(np.float32), ("health", "ammo")),
            "boxes": Fact(rng.normal(size=(frames, 3, 4)).astype(np.float32), (), ("a", "b", "c")),
        },
    )
    return dataclasses.replace(clip, **changes)


ANY_FLOATS = st.floats(width=32)  # with NaN and infinities: a fact may have nothing to say


@st.composite
def facts(draw, frames: int) -> Fact:
    shape = (frames, *draw(st.lists(st.integers(0, 3), max_size=2)))
    names = lambda count: tuple(draw(st.lists(TEXT, min_size=count, max_size=count, unique=True)))
    columns = names(shape[-1]) if len(shape) > 1 and draw(st.booleans()) else ()
    in_order = len(shape) == 3 and "object" not in columns and draw(st.booleans())
    return Fact(draw(hnp.arrays(np.float32, shape, elements=ANY_FLOATS)), columns, names(shape[1]) if in_order else ())


@st.composite
def clips(draw) -> Clip:
    clock = draw(st.sampled_from(CLOCKS))
    frames = draw(st.integers(1, 8)) * clock[2]
    samples = int(frames * clock[1] / clock[0])
    names = draw(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), unique=True, max_size=3))
    at = sorted(draw(st.sets(st.integers(0, frames - 1), max_size=3)))
    shape = (frames, draw(st.integers(1, 9)), draw(st.integers(1, 9)), 3)
    noise = np.random.default_rng(draw(st.integers(0, 2**32)))
    audio = noise.integers(-(2**15), 2**15, (samples, draw(st.integers(0, 2))), np.int16)
    return Clip(
        video=noise.integers(0, 256, shape, np.uint8),
        audio=audio >> draw(st.sampled_from([0, 10, 15])),
        actions=draw(hnp.arrays(np.float32, (frames, len(names)), elements=FLOATS)),
        action_names=tuple(names),
        events=tuple(TextEvent(frame, draw(TEXT)) for frame in at),
        frame_rate=clock[0],
        sample_rate=clock[1],
        source=draw(TEXT),
        licence=draw(TEXT),
        seed=draw(st.integers(-(2**63), 2**63 - 1)),
        episode=draw(TEXT.filter(bool)),
        facts=draw(st.dictionaries(TEXT, facts(frames), max_size=2)),
    )


def encode(clip: Clip, **options) -> bytes:
    return record_lib.encode(clip, **options).to_bytes()


def assert_same(found: Clip, expected: Clip, *, lossy: bool = False) -> None:
    for field in dataclasses.fields(Clip):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if field.name == "facts":
            assert list(one) == list(other)
            for name, fact in other.items():
                assert (one[name].columns, one[name].objects) == (fact.columns, fact.objects)
                assert one[name].values.tobytes() == fact.values.tobytes(), name
                assert one[name].values.shape == fact.values.shape and one[name].values.dtype == np.float32
        elif not isinstance(other, np.ndarray):
            assert one == other and type(one) is type(other), field.name
        elif not (lossy and field.name == "video"):
            np.testing.assert_array_equal(one, other, err_msg=field.name, strict=True)


def cut(clip: Clip, start: int, stop: int) -> Clip:
    """The oracle of a window: plain slices, and the text in force at each frame looked up one by one."""
    per_frame = fractions.Fraction(clip.sample_rate) / clip.frame_rate
    in_force = {f: [e.text for e in clip.events if e.frame <= f][-1:] for f in range(clip.frames)}
    changes = {event.frame for event in clip.events} | {start}
    return dataclasses.replace(
        clip,
        video=clip.video[start:stop],
        audio=clip.audio[int(start * per_frame) : int(stop * per_frame)],
        actions=clip.actions[start:stop],
        events=tuple(TextEvent(f - start, in_force[f][0]) for f in range(start, stop) if f in changes and in_force[f]),
        facts={name: Fact(fact.values[start:stop], fact.columns, fact.objects) for name, fact in clip.facts.items()},
    )


@hypothesis.given(clips(), st.sampled_from(["zstd", "h264_444"]))
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
def test_roundtrip(clip, codec):
    assert_same(decode(encode(clip, video_codec=codec)), clip, lossy=codec == "h264_444")


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
def test_window_is_a_slice(data):
    clock = data.draw(st.sampled_from(CLOCKS))
    step = clock[2]
    clip = make_clip(frames=9 * step, clock=clock, channels=data.draw(st.integers(0, 2)), height=3, width=2)
    start = data.draw(st.integers(0, 8))
    stop = data.draw(st.integers(start + 1, 9))
    window = decode(encode(clip), start * step, stop * step)
    assert_same(window, cut(clip, start * step, stop * step))


def test_window_decodes_only_the_groups_it_touches(monkeypatch):
    clip = make_clip(frames=45, clock=CLOCKS[0])
    data = encode(clip)
    sizes = []
    original = video_lib.decode_group
    monkeypatch.setattr(
        video_lib, "decode_group", lambda group, *rest: sizes.append(group.frames) or original(group, *rest)
    )
    assert_same(decode(data, 18, 21), cut(clip, 18, 21))
    assert sizes == [10, 10]
    assert_same(decode(data, 40, 45), cut(clip, 40, 45))
    assert sizes == [10, 10, 5]


def smooth_video(frames, height, width):
    t, y, x = np.mgrid[:frames, :height, :width]
    return np.stack([(x * 4 + t) % 200, (y * 3 + 2 * t) % 200, (x + y + t) % 200], -1).astype(np.uint8)


@pytest.mark.parametrize("height, width", [(1, 1), (33, 17), (48, 64)])
def test_h264_is_close_and_exact_in_count(height, width):
    clip = make_clip(frames=25, video=smooth_video(25, height, width))
    data = encode(clip, video_codec="h264_444")
    whole = decode(data)
    assert whole.video.shape == clip.video.shape
    error = np.abs(whole.video.astype(int) - clip.video)
    assert error.mean() < 2 and error.max() < 40
    np.testing.assert_array_equal(decode(data, 7, 23).video, whole.video[7:23])


def test_h264_keeps_colours():
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [128, 128, 128]])
    video = np.zeros((3, 16, 96, 3), np.uint8)
    for i, colour in enumerate(colours):
        video[:, :, 16 * i : 16 * (i + 1)] = colour
    found = decode(encode(make_clip(frames=3, video=video), video_codec="h264_444")).video
    centres = found[:, 8, 8::16].astype(int)
    assert np.abs(centres - colours).max() <= 3


def test_h264_group_is_a_matroska_file_with_one_key_frame():
    clip = make_clip(frames=10, video=smooth_video(10, 16, 16))
    data = encode(clip, video_codec="h264_444")
    (group,) = record_lib.read(data).groups
    with av.open(io.BytesIO(group.data), "r") as container:
        frames = list(container.decode(video=0))
    assert [frame.key_frame for frame in frames] == [True] + [False] * 9
    assert frames[0].format.name in ("yuv444p", "yuvj444p")
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(10) / 10, atol=1e-3)


@pytest.mark.parametrize("codec", ["zstd", "h264_444"])
def test_equal_clips_have_equal_bytes(codec):
    video = smooth_video(20, 32, 32)
    assert len({encode(make_clip(frames=20, video=video), video_codec=codec) for _ in range(5)}) == 1


def test_rendered_frames_compress():
    video = np.zeros((40, 64, 64, 3), np.uint8)
    video[:, 40:] = (40, 160, 60)
    data = encode(make_clip(frames=40, video=video, channels=0, facts={}))
    assert len(data) < video.nbytes / 200


def test_decoded_arrays_are_writable():
    clip = decode(encode(make_clip(channels=2)))
    for array in (clip.video, clip.audio, clip.actions):
        assert array.flags.writeable


@pytest.mark.parametrize("start, stop", [(0, 0), (3, 3), (4, 2), (-1, 3), (0, 13), (12, None)])
def test_bad_windows(start, stop):
    with pytest.raises(ClipError, match="window .* empty or outside the 12 frames"):
        decode(encode(make_clip()), start, stop)


def test_a_window_between_samples_has_as_many_as_a_clip_of_its_length():
    clip = make_clip(frames=5, clock=(fractions.Fraction(24), 44100, 2))
    window = decode(encode(clip), 1, 4)
    np.testing.assert_array_equal(window.audio, clip.audio[1837 : 1837 + 5512])


def test_samples_at_is_exact_far_from_the_start():
    rate = fractions.Fraction(30000, 1001)
    assert samples_at(30_000_000, 48000, rate) == 48_048_000_000
    assert samples_at(1, 48000, rate) == 1601


def test_window_events_carries_the_text_in_force():
    events = (TextEvent(2, "a"), TextEvent(5, "b"), TextEvent(8, "c"))
    assert window_events(events, 0, 2) == ()
    assert window_events(events, 4, 8) == (TextEvent(0, "a"), TextEvent(1, "b"))
    assert window_events(events, 5, 9) == (TextEvent(0, "b"), TextEvent(3, "c"))


BAD_FIELDS = {
    "video": [
        np.zeros((12, 5, 7), np.uint8),
        np.zeros((12, 5, 7, 3), np.float32),
        np.zeros((12, 0, 7, 3), np.uint8),
        np.zeros((12, 5, 7, 4), np.uint8),
        None,
    ],
    "audio": [
        np.zeros((9599, 1), np.int16),
        np.zeros((9600,), np.int16),
        np.zeros((9600, 3), np.int16),
        np.zeros((9600, 1), np.float32),
    ],
    "actions": [
        np.zeros((11, 2), np.float32),
        np.zeros((12, 3), np.float32),
        np.full((12, 2), np.nan, np.float32),
        np.zeros((12, 2)),
    ],
    "action_names": [("a", "a"), ["a", "b"], ("a", 1)],
    "events": [
        (TextEvent(12, ""),),
        (TextEvent(3, "a"), TextEvent(3, "b")),
        (TextEvent(-1, ""),),
        (TextEvent(0, "\ud800"),),
        ((0, "a"),),
        [TextEvent(0, "a")],
    ],
    "frame_rate": [10, fractions.Fraction(0), fractions.Fraction(-1), 29.97],
    "sample_rate": [0, 8000.0, 655_360, 65_537, True],
    "seed": [1.5, 2**63, np.int64(3)],
    "source": [None, "\udfff"],
    "licence": [3],
    "episode": ["", None],
    "facts": [
        {"a": Fact(np.zeros((11, 2), np.float32))},
        {"a": Fact(np.zeros((12, 2)))},
        {"a": Fact(np.zeros((), np.float32))},
        {"a": Fact(np.zeros((12, 2), np.float32), ("x",))},
        {"a": Fact(np.zeros((12, 2), np.float32), ("x", "x"))},
        {"a": Fact(np.zeros((12, 2), np.float32), ("x", "y"), ("tree",))},
        {"\ud800": Fact(np.zeros((12, 2), np.float32))},
        {"a": np.zeros((12, 2), np.float32)},
    ],
}


@pytest.mark.parametrize("field, value", [(field, value) for field, values in BAD_FIELDS.items() for value in values])
def test_validate_names_the_field(field, value):
    with pytest.raises(ClipError) as error:
        encode(dataclasses.replace(make_clip(), **{field: value}))
    message = str(error.value)
    assert message.startswith(field) and "\n" not in message and ";" in message


def test_unknown_codec():
    with pytest.raises(ClipError, match="video_codec is 'vp9'; use one of zstd, h264_444, h264_420"):
        encode(make_clip(), video_codec="vp9")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("codec", ["zstd", "h264_444"])
def test_every_truncation_is_found(codec):
    data = encode(make_clip(frames=3, clock=CLOCKS[5]), video_codec=codec)
    for size in [*range(0, len(data), 7), len(data) - 1]:
        with pytest.raises(ClipError, match="truncated"):
            decode(data[:size])
    with pytest.raises(ClipError, match="payload has"):
        decode(data + b"\0")


def test_every_flipped_byte_is_found():
    data = encode(make_clip(frames=2, height=2, width=2, clock=CLOCKS[5]))
    for at in range(len(data)):
        broken = bytearray(data)
        broken[at] ^= 0x10
        with pytest.raises(ClipError) as error:
            decode(bytes(broken))
        assert "\n" not in str(error.value)


def test_wrong_version_and_magic():
    data = encode(make_clip())
    with pytest.raises(ClipError, match="version 9, this code reads 3"):
        decode(data[:8] + struct.pack("<I", 9) + data[12:])
    with pytest.raises(ClipError, match="magic"):
        decode(b"RIFF" + data[4:])


def reseal(data: bytes, **changes) -> bytes:
    """Rewrites header fields, with good sums."""
    size = struct.unpack_from("<I", data, 12)[0]
    header = json.loads(data[20 : 20 + size]) | changes
    text = json.dumps(header).encode()
    return data[:12] + struct.pack("<II", len(text), zlib.crc32(text)) + text + data[20 + size :]


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [12, 5]},
        {"shape": [12, 5, 8]},
        {"shape": None},
        {"frame_rate": "1/0"},
        {"frame_rate": "fast"},
        {"sample_rate": "8000"},
        {"video_codec": "vp9"},
        {"groups": [12]},
        {"groups": [0, 12]},
        {"timestamps": [[0, 1], 12, "1/10"]},
        {"pixel_aspect": "0"},
        {"sizes": None},
        {"channels": 2},
        {"events": [["x"]]},
        {"action_names": ["one"]},
        {"crc32": "x"},
    ],
)
def test_bad_header(changes):
    with pytest.raises(ClipError) as error:
        decode(reseal(encode(make_clip()), **changes))
    assert "\n" not in str(error.value)


def test_header_that_is_no_object():
    text = b"[1]"
    data = struct.pack("<8sIII", b"PX1CLIP\0", 3, len(text), zlib.crc32(text)) + text
    with pytest.raises(ClipError, match="bad header"):
        decode(data)
