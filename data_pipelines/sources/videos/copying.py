"""Copies packets of a video into groups that decode alone, and proves that they do."""

from __future__ import annotations

import fractions
import io
from collections.abc import Iterator

import av
import av.error
import numpy as np
from av.container import InputContainer

from data_pipelines import video as video_lib
from data_pipelines.sources.videos.pieces import Piece
from data_pipelines.sources.videos.survey import checksum
from data_pipelines.video import Group

# The record has the timestamps; in a group they only tell the order.
_STEP_MILLISECONDS = 40


class Copier:
    """Copies the packets of pieces, which must come in order."""

    def __init__(self, container: InputContainer, stream: av.VideoStream) -> None:
        self._stream = stream
        self._packets = (packet for packet in container.demux(stream) if packet.size)
        self._next = 0

    def copy(self, piece: Piece, sums: np.ndarray) -> tuple[Group, ...] | None:
        """Returns the groups of a piece, or None if one of them does not decode to exactly its frames.

        Args:
            piece: with groups.
            sums: checksums of all frames of the file, see `survey.checksum`.
        """
        assert piece.groups is not None
        groups = []
        for (start, first), (stop, last) in zip(piece.groups, piece.groups[1:], strict=False):
            packets = list(self._take(first, last))
            try:
                group = Group(stop - start, _remux(self._stream, packets))
                same = len(packets) == last - first and _sums(group.data) == sums[start:stop].tolist()
            except (av.error.FFmpegError, OSError, ValueError):
                return None
            if not same:
                return None
            groups.append(group)
        return tuple(groups)

    def _take(self, first: int, last: int) -> Iterator[av.Packet]:
        while self._next < last:
            packet = next(self._packets, None)
            if packet is None:
                return
            self._next += 1
            if self._next > first:
                yield packet


def _remux(stream: av.VideoStream, packets: list[av.Packet]) -> bytes:
    """Returns a Matroska file of packets that are in order of decoding."""
    file = io.BytesIO()
    ticks = [packet.pts or 0 for packet in packets]
    ranks = {tick: rank for rank, tick in enumerate(sorted(set(ticks)))}
    # Nothing may be shown before it is decoded.
    delay = max(number - ranks[tick] for number, tick in enumerate(ticks))
    with av.open(file, "w", format="matroska", container_options={"fflags": "+bitexact"}) as container:
        output = container.add_stream_from_template(stream, opaque=True)
        for number, (packet, tick) in enumerate(zip(packets, ticks, strict=True)):
            packet.stream = output
            packet.time_base = fractions.Fraction(_STEP_MILLISECONDS, 1000)
            packet.pts, packet.dts, packet.duration = ranks[tick] + max(delay, 0), number, 1
            container.mux(packet)
    return file.getvalue()


def _sums(data: bytes | memoryview) -> list[int]:
    with av.open(io.BytesIO(data), "r", format="matroska") as container:
        stream = container.streams.video[0]
        return [checksum(frame) for frame in video_lib.decode_stream(container, stream, threads=1)]
