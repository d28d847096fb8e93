"""Text events: which texts there are, which is in force, and how light and rain move towards them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from data_pipelines.clip import TextEvent
    from data_pipelines.sources.playground.world import World

TIMES = ("day", "dusk", "night")
EVENTS = (*TIMES, *(f"{time} rain" for time in TIMES))
TRANSITION = 0.5  # seconds from one text to the next


def event_code(text: str) -> int:
    """The code of a text: its place in EVENTS.

    Raises:
        ValueError: the text is not one of EVENTS.
    """
    if text not in EVENTS:
        raise ValueError(f"playground does not know the event text {text!r}; use one of {', '.join(EVENTS)}")
    return EVENTS.index(text)


def event_codes(world: World, events: Sequence[TextEvent], frames: int) -> np.ndarray:
    """The code in force at each frame, int32 [frames].

    Args:
        world: the configuration.
        events: sorted by frame, the first at frame 0.
        frames: length of the rollout.

    Raises:
        ValueError: a text is unknown, or the events do not begin at frame 0, do not rise, or pass the end.
    """
    del world  # every playground knows the same texts
    starts = [event.frame for event in events]
    if not starts or starts[0] != 0:
        raise ValueError(f"playground events must begin with one at frame 0, got frames {starts}")
    if starts != sorted(set(starts)) or starts[-1] >= frames:
        raise ValueError(f"playground event frames must rise and stay below {frames}, got {starts}")
    codes = np.array([event_code(event.text) for event in events], np.int32)
    return np.repeat(codes, np.diff([*starts, frames]))


def advance_weather(weather: jax.Array, code: jax.Array, seconds: float, first: jax.Array) -> jax.Array:
    """Moves the weather [4] towards an event code [] at constant speed, or at once in the first frame."""
    time = jax.nn.one_hot(code % len(TIMES), len(TIMES), dtype=jnp.float32)
    rain = (code // len(TIMES)).astype(jnp.float32)
    target = jnp.concatenate([time, rain[None]])
    limit = jnp.where(first, 1.0, seconds / TRANSITION)
    return weather + jnp.clip(target - weather, -limit, limit)
