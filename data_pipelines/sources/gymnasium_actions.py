"""Actions of a Gymnasium space as rows of numbers, in the order of `gymnasium.spaces.utils.flatten`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines.sources import generated


def space_names(space: Any, path: str = "", meanings: Sequence[str] | None = None) -> list[str]:
    """Returns a name for each entry of `gymnasium.spaces.utils.flatten(space, action)`.

    Raises:
        ValueError: a part of the space has no fixed number of entries.
    """
    import gymnasium.spaces as spaces

    stem = path or "axis"
    if isinstance(space, spaces.Discrete):
        return list(meanings) if meanings else [f"{path or 'action'}_{index}" for index in range(int(space.n))]
    if isinstance(space, spaces.MultiDiscrete):
        entries = zip(_places(stem, space.nvec.shape), space.nvec.flatten(), strict=True)
        return [f"{entry}_{index}" for entry, count in entries for index in range(int(count))]
    if isinstance(space, spaces.Box | spaces.MultiBinary):
        return _places(stem, space.shape)
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return [name for key, part in _parts(space) for name in space_names(part, f"{path}.{key}".lstrip("."))]
    raise ValueError(
        f"action space {path or 'of the environment'} is {space}; wrap the environment so that it is made of Discrete, "
        "MultiDiscrete, MultiBinary, Box, Dict and Tuple"
    )


def _parts(space: Any) -> list[tuple[Any, Any]]:
    """Returns keys and parts of a Dict or Tuple space, in the order in which they are flattened."""
    return list(space.spaces.items()) if hasattr(space.spaces, "items") else list(enumerate(space.spaces))


def _places(stem: str, shape: tuple[int, ...]) -> list[str]:
    return ["_".join([stem, *map(str, place)]) for place in np.ndindex(*shape)]


def _leaves(space: Any) -> list[Any]:
    """Returns the parts of a space that are no Dict or Tuple, in the order in which they are flattened."""
    if not hasattr(space, "spaces"):
        return [space]
    return [leaf for _, part in _parts(space) for leaf in _leaves(part)]


def sample_actions(space: Any, rng: np.random.Generator, frames: int, ticks: tuple[int, int]) -> np.ndarray:
    """Returns float32 `[frames, action_dim]`: draws from the space, held for random times, each part on its own.

    Args:
        space: the action space; its own random state is left alone.
        rng: where the draws come from.
        frames: number of rows.
        ticks: shortest and longest hold in frames.
    """
    from gymnasium.spaces import utils

    blocks = []
    for leaf in _leaves(space):
        # A copy, because a space draws from a random state of its own.
        drawn = copy.deepcopy(leaf)
        drawn.seed(int(rng.integers(2**31)))
        block = np.empty((frames, utils.flatdim(leaf)), np.float32)
        for part in generated.holds(rng, frames, ticks):
            block[part] = np.asarray(utils.flatten(leaf, drawn.sample()))
        blocks.append(block)
    return np.concatenate(blocks, axis=1)
