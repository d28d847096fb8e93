"""Films: a stream as an mp4 file, its frames on their exact times, its sound in step, its keys in view.

Small pictures are enlarged by whole factors without smoothing, so every pixel stays visible. A strip under the
picture shows the prompt in force and the keys, lit while they are held.
"""

from __future__ import annotations

import contextlib
import fractions
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, cast

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from pixr1_jax.engine.caption import Caption, draw

_SHORT_SIDE = 360
_H264_OPTIONS = {"crf": "16", "preset": "medium"}
# At the rates of small worlds (6 kHz) AAC has frames of 0.1 s and more, whose echo blurs a click; here of 20 ms.
_AAC_RATES = (44_100, 48_000)
_AAC_BITS = 160_000
_LAYOUTS = {1: "mono", 2: "stereo"}


class Film:
    """An mp4 file being written; made by `film`. Frames and sound may come in pieces of any length."""

    def __init__(
        self,
        container: Any,
        frame_rate: fractions.Fraction,
        channels: int,
        sample_rate: int,
        scale: int | None,
    ) -> None:
        self._container, self._frame_rate = container, frame_rate
        self._channels, self._sample_rate, self._scale = channels, sample_rate, scale
        self._shape: tuple[int, ...] = ()
        self._captioned = False
        self._frames = self._samples = 0
        self._video = container.add_stream("libx264", rate=frame_rate, options=_H264_OPTIONS)
        self._audio = self._add_audio() if channels else None

    def write(self, frame: np.ndarray, caption: Caption | None = None) -> None:
        """Adds a frame.

        Args:
            frame: uint8 RGB `[height, width, 3]`, of the first frame's shape.
            caption: what the strip under the picture says; for all frames or for none.

        Raises:
            ValueError: the frame is no picture, or differs in shape from the first.
        """
        if self._frames == 0:
            self._open_video(frame, caption)
        if frame.dtype != np.uint8 or frame.shape != self._shape or (caption is not None) != self._captioned:
            raise ValueError(
                f"film frame {self._frames} is {frame.dtype}{list(frame.shape)}, the first "
                f"uint8{list(self._shape)}; give frames of one shape, all with a caption or none"
            )
        picture = _even(_with_caption(frame, caption, self._scale or 1))
        video = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        video.pts, video.time_base = self._frames, 1 / self._frame_rate
        self._container.mux(self._video.encode(video))
        self._frames += 1

    def write_sound(self, sound: np.ndarray) -> None:
        """Adds sound, float32 `[samples, channels]` in -1 to 1 (clipped); of a silent film it is ignored.

        Raises:
            ValueError: another number of channels than the film has.
        """
        if sound.ndim != 2 or sound.shape[1] != self._channels:
            raise ValueError(f"film sound has shape {list(sound.shape)}; use [samples, {self._channels}]")
        if self._audio is None or len(sound) == 0:
            return
        packed = np.clip(sound, -1, 1).astype(np.float32).reshape(1, -1)
        audio = av.AudioFrame.from_ndarray(packed, format="flt", layout=_LAYOUTS[self._channels])
        audio.sample_rate = self._sample_rate
        audio.pts, audio.time_base = self._samples, fractions.Fraction(1, self._sample_rate)
        self._container.mux(self._audio.encode(audio))
        self._samples += len(sound)

    def close(self) -> None:
        """Writes what the encoders still hold.

        Raises:
            ValueError: no frame was written.
        """
        if self._frames == 0:
            raise ValueError("film has no frames; write at least one")
        self._container.mux(self._video.encode())
        if self._audio is not None and self._samples:
            self._container.mux(self._audio.encode())

    def _add_audio(self) -> Any:
        exact = [rate for rate in _AAC_RATES if rate % self._sample_rate == 0]
        rate = (exact or _AAC_RATES[-1:])[0]
        return self._container.add_stream("aac", rate=rate, layout=_LAYOUTS[self._channels], bit_rate=_AAC_BITS)

    def _open_video(self, frame: np.ndarray, caption: Caption | None) -> None:
        if frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
            raise ValueError(f"film frame has shape {list(frame.shape)}; use [height, width, 3]")
        self._shape, self._captioned = frame.shape, caption is not None
        if self._scale is None:
            self._scale = max(1, -(-_SHORT_SIDE // min(frame.shape[:2])))
        height, width = _even(_with_caption(frame, caption, self._scale)).shape[:2]
        self._video.height, self._video.width, self._video.pix_fmt = height, width, "yuv420p"
        context = self._video.codec_context
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG


@contextlib.contextmanager
def film(
    path: str | os.PathLike[str],
    frame_rate: fractions.Fraction,
    *,
    channels: int,
    sample_rate: int,
    scale: int | None = None,
) -> Iterator[Film]:
    """Writes an mp4 file (H.264 4:2:0, AAC) while the `with` block runs; it appears when the block ends well.

    Args:
        path: the file; its folder is made if missing.
        frame_rate: frames a second; frame k is shown from k / frame_rate on, exactly.
        channels: of the sound: 0 (a silent film), 1 or 2.
        sample_rate: of the sound, Hz; resampled to 44.1 or 48 kHz.
        scale: whole factor by which pictures are enlarged; None makes the short side at least 360 pixels.

    Yields:
        The film to write to.

    Raises:
        ValueError: an argument is out of range, or no frame was written.
    """
    if channels not in (0, *_LAYOUTS):
        raise ValueError(f"film channels is {channels}; use 0, 1 or 2")
    if scale is not None and scale < 1:
        raise ValueError(f"film scale is {scale}; use a whole number from 1 on")
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        options = {"movflags": "+faststart"}
        with av.open(str(partial), "w", format="mp4", container_options=options) as container:
            writer = Film(container, frame_rate, channels, sample_rate, scale)
            yield writer
            writer.close()
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_film(
    path: str | os.PathLike[str],
    frames: Iterable[np.ndarray],
    frame_rate: fractions.Fraction,
    sound: np.ndarray,
    sample_rate: int,
    scale: int | None = None,
    captions: Iterable[Caption] | None = None,
) -> None:
    """Writes a whole film at once; see `film`.

    Args:
        path: the mp4 file.
        frames: uint8 RGB `[height, width, 3]` each.
        frame_rate: frames a second.
        sound: float32 `[samples, channels]`, beginning with the first frame.
        sample_rate: Hz.
        scale: see `film`.
        captions: one a frame, or None for pictures alone.

    Raises:
        ValueError: see `film` and `Film`; or there are not as many captions as frames.
    """
    if sound.ndim != 2:
        raise ValueError(f"film sound has shape {list(sound.shape)}; use [samples, channels]")
    with film(path, frame_rate, channels=sound.shape[1], sample_rate=sample_rate, scale=scale) as writer:
        written = 0
        labelled = ((frame, None) for frame in frames) if captions is None else zip(frames, captions, strict=True)
        for index, (frame, caption) in enumerate(labelled):
            writer.write(frame, caption)
            # Sound goes in beside its frames, so that the two need no buffering on their way into the file.
            end = int((index + 1) * sample_rate / frame_rate)
            writer.write_sound(sound[written:end])
            written = end
        writer.write_sound(sound[written:])


def _with_caption(frame: np.ndarray, caption: Caption | None, scale: int) -> np.ndarray:
    large = frame.repeat(scale, axis=0).repeat(scale, axis=1)
    return large if caption is None else np.concatenate([large, draw(caption, large.shape[1])])


def _even(picture: np.ndarray) -> np.ndarray:
    """Repeats the last row and column where a size is odd, which 4:2:0 cannot hold."""
    height, width = picture.shape[:2]
    if height % 2 == 0 and width % 2 == 0:
        return picture
    return cast(np.ndarray, np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))
