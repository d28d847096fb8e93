"""The sound of a file on the clock of its pictures, read window after window."""

from __future__ import annotations

import fractions
from collections import deque
from collections.abc import Iterator

import av
import av.error
import numpy as np
from av.container import InputContainer

from data_pipelines.sources.videos.media import MediaError, reason, time_base

# Timestamps of sound are rounded, to a millisecond in Matroska; a difference up to this is no gap.
_JITTER_SECONDS = 0.003
_MAX_FREE_RATE, _MAX_RATE = 65_535, 655_350  # above the first, multiples of ten
_HALF = 0.5**0.5
# What a channel adds to the left and the right, as in ITU-R BS.775; effects of the subwoofer are left out there.
_DOWNMIX = {
    **dict.fromkeys(("FL", "DL", "FLC", "WL", "TFL"), (1.0, 0.0)),
    **dict.fromkeys(("FR", "DR", "FRC", "WR", "TFR"), (0.0, 1.0)),
    **dict.fromkeys(("FC", "BC", "TC", "TFC", "TBC"), (_HALF, _HALF)),
    **dict.fromkeys(("BL", "SL", "TBL", "TSL", "SDL"), (_HALF, 0.0)),
    **dict.fromkeys(("BR", "SR", "TBR", "TSR", "SDR"), (0.0, _HALF)),
    **dict.fromkeys(("LFE", "LFE2"), (0.0, 0.0)),
}


class Sound:
    """The sound of a file as int16, mono or stereo, at its own rate; silence where it has none.

    Attributes:
        sample_rate: Hz.
        channels: 0 to 2; 0 where there is no sound that decodes.
        problem: what is wrong with it, or "".
    """

    def __init__(self, container: InputContainer, stream: av.AudioStream, origin: fractions.Fraction) -> None:
        """Reads up to the first samples.

        Args:
            container: the opened file, for the sound alone.
            stream: one of its streams.
            origin: timestamp in seconds that is time 0.
        """
        self.sample_rate, self.channels, self.problem = 0, 0, ""
        self._container, self._stream, self._origin = container, stream, origin
        self._chunks = self._decode()
        self._held: deque[tuple[int, np.ndarray]] = deque()
        first = next(self._chunks, None)
        if first is not None:
            self._held.append(first)

    def read(self, first: int, count: int) -> np.ndarray:
        """Returns samples `[count, channels]` from sample `first` on, which must not fall from call to call."""
        while self._held and self._held[0][0] + len(self._held[0][1]) <= first:
            self._held.popleft()
        while not self._held or self._held[-1][0] < first + count:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            if chunk[0] + len(chunk[1]) > first:
                self._held.append(chunk)
        window = np.zeros((count, self.channels), np.int16)
        for position, samples in self._held:
            start, stop = max(position, first), min(position + len(samples), first + count)
            if start < stop:
                window[start - first : stop - first] = samples[start - position : stop - position]
        return window

    def _decode(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yields where samples begin on the clock, and the samples; in order and without overlap."""
        end, last = None, None
        for frame in self._frames():
            if not self.sample_rate:
                _check_rate(frame.sample_rate)
                self.sample_rate, self.channels = frame.sample_rate, min(2, frame.layout.nb_channels)
            if frame.sample_rate != self.sample_rate:
                self.problem = (
                    f"the sound changes from {self.sample_rate} to {frame.sample_rate} Hz; silence from there"
                )
                return
            samples = _mix(_to_int16(frame), [channel.name for channel in frame.layout.channels], self.channels)
            # A timestamp that does not rise says nothing.
            told = frame.pts is not None and (last is None or frame.pts > last)
            position = self._position(frame, end) if told else end or 0
            last = frame.pts if told else last
            if end is not None and position < end:
                samples, position = samples[end - position :], end
            if len(samples):
                yield position, samples
                end = position + len(samples)

    def _position(self, frame: av.AudioFrame, end: int | None) -> int:
        base = frame.time_base or time_base(self._stream)
        position = round(((frame.pts or 0) * base - self._origin) * self.sample_rate)
        jitter = self.sample_rate * max(_JITTER_SECONDS, float(base))
        return end if end is not None and abs(position - end) <= jitter else position

    def _frames(self) -> Iterator[av.AudioFrame]:
        context = self._stream.codec_context
        context.thread_count = 1
        packets = self._container.demux(self._stream)
        broken = 0
        while True:
            try:
                packet = next(packets, None)
            except (av.error.FFmpegError, OSError, ValueError) as error:
                self.problem = f"the sound ends early ({reason(error)})"
                return
            if packet is None:
                return
            if packet.size == 0 and packet.dts is not None:
                continue
            try:
                frames = context.decode(packet if packet.size else None)
            except EOFError:
                continue
            except (av.error.FFmpegError, ValueError) as error:
                broken += 1
                self.problem = f"packets of the sound that do not decode, silent here: {broken} ({reason(error)})"
                continue
            yield from (frame for frame in frames if frame.samples)


def open_sound(
    container: InputContainer, video: av.VideoStream, origin: fractions.Fraction
) -> tuple[Sound | None, str]:
    """Returns the sound that goes with a video, or None, and what was wrong with streams that were passed over.

    Args:
        container: the opened file, for the sound alone.
        video: the stream of its pictures.
        origin: timestamp in seconds of the first picture.
    """
    streams = container.streams.audio
    if not streams:
        return None, ""
    stream = container.streams.best("audio", related=video)
    assert stream is None or isinstance(stream, av.AudioStream)
    if stream is None or stream.codec_context is None:
        return None, "its sound has no decoder; recorded without"
    try:
        sound = Sound(container, stream, origin)
    except MediaError as error:
        return None, f"its sound is left out: {reason(error)}"
    if sound.channels:
        return sound, ""
    return None, sound.problem and f"no sound decodes, recorded without ({sound.problem})"


def _check_rate(rate: int) -> None:
    """Raises MediaError for a rate that FLAC cannot store."""
    if rate > _MAX_RATE or (rate > _MAX_FREE_RATE and rate % 10):
        raise MediaError(f"FLAC cannot store {rate} Hz")


def _to_int16(frame: av.AudioFrame) -> np.ndarray:
    """Returns int16 `[samples, channels]`."""
    values: np.ndarray = frame.to_ndarray()
    channels = frame.layout.nb_channels
    values = values.T if frame.format.is_planar else values.reshape(-1, channels)
    if values.dtype == np.int16:
        return values
    if values.dtype == np.uint8:
        return (values.astype(np.int16) - 128) << 8
    if np.issubdtype(values.dtype, np.integer):
        shift = 8 * values.dtype.itemsize - 16
        return np.clip(((values.astype(np.int64) >> (shift - 1)) + 1) >> 1, -(2**15), 2**15 - 1).astype(np.int16)
    return np.clip(np.rint(np.nan_to_num(values) * 2.0**15), -(2**15), 2**15 - 1).astype(np.int16)


def _mix(samples: np.ndarray, names: list[str], channels: int) -> np.ndarray:
    """Mixes int16 `[samples, names]` to one or two channels; as many as there are stay as they are."""
    if samples.shape[1] == channels:
        return samples
    if samples.shape[1] == 1:
        return np.repeat(samples, channels, axis=1)
    if channels == 1:
        return np.rint(samples.mean(axis=1, keepdims=True)).astype(np.int16)
    weights = np.array([_DOWNMIX.get(name, (0.5, 0.5)) for name in names])
    # Scaled so that nothing clips.
    weights /= max(1.0, weights.sum(axis=0).max())
    return np.rint(samples @ weights).astype(np.int16)
