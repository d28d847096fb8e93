"""The playground as a source of clips."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from data_pipelines.clip import Clip
from data_pipelines.record import Record
from data_pipelines.source import Item, Rejected
from data_pipelines.sources import generated
from data_pipelines.sources.playground.policies import POLICIES
from data_pipelines.sources.playground.record import episode, record_batches
from data_pipelines.sources.playground.world import World


@dataclasses.dataclass(frozen=True)
class PlaygroundSource:
    """A `Source` of one clip a seed; see `record_many`.

    Attributes:
        world: the configuration.
        seeds: of each split; a seed fixes the world and, with the policy's name, what is played in it.
        frames: length of each clip.
        policy: a key of POLICIES.

    Raises:
        ValueError: a field is out of range; the message names it.
    """

    world: World
    seeds: generated.Seeds
    frames: int
    policy: str = "mixed"

    def __post_init__(self) -> None:
        generated.check_seeds(self.seeds)
        generated.check_at_least(1, frames=self.frames)
        if self.policy not in POLICIES:
            raise ValueError(f"policy is {self.policy!r}; use one of {', '.join(POLICIES)}")

    @property
    def batch(self) -> int:
        """See `Source`: so many rollouts are run at once."""
        return 32

    def items(self) -> Sequence[Item]:
        """See `Source`."""
        return [Item(split, episode(split, seed), seed) for split, numbers in self.seeds.items() for seed in numbers]

    def record(self, items: Sequence[Item]) -> Iterator[tuple[Item, Clip | Record | Rejected]]:
        """See `Source`; a short batch takes the time of a full one."""
        seeds = ((item.split, item.what) for item in items)
        yield from zip(items, record_batches(self.world, seeds, self.policy, self.frames, self.batch), strict=True)
