"""The first pass over a file: what its frames are and when, without keeping any."""

from __future__ import annotations

import array
import dataclasses
import fractions
import zlib
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer

from data_pipelines.sources.videos import media, timing
from data_pipelines.sources.videos.frames import FrameReader, Packets
from data_pipelines.sources.videos.media import MediaError
from data_pipelines.sources.videos.shots import CutFinder
from data_pipelines.sources.videos.turning import Orientation, orientation

# A header may count a few frames that the file does not store.
_UNCOUNTED = 2, 0.02
_ROUNDED_SECONDS = 0.01
_MATROSKA = "matroska"
# These say in their header when they end; the last packet may say so less well.
_TIMED_HEADERS = frozenset(("asf", "avi", "flv", "matroska", "mxf", "nut", "rm"))
_LONG_PACKET_SECONDS = 0.5
_TRANSPORT_PACKET_BYTES = 188, 192, 204
_MOST_PICTURE_BYTES = 2**28
_START_OF_JPEG, _END_OF_JPEG, _END_OF_GIF = b"\xff\xd8\xff", b"\xff\xd9", b"\x3b"


@dataclasses.dataclass(frozen=True)
class Run:
    """Frames `start` to the next run's start that share a size and a way to be turned upright.

    Attributes:
        start: number of the first frame.
        height: coded pixels, before turning.
        width: coded pixels, before turning.
        turned: how a frame must be turned.
    """

    start: int
    height: int
    width: int
    turned: Orientation

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels, upright."""
        return (self.width, self.height) if self.turned[0] else (self.height, self.width)


@dataclasses.dataclass(frozen=True, eq=False)
class Survey:
    """What a file holds.

    Attributes:
        ticks: timestamps of the frames, int64 `[frames]`, strictly rising.
        end: of the last frame.
        base: seconds a tick.
        frame_rate: frames a second, at the usual step between frames.
        pixel_aspect: width of a coded pixel over its height.
        runs: of frames of one size, in order.
        cuts: numbers of the frames that begin a new shot.
        sums: uint32 `[frames]`, see `checksum`; empty where nobody asked.
        packets: facts of the packets.
        codec: name of the decoder.
        still: whether it is one picture.
        damage: what ended the reading early, or "".
        dropped: frames left out because their timestamps did not rise.
        by_decoding: see `FrameReader`.
        origin: time in seconds, on the clock of the sound, at which the first frame is shown.
    """

    ticks: np.ndarray
    end: int
    base: fractions.Fraction
    frame_rate: fractions.Fraction
    pixel_aspect: fractions.Fraction
    runs: tuple[Run, ...]
    cuts: tuple[int, ...]
    sums: np.ndarray
    packets: Packets
    codec: str
    still: bool
    damage: str
    dropped: int
    by_decoding: bool
    origin: fractions.Fraction


def survey(
    path: Path, *, max_pixels: int, cut_threshold: float | None, flash: fractions.Fraction, checksums: bool
) -> Survey:
    """Decodes a file once; again, where its timestamps do not rise but its times of decoding do.

    Args:
        path: the file.
        max_pixels: a frame of more ends the reading.
        cut_threshold: see `CutFinder`; None finds no cuts.
        flash: see `CutFinder`.
        checksums: whether to sum up each frame, to compare copies with.

    Raises:
        MediaError: there is no video, not a frame of it decodes, its frames are too large, or it is a damaged picture.
        OSError, FFmpegError: the file cannot be read.
    """
    options = (max_pixels, cut_threshold, flash, checksums)
    found, late = _survey(path, *options, by_decoding=False)
    return found if late >= found.dropped else _survey(path, *options, by_decoding=True)[0]


def _survey(
    path: Path,
    max_pixels: int,
    cut_threshold: float | None,
    flash: fractions.Fraction,
    checksums: bool,
    *,
    by_decoding: bool,
) -> tuple[Survey, int]:
    """Returns the survey, and how many frames would be dropped by their times of decoding."""
    with media.open_media(path, max_pixels) as container:
        stream = media.best_video(container, max_pixels)
        reader = FrameReader(container, stream, max_pixels, by_decoding=by_decoding)
        still = media.is_still(container)
        base = media.time_base(stream)
        ticks, sums = array.array("q"), array.array("L")
        runs: list[Run] = []
        cuts: list[int] = []
        finder: CutFinder | None = None
        duration = 0
        for number, (tick, frame) in enumerate(reader.frames()):
            turned = orientation(frame)
            if not runs or (runs[-1].height, runs[-1].width, runs[-1].turned) != (frame.height, frame.width, turned):
                media.check_size(frame.width, frame.height, max_pixels)
                runs.append(Run(number, frame.height, frame.width, turned))
                cuts += finder.cuts if finder else []
                finder = None if cut_threshold is None else CutFinder(cut_threshold, flash)
            if finder is not None:
                finder.add(number, tick * base, frame)
            ticks.append(tick)
            duration = frame.duration or 0
            if checksums:
                sums.append(checksum(frame))
            if still:
                break
        cuts += finder.cuts if finder else []
        times = np.array(ticks, np.int64)
        rate = timing.frame_rate(times, base, media.declared_rates(stream))
        end = ticks[-1] + _last_duration(times, duration, base, rate)
        usual = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
        damage = reader.damage or _missing(container, stream, reader, (end, usual), path)
        if still and damage:
            raise MediaError(f"the picture is damaged: {damage}")
        found = Survey(
            ticks=times,
            end=end,
            base=base,
            frame_rate=rate,
            pixel_aspect=media.pixel_aspect(stream),
            runs=tuple(runs),
            cuts=tuple(cuts),
            sums=np.array(sums, np.uint32),
            packets=reader.packets,
            codec=stream.codec_context.name,
            still=still,
            damage=damage,
            dropped=reader.dropped,
            by_decoding=by_decoding,
            origin=base * _first_tick(container, reader, ticks[0]),
        )
        return found, reader.dropped_by_decoding


def _first_tick(container: InputContainer, reader: FrameReader, first: int) -> int:
    """Returns the tick of the first frame on the clock of the sound."""
    # AVI has no timestamps; what is made up for them has the delay of the decoder.
    delayed = container.format.name == "avi" and reader.first_decoding is not None
    return reader.first_decoding or 0 if delayed else first


def checksum(frame: av.VideoFrame) -> int:
    """Returns a sum over all pixels of a frame as decoded, and how they are to be read."""
    pixels = frame.format
    facts = (pixels.name, frame.width, frame.height, int(frame.colorspace), int(frame.color_range))
    total = zlib.adler32(repr(facts).encode())
    for number, plane in enumerate(frame.planes):
        if pixels.is_planar:
            bits = sum(-(-part.bits // 8) * 8 for part in pixels.components if part.plane == number)
        else:
            bits = pixels.padded_bits_per_pixel
        used = -(-plane.width * bits // 8)
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: plane.height, :used]
        total = zlib.adler32(rows.tobytes(), total)
    return total


def _last_duration(ticks: np.ndarray, duration: int, base: fractions.Fraction, rate: fractions.Fraction) -> int:
    """Returns how long the last frame lasts, in ticks: what the file says, unless that is out of the usual."""
    if len(ticks) == 1:
        return max(1, round(1 / (rate * base)))
    steps = np.diff(ticks)
    usual = int(np.median(steps))
    return duration if 0 < duration <= max(int(steps.max()), 2 * usual) else max(1, usual)


def _missing(
    container: InputContainer, stream: av.VideoStream, reader: FrameReader, last: tuple[int, float], path: Path
) -> str:
    """Returns what a file lacks that its header or format promises, or "".

    Args:
        container: the file, read to its end.
        stream: the one that was read.
        reader: that read it.
        last: tick at which its last frame ends, and how many ticks a frame lasts as a rule.
        path: the file.
    """
    if container.format.name in ("jpeg_pipe", "gif") and _is_cut_short(path, container.format.name):
        return "the file is cut short"
    if media.is_still(container):
        return ""
    names = container.format.name.split(",")
    promised = len(stream.index_entries) if "mov" in names else stream.frames
    found = len(reader.packets) + reader.empty_packets
    if promised - found > max(_UNCOUNTED[0] * ("mov" not in names), _UNCOUNTED[1] * promised * ("mov" not in names)):
        return f"the file ends early, {found} of {promised} frames are there"
    seconds = _promised_seconds(stream) if _MATROSKA in names else None
    there, usual = (ticks * float(media.time_base(stream)) for ticks in last)
    if seconds is not None and seconds - there > usual + _ROUNDED_SECONDS:
        return f"the file ends early, at {there:.2f} of {seconds:.2f} s"
    promised_end = (container.duration or 0) / av.time_base
    if not _TIMED_HEADERS.isdisjoint(names) and promised_end - reader.end > _LONG_PACKET_SECONDS:
        return f"the file ends early, at {float(reader.end):.2f} of {promised_end:.2f} s"
    if "mpegts" in names and all(path.stat().st_size % size for size in _TRANSPORT_PACKET_BYTES):
        return "the last packet is cut short"
    return ""


def _is_cut_short(path: Path, format_name: str) -> bool:
    """Whether the end of a picture is missing, which its decoder fills up without a word."""
    with path.open("rb") as file:
        data = file.read(_MOST_PICTURE_BYTES)
    if format_name == "gif":
        return not data.rstrip(b"\0\r\n").endswith(_END_OF_GIF)
    # A thumbnail in the header has a start and an end of its own; after the end there may be anything.
    return data.count(_END_OF_JPEG) < data.count(_START_OF_JPEG)


def _promised_seconds(stream: av.VideoStream) -> float | None:
    """The end of a track by its Matroska tag, such as 00:00:02.000000000."""
    try:
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except (KeyError, ValueError):
        return None
