"""Playground: a small side-view world whose truth is known for any seed, actions and text events.

The rules of the world, in world units (the view is 1 unit high) and seconds:

* **Place.** The world is `World.length` units wide (several screens) between two stone walls, with flat
  ground at height 0, a few platforms, and landmarks (trees, houses, towers, lamps, pines, flags) that never
  move. The seed draws places and colours; nothing is random after `reset`.
* **Agent.** `left` and `right` walk at 0.6 units/s, reached within 0.1 s; `jump` jumps 0.37 units high
  whenever the agent stands on something, again and again while held. Platforms hold it from above only.
  Balls never stop it.
* **Balls.** Gravity of 3.6 units/s^2; elastic bounces off ground, walls, platforms, each other and the agent;
  rolling friction. Walking into a ball kicks it forward and up; a ball below a falling agent is squeezed out
  sideways.
* **Camera.** Centred on the agent, clamped at the ends of the world. Height fixes the scale, so a wider
  picture shows more of the world and a larger picture shows the same in more pixels.
* **Text.** `EVENTS` lists every text, and each states all that is in force: the time of day, and rain or not.
  Light moves to a new text in half a second; a rollout begins with its first text already in force. Rain is a
  lattice of streaks that repeats every 2/3 s; it makes no sound.
* **Sound.** Every contact rings a damped sine. The pitch of a ball follows from its radius (small is high);
  the agent's steps, take-offs and landings are low. Loudness follows the speed of the impact, pan the place
  on the screen; contacts outside the view fade out. Stereo, exact on the frame clock.
* **Time.** Physics runs at 240 Hz whatever the frame rate, so equal seeds and equal held buttons give equal
  states at every frame rate, picture size and sample rate.
* **Frames.** `actions[f] > 0.5` is held during frame `f`; picture `f` shows the state at the end of that time
  and sound `f` is what was heard during it.

`step`, `advance`, `rollout` and `rollout_batch` return the truth beside the pixels: see `Observation`.
"""

from data_pipelines.sources.playground.policies import POLICIES
from data_pipelines.sources.playground.record import record, record_many
from data_pipelines.sources.playground.rollout import (
    Observation,
    Onset,
    advance,
    onset_list,
    rollout,
    rollout_batch,
    step,
)
from data_pipelines.sources.playground.source import PlaygroundSource
from data_pipelines.sources.playground.weather import EVENTS, event_code, event_codes
from data_pipelines.sources.playground.world import ACTION_NAMES, State, World, object_names, reset

__all__ = [
    "ACTION_NAMES",
    "EVENTS",
    "POLICIES",
    "Observation",
    "Onset",
    "PlaygroundSource",
    "State",
    "World",
    "advance",
    "event_code",
    "event_codes",
    "object_names",
    "onset_list",
    "record",
    "record_many",
    "reset",
    "rollout",
    "rollout_batch",
    "step",
]
