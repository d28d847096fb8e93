"""What sources of generated clips share: seeds by split, and buttons held for random times."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

# The seeds of each split, one a clip: disjoint, such as even ones for `train` and odd ones for `test`.
Seeds = Mapping[str, Sequence[int]]

_MAX_SEED = 2**31 - 1


def check_seeds(seeds: Seeds) -> None:
    """Raises ValueError unless every split has a plain name and seeds that no other split has."""
    if not seeds or not any(map(len, seeds.values())):
        raise ValueError(f"seeds is {dict(seeds)!r}; give at least one split with at least one seed")
    split_of: dict[int, str] = {}
    for split, numbers in seeds.items():
        if not re.fullmatch(r"[\w-]+", split):
            raise ValueError(f"seeds has the split {split!r}; use letters, digits, - and _")
        for seed in numbers:
            if not 0 <= seed <= _MAX_SEED:
                raise ValueError(f"seeds has {seed} in {split!r}; use 0 to {_MAX_SEED}")
            if seed in split_of:
                raise ValueError(f"seeds has {seed} in {split_of[seed]!r} and {split!r}; use each once in one split")
            split_of[seed] = split


def check_at_least(least: int, **values: int) -> None:
    """Raises ValueError, naming the field, for a value below the least."""
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} is {value}; use {least} or more")


def deal(seeds: Seeds, choices: Sequence[T]) -> Iterator[tuple[str, int, T]]:
    """Yields split, seed and choice for each seed; in every split the choices come in turn."""
    for split, numbers in seeds.items():
        for index, seed in enumerate(numbers):
            yield split, seed, choices[index % len(choices)]


def holds(rng: np.random.Generator, frames: int, ticks: tuple[int, int], ticks_per_frame: float = 1) -> Iterator[slice]:
    """Cuts frames into stretches of random length, over each of which something is held.

    Lengths are drawn one at a time, so a caller may draw from `rng` what each stretch holds.

    Args:
        rng: what lengths are drawn from.
        frames: how many to cut.
        ticks: shortest and longest stretch in ticks of the game, both included; a stretch is at least a frame.
        ticks_per_frame: how long a frame lasts.
    """
    start = 0
    while start < frames:
        length = int(rng.integers(*ticks, endpoint=True))
        stop = start + max(1, round(length / ticks_per_frame))
        yield slice(start, min(stop, frames))
        start = stop
