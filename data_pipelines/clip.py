r"""The clip record: one recording (video, sound, actions, text) and its self-checking bytes.

Layout of an encoded clip, little-endian:

    magic "PX1CLIP\0" | version u32 | header bytes u32 | header crc32 u32 | header (JSON, UTF-8) | payload

The payload is the actions (raw float32), the sound (one FLAC file, absent for a silent clip) and the video: a
list of independently coded groups of at most one second, so a window decodes only the groups it touches.
"""

from __future__ import annotations

import dataclasses
import fractions
import io
import itertools
import json
import operator
import struct
import zlib
from collections.abc import Callable
from typing import Any, Literal, cast

import av
import av.error
import numpy as np
import soundfile
import zstandard
from av.video.reformatter import ColorRange, Colorspace

VERSION = 1
VideoCodec = Literal["zstd", "h264"]

_MAGIC = b"PX1CLIP\0"
_PREAMBLE = struct.Struct("<8sIII")
# FLAC's limits: any rate that fits 16 bits, above that multiples of ten.
_MAX_FREE_SAMPLE_RATE, _MAX_SAMPLE_RATE = 65_535, 655_350
_ZSTD_LEVEL = 6
# One thread, and no macroblock tree (its result varied between runs): equal clips give equal bytes.
_H264_OPTIONS = {
    "crf": "10",
    "preset": "medium",
    "tune": "fastdecode",
    "threads": "1",
    "x264-params": "mbtree=0",
}
_DECODING_ERRORS = (
    ArithmeticError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    zstandard.ZstdError,
    av.error.FFmpegError,
)


class ClipError(ValueError):
    """A clip, or the bytes of one, breaks the contract of the record; the message names the field."""


@dataclasses.dataclass(frozen=True)
class TextEvent:
    """A text in force from `frame` on, until the next event replaces it."""

    frame: int
    text: str


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """One recording on one clock.

    Attributes:
        video: uint8 RGB `[frames, height, width, 3]`.
        audio: int16 `[samples, channels]`, samples == frames * sample_rate / frame_rate exactly; channels 0
            to 2, where 0 says that the source has no sound.
        actions: finite float32 `[frames, action_dim]`; row f is held during the step that makes frame f.
        action_names: the schema of the actions, one unique name a column.
        events: texts by strictly rising frame; the one at frame 0 is the caption.
        frame_rate: frames a second.
        sample_rate: audio samples a second.
        source: where the clip comes from.
        licence: under which terms.
        seed: what generated the clip (0 where nothing did).
        episode: unique id, such as "playground/train/000017".
    """

    video: np.ndarray
    audio: np.ndarray
    actions: np.ndarray
    action_names: tuple[str, ...]
    events: tuple[TextEvent, ...]
    frame_rate: fractions.Fraction
    sample_rate: int
    source: str
    licence: str
    seed: int
    episode: str

    @property
    def frames(self) -> int:
        """Number of video frames."""
        return self.video.shape[0]

    @property
    def channels(self) -> int:
        """Number of audio channels, 0 to 2."""
        return self.audio.shape[1]

    def validate(self) -> None:
        """Raises ClipError, naming the field, if the clip breaks its contract."""
        _check_scalars(self)
        _check_arrays(self)
        _check_events(self)


def samples_at(frame: int, sample_rate: int, frame_rate: fractions.Fraction) -> int:
    """Returns the audio sample at which a frame starts.

    Raises:
        ClipError: the frame starts between two samples; the message says which frames do not.
    """
    position = frame * sample_rate / frame_rate
    if position.denominator != 1:
        step = (sample_rate / frame_rate).denominator
        raise ClipError(
            f"frame {frame} does not start on a whole audio sample at {sample_rate} Hz and {frame_rate} "
            f"frames/s; use a multiple of {step} frames"
        )
    return position.numerator


