"""Opens a media file that nobody vouches for, and finds the video in it."""

from __future__ import annotations

import contextlib
import errno
import fractions
import os
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO

import av
import av.error
import av.stream
from av.container import InputContainer

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
        MediaError: it is no file, empty, of no known format, or of one that leads to other files.
        OSError: it cannot be read.
    """
    # A pipe or a device would block for ever.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise MediaError("not a regular file")
    if os.path.getsize(path) == 0:
        raise MediaError("the file is empty")
    with open(path, "rb") as file:
        try:
            container = av.open(
                _Nameless(file),
                "r",
                buffer_size=_BUFFER_BYTES,
                io_open=_refuse,
                metadata_errors="replace",
                options={"max_pixels": str(max_pixels), "threads": "1"},
                container_options={"protocol_whitelist": "none"},
            )
        except av.error.FFmpegError as error:
            raise MediaError(f"no known format of media, or damaged where it begins ({reason(error)})") from error
        with container:
            if not _REFUSED_FORMATS.isdisjoint(container.format.name.split(",")):
                raise MediaError(f"{container.format.name} is no video format")
            yield container


class _Nameless:
    """A file without a name, so that FFmpeg judges it by its content alone."""

    name = ""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.tell, self._seek = file.read, file.tell, file.seek

    def seek(self, offset: int, whence: int) -> int:
        """Returns the new position, or FFmpeg's kind of error: its readers try places outside the file and go on."""
        try:
            return self._seek(offset, whence)
        except (OSError, ValueError):
            return -errno.EINVAL


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
