r"""The record: a clip as self-checking bytes, any window of which is decoded without the rest.

Layout, little-endian:

    magic "PX1CLIP\0" | version u32 | header bytes u32 | header crc32 u32 | header (JSON, UTF-8) | payload

The payload is the actions (raw float32), the sound (one FLAC file, absent for a silent clip), the facts (float32 under
zstd, see `data_pipelines.facts`) and the groups of the video (see `data_pipelines.video`).

A clip has one clock of constant rate; a camera may not. So a record may hold coded frames with timestamps of their own:
step k of the clock then shows the last coded frame that begins before the middle of the step.
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
from collections.abc import Mapping
from typing import Any, cast

import av.error
import numpy as np
import soundfile
import zstandard

from data_pipelines import facts as facts_lib
from data_pipelines import video as video_lib
from data_pipelines.clip import (
    Clip,
    ClipError,
    TextEvent,
    check_events,
    check_facts,
    check_scalars,
    one_line,
    window_events,
    window_samples,
)
from data_pipelines.facts import Fact
from data_pipelines.video import Group, VideoCodec

VERSION = 3

_MAGIC = b"PX1CLIP\0"
_PREAMBLE = struct.Struct("<8sIII")
_DECODING_ERRORS = (
    ArithmeticError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    zstandard.ZstdError,
    av.error.FFmpegError,
)


@dataclasses.dataclass(frozen=True)
class Timestamps:
    """When coded frames are shown, relative to the first.

    Attributes:
        ticks: start of each coded frame, strictly rising from 0.
        stop: end of the last.
        base: seconds a tick.
    """

    ticks: tuple[int, ...]
    stop: int
    base: fractions.Fraction

    def steps(self, frame_rate: fractions.Fraction) -> int:
        """Number of steps of a clock of constant rate that the frames last, at least 1."""
        return max(1, round(self.stop * self.base * frame_rate))

    def shown(self, frame_rate: fractions.Fraction) -> np.ndarray:
        """The coded frame that each step shows, int `[steps]`."""
        # Frame j begins before the middle of step k where 2 ticks[j] < (2 k + 1) / (rate * base): whole numbers.
        step = 1 / (frame_rate * self.base)
        middles = (2 * np.arange(self.steps(frame_rate), dtype=np.int64) + 1) * step.numerator
        starts = 2 * step.denominator * np.array(self.ticks, np.int64)
        return np.maximum(np.searchsorted(starts, middles, side="left") - 1, 0)


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """An encoded clip; fields as in `Clip` where they share a name.

    Attributes:
        frames: steps of the clip's clock.
        height: pixels.
        width: pixels.
        channels: of the sound, 0 to 2.
        audio: one FLAC file, empty without sound.
        actions: float32 `[frames, action_dim]`.
        video_codec: how the groups are coded.
        groups: the coded frames.
        timestamps: of the coded frames; None where each fills one step of the clock.
        pixel_aspect: width of a pixel over its height.
    """

    frames: int
    height: int
    width: int
    channels: int
    audio: bytes | memoryview
    actions: np.ndarray
    action_names: tuple[str, ...]
    events: tuple[TextEvent, ...]
    frame_rate: fractions.Fraction
    sample_rate: int
    source: str
    licence: str
    seed: int
    episode: str
    video_codec: str
    groups: tuple[Group, ...]
    timestamps: Timestamps | None = None
    pixel_aspect: fractions.Fraction = fractions.Fraction(1)
    facts: Mapping[str, Fact] = dataclasses.field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Returns the record's bytes.

        Raises:
            ClipError: a field is wrong; the message names it.
        """
        check_scalars(self)
        check_events(self.events, self.frames)
        check_facts(self.facts, self.frames)
        _check_video(self)
        actions = np.ascontiguousarray(self.actions, dtype="<f4").tobytes()
        facts = map(facts_lib.to_blob, self.facts.values())
        blobs = [actions, self.audio, *facts, *(group.data for group in self.groups)]
        payload = b"".join(blobs)
        times = self.timestamps
        header = {
            "shape": [self.frames, self.height, self.width],
            "channels": self.channels,
            "frame_rate": str(self.frame_rate),
            "sample_rate": self.sample_rate,
            "action_names": list(self.action_names),
            "events": [[event.frame, event.text] for event in self.events],
            "source": self.source,
            "licence": self.licence,
            "seed": self.seed,
            "episode": self.episode,
            "video_codec": self.video_codec,
            "pixel_aspect": str(self.pixel_aspect),
            "facts": {name: facts_lib.to_header(fact) for name, fact in self.facts.items()},
            "groups": [group.frames for group in self.groups],
            "timestamps": None if times is None else [list(times.ticks), times.stop, str(times.base)],
            "sizes": list(map(len, blobs)),
            "crc32": zlib.crc32(payload),
        }
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        return _PREAMBLE.pack(_MAGIC, VERSION, len(text), zlib.crc32(text)) + text + payload


