"""How a file is cut into pieces: at cuts and changes of size, to a length, at key frames where that allows copies."""

from __future__ import annotations

import bisect
import dataclasses
import fractions
import math

import numpy as np

from data_pipelines.sources.videos.frames import NO_TIME
from data_pipelines.sources.videos.survey import Run, Survey
from data_pipelines.sources.videos.turning import UPRIGHT

# Copying must save this share of a shot, or it is not worth shorter pieces.
_WORTH = 0.5
# What common players hold is what decodes anywhere; intermediate formats are too large for a record.
_COPIED = frozenset(
    ("h264", "hevc", "vp8", "vp9", "libdav1d", "av1", "mpeg4", "mpeg1video", "mpeg2video", "mjpeg", "png")
)
_MERGED_SECONDS = 1


@dataclasses.dataclass(frozen=True)
class Piece:
    """Frames `start` to `stop` (exclusive) of a file.

    Attributes:
        start: number of the first frame.
        stop: number after the last.
        end: tick at which the last frame ends.
        run: the run that they are part of.
        groups: where the groups of a copy begin, as (frame, packet), and the end; None to encode anew.
    """

    start: int
    stop: int
    end: int
    run: Run
    groups: tuple[tuple[int, int], ...] | None = None


@dataclasses.dataclass(frozen=True)
class Limits:
    """Lengths in seconds.

    Attributes:
        longest: of a piece, unless one frame alone is longer.
        shortest: of a piece that is kept, unless it is the whole file.
        longest_group: that is copied.
        copy: whether to copy at all.
    """

    longest: fractions.Fraction
    shortest: fractions.Fraction
    longest_group: fractions.Fraction
    copy: bool


def plan(survey: Survey, limits: Limits) -> tuple[list[Piece], list[Piece]]:
    """Returns the pieces to record and the ones to drop because they are too short."""
    planner = _Planner(survey, limits)
    pieces = [piece for start, stop, run in planner.shots() for piece in planner.cut(start, stop, run)]
    if len(pieces) == 1 and not survey.damage:
        return pieces, []
    long_enough = [planner.seconds(piece.start, piece.stop) >= limits.shortest for piece in pieces]
    kept = [piece for piece, enough in zip(pieces, long_enough, strict=True) if enough]
    return kept, [piece for piece, enough in zip(pieces, long_enough, strict=True) if not enough]


