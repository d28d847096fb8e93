"""Opens a media file that nobody vouches for, and decodes its frames up to the first damage."""

from __future__ import annotations

import contextlib
import fractions
import os
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import av
import av.error
import av.stream
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideDataType

from data_pipelines.clip import one_line

# These show text as pictures or are lists of other files.
_REFUSED_FORMATS = frozenset(("adf", "bin", "concat", "dash", "hls", "idf", "imf", "lavfi", "sdp", "tty", "xbin"))
_NO_MOVING_PICTURE = (
    av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails | av.stream.Disposition.dependent
)
_BUFFER_BYTES = 1 << 16
_USUAL_RATE = fractions.Fraction(25)


class MediaError(ValueError):
    """A file holds nothing that can be used; the message says why, without its path."""


def reason(error: BaseException) -> str:
    """Returns why something failed, on one line and without a path."""
    if isinstance(error, MediaError):
        return " ".join(str(error).split())
    message = getattr(error, "strerror", None)
    return f"{type(error).__name__}: {' '.join(str(message).split())}" if message else one_line(error)


@contextlib.contextmanager
def open_media(path: str | os.PathLike[str], max_pixels: int) -> Iterator[InputContainer]:
    """Opens a media file of any format that its content shows; its name has no say.

    Args:
        path: the file.
        max_pixels: frames of more are not decoded.

    Raises:
        MediaError: it is no file, empty, or of a format that leads to other files.
        OSError, FFmpegError: it cannot be read.
    """
    # A pipe or a device would block for ever.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise MediaError("not a regular file")
    if os.path.getsize(path) == 0:
        raise MediaError("the file is empty")
    with open(path, "rb") as file:
        container = av.open(
            _Nameless(file),
            "r",
            buffer_size=_BUFFER_BYTES,
            io_open=_refuse,
            metadata_errors="replace",
            options={"max_pixels": str(max_pixels), "threads": "1"},
            container_options={"protocol_whitelist": "none"},
        )
        with container:
            if not _REFUSED_FORMATS.isdisjoint(container.format.name.split(",")):
                raise MediaError(f"{container.format.name} is no video format")
            yield container


class _Nameless:
    """A file without a name, so that FFmpeg judges it by its content alone."""

    name = ""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def _refuse(*_: Any) -> Any:
    raise MediaError("it names other files, which are not opened")


def is_still(container: InputContainer) -> bool:
    """Whether the format is that of one picture."""
    return container.format.name.endswith("_pipe")


def best_video(container: InputContainer, max_pixels: int) -> av.VideoStream:
    """Returns the stream to read: the default one, else the largest; covers and thumbnails are none.

    Raises:
        MediaError: there is none, or its frames are too large.
    """
    streams = [stream for stream in container.streams.video if not stream.disposition & _NO_MOVING_PICTURE]
    if not streams:
        covers = len(container.streams.video)
        raise MediaError("no video" + (", only covers, thumbnails or tiles of a picture" if covers else ""))
    decodable = [stream for stream in streams if stream.codec_context is not None]
    if not decodable:
        raise MediaError("there is no decoder for its video")
    best = max(decodable, key=_preference)
    check_size(best.codec_context.width, best.codec_context.height, max_pixels)
    return best