def encode(clip: Clip, *, video_codec: VideoCodec = "zstd") -> Record:
    """Encodes a clip.

    Args:
        clip: a valid clip.
        video_codec: "zstd" is lossless and suits small rendered frames, "h264_444" large ones, "h264_420" camera
            video.

    Raises:
        ClipError: the clip is not valid, or the codec is no encoder.
    """
    clip.validate()
    groups = video_lib.encode_groups(clip.video, video_codec, clip.frame_rate, group_size(clip.frame_rate))
    return Record(
        frames=clip.frames,
        height=clip.video.shape[1],
        width=clip.video.shape[2],
        channels=clip.channels,
        audio=encode_audio(clip.audio, clip.sample_rate),
        actions=clip.actions,
        action_names=clip.action_names,
        events=clip.events,
        frame_rate=clip.frame_rate,
        sample_rate=clip.sample_rate,
        source=clip.source,
        licence=clip.licence,
        seed=clip.seed,
        episode=clip.episode,
        video_codec=video_codec,
        groups=tuple(groups),
        facts=clip.facts,
    )


def group_size(frame_rate: fractions.Fraction) -> int:
    """Frames in a group: a second, rounded down, at least one."""
    return max(1, int(frame_rate))


def decode(data: bytes, start: int = 0, stop: int | None = None) -> Clip:
    """Decodes the frames `start` to `stop` (exclusive; None is the end) of a record's bytes.

    The sound is cut at the same instants, events move with the window, and the text in force at `start`
    becomes the event of frame 0.

    Raises:
        ClipError: the bytes are damaged, of another version, or no record; or the window is empty or out of range.
    """
    record = read(data)
    try:
        end = operator.index(record.frames if stop is None else stop)
        return _decode_window(record, operator.index(start), end)
    except ClipError:
        raise
    except _DECODING_ERRORS as error:
        raise ClipError(f"clip record has a bad stream: {one_line(error)}; rebuild it") from error


def read(data: bytes) -> Record:
    """Reads a record's bytes, decoding neither pictures nor sound; it shares their memory.

    Raises:
        ClipError: the bytes are damaged, of another version, or no record.
    """
    header, payload = _open(data)
    try:
        record = _record(header, payload)
    except ClipError:
        raise
    except _DECODING_ERRORS as error:
        raise ClipError(f"clip record has a bad header: {one_line(error)}; rebuild it") from error
    _check_video(record)
    return record


def _record(header: dict[str, Any], payload: memoryview) -> Record:
    frames, height, width = header["shape"]
    ends = list(itertools.accumulate(header["sizes"]))
    blobs = [payload[end - size : end] for size, end in zip(header["sizes"], ends, strict=True)]
    names = tuple(header["action_names"])
    times, facts = header["timestamps"], header["facts"]
    groups = zip(header["groups"], blobs[2 + len(facts) :], strict=True)
    return Record(
        frames=operator.index(frames),
        height=operator.index(height),
        width=operator.index(width),
        channels=operator.index(header["channels"]),
        audio=blobs[1],
        actions=np.frombuffer(blobs[0], dtype="<f4").reshape(frames, len(names)).astype(np.float32),
        action_names=names,
        events=tuple(TextEvent(*event) for event in header["events"]),
        frame_rate=fractions.Fraction(header["frame_rate"]),
        sample_rate=header["sample_rate"],
        source=header["source"],
        licence=header["licence"],
        seed=header["seed"],
        episode=header["episode"],
        video_codec=header["video_codec"],
        groups=tuple(Group(operator.index(count), blob) for count, blob in groups),
        timestamps=None if times is None else Timestamps(tuple(times[0]), times[1], fractions.Fraction(times[2])),
        pixel_aspect=fractions.Fraction(header["pixel_aspect"]),
        facts={
            name: facts_lib.from_blob(fact, blob, frames)
            for (name, fact), blob in zip(facts.items(), blobs[2:], strict=False)
        },
    )


