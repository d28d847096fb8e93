"""From the section `data` of a configuration to a source and how its dataset is built."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import ml_collections

from data_pipelines.live import LivePlayground
from data_pipelines.shards import Dataset
from data_pipelines.source import Item, Source
from data_pipelines.sources import generated, playground
from pixr1_jax.core import config as config_lib

SourceName = Literal["ale", "gymnasium", "playground", "tfds", "videos", "vizdoom"]

# Datasets of two seeds are disjoint up to this many clips a split.
_SEEDS_APART = 100_000
_MAX_SEED = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Section `data` of a configuration: one dataset.

    Attributes:
        source: where clips come from; its own section has the same name.
        shards: number of files of the largest split, of the others in proportion.
        video_codec: how video is stored that is not copied, see `data_pipelines.record.encode`.
        processes: how many build shards side by side; 0 is the one that was started.
        patience: seconds after which an item is given up; None waits for ever.
        train_clips: number of clips of the split `train`, where they are made from seeds.
        test_clips: number of clips of the split `test`, whose seeds no training clip has.
        frames: length of each clip that is made from a seed, in frames.
        seed: which clips; other seeds give other clips.
        live: of the playground: the clips of `train` are played while they are read, without end, and only the others
            are stored; `train_clips` of them are planned together.
        ale: fields of `AleSource`, but for seeds and frames.
        gymnasium: fields of `GymnasiumSource`, but for seeds and frames.
        playground: the fields of `World`, and `policy`, "mixed" where it is left out.
        tfds: fields of `TfdsSource`.
        videos: fields of `VideoFolder`.
        vizdoom: fields of `VizdoomSource`, but for seeds and frames.
    """

    source: SourceName
    shards: int
    video_codec: Literal["zstd", "h264_444", "h264_420"]
    processes: int = 0
    patience: float | None = None
    train_clips: int | None = None
    test_clips: int | None = None
    frames: int | None = None
    seed: int | None = None
    live: bool = False
    ale: Mapping[str, Any] | None = None
    gymnasium: Mapping[str, Any] | None = None
    playground: Mapping[str, Any] | None = None
    tfds: Mapping[str, Any] | None = None
    videos: Mapping[str, Any] | None = None
    vizdoom: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if getattr(self, self.source) is None:
            raise ValueError(f"{self.source} is missing; source is {self.source!r}, so give the section {self.source}")
        generated.check_at_least(1, shards=self.shards)
        generated.check_at_least(0, processes=self.processes)
        made = {name: getattr(self, name) for name in ("train_clips", "test_clips", "frames", "seed")}
        if self.live and self.source != "playground":
            raise ValueError(f"live is True; source {self.source!r} cannot be played while it is read, leave live out")
        if self.source == "videos" and self.video_codec != "h264_420":
            raise ValueError(
                f"video_codec is {self.video_codec!r}; what is not copied of videos is stored as 'h264_420'"
            )
        if self.source in _RECORDED:
            if given := [name for name, value in made.items() if value is not None]:
                raise ValueError(
                    f"{given[0]} is given; source {self.source!r} has the clips that it finds, leave it out"
                )
            return
        for name, value in made.items():
            if value is None:
                raise ValueError(f"{name} is missing; source {self.source!r} makes its clips from seeds")
            generated.check_at_least(0 if name == "seed" else 1, **{name: value})
        highest = max(numbers[-1] for numbers in self.seeds.values())
        if highest > _MAX_SEED:
            raise ValueError(f"seed is {self.seed}, which gives clip seeds beyond 2**31 - 1; use a smaller one")

    @property
    def seeds(self) -> dict[str, range]:
        """The seeds of each split's clips that are stored: even ones for `train`, odd ones for `test`."""
        assert self.seed is not None and self.train_clips is not None and self.test_clips is not None
        first = 2 * _SEEDS_APART * self.seed
        test = range(first + 1, first + 1 + 2 * self.test_clips, 2)
        return {"test": test} if self.live else {"train": range(first, first + 2 * self.train_clips, 2), "test": test}