class _Planner:
    def __init__(self, survey: Survey, limits: Limits) -> None:
        self._survey, self._limits = survey, limits
        self._ticks = survey.ticks
        # No frame is shown for longer than a piece may last: such a pause is a gap in the recording.
        usual = max(1, round(1 / (survey.frame_rate * survey.base)))
        nexts = np.append(self._ticks[1:], survey.end)
        gaps = nexts - self._ticks > max(usual, math.floor(limits.longest / survey.base))
        self._ends = np.where(gaps, self._ticks + usual, nexts)
        self._gaps = np.flatnonzero(gaps) + 1
        clean = _clean_starts(survey) if limits.copy and survey.codec in _COPIED else {}
        self._clean, self._packet = sorted(clean), clean

    def shots(self) -> list[tuple[int, int, Run]]:
        """The stretches without a cut, a gap or a change of size."""
        survey = self._survey
        frames = len(survey.ticks)
        runs = [run.start for run in survey.runs]
        bounds = sorted({*runs, *survey.cuts, *(int(gap) for gap in self._gaps if gap < frames), frames})
        return [
            (start, stop, survey.runs[bisect.bisect_right(runs, start) - 1])
            for start, stop in zip(bounds, bounds[1:], strict=False)
        ]

    def seconds(self, start: int, stop: int) -> fractions.Fraction:
        """How long frames last."""
        return int(self._ends[stop - 1] - self._ticks[start]) * self._survey.base

    def cut(self, start: int, stop: int, run: Run) -> list[Piece]:
        """Cuts a shot into pieces; those in its middle are copied where groups of pictures allow it."""
        first, last = self._body(start, stop, run)
        return [
            *self._split(start, first, run, copied=False),
            *self._split(first, last, run, copied=True),
            *self._split(last, stop, run, copied=False),
        ]

    def _body(self, start: int, stop: int, run: Run) -> tuple[int, int]:
        """The stretch of a shot to copy, empty at its start where there is none."""
        shortest = self._limits.shortest
        if run.turned != UPRIGHT:
            return start, start
        clean = self._clean[bisect.bisect_left(self._clean, start) : bisect.bisect_right(self._clean, stop)]
        # What is left at either side must be long enough to be kept.
        first = next((at for at in clean if at == start or self.seconds(start, at) >= shortest), stop)
        last = next((at for at in reversed(clean) if at == stop or self.seconds(at, stop) >= shortest), start)
        clean = [at for at in clean if first <= at <= last]
        groups = list(zip(clean, clean[1:], strict=False))
        if not groups or any(self.seconds(*group) > self._limits.longest_group for group in groups):
            return start, start
        return (first, last) if self.seconds(first, last) >= _WORTH * self.seconds(start, stop) else (start, start)

    def _split(self, start: int, stop: int, run: Run, *, copied: bool) -> list[Piece]:
        """Cuts a stretch into pieces of about one length."""
        pieces = []
        while start < stop:
            whole = self.seconds(start, stop)
            count = math.ceil(whole / self._limits.longest)
            ideal = self._ticks[start] + math.floor(whole / count / self._survey.base)
            at = stop if count == 1 else int(np.searchsorted(self._ticks, ideal, side="right")) - 1
            if copied and at < stop:
                before = self._clean[bisect.bisect_right(self._clean, at) - 1]
                at = before if before > start else self._clean[bisect.bisect_right(self._clean, start)]
            at = min(max(at, start + 1), stop)
            groups = self._groups(start, at) if copied else None
            pieces.append(Piece(start, at, int(self._ends[at - 1]), run, groups))
            start = at
        return pieces

    def _groups(self, start: int, stop: int) -> tuple[tuple[int, int], ...]:
        """Joins groups of pictures to groups of about a second; a reader decodes whole groups."""
        chosen = [start]
        clean = self._clean[bisect.bisect_right(self._clean, start) : bisect.bisect_right(self._clean, stop)]
        for at, following in zip(clean, clean[1:], strict=False):
            if self.seconds(chosen[-1], following) > _MERGED_SECONDS:
                chosen.append(at)
        return tuple((at, self._packet[at]) for at in (*chosen, stop))


def _clean_starts(survey: Survey) -> dict[int, int]:
    """Returns frames, and their packets, before and after which frames decode without each other; as far as is told.

    The end is one of them. Every packet from a clean key frame on is shown after every packet before it.
    """
    packets = survey.packets
    if survey.still:
        return {0: 0, 1: 1}
    ticks = np.array(packets.ticks, np.int64)
    if survey.dropped or survey.by_decoding or (ticks == NO_TIME).any():
        return {}
    earlier = np.maximum.accumulate(np.append(np.iinfo(np.int64).min, ticks[:-1]))
    later = np.minimum.accumulate(ticks[::-1])[::-1]
    starts = np.flatnonzero(np.array(packets.keys, bool) & (earlier < ticks) & (later == ticks))
    frames = np.searchsorted(survey.ticks, ticks[starts])
    clean = {
        int(frame): int(packet)
        for frame, packet in zip(frames, starts, strict=True)
        if frame < len(survey.ticks) and survey.ticks[frame] == ticks[packet]
    }
    if not survey.damage:
        clean[len(survey.ticks)] = len(ticks)
    # What an edit list hides would be shown again by a copy.
    hidden = np.flatnonzero(np.array(packets.discarded, bool))
    return {frame: packet for frame, packet in clean.items() if not len(hidden) or packet > hidden[-1]}