def encode(clip: Clip, *, video_codec: VideoCodec = "zstd") -> bytes:
    """Encodes a clip as bytes.

    Args:
        clip: a valid clip.
        video_codec: "zstd" is lossless and suits small rendered frames; "h264" (4:4:4, crf 10) suits camera
            video.

    Raises:
        ClipError: the clip is not valid, or the codec is unknown.
    """
    clip.validate()
    if video_codec not in _ENCODERS:
        raise ClipError(f"video_codec is {video_codec!r}; use one of {', '.join(_ENCODERS)}")
    group = max(1, int(clip.frame_rate))
    encode_group = _ENCODERS[video_codec]
    groups = [
        encode_group(np.ascontiguousarray(clip.video[at : at + group]), clip.frame_rate)
        for at in range(0, clip.frames, group)
    ]
    actions = np.ascontiguousarray(clip.actions, dtype="<f4").tobytes()
    audio = _encode_audio(clip.audio, clip.sample_rate)
    payload = b"".join([actions, audio, *groups])
    header = {
        "shape": list(clip.video.shape[:3]),
        "channels": clip.channels,
        "frame_rate": str(clip.frame_rate),
        "sample_rate": clip.sample_rate,
        "action_names": list(clip.action_names),
        "events": [[event.frame, event.text] for event in clip.events],
        "source": clip.source,
        "licence": clip.licence,
        "seed": clip.seed,
        "episode": clip.episode,
        "video_codec": video_codec,
        "group": group,
        "sizes": [len(actions), len(audio), *map(len, groups)],
        "crc32": zlib.crc32(payload),
    }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    return _PREAMBLE.pack(_MAGIC, VERSION, len(text), zlib.crc32(text)) + text + payload


def decode(data: bytes, start: int = 0, stop: int | None = None) -> Clip:
    """Decodes the frames `start` to `stop` (exclusive; None is the end) of an encoded clip.

    The sound is cut at the same instants, events move with the window, and the text in force at `start`
    becomes the event of frame 0.

    Raises:
        ClipError: the bytes are damaged, of another version, or no clip; or the window is empty, out of
            range, or not on whole audio samples.
    """
    header, payload = _open(data)
    try:
        end = operator.index(header["shape"][0] if stop is None else stop)
        return _decode_window(header, payload, operator.index(start), end)
    except ClipError:
        raise
    except _DECODING_ERRORS as error:
        raise ClipError(f"clip record has a bad header or stream: {one_line(error)}; rebuild it") from error


