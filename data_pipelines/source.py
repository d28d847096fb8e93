"""What a source of clips is: a list of items, and how an item is recorded."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from data_pipelines.clip import Clip
from data_pipelines.record import Record


@dataclasses.dataclass(frozen=True)
class Item:
    """Something to record, such as a seed or a file; a build deals items to shards.

    Attributes:
        split: the split that all of its clips go to.
        name: unique name, which a rejection gives.
        what: what the source needs to know of it; must pickle.
    """

    split: str
    name: str
    what: Any = None


@dataclasses.dataclass(frozen=True)
class Rejected:
    """An item, or a part of one, that gave no clip, and why, on one line."""

    name: str
    reason: str


class Source(Protocol):
    """Gives the clips of its items; pickles, so that processes may share the work.

    Attributes:
        batch: how many items are best recorded together.
    """

    @property
    def batch(self) -> int:
        """How many items are best recorded together."""
        ...

    def items(self) -> Sequence[Item]:
        """The items, in an order that depends on nothing but the source."""
        ...

    def record(self, items: Sequence[Item]) -> Iterator[tuple[Item, Clip | Record | Rejected]]:
        """Records items, in order: of each any number of clips (or records, where already encoded) and rejections.

        A record depends on its item alone, not on the others or on what was recorded before.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Clips:
    """A source of clips at hand."""

    clips: tuple[tuple[str, Clip | Record], ...]  # split and clip

    @property
    def batch(self) -> int:
        """See `Source`."""
        return 1

    def items(self) -> Sequence[Item]:
        """See `Source`."""
        return [Item(split, clip.episode, number) for number, (split, clip) in enumerate(self.clips)]

    def record(self, items: Sequence[Item]) -> Iterator[tuple[Item, Clip | Record | Rejected]]:
        """See `Source`."""
        for item in items:
            yield item, self.clips[item.what][1]


def split_by_hash(name: str, shares: Iterable[tuple[str, float]]) -> str:
    """Returns the split of a name: the same for ever, whatever else there is; shares add up to 1."""
    point = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    split = ""
    for split, share in shares:  # noqa: B007 (the last one is the answer where rounding leaves nothing)
        point -= share
        if point < 0:
            break
    return split