def _preference(stream: av.VideoStream) -> tuple[bool, bool, int, int]:
    pixels = stream.codec_context.width * stream.codec_context.height
    return pixels > 0, bool(stream.disposition & av.stream.Disposition.default), pixels, -stream.index


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raises MediaError if frames have more than `max_pixels` pixels."""
    if width * height > max_pixels:
        raise MediaError(f"frames of {width} x {height} pixels; at most {max_pixels} pixels are read (max_pixels)")


class FrameReader:
    """Decodes a video stream with one thread, in order of presentation, up to the first damage.

    Packets that do not decode before the first frame are passed over: a recording may begin anywhere.

    Attributes:
        damage: what ended the reading early, or "".
        dropped: frames left out because their timestamps did not rise.
        packets: facts of the packets so far, in order of decoding.
    """

    def __init__(self, container: InputContainer, stream: av.VideoStream, max_pixels: int) -> None:
        self.damage = ""
        self.dropped = 0
        self.packets: list[tuple[int | None, bool, bool]] = []  # timestamp, key frame, to be discarded
        self._container, self._stream = container, stream
        self._context = stream.codec_context
        # A build runs many processes side by side.
        self._context.thread_count = 1
        self._context.thread_type = "NONE"
        self._context.options = {"max_pixels": str(max_pixels)}
        self._early_error = ""
        self._seen = False  # a whole frame
        self._torn = False  # a frame is damaged, so the next ones may be

    def frames(self) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yields strictly rising timestamps, in the time base of the stream, and frames.

        Raises:
            MediaError: there is not one frame.
        """
        last: int | None = None
        step = max(1, round(1 / (declared_rate(self._stream) * time_base(self._stream))))
        for frame in self._whole_frames():
            time = frame.pts if frame.pts is not None else frame.dts
            if time is None:
                time = 0 if last is None else last + step
            if last is not None and time <= last:
                self.dropped += 1
                continue
            last = time
            yield time, frame
        if last is None:
            raise MediaError(f"no frame of its video decodes ({self._early_error or 'it has none'})")

    def _whole_frames(self) -> Iterator[av.VideoFrame]:
        for packet in self._good_packets():
            yield from self._whole(self._decode(packet))
            if self.damage:
                break
        if not self._torn:
            yield from self._whole(self._decode(None))

    def _whole(self, frames: list[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        """Yields the frames before the first damaged one."""
        for frame in frames:
            if frame.is_corrupt:
                self._fail("a frame is damaged")
                if self._seen:
                    self._torn = True
                    return
                continue
            self._seen = True
            yield frame

    def _good_packets(self) -> Iterator[av.Packet]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.error.FFmpegError, OSError, ValueError) as error:
                self._fail(reason(error))
                return
            if packet is None:
                return
            if packet.is_corrupt and self._seen:
                self._fail("a packet is cut short or damaged")
                return
            # Without data it marks a frame that was dropped in recording, or the end.
            if packet.size:
                self.packets.append((packet.pts, packet.is_keyframe, packet.is_discard))
                yield packet

    def _decode(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        """Decodes a packet; None gives what the decoder holds back."""
        try:
            return self._context.decode(packet)
        except EOFError:
            return []
        except (av.error.FFmpegError, ValueError) as error:
            self._fail(reason(error))
            return []

    def _fail(self, why: str) -> None:
        if self._seen:
            self.damage = self.damage or why
        else:
            self._early_error = self._early_error or why


def time_base(stream: av.stream.Stream) -> fractions.Fraction:
    """Seconds a tick of a stream's timestamps."""
    return stream.time_base or fractions.Fraction(1, av.time_base)


def declared_rate(stream: av.VideoStream) -> fractions.Fraction:
    """Frames a second as the file says, or a usual rate where it does not or is absurd."""
    for rate in declared_rates(stream):
        return rate
    return _USUAL_RATE


def declared_rates(stream: av.VideoStream) -> list[fractions.Fraction]:
    """The frame rates that a file gives, the most trustworthy first, without absurd ones."""
    rates = (stream.guessed_rate, stream.average_rate, stream.base_rate)
    return [fractions.Fraction(rate) for rate in rates if rate and 0 < rate <= 1000]


def pixel_aspect(stream: av.VideoStream) -> fractions.Fraction:
    """Width of a pixel over its height; 1 where the file says nothing or nonsense."""
    aspect = stream.sample_aspect_ratio
    return fractions.Fraction(aspect) if aspect and fractions.Fraction(1, 100) < aspect < 100 else fractions.Fraction(1)


Orientation = tuple[bool, bool, bool]  # transpose, then flip the rows, then the columns
UPRIGHT: Orientation = (False, False, False)
# By number, counterclockwise.
_QUARTER_TURNS: tuple[Orientation, ...] = (UPRIGHT, (True, True, False), (False, True, True), (True, False, True))


def orientation(frame: av.VideoFrame) -> Orientation:
    """Returns how a frame must be turned to be shown, to the nearest quarter turn."""
    try:
        matrix = bytes(cast(Any, frame.side_data)[SideDataType.DISPLAYMATRIX])
    except KeyError:
        return UPRIGHT
    except ValueError:
        # PyAV cannot list what a newer FFmpeg attaches beside it, such as EXIF; this leaves mirroring out.
        return _QUARTER_TURNS[round(frame.rotation / 90) % 4]
    # A pixel (x, y) is shown at (a x + c y, b x + d y); see ISO/IEC 14496-12, 6.2.2.
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].astype(np.int64)
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, bool(d < 0), bool(a < 0)
    return True, bool(b < 0), bool(c < 0)


def turn(image: np.ndarray, how: Orientation) -> np.ndarray:
    """Turns a picture `[height, width, 3]` upright."""
    transpose, rows, columns = how
    image = image.swapaxes(0, 1) if transpose else image
    return np.ascontiguousarray(image[:: -1 if rows else 1, :: -1 if columns else 1])
