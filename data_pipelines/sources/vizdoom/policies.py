"""Who plays: buttons held at random, and the choice of a recording's policy."""

from __future__ import annotations

import dataclasses

import numpy as np

from data_pipelines.sources import generated
from data_pipelines.sources.vizdoom.explore import Explorer
from data_pipelines.sources.vizdoom.game import Player
from data_pipelines.sources.vizdoom.scenarios import ACTION_NAMES, find_scenario
from data_pipelines.sources.vizdoom.settings import Recording


def sample_actions(recording: Recording, attempt: int = 0) -> np.ndarray:
    """Returns float32 `[frames, action_dim]`: buttons held for random times, independently on each axis.

    Each attempt is another draw of the policy; the game stays the same.
    """
    generator = recording.generator("policy", attempt)
    buttons = find_scenario(recording.scenario).buttons
    actions = np.zeros((recording.frames, len(ACTION_NAMES)), np.float32)
    for axis in _AXES:
        # Drawn for every axis, so that dropping a button from a scenario leaves the others as they were.
        held = _hold(axis, recording, generator)
        for index, name in enumerate(axis.buttons):
            if name in buttons:
                actions[:, ACTION_NAMES.index(name)] = held == index
    return actions


def make_player(recording: Recording, attempt: int) -> Player:
    """Returns the policy of a recording; each attempt is another draw of it."""
    # Where the player only turns or only sidesteps there is nothing to explore.
    if recording.policy == "explore" and {"move_forward", "turn_left", "turn_right"} <= {*recording.scene.buttons}:
        return Explorer(recording, sample_actions(recording, attempt), recording.generator("explore", attempt))
    actions = sample_actions(recording, attempt)
    return lambda frame, _: actions[frame]


@dataclasses.dataclass(frozen=True)
class _Axis:
    """Buttons that exclude each other, how often each is held, and the range of a hold in tics."""

    buttons: tuple[str, ...]
    shares: tuple[float, ...]
    hold_tics: tuple[int, int]


_AXES = (
    _Axis(("move_forward", "move_backward"), (0.55, 0.12), (12, 50)),
    _Axis(("move_left", "move_right"), (0.3, 0.3), (6, 20)),
    _Axis(("turn_left", "turn_right"), (0.3, 0.3), (4, 16)),
    _Axis(("attack",), (0.4,), (4, 24)),
    _Axis(("use",), (0.1,), (4, 8)),
)


def _hold(axis: _Axis, recording: Recording, generator: np.random.Generator) -> np.ndarray:
    """Returns int `[frames]`: which button of the axis is held, or len(axis.buttons) for none."""
    shares = [*axis.shares, 1 - sum(axis.shares)]
    held = np.empty(recording.frames, int)
    for part in generated.holds(generator, recording.frames, axis.hold_tics, recording.tics_per_frame):
        held[part] = generator.choice(len(shares), p=shares)
    return held