def make_source(data: DataConfig, path: str) -> Source:
    """Returns the source of a dataset; `path` is where its section is, for messages.

    Raises:
        ConfigError: a field of the source's section is wrong.
    """
    return _SOURCES[data.source](data, getattr(data, data.source), f"{path}.{data.source}")


def live_playground(data: DataConfig, path: str, stored: Dataset) -> LivePlayground:
    """Returns the playground of a section with `live`; `stored` has its other splits."""
    source = make_source(data, path)
    assert isinstance(source, playground.PlaygroundSource)
    assert data.train_clips is not None and data.seed is not None
    return LivePlayground(stored, source.world, source.policy, data.train_clips, source.frames, data.seed)


def shards_of(data: DataConfig, items: Sequence[Item]) -> dict[str, int]:
    """Returns the number of shards of each split."""
    sizes: dict[str, int] = {}
    for item in items:
        sizes[item.split] = sizes.get(item.split, 0) + 1
    most = max(sizes.values(), default=1)
    return {split: min(count, -(-data.shards * count // most)) for split, count in sizes.items()}


def describe(data: DataConfig, section: ml_collections.ConfigDict, items: Sequence[Item]) -> dict[str, Any]:
    """Returns what the clips of a dataset follow from, as JSON: equal descriptions mean equal clips."""
    others = {field.name for field in dataclasses.fields(data)} & set(_SOURCES) - {data.source}
    # How a build is run does not change what it builds.
    left_out = others | {"processes", "patience"}
    spec = {name: value for name, value in config_lib.to_plain(section).items() if name not in left_out}
    if data.source in _RECORDED:
        listed = "\n".join(repr((item.split, item.name, item.what)) for item in items)
        spec["items"] = hashlib.sha256(listed.encode()).hexdigest()[:16]
    return spec


def _ale(data: DataConfig, section: Mapping[str, Any], path: str) -> Source:
    from data_pipelines.sources.ale import AleSource

    return config_lib.freeze(AleSource, section, path, seeds=data.seeds, frames=data.frames)


def _gymnasium(data: DataConfig, section: Mapping[str, Any], path: str) -> Source:
    from data_pipelines.sources.gymnasium import GymnasiumSource

    return config_lib.freeze(GymnasiumSource, section, path, seeds=data.seeds, frames=data.frames)


def _playground(data: DataConfig, section: Mapping[str, Any], path: str) -> Source:
    policy = {name: value for name, value in section.items() if name == "policy"}
    world = {name: value for name, value in section.items() if name != "policy"}
    return config_lib.freeze(
        playground.PlaygroundSource,
        policy,
        path,
        world=config_lib.freeze(playground.World, world, path),
        seeds=data.seeds,
        frames=data.frames,
    )


def _tfds(data: DataConfig, section: Mapping[str, Any], path: str) -> Source:
    from data_pipelines.sources.tfds import TfdsSource

    return config_lib.freeze(TfdsSource, section, path)


def _videos(data: DataConfig, section: Mapping[str, Any], path: str) -> Source:
    from data_pipelines.sources.videos import VideoFolder

    return config_lib.freeze(VideoFolder, section, path)


def _vizdoom(data: DataConfig, section: Mapping[str, Any], path: str) -> Source:
    from data_pipelines.sources.vizdoom import VizdoomSource

    return config_lib.freeze(VizdoomSource, section, path, seeds=data.seeds, frames=data.frames)


# Imported when wanted, since each brings packages that the others do without.
_SOURCES: dict[str, Callable[[DataConfig, Mapping[str, Any], str], Source]] = {
    "ale": _ale,
    "gymnasium": _gymnasium,
    "playground": _playground,
    "tfds": _tfds,
    "videos": _videos,
    "vizdoom": _vizdoom,
}
# Sources that have the clips that they find, not as many as are asked for.
_RECORDED = ("tfds", "videos")
