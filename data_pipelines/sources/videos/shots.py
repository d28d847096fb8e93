"""Shot cuts, by PySceneDetect's adaptive detector on small copies of the frames."""

from __future__ import annotations

import fractions

import av
import numpy as np

_WIDTH = 192
# Mean difference of two pictures, of 255, below which they show the same shot.
_SAME = 15.0
# The detector tells of a cut this many frames late.
_WINDOW = 2


class CutFinder:
    """Finds cuts in frames that are given one by one, holding a few small copies.

    A flash (of a camera, of lightning, of a test signal) looks like two cuts, but the picture after it is that of
    before: it is none. See the adaptive detector of https://www.scenedetect.com.
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
        self._recent: dict[int, tuple[fractions.Fraction, np.ndarray]] = {}
        self._last: tuple[fractions.Fraction, np.ndarray] | None = None  # when it was, and the frame before it
        self.cuts: list[int] = []

    def add(self, number: int, seconds: fractions.Fraction, frame: av.VideoFrame) -> None:
        """Takes the next frame: its number, its time and its picture."""
        height = max(1, round(_WIDTH * frame.height / frame.width))
        small = frame.reformat(_WIDTH, min(height, 4 * _WIDTH), "bgr24").to_ndarray()
        self._recent[number] = seconds, small
        for cut in self._detector.process_frame(self._timecode(number), small):
            self._found(cut.frame_num)
        self._recent = {key: value for key, value in self._recent.items() if key >= number - _WINDOW - 1}

    def _found(self, number: int) -> None:
        seconds, after = self._recent[number]
        if self._last is not None and seconds - self._last[0] < self._flash and _same(self._last[1], after):
            self.cuts.pop()
            self._last = None
            return
        self.cuts.append(number)
        self._last = seconds, self._recent[number - 1][1]


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return float(np.abs(one.astype(np.int16) - other).mean()) < _SAME
