"""A player that gets around: it walks where there is room and turns where there is none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from data_pipelines.sources.vizdoom.game import View
from data_pipelines.sources.vizdoom.scenarios import ACTION_NAMES
from data_pipelines.sources.vizdoom.settings import Recording

_FORWARD, _LEFT, _RIGHT, _USE = map(ACTION_NAMES.index, ("move_forward", "turn_left", "turn_right", "use"))
_WALKING = [index for index, name in enumerate(ACTION_NAMES) if name.startswith(("move_", "turn_", "use"))]

# A wall closer than this, in steps of the depth buffer of about 13 units of the map, is in the way.
_NEAR = 8
# The share of the picture's height, about the horizon, in which walls are looked for.
_BAND = (0.42, 0.58)
# A player that walks does 5 to 8 units a tic; below this it is held up.
_STILL_PER_TIC = 1.0
_STUCK_TICS = 8
# How long to turn: away from a wall (30 to 60 degrees), and for no reason, which happens once in two seconds.
_AVOID_TICS, _WANDER_TICS = (8, 18), (3, 10)
_MAX_TURN_TICS = 52
_WANDER_PER_TIC = 1 / 70
_CONTRARY = 0.15


class Explorer:
    """Walks on while there is room ahead, and turns to where there is more where there is not.

    A wall is seen in the depth buffer; what is not seen (a low obstacle, a closed door, a corner at the shoulder) is
    felt, because the player stops: then it tries the door, and turns further each time.
    """

    def __init__(self, recording: Recording, actions: np.ndarray, rng: np.random.Generator) -> None:
        """See the class.

        Args:
            recording: what is played.
            actions: float32 `[frames, action_dim]`, of which attacks are kept.
            rng: decides what is left to chance.
        """
        self._actions, self._rng, self._tics = actions, rng, recording.tics_per_frame
        self._unused = [index for index, name in enumerate(ACTION_NAMES) if name not in recording.scene.buttons]
        self._position: np.ndarray | None = None
        self._walked, self._held_up, self._bumps = False, 0, 0
        self._turn, self._turn_ends = _LEFT, 0

    def __call__(self, frame: int, look: Callable[[], View]) -> np.ndarray:
        """Returns the row of actions for a frame, float32 `[action_dim]`."""
        view = look()
        left, ahead, right = _room(view.depth)
        self._feel(view.position)
        blocked = ahead < _NEAR
        stuck = self._held_up * self._tics >= _STUCK_TICS
        if frame >= self._turn_ends:
            if blocked or stuck:
                self._bumps = self._bumps + 1 if stuck else 0
                towards = _LEFT if (left > right) != (self._rng.random() < _CONTRARY) else _RIGHT
                self._begin_turn(frame, towards, _AVOID_TICS, 1 + self._bumps)
            elif self._rng.random() < _WANDER_PER_TIC * self._tics:
                self._begin_turn(frame, int(self._rng.choice([_LEFT, _RIGHT])), _WANDER_TICS, 1)
        turning = frame < self._turn_ends
        self._walked = not (turning and blocked)
        row = self._actions[frame].copy()
        row[_WALKING] = 0
        row[_FORWARD] = self._walked
        row[_USE] = stuck or (blocked and self._rng.random() < 0.5)
        row[self._turn] = turning
        row[self._unused] = 0
        return row

    def _feel(self, position: np.ndarray) -> None:
        """Counts the frames in a row in which the player walked and came nowhere."""
        before, self._position = self._position, position
        moved = before is None or np.linalg.norm(position - before) >= _STILL_PER_TIC * self._tics
        self._held_up = self._held_up + 1 if self._walked and not moved else 0

    def _begin_turn(self, frame: int, towards: int, tics: tuple[int, int], times: int) -> None:
        duration = min(_MAX_TURN_TICS, times * int(self._rng.integers(*tics, endpoint=True)))
        self._turn, self._turn_ends = towards, frame + max(1, round(duration / self._tics))


def _room(depth: np.ndarray | None) -> tuple[float, float, float]:
    """Returns how far it is to the left, ahead and to the right: a low quartile, so that a gap is no way."""
    assert depth is not None, "the recording's policy has the depth buffer on"
    height = depth.shape[0]
    band = depth[round(_BAND[0] * height) : round(_BAND[1] * height)]
    left, ahead, right = (float(np.percentile(part, 25)) for part in np.array_split(band, 3, axis=1))
    return left, ahead, right
