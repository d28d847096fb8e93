"""The truth about each frame of a game: its variables, and what is in view and where."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from data_pipelines.facts import Fact

if TYPE_CHECKING:
    import vizdoom

# Names of `vizdoom.GameVariable`, in lower case.
VARIABLES = (
    "health",
    "armor",
    "selected_weapon",
    "selected_weapon_ammo",
    "killcount",
    "hitcount",
    "damagecount",
    "damage_taken",
    "itemcount",
    "secretcount",
    "dead",
    "on_ground",
    "attack_ready",
    "position_x",
    "position_y",
    "position_z",
    "angle",
    "pitch",
    "velocity_x",
    "velocity_y",
    "velocity_z",
)
COLUMNS = ("object", "id", "left", "top", "width", "height", "x", "y", "z")
MOST_LABELS = 24  # things of a frame, the largest in view


class Truth:
    """Collects the facts of a game, frame by frame."""

    def __init__(self) -> None:
        self._variables: list[list[float]] = []
        self._labels: list[list[tuple[str, tuple[float, ...]]]] = []

    def add(self, game: vizdoom.DoomGame, state: vizdoom.GameState) -> None:
        """Adds the frame that a state shows."""
        import vizdoom

        known = vizdoom.GameVariable.__members__
        self._variables.append(
            [game.get_last_reward(), *(game.get_game_variable(known[name.upper()]) for name in VARIABLES)]
        )
        largest = sorted(state.labels or (), key=lambda label: (-label.width * label.height, label.object_id))
        self._labels.append([(label.object_name, _row(label)) for label in largest[:MOST_LABELS]])

    def facts(self) -> dict[str, Fact]:
        """Returns what was collected.

        "variables" `[frames, 1 + VARIABLES]`, the first being the reward of the frame's action; "labels" `[frames,
        MOST_LABELS, COLUMNS]`: number of the name, identity, box in pixels and place on the map of each thing in view,
        the largest first, NaN where there are fewer.
        """
        names = tuple(sorted({name for labels in self._labels for name, _ in labels}))
        boxes = np.full((len(self._labels), MOST_LABELS, len(COLUMNS)), np.nan, np.float32)
        for frame, labels in enumerate(self._labels):
            for place, (name, row) in enumerate(labels):
                boxes[frame, place] = (names.index(name), *row)
        variables = np.array(self._variables, np.float32)
        return {"variables": Fact(variables, ("reward", *VARIABLES)), "labels": Fact(boxes, COLUMNS, names)}


def _row(label: vizdoom.Label) -> tuple[float, ...]:
    place = (label.object_position_x, label.object_position_y, label.object_position_z)
    return (label.object_id, label.x, label.y, label.width, label.height, *place)
