"""What one clip of Doom is of."""

from __future__ import annotations

import dataclasses
import fractions
import re
import zlib
from typing import Literal, get_args

import numpy as np

from data_pipelines.sources.vizdoom.scenarios import Scenario, find_scenario

TICS_PER_SECOND = 35
SAMPLE_RATES = (11025, 22050, 44100)
# Every screen size of ViZDoom: 4:3, 16:10, 16:9 and 5:4.
_SIZES = """
    160X120 200X125 200X150 256X144 256X160 256X192 320X180 320X200 320X240 320X256 400X225 400X250
    400X300 512X288 512X320 512X384 640X360 640X400 640X480 800X450 800X500 800X600 1024X576 1024X640
    1024X768 1280X720 1280X800 1280X960 1280X1024 1400X787 1400X875 1400X1050 1600X900 1600X1000
    1600X1200 1920X1080
"""
RESOLUTIONS = tuple(f"RES_{size}" for size in _SIZES.split())

Policy = Literal["mixed", "explore"]
Captions = Literal["scenario", "state"]


@dataclasses.dataclass(frozen=True)
class Recording:
    """What to record.

    Attributes:
        scenario: a name that `find_scenario` knows.
        seed: with the scenario and the split it fixes the game and the policy.
        frames: length of the clip. Most players of the small scenarios die within 6 to 15 seconds, so ask for
            50 frames of 4 tics or less there (12 in predict_position, whose one rocket ends it); the Freedoom maps
            and deathmatch allow more.
        split: the dataset split; the same seed gives another game in another split.
        resolution: one of RESOLUTIONS: RES_160X120 (4:3), RES_200X125 (16:10), RES_256X144 (16:9), ...
        sample_rate: Hz, one of SAMPLE_RATES; the sound is stereo.
        tics_per_frame: 4 gives 8.75 frames a second.
        policy: "mixed" holds buttons for random times; "explore" walks through the map, around walls and through
            doors, and otherwise plays as "mixed" does.
        captions: "scenario" is one text for the whole clip; "state" adds health, ammunition and what is in view.
        caption_seconds: shortest time between two captions of the state.
        min_frames: where the game ends earlier than `frames` but not than this, the clip ends with it; None wants
            all of `frames`.

    Raises:
        ValueError: a field is out of range; the message names it.
    """

    scenario: str
    seed: int
    frames: int
    split: str = "train"
    resolution: str = "RES_160X120"
    sample_rate: int = 11025
    tics_per_frame: int = 4
    policy: Policy = "mixed"
    captions: Captions = "scenario"
    caption_seconds: float = 2.0
    min_frames: int | None = None

    def __post_init__(self) -> None:
        find_scenario(self.scenario)
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; use 0 or more")
        if self.frames < 1:
            raise ValueError(f"frames is {self.frames}; use 1 or more")
        if not 1 <= self.least_frames <= self.frames:
            raise ValueError(f"min_frames is {self.min_frames}; use 1 to frames, which is {self.frames}, or None")
        if not re.fullmatch(r"[\w-]+", self.split):
            raise ValueError(f"split is {self.split!r}; use letters, digits, - and _")
        if self.resolution not in RESOLUTIONS:
            raise ValueError(f"resolution is {self.resolution!r}; use one of {', '.join(RESOLUTIONS)}")
        if self.sample_rate not in SAMPLE_RATES:
            raise ValueError(f"sample_rate is {self.sample_rate}; use one of {SAMPLE_RATES}")
        if not 1 <= self.tics_per_frame <= TICS_PER_SECOND:
            raise ValueError(f"tics_per_frame is {self.tics_per_frame}; use 1 to {TICS_PER_SECOND}")
        for name, known in (("policy", get_args(Policy)), ("captions", get_args(Captions))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; use one of {', '.join(known)}")
        if not 0 <= self.caption_seconds < np.inf:
            raise ValueError(f"caption_seconds is {self.caption_seconds}; use 0 or more")

    @property
    def frame_rate(self) -> fractions.Fraction:
        """Frames a second."""
        return fractions.Fraction(TICS_PER_SECOND, self.tics_per_frame)

    @property
    def least_frames(self) -> int:
        """Length of the shortest clip that will do."""
        return self.frames if self.min_frames is None else self.min_frames

    @property
    def scene(self) -> Scenario:
        """Where it is played."""
        return find_scenario(self.scenario)

    @property
    def episode(self) -> str:
        """Unique id of the clip."""
        size = self.resolution.removeprefix("RES_").lower()
        return f"vizdoom/{self.split}/{self.scenario}/{size}/{self.seed:06d}"

    def generator(self, purpose: str, attempt: int = 0) -> np.random.Generator:
        """Returns the random generator for one purpose; the screen and the sound have no part in it."""
        key = zlib.crc32(f"{self.scenario}/{self.split}/{purpose}".encode())
        return np.random.default_rng([self.seed, attempt, key])
