"""Doom as a source of clips."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from data_pipelines.clip import Clip, one_line
from data_pipelines.record import Record
from data_pipelines.source import Item, Rejected
from data_pipelines.sources import generated
from data_pipelines.sources.vizdoom.game import check_sound
from data_pipelines.sources.vizdoom.recording import record_one
from data_pipelines.sources.vizdoom.settings import Captions, Policy, Recording


@dataclasses.dataclass(frozen=True)
class VizdoomSource:
    """A `Source` of one clip a seed, each all of one episode of the game.

    The seeds of a split take the scenarios in turn, and the resolutions in turn once every scenario had one.

    Attributes:
        scenarios: such as SCENARIOS and FREEDOOM_MAPS have; see `find_scenario`.
        seeds: of each split.
        frames: length of each clip.
        resolutions, sample_rate, tics_per_frame, policy, captions, caption_seconds, min_frames: see `Recording`.

    Raises:
        ValueError: a field is out of range; the message names it. `record` raises RuntimeError where the game has no
            sound, and ImportError where ViZDoom is missing.
    """

    scenarios: tuple[str, ...]
    seeds: generated.Seeds
    frames: int
    resolutions: tuple[str, ...] = ("RES_160X120",)
    sample_rate: int = 11025
    tics_per_frame: int = 4
    policy: Policy = "mixed"
    captions: Captions = "scenario"
    caption_seconds: float = 2.0
    min_frames: int | None = None

    def __post_init__(self) -> None:
        for name in ("scenarios", "resolutions"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; name at least one")
        generated.check_seeds(self.seeds)
        for scenario in self.scenarios:
            for resolution in self.resolutions:
                self._recording("train", 0, (scenario, resolution))

    @property
    def batch(self) -> int:
        """See `Source`."""
        return 1

    def items(self) -> Sequence[Item]:
        """See `Source`."""
        places = [(scenario, resolution) for resolution in self.resolutions for scenario in self.scenarios]
        recordings = [self._recording(*dealt) for dealt in generated.deal(self.seeds, places)]
        return [Item(recording.split, recording.episode, recording) for recording in recordings]

    def record(self, items: Sequence[Item]) -> Iterator[tuple[Item, Clip | Record | Rejected]]:
        """See `Source`."""
        check_sound()
        for item in items:
            try:
                result = record_one(item.what)
            except Exception as error:  # The engine is a program of its own, and ends as it likes.
                result = Rejected(item.name, one_line(error))
            yield item, result

    def _recording(self, split: str, seed: int, place: tuple[str, str]) -> Recording:
        scenario, resolution = place
        return Recording(
            scenario,
            seed=seed,
            frames=self.frames,
            split=split,
            resolution=resolution,
            sample_rate=self.sample_rate,
            tics_per_frame=self.tics_per_frame,
            policy=self.policy,
            captions=self.captions,
            caption_seconds=self.caption_seconds,
            min_frames=self.min_frames,
        )
