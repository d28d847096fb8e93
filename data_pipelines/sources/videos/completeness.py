"""Finds out that a file lacks its end, where its decoder does not notice."""

from __future__ import annotations

from pathlib import Path

import av
from av.container import InputContainer

from data_pipelines.sources.videos import media
from data_pipelines.sources.videos.frames import FrameReader

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


def missing(
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
