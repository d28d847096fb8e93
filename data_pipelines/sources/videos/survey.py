"""The first pass over a file: what its frames are and when, without keeping any."""

from __future__ import annotations

import array
import dataclasses
import fractions
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer

from data_pipelines.sources.videos import media, timing
from data_pipelines.sources.videos.completeness import missing
from data_pipelines.sources.videos.frames import FrameReader, Packets
from data_pipelines.sources.videos.media import MediaError
from data_pipelines.sources.videos.shots import CutFinder
from data_pipelines.sources.videos.turning import Orientation, orientation


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
        base = media.time_base(stream)
        still = media.is_still(container)
        log = _Log(lambda: None if cut_threshold is None else CutFinder(cut_threshold, flash))
        for tick, frame in reader.frames():
            media.check_size(frame.width, frame.height, max_pixels)
            log.add(tick, base, frame)
            if checksums:
                log.sums.append(checksum(frame))
            if still:
                break
        ticks = np.array(log.ticks, np.int64)
        rate = timing.frame_rate(ticks, base, media.declared_rates(stream))
        end = log.ticks[-1] + _last_duration(ticks, log.duration, base, rate)
        usual = float(np.median(np.diff(ticks))) if len(ticks) > 1 else 0.0
        damage = reader.damage or missing(container, stream, reader, (end, usual), path)
        if still and damage:
            raise MediaError(f"the picture is damaged: {damage}")
        found = Survey(
            ticks=ticks,
            end=end,
            base=base,
            frame_rate=rate,
            pixel_aspect=media.pixel_aspect(stream),
            runs=tuple(log.runs),
            cuts=log.cuts(),
            sums=np.array(log.sums, np.uint32),
            packets=reader.packets,
            codec=stream.codec_context.name,
            still=still,
            damage=damage,
            dropped=reader.dropped,
            by_decoding=by_decoding,
            origin=base * _first_tick(container, reader, log.ticks[0]),
        )
        return found, reader.dropped_by_decoding


class _Log:
    """What is noted of frame after frame."""

    def __init__(self, new_finder: Callable[[], CutFinder | None]) -> None:
        self.ticks, self.sums = array.array("q"), array.array("L")
        self.runs: list[Run] = []
        self.duration = 0  # of the last frame, as the file says
        self._new_finder = new_finder
        self._finder: CutFinder | None = None
        self._cuts: list[int] = []  # of earlier runs

    def add(self, tick: int, base: fractions.Fraction, frame: av.VideoFrame) -> None:
        """Notes a frame; one of another size begins a run."""
        number = len(self.ticks)
        run = Run(number, frame.height, frame.width, orientation(frame))
        if not self.runs or dataclasses.replace(run, start=self.runs[-1].start) != self.runs[-1]:
            self.runs.append(run)
            self._cuts, self._finder = list(self.cuts()), self._new_finder()
        if self._finder is not None:
            self._finder.add(number, tick * base, frame)
        self.ticks.append(tick)
        self.duration = frame.duration or 0

    def cuts(self) -> tuple[int, ...]:
        """Numbers of the frames that begin a new shot."""
        return (*self._cuts, *(self._finder.cuts if self._finder is not None else ()))


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
