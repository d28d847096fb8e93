"""How a frame must be turned to be shown, as a phone held on its side records it."""

from __future__ import annotations

from typing import Any, cast

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType

Orientation = tuple[bool, bool, bool]  # transpose, then flip the rows, then the columns
UPRIGHT: Orientation = (False, False, False)
# By number, counterclockwise.
_QUARTER_TURNS: tuple[Orientation, ...] = (UPRIGHT, (True, True, False), (False, True, True), (True, False, True))


def orientation(frame: av.VideoFrame) -> Orientation:
    """Returns how a frame must be turned to be shown, to the nearest quarter turn."""
    try:
        matrix = bytes(cast(Any, frame.side_data)[SideDataType.DISPLAYMATRIX])
    except KeyError:
        return UPRIGHT
    except ValueError:
        # PyAV cannot list what a newer FFmpeg attaches beside it, such as EXIF; this leaves mirroring out.
        return _QUARTER_TURNS[round(frame.rotation / 90) % 4]
    # A pixel (x, y) is shown at (a x + c y, b x + d y); see ISO/IEC 14496-12, 6.2.2.
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].astype(np.int64)
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, bool(d < 0), bool(a < 0)
    return True, bool(b < 0), bool(c < 0)


def turn(image: np.ndarray, how: Orientation) -> np.ndarray:
    """Turns a picture `[height, width, 3]` upright."""
    transpose, rows, columns = how
    image = image.swapaxes(0, 1) if transpose else image
    return np.ascontiguousarray(image[:: -1 if rows else 1, :: -1 if columns else 1])
