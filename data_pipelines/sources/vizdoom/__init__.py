"""Recordings of a real game with sound: ViZDoom scenarios and Freedoom maps become clips.

The game runs at 35 tics a second. A frame lasts a whole number of tics; its action is held over them, its
picture is the screen after the last one, and its sound is exactly what was heard during them. Nothing is
resized or resampled.

`VizdoomSource` gives one clip a seed; `Recording` says what one clip is of, and `replay` plays it again with the
same or other actions.

ViZDoom is optional: `pip install 'pixr1-jax[doom]'`, and the system library libopenal1 for sound.
See Wydmuch et al., "ViZDoom Competitions: Playing Doom from Pixels", 2018.
"""

from data_pipelines.sources.vizdoom.game import LICENCE, EpisodeEndedError, check_sound
from data_pipelines.sources.vizdoom.policies import sample_actions
from data_pipelines.sources.vizdoom.recording import record, record_many, record_one, replay
from data_pipelines.sources.vizdoom.scenarios import ACTION_NAMES, FREEDOOM_MAPS, SCENARIOS, Scenario, find_scenario
from data_pipelines.sources.vizdoom.settings import RESOLUTIONS, SAMPLE_RATES, TICS_PER_SECOND, Recording
from data_pipelines.sources.vizdoom.source import VizdoomSource

__all__ = [
    "ACTION_NAMES",
    "FREEDOOM_MAPS",
    "LICENCE",
    "RESOLUTIONS",
    "SAMPLE_RATES",
    "SCENARIOS",
    "TICS_PER_SECOND",
    "EpisodeEndedError",
    "Recording",
    "Scenario",
    "VizdoomSource",
    "check_sound",
    "find_scenario",
    "record",
    "record_many",
    "record_one",
    "replay",
    "sample_actions",
]
