"""Players of the playground: the buttons a clip holds and the texts it brings, drawn by a NumPy generator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from data_pipelines.clip import TextEvent
from data_pipelines.sources.playground.physics import WALK_SPEED
from data_pipelines.sources.playground.weather import EVENTS
from data_pipelines.sources.playground.world import World

Policy = Callable[[World, np.random.Generator, int], tuple[np.ndarray, tuple[TextEvent, ...]]]

LEFT, RIGHT, JUMP = range(3)
_TEXT_SECONDS = (2.5, 6.0)  # shortest and longest time that a text is in force
PAUSE = 0.25  # seconds; longer than it takes to stop, so the way back is as long as the way there


def wander(world: World, rng: np.random.Generator, frames: int) -> tuple[np.ndarray, tuple[TextEvent, ...]]:
    """Random holds of 0.3 to 1.2 s, mostly walking, some with a jump, never far for long."""
    actions = np.zeros((frames, 3), np.float32)
    start, away = 0, 0.0
    while start < frames:
        stop = start + _frames(world, rng.uniform(0.3, 1.2))
        if rng.random() < 0.86:
            way = _homeward(rng, away)
            actions[start:stop, way] = 1
            away += _walked(world, way, stop - start)
        if rng.random() < 0.3:
            actions[start : min(stop, start + _frames(world, 0.25)), JUMP] = 1
        start = stop
    return actions, texts(world, rng, frames)


def walk_and_return(world: World, rng: np.random.Generator, frames: int) -> tuple[np.ndarray, tuple[TextEvent, ...]]:
    """Walks away for 1.5 s or more and comes back to the same place, again and again."""
    actions = np.zeros((frames, 3), np.float32)
    # From the middle half a unit of random start and a body's width keep clear of the wall.
    longest = (world.length / 2 - 0.7) / WALK_SPEED
    start, way = 0, rng.choice([LEFT, RIGHT])
    while start < frames:
        leg, pause = _frames(world, rng.uniform(min(1.5, longest), min(3.5, longest))), _frames(world, PAUSE)
        actions[start : start + leg, way] = 1
        back = start + leg + pause
        actions[back : back + leg, RIGHT - way] = 1
        start, way = back + leg + pause, RIGHT - way
    return actions, texts(world, rng, frames)


def jump(world: World, rng: np.random.Generator, frames: int) -> tuple[np.ndarray, tuple[TextEvent, ...]]:
    """Short walks to and fro near the balls' first places, most of them ending in a jump."""
    actions = np.zeros((frames, 3), np.float32)
    start, away = 0, 0.0
    while start < frames:
        way = _homeward(rng, away)
        walk = _frames(world, rng.uniform(0.3, 0.8))
        actions[start : start + walk, way] = 1
        if rng.random() < 0.8:
            actions[start + walk // 2 : start + walk, JUMP] = 1
        away += _walked(world, way, walk)
        start += walk + _frames(world, rng.uniform(0.1, 0.3))
    return actions, texts(world, rng, frames)


def still(world: World, rng: np.random.Generator, frames: int) -> tuple[np.ndarray, tuple[TextEvent, ...]]:
    """Presses nothing."""
    return np.zeros((frames, 3), np.float32), texts(world, rng, frames)


def mixed(world: World, rng: np.random.Generator, frames: int) -> tuple[np.ndarray, tuple[TextEvent, ...]]:
    """One of the other policies, drawn anew for each clip."""
    choices = (wander, walk_and_return, jump, still)
    return choices[rng.choice(len(choices), p=[0.5, 0.2, 0.22, 0.08])](world, rng, frames)


def least_between_texts(world: World) -> int:
    """Least number of frames from one text to the next."""
    return _frames(world, _TEXT_SECONDS[0])


def texts(world: World, rng: np.random.Generator, frames: int) -> tuple[TextEvent, ...]:
    """A random text at frame 0 and another one every 2.5 to 6 s."""
    events = [TextEvent(0, str(rng.choice(EVENTS)))]
    frame = _frames(world, rng.uniform(*_TEXT_SECONDS))
    while frame < frames:
        others = [text for text in EVENTS if text != events[-1].text]
        events.append(TextEvent(frame, str(rng.choice(others))))
        frame += _frames(world, rng.uniform(*_TEXT_SECONDS))
    return tuple(events)


def _homeward(rng: np.random.Generator, away: float) -> int:
    """A way to walk: the further right of the start, the more often left. The balls began near the start."""
    return LEFT if rng.random() < 0.5 + 0.4 * np.tanh(away / 0.5) else RIGHT


def _walked(world: World, way: int, frames: int) -> float:
    """Units walked to the right by holding a way for some frames."""
    return (1 if way == RIGHT else -1) * WALK_SPEED * frames / world.frame_rate


def _frames(world: World, seconds: float) -> int:
    return max(1, round(seconds * world.frame_rate))


POLICIES: Mapping[str, Policy] = MappingProxyType(
    {"wander": wander, "return": walk_and_return, "jump": jump, "still": still, "mixed": mixed}
)
