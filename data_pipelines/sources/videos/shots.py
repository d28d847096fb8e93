"""Shot cuts, by PySceneDetect's adaptive detector on small copies of the frames."""

from __future__ import annotations

import dataclasses
import fractions
from collections import deque

import av
import numpy as np

_WIDTH = 192
# What differs less than this share of a jump is as it was before the jump.
_BACK = 0.25
# The detector tells of a cut this many frames late.
_WINDOW = 2


@dataclasses.dataclass(frozen=True, eq=False)
class _Small:
    number: int
    seconds: fractions.Fraction
    image: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class _Jump:
    """A cut that may turn out to be a flash."""

    seconds: fractions.Fraction
    before: np.ndarray
    size: float


class CutFinder:
    """Finds cuts in frames that are given one by one, holding small copies of the last ones.

    A flash (of a camera, of lightning, of a test signal) looks like one cut or two, but the picture after it is that
    of before: it is none. See the adaptive detector of https://www.scenedetect.com.
    """

    def __init__(self, threshold: float, flash: fractions.Fraction) -> None:
        """Prepares for the first frame.

        Args:
            threshold: how many times more than its neighbours a frame must differ from the last one.
            flash: seconds; a change that is undone within them is no cut.
        """
        from scenedetect import AdaptiveDetector, FrameTimecode

        self._detector = AdaptiveDetector(adaptive_threshold=threshold, min_scene_len=0, window_width=_WINDOW)
        self._timecode = lambda number: FrameTimecode(number, 25.0)  # the rate has no part in it
        self._flash = flash
        self._recent: deque[_Small] = deque()
        self._jump: _Jump | None = None
        self.cuts: list[int] = []

    def add(self, number: int, seconds: fractions.Fraction, frame: av.VideoFrame) -> None:
        """Takes the next frame: its number, its time and its picture."""
        height = max(1, round(_WIDTH * frame.height / frame.width))
        image = frame.reformat(_WIDTH, min(height, 4 * _WIDTH), "bgr24").to_ndarray()
        self._recent.append(_Small(number, seconds, image))
        while len(self._recent) > 2 * _WINDOW and seconds - self._recent[0].seconds > self._flash:
            self._recent.popleft()
        self._look_back(self._recent[-1])
        for cut in self._detector.process_frame(self._timecode(number), image):
            self._found(cut.frame_num)

    def _found(self, number: int) -> None:
        at = number - self._recent[0].number
        after, before = self._recent[at], self._recent[at - 1]
        size = _difference(before.image, after.image)
        if any(_difference(small.image, after.image) < _BACK * size for small in list(self._recent)[: at - 1]):
            return  # the end of a flash
        self.cuts.append(number)
        self._jump = _Jump(after.seconds, before.image, size)
        for small in list(self._recent)[at + 1 :]:
            self._look_back(small)

    def _look_back(self, small: _Small) -> None:
        """Drops the last cut if a frame soon after it is as before."""
        jump = self._jump
        if jump is None:
            return
        if small.seconds - jump.seconds >= self._flash:
            self._jump = None
        elif _difference(jump.before, small.image) < _BACK * jump.size:
            self.cuts.pop()
            self._jump = None


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(np.int16) - other).mean())