def _decode_window(header: dict[str, Any], payload: memoryview, start: int, stop: int) -> Clip:
    frames, height, width = header["shape"]
    if not 0 <= start < stop <= frames:
        raise ClipError(f"window {start}:{stop} is empty or outside the {frames} frames of the clip")
    frame_rate, sample_rate = fractions.Fraction(header["frame_rate"]), header["sample_rate"]
    first, last = (samples_at(frame, sample_rate, frame_rate) for frame in (start, stop))

    ends = list(itertools.accumulate(header["sizes"]))
    blobs = [payload[end - size : end] for size, end in zip(header["sizes"], ends, strict=True)]
    names = tuple(header["action_names"])
    actions = np.frombuffer(blobs[0], dtype="<f4").reshape(frames, len(names))[start:stop]
    group = header["group"]
    decode_group = _DECODERS[header["video_codec"]]
    video = np.empty((stop - start, height, width, 3), np.uint8)
    for index in range(start // group, -(-stop // group)):
        at = index * group
        count = min(group, frames - at)
        low, high = max(start, at), min(stop, at + count)
        decoded = decode_group(blobs[2 + index], (count, height, width, 3))
        video[low - start : high - start] = decoded[low - at : high - at]
    clip = Clip(
        video=video,
        audio=_decode_audio(blobs[1], first, last, header["channels"]),
        actions=actions.astype(np.float32),
        action_names=names,
        events=window_events(tuple(TextEvent(*event) for event in header["events"]), start, stop),
        frame_rate=frame_rate,
        sample_rate=sample_rate,
        source=header["source"],
        licence=header["licence"],
        seed=header["seed"],
        episode=header["episode"],
    )
    clip.validate()
    return clip


def window_events(events: tuple[TextEvent, ...], start: int, stop: int) -> tuple[TextEvent, ...]:
    """Returns the events of the frames `start` to `stop`, on the window's own clock.

    The event in force at `start` moves to frame 0.
    """
    in_force = [event for event in events if event.frame <= start][-1:]
    later = [event for event in events if start < event.frame < stop]
    return tuple(TextEvent(max(0, event.frame - start), event.text) for event in in_force + later)


def _open(data: bytes) -> tuple[dict[str, Any], memoryview]:
    """Checks magic, version, lengths and sums, and returns the header and the payload."""
    view = memoryview(data)
    if len(view) < _PREAMBLE.size:
        raise ClipError(f"clip record is truncated: {len(view)} bytes, fewer than its preamble; rebuild it")
    magic, version, size, checksum = _PREAMBLE.unpack_from(view)
    if magic != _MAGIC:
        raise ClipError("bytes are no clip record (wrong magic); give what data_pipelines.clip.encode returned")
    if version != VERSION:
        raise ClipError(f"clip record has version {version}, this code reads {VERSION}; rebuild the dataset")
    text, payload = view[_PREAMBLE.size :][:size], view[_PREAMBLE.size + size :]
    if len(text) < size:
        raise ClipError(f"clip record is truncated: header has {len(text)} of {size} bytes; rebuild it")
    if zlib.crc32(text) != checksum:
        raise ClipError("clip record has a damaged header (checksum differs); rebuild it")
    try:
        header = json.loads(bytes(text))
        expected, payload_checksum = sum(header["sizes"]), header["crc32"]
    except (ValueError, LookupError, TypeError) as error:
        raise ClipError(f"clip record has a bad header: {one_line(error)}; rebuild it") from error
    if len(payload) != expected:
        raise ClipError(f"clip record is truncated: payload has {len(payload)} of {expected} bytes; rebuild it")
    if zlib.crc32(payload) != payload_checksum:
        raise ClipError("clip record has a damaged payload (checksum differs); rebuild it")
    return header, payload


def _encode_zstd(video: np.ndarray, frame_rate: fractions.Fraction) -> bytes:
    del frame_rate
    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(video.tobytes())


def _decode_zstd(blob: memoryview, shape: tuple[int, int, int, int]) -> np.ndarray:
    raw = zstandard.ZstdDecompressor().decompress(blob)
    return np.frombuffer(raw, np.uint8).reshape(shape)


def _encode_h264(video: np.ndarray, frame_rate: fractions.Fraction) -> bytes:
    """Encodes one closed group of pictures as a Matroska file: one key frame, the first."""
    file = io.BytesIO()
    options = _H264_OPTIONS | {"g": str(len(video)), "sc_threshold": "0"}
    # Bit-exact muxing leaves out the random file id, so equal clips have equal bytes.
    with av.open(file, "w", format="matroska", container_options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=frame_rate, options=options)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv444p"
        stream.codec_context.colorspace = Colorspace.ITU709
        stream.codec_context.color_range = ColorRange.JPEG
        for index, image in enumerate(video):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
                format="yuv444p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.JPEG
            )
            frame.pts, frame.time_base = index, 1 / frame_rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def _decode_h264(blob: memoryview, shape: tuple[int, int, int, int]) -> np.ndarray:
    with av.open(io.BytesIO(blob), "r", format="matroska") as container:
        # One thread: readers already decode many clips side by side.
        container.streams.video[0].codec_context.thread_count = 1
        images = [
            frame.reformat(
                format="rgb24", src_colorspace=Colorspace.ITU709, src_color_range=ColorRange.JPEG
            ).to_ndarray()
            for frame in container.decode(video=0)
        ]
    return np.stack(images).reshape(shape)


_ENCODERS: dict[str, Callable[[np.ndarray, fractions.Fraction], bytes]] = {
    "zstd": _encode_zstd,
    "h264": _encode_h264,
}
_DECODERS: dict[str, Callable[[memoryview, tuple[int, int, int, int]], np.ndarray]] = {
    "zstd": _decode_zstd,
    "h264": _decode_h264,
}


