"""Video as a list of groups, each coded on its own: a window decodes only the groups that it touches.

A group is raw frames under zstd, or a Matroska file whose first frame is a key frame.
"""

from __future__ import annotations

import dataclasses
import fractions
import io
import itertools
from collections.abc import Iterable, Iterator
from typing import Literal

import av
import numpy as np
import zstandard
from av.container import InputContainer
from av.video.reformatter import ColorRange, Colorspace

from data_pipelines.clip import ClipError

# "copy": packets of the source file, as they were.
VideoCodec = Literal["zstd", "h264_444", "h264_420", "copy"]
ENCODERS = ("zstd", "h264_444", "h264_420")

_ZSTD_LEVEL = 6
# One thread, and no macroblock tree (its result varied between runs): equal clips give equal bytes.
_H264_OPTIONS = {"preset": "medium", "tune": "fastdecode", "threads": "1", "x264-params": "mbtree=0"}
# Rendered frames have sharp colours, which 4:2:0 would blur; camera frames come from 4:2:0 as a rule.
_H264_FORMATS = {"h264_444": ("yuv444p", "10"), "h264_420": ("yuv420p", "16")}
# From this height on a video that does not say its colour matrix has BT.709's, below BT.601's.
_HD_HEIGHT = 720
# By their numbers in ITU-T H.273.
_MATRICES = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
    10: Colorspace.BT2020,
}
# The decoder that FFmpeg prefers wants hardware.
_SOFTWARE_DECODERS = {"av1": "libdav1d"}


@dataclasses.dataclass(frozen=True)
class Group:
    """Some frames in succession, coded without reference to any other."""

    frames: int
    data: bytes | memoryview


def encode_groups(
    frames: Iterable[np.ndarray], codec: VideoCodec, frame_rate: fractions.Fraction, size: int
) -> Iterator[Group]:
    """Codes uint8 `[height, width, 3]` frames in groups of `size`, holding one group in memory.

    Raises:
        ClipError: the codec is no encoder.
    """
    if codec not in ENCODERS:
        raise ClipError(f"video_codec is {codec!r}; use one of {', '.join(ENCODERS)}")
    remaining = iter(frames)
    while group := list(itertools.islice(remaining, size)):
        if codec == "zstd":
            data = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(np.stack(group).tobytes())
        else:
            data = _encode_h264(group, frame_rate, *_H264_FORMATS[codec])
        yield Group(len(group), data)


def decode_group(group: Group, codec: str, height: int, width: int) -> np.ndarray:
    """Decodes a group to uint8 RGB `[frames, height, width, 3]`.

    Raises:
        ClipError: the group holds another number of frames.
        ValueError, FFmpegError, ZstdError: it is damaged.
    """
    if codec == "zstd":
        raw = zstandard.ZstdDecompressor().decompress(group.data)
        return np.frombuffer(raw, np.uint8).reshape(group.frames, height, width, 3)
    video = np.empty((group.frames, height, width, 3), np.uint8)
    count = 0
    with av.open(io.BytesIO(group.data), "r", format="matroska") as container:
        for count, frame in enumerate(decode_stream(container, container.streams.video[0], threads=1), 1):
            if count > group.frames:
                break
            # An odd side was filled up for a codec that halves it.
            video[count - 1] = to_rgb(frame)[:height, :width]
    if count != group.frames:
        raise ClipError(f"video has {count} frames in a group, the header says {group.frames}; rebuild it")
    return video


def decode_stream(container: InputContainer, stream: av.VideoStream, *, threads: int) -> Iterator[av.VideoFrame]:
    """Yields the frames of a stream in order of presentation; 0 threads are as many as there are cores."""
    name = _SOFTWARE_DECODERS.get(stream.codec_context.name)
    if name is None:
        # A reader of many clips side by side needs no threads of the decoder.
        stream.codec_context.thread_count = threads
        stream.codec_context.thread_type = "NONE" if threads == 1 else "AUTO"
        yield from container.decode(stream)
        return
    decoder = av.CodecContext.create(name, "r")
    assert isinstance(decoder, av.VideoCodecContext)
    decoder.extradata = stream.codec_context.extradata
    decoder.thread_count = threads
    for packet in container.demux(stream):
        for frame in decoder.decode(packet if packet.size else None):
            frame.time_base = frame.time_base or stream.time_base
            yield frame


def to_rgb(frame: av.VideoFrame) -> np.ndarray:
    """Returns uint8 RGB `[height, width, 3]`; the frame's own colour matrix and range hold, or the usual ones."""
    matrix = _MATRICES.get(frame.colorspace, Colorspace.ITU709 if frame.height >= _HD_HEIGHT else Colorspace.ITU601)
    values = ColorRange(frame.color_range)
    if values == ColorRange.UNSPECIFIED:
        values = ColorRange.JPEG if frame.format.name.startswith("yuvj") else ColorRange.MPEG
    return frame.reformat(format="rgb24", src_colorspace=matrix, src_color_range=values).to_ndarray()


def _encode_h264(frames: list[np.ndarray], frame_rate: fractions.Fraction, pixels: str, crf: str) -> bytes:
    """Encodes one closed group of pictures as a Matroska file: one key frame, the first."""
    file = io.BytesIO()
    options = _H264_OPTIONS | {"crf": crf, "g": str(len(frames)), "sc_threshold": "0"}
    # Bit-exact muxing leaves out the random file id, so equal clips have equal bytes.
    with av.open(file, "w", format="matroska", container_options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=frame_rate, options=options)
        assert isinstance(stream, av.VideoStream)
        even = 2 if pixels == "yuv420p" else 1
        height, width = frames[0].shape[:2]
        fill = ((0, -height % even), (0, -width % even), (0, 0))
        stream.height, stream.width = height + fill[0][1], width + fill[1][1]
        stream.pix_fmt = pixels
        stream.codec_context.colorspace = Colorspace.ITU709
        stream.codec_context.color_range = ColorRange.JPEG
        for index, image in enumerate(frames):
            image = np.pad(image, fill, "edge") if even > 1 else np.ascontiguousarray(image)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
                format=pixels, dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.JPEG
            )
            frame.pts, frame.time_base = index, 1 / frame_rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()
