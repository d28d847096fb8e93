"""The second pass over a file: its pieces become records, with one group of pictures in memory at a time."""

from __future__ import annotations

import contextlib
import fractions
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from data_pipelines import record as record_lib
from data_pipelines import video as video_lib
from data_pipelines.clip import samples_at
from data_pipelines.record import Record
from data_pipelines.sources.videos import captions, media, timing
from data_pipelines.sources.videos.captions import Captions
from data_pipelines.sources.videos.copying import Copier
from data_pipelines.sources.videos.frames import FrameReader
from data_pipelines.sources.videos.pieces import Piece
from data_pipelines.sources.videos.sound import Sound, open_sound
from data_pipelines.sources.videos.survey import Survey
from data_pipelines.sources.videos.turning import turn
from data_pipelines.video import Group, VideoCodec

_CODEC: VideoCodec = "h264_420"
_SILENT_SAMPLE_RATE = 48_000
_GROUP_BYTES = 2**28


class Recorder:
    """Records the pieces of one file, which must come in order."""

    def __init__(
        self,
        stack: contextlib.ExitStack,
        path: Path,
        name: str,
        survey: Survey,
        facts: Captions,
        max_pixels: int,
    ) -> None:
        """Opens the sound; pictures are opened when they are wanted.

        Args:
            stack: closes what is opened here.
            path: the file.
            name: of the file in the records.
            survey: of the file.
            facts: its captions and licence.
            max_pixels: see `media.open_media`.
        """
        self._stack, self._path, self._name, self._survey = stack, path, name, survey
        self._facts, self._max_pixels = facts, max_pixels
        self._copier: Copier | None = None
        self._frames: Iterator[tuple[int, tuple[int, av.VideoFrame]]] | None = None
        self._sound, self._sound_problem = self._open_sound()

    def record(self, number: int, piece: Piece) -> Record:
        """Records a piece.

        Raises:
            MediaError: the file reads otherwise than the first time.
            OSError, FFmpegError: it cannot be read.
        """
        survey = self._survey
        rate = survey.frame_rate
        ticks = survey.ticks[piece.start : piece.stop].tolist()
        times = timing.timestamps(ticks, piece.end, survey.base, rate)
        frames = len(ticks) if times is None else times.steps(rate)
        start = (ticks[0] - int(survey.ticks[0])) * survey.base
        groups = self._copied(piece)
        codec = _CODEC if groups is None else "copy"
        height, width = piece.run.size
        audio, sample_rate = self._audio(start, frames)
        aspect = survey.pixel_aspect
        return Record(
            frames=frames,
            height=height,
            width=width,
            channels=audio.shape[1],
            audio=record_lib.encode_audio(audio, sample_rate),
            actions=np.zeros((frames, 0), np.float32),
            action_names=(),
            events=captions.events(self._facts.texts, float(start), frames, float(rate)),
            frame_rate=rate,
            sample_rate=sample_rate,
            source=f"videos:{self._name}",
            licence=self._facts.licence or "",
            seed=0,
            episode=f"videos/{self._name}#{number:04d}",
            video_codec=codec,
            groups=self._encoded(piece) if groups is None else groups,
            timestamps=times,
            pixel_aspect=1 / aspect if piece.run.turned[0] else aspect,
        )

    def problems(self) -> Iterator[str]:
        """Yields what is wrong with the sound, as far as it has been read."""
        problem = self._sound.problem if self._sound is not None else self._sound_problem
        if problem:
            yield problem

    def _open_sound(self) -> tuple[Sound | None, str]:
        if self._survey.still:
            return None, ""
        container = self._stack.enter_context(media.open_media(self._path, self._max_pixels))
        return open_sound(container, media.best_video(container, self._max_pixels), self._survey.origin)

    def _audio(self, start: fractions.Fraction, frames: int) -> tuple[np.ndarray, int]:
        """Returns int16 `[samples, channels]` of frames from a time on, and the sample rate."""
        rate = self._sound.sample_rate if self._sound is not None else _SILENT_SAMPLE_RATE
        count = samples_at(frames, rate, self._survey.frame_rate)
        if self._sound is None:
            return np.zeros((count, 0), np.int16), rate
        return self._sound.read(round(start * rate), count), rate

    def _copied(self, piece: Piece) -> tuple[Group, ...] | None:
        if piece.groups is None:
            return None
        if self._copier is None:
            container = self._stack.enter_context(media.open_media(self._path, self._max_pixels))
            self._copier = Copier(container, media.best_video(container, self._max_pixels))
        return self._copier.copy(piece, self._survey.sums)

    def _encoded(self, piece: Piece) -> tuple[Group, ...]:
        height, width = piece.run.size
        in_memory = max(1, _GROUP_BYTES // (height * width * 3))
        size = min(in_memory, record_lib.group_size(self._survey.frame_rate))
        return tuple(video_lib.encode_groups(self._pictures(piece), _CODEC, self._survey.frame_rate, size))

    def _pictures(self, piece: Piece) -> Iterator[np.ndarray]:
        """Yields the frames of a piece, uint8 RGB `[height, width, 3]`, upright."""
        if self._frames is None:
            container = self._stack.enter_context(media.open_media(self._path, self._max_pixels))
            stream = media.best_video(container, self._max_pixels)
            reader = FrameReader(container, stream, self._max_pixels, by_decoding=self._survey.by_decoding)
            self._frames = enumerate(reader.frames())
        for number, (tick, frame) in self._frames:
            if tick != self._survey.ticks[number]:
                break
            if number >= piece.start:
                yield turn(video_lib.to_rgb(frame), piece.run.turned)
            if number == piece.stop - 1:
                return
        raise media.MediaError("the file reads otherwise the second time")
