"""Random numbers of the plans, each a pure function of a seed, a number and what it is for (design decision D11)."""

import enum

import numpy as np


class Purpose(enum.IntEnum):
    """What a stream of random numbers is for."""

    PHASE = 0
    WINDOWS = 1
    ROWS = 2
    FILL = 3
    CUTS = 4
    MIXTURE = 5
    SPLIT = 6


def draw(seed: int, number: int, purpose: Purpose, count: int) -> np.ndarray:
    """Random uint64 [count]; raw words, since numpy keeps no other stream equal across its versions."""
    key = np.array([seed % 2**64, purpose], np.uint64)
    counter = np.array([0, 0, 0, number], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)