def _check_video(record: Record) -> None:
    """Raises ClipError unless the groups hold the frames that the clock shows."""
    coded = sum(group.frames for group in record.groups)
    times = record.timestamps
    if min(record.frames, record.height, record.width, *(group.frames for group in record.groups), coded) < 1:
        raise ClipError(f"video has {record.frames} frames in {len(record.groups)} groups; use at least one of each")
    if record.pixel_aspect <= 0:
        raise ClipError(f"pixel_aspect is {record.pixel_aspect}; use a positive fraction")
    if times is None:
        if coded != record.frames:
            raise ClipError(f"video has {coded} coded frames for {record.frames}; give their timestamps")
        return
    rising = all(a < b for a, b in itertools.pairwise((*times.ticks, times.stop)))
    if len(times.ticks) != coded or times.ticks[0] != 0 or not rising or times.base <= 0:
        raise ClipError(f"timestamps do not rise from 0 over {coded} coded frames; give one a coded frame and the end")
    if times.steps(record.frame_rate) != record.frames:
        raise ClipError(
            f"timestamps last {times.steps(record.frame_rate)} frames at {record.frame_rate} frames/s, the record "
            f"has {record.frames}; use the first"
        )


def _decode_window(record: Record, start: int, stop: int) -> Clip:
    if not 0 <= start < stop <= record.frames:
        raise ClipError(f"window {start}:{stop} is empty or outside the {record.frames} frames of the clip")
    first, last = window_samples(start, stop, record.sample_rate, record.frame_rate)
    clip = Clip(
        video=_decode_video(record, start, stop),
        audio=_decode_audio(record.audio, first, last, record.channels),
        actions=record.actions[start:stop],
        action_names=record.action_names,
        events=window_events(record.events, start, stop),
        frame_rate=record.frame_rate,
        sample_rate=record.sample_rate,
        source=record.source,
        licence=record.licence,
        seed=record.seed,
        episode=record.episode,
        facts=facts_lib.cut(record.facts, start, stop),
    )
    clip.validate()
    return clip


def _decode_video(record: Record, start: int, stop: int) -> np.ndarray:
    """Decodes the groups that the window shows, each once, into uint8 `[stop - start, height, width, 3]`."""
    if record.timestamps is None:
        shown = np.arange(start, stop)
    else:
        shown = record.timestamps.shown(record.frame_rate)[start:stop]
    ends = np.cumsum([group.frames for group in record.groups])
    group_of = np.searchsorted(ends, shown, side="right")
    video = np.empty((stop - start, record.height, record.width, 3), np.uint8)
    for index in np.unique(group_of):
        group = record.groups[index]
        decoded = video_lib.decode_group(group, record.video_codec, record.height, record.width)
        steps = np.flatnonzero(group_of == index)
        video[steps[0] : steps[-1] + 1] = decoded[shown[steps] - (ends[index] - group.frames)]
    return video


def _open(data: bytes) -> tuple[dict[str, Any], memoryview]:
    """Checks magic, version, lengths and sums, and returns the header and the payload."""
    view = memoryview(data)
    if len(view) < _PREAMBLE.size:
        raise ClipError(f"clip record is truncated: {len(view)} bytes, fewer than its preamble; rebuild it")
    magic, version, size, checksum = _PREAMBLE.unpack_from(view)
    if magic != _MAGIC:
        raise ClipError("bytes are no clip record (wrong magic); give what data_pipelines.record.Record.to_bytes gave")
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


def encode_audio(audio: np.ndarray, sample_rate: int) -> bytes:
    """Returns int16 `[samples, channels]` as a FLAC file; nothing for 0 channels or no samples."""
    if audio.size == 0:
        return b""
    file = io.BytesIO()
    soundfile.write(file, audio, sample_rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def _decode_audio(blob: bytes | memoryview, first: int, last: int, channels: int) -> np.ndarray:
    if channels == 0 or first == last:
        return np.zeros((last - first, channels), np.int16)
    audio, _ = soundfile.read(io.BytesIO(blob), start=first, stop=last, dtype="int16", always_2d=True)
    if audio.shape[1] != channels:
        raise ClipError(f"audio has {audio.shape[1]} channels, the header says {channels}; rebuild it")
    return cast(np.ndarray, audio)