def _encode_audio(audio: np.ndarray, sample_rate: int) -> bytes:
    if audio.shape[1] == 0:
        return b""
    file = io.BytesIO()
    soundfile.write(file, audio, sample_rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def _decode_audio(blob: memoryview, first: int, last: int, channels: int) -> np.ndarray:
    if channels == 0:
        return np.zeros((last - first, 0), np.int16)
    audio, _ = soundfile.read(io.BytesIO(blob), start=first, stop=last, dtype="int16", always_2d=True)
    if audio.shape[1] != channels:
        raise ClipError(f"audio has {audio.shape[1]} channels, the header says {channels}; rebuild it")
    return cast(np.ndarray, audio)


def _check_scalars(clip: Clip) -> None:
    for field in ("source", "licence", "episode"):
        _check_text(field, getattr(clip, field))
    if not clip.episode:
        raise ClipError("episode is empty; give every clip a unique id")
    if not isinstance(clip.frame_rate, fractions.Fraction) or clip.frame_rate <= 0:
        raise ClipError(f"frame_rate is {clip.frame_rate!r}; use a positive fractions.Fraction")
    rate = clip.sample_rate
    in_range = type(rate) is int and 0 < rate <= _MAX_SAMPLE_RATE
    if not in_range or (rate > _MAX_FREE_SAMPLE_RATE and rate % 10):
        raise ClipError(
            f"sample_rate is {rate!r}; use an int from 1 to {_MAX_SAMPLE_RATE} (a multiple of 10 above "
            f"{_MAX_FREE_SAMPLE_RATE})"
        )
    if type(clip.seed) is not int or not -(2**63) <= clip.seed < 2**63:
        raise ClipError(f"seed is {clip.seed!r}; use an int of 64 bits")
    names = clip.action_names
    if not isinstance(names, tuple) or len(set(names)) != len(names):
        raise ClipError(f"action_names is {names!r}; use a tuple of unique names")
    for name in names:
        _check_text("action_names", name)


def _check_arrays(clip: Clip) -> None:
    _check_array("video", clip.video, np.uint8, 4)
    _check_array("audio", clip.audio, np.int16, 2)
    _check_array("actions", clip.actions, np.float32, 2)
    if 0 in clip.video.shape or clip.video.shape[3] != 3:
        raise ClipError(f"video has shape {clip.video.shape}; use [frames, height, width, 3], none of them 0")
    expected = samples_at(clip.frames, clip.sample_rate, clip.frame_rate)
    if clip.audio.shape[0] != expected:
        found = f"{clip.audio.shape[0]} samples for {clip.frames} frames"
        raise ClipError(f"audio has {found}; use exactly {expected}")
    if clip.channels > 2:
        raise ClipError(f"audio has {clip.channels} channels; use 0, 1 or 2")
    if clip.actions.shape != (clip.frames, len(clip.action_names)):
        raise ClipError(
            f"actions has shape {clip.actions.shape}; use ({clip.frames}, {len(clip.action_names)}), "
            "a row a frame and a column a name"
        )
    if not np.isfinite(clip.actions).all():
        raise ClipError("actions has values that are not finite; replace them")


def _check_array(field: str, value: Any, dtype: type, dimensions: int) -> None:
    if not isinstance(value, np.ndarray) or value.dtype != dtype or value.ndim != dimensions:
        found = f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
        raise ClipError(f"{field} is {found}; use a {np.dtype(dtype).name} array of {dimensions} dimensions")


def _check_events(clip: Clip) -> None:
    if not isinstance(clip.events, tuple) or not all(isinstance(event, TextEvent) for event in clip.events):
        raise ClipError("events is not a tuple of TextEvent; use one")
    previous = -1
    for event in clip.events:
        if type(event.frame) is not int or not previous < event.frame < clip.frames:
            raise ClipError(f"events has frame {event.frame!r} after {previous}; use rising ints below {clip.frames}")
        _check_text("events", event.text)
        previous = event.frame


def _check_text(field: str, value: Any) -> None:
    try:
        if not isinstance(value, str):
            raise ClipError(f"{field} holds {value!r}; use a string")
        value.encode()
    except UnicodeEncodeError as error:
        raise ClipError(f"{field} holds text that is not valid Unicode; remove lone surrogates") from error


def one_line(error: BaseException) -> str:
    """Returns an error's type and message on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
