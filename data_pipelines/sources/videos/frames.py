"""Decodes the frames of a video up to the first damage."""

from __future__ import annotations

import array
import fractions
from collections.abc import Iterator

import av
import av.error
from av.container import InputContainer

from data_pipelines.sources.videos.media import MediaError, declared_rate, reason, time_base

NO_TIME = -(2**63)


class Packets:
    """Facts of the packets of a video, in order of decoding.

    Attributes:
        ticks: timestamps; NO_TIME where there is none.
        keys: whether decoding may start there.
        discarded: whether an edit list hides it.
    """

    def __init__(self) -> None:
        self.ticks, self.keys, self.discarded = array.array("q"), bytearray(), bytearray()

    def __len__(self) -> int:
        return len(self.ticks)

    def add(self, packet: av.Packet) -> None:
        """Adds the next packet."""
        self.ticks.append(NO_TIME if packet.pts is None else packet.pts)
        self.keys.append(packet.is_keyframe)
        self.discarded.append(packet.is_discard)


class FrameReader:
    """Decodes a video stream with one thread, in order of presentation, up to the first damage.

    Packets that do not decode before the first frame are passed over: a recording may begin anywhere.

    Attributes:
        damage: what ended the reading early, or "".
        dropped: frames left out because their timestamps did not rise.
        dropped_by_decoding: the same, were times of decoding their timestamps.
        first_decoding: tick at which the first packet is decoded, None where the file does not say.
        packets: facts of the packets so far, in order of decoding.
        empty_packets: number of packets without data.
        end: when the last packet of any stream ends, in seconds.
    """

    def __init__(
        self, container: InputContainer, stream: av.VideoStream, max_pixels: int, *, by_decoding: bool = False
    ) -> None:
        """Prepares to read.

        Args:
            container: the opened file.
            stream: of its video.
            max_pixels: frames of more are not decoded.
            by_decoding: whether times of decoding are the timestamps: some containers, such as AVI, store no others,
                and what is guessed from them does not rise.
        """
        self.damage = ""
        self.dropped = 0
        self.dropped_by_decoding = 0
        self._by_decoding = by_decoding
        self.first_decoding: int | None = None
        self.packets = Packets()
        self.empty_packets = 0
        self.end = fractions.Fraction(0)
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
        last, last_decoding = None, None
        step = max(1, round(1 / (declared_rate(self._stream) * time_base(self._stream))))
        delay: int | None = None
        for frame in self._whole_frames():
            if frame.dts is None or (last_decoding is not None and frame.dts <= last_decoding):
                self.dropped_by_decoding += 1
            last_decoding = frame.dts if frame.dts is not None else last_decoding
            time = frame.pts if frame.pts is not None and not self._by_decoding else frame.dts
            if self._by_decoding and time is not None:
                # The decoder gives the first frame late; it belongs to the time of the first packet.
                delay = time - (self.first_decoding or 0) if delay is None else delay
                time -= delay
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
        packets = self._container.demux()
        while True:
            try:
                packet = next(packets, None)
            except (av.error.FFmpegError, OSError, ValueError) as error:
                self._fail(reason(error))
                return
            if packet is None:
                return
            time = packet.pts if packet.pts is not None else packet.dts
            if time is not None:
                self.end = max(self.end, (time + (packet.duration or 0)) * packet.time_base)
            if packet.stream_index != self._stream.index:
                continue
            if packet.is_corrupt and self._seen:
                self._fail("a packet is cut short or damaged")
                return
            if packet.size:
                self.packets.add(packet)
                if self.first_decoding is None:
                    self.first_decoding = packet.dts
                yield packet
            # Without data it marks a frame that was dropped in recording, or the end.
            elif time is not None:
                self.empty_packets += 1

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
