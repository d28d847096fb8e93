"""Build or inspect a dataset.

pixr1 data build --config=FILE [--workdir=DIR | --out=DIR]
    Builds the dataset of the configuration's section `data` in --out, or in the folder of --workdir where
    training looks for it.
    A dataset that is there and was built from the same section is kept.

pixr1 data inspect DIR [--verify] [--png=FILE]
    Prints what the dataset DIR holds; checks every record; draws a contact sheet of some clips.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import ml_collections
from absl import flags

from data_pipelines import build as build_lib
from data_pipelines import inspect as inspect_lib
from data_pipelines import shards as shards_lib
from data_pipelines.clip import Clip
from pixr1_jax.core import cli_errors
from pixr1_jax.core import config as config_lib

# Datasets of two seeds are disjoint up to this many clips a split.
_SEEDS_APART = 100_000
_MAX_SEED = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class VizdoomConfig:
    """Section `data.vizdoom`: see `data_pipelines.sources.vizdoom.Recording`.

    Clips take the scenarios in turn, and the resolutions in turn once every scenario had one.
    """

    scenarios: tuple[str, ...]
    resolutions: tuple[str, ...] = ("RES_160X120",)
    sample_rate: int = 11025
    tics_per_frame: int = 4

    def __post_init__(self) -> None:
        for name in ("scenarios", "resolutions"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; name at least one")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Section `data` of a configuration.

    Attributes:
        source: where clips come from; its own section has the same name.
        train_clips: number of clips of the split `train`.
        test_clips: number of clips of the split `test`, whose seeds no training clip has.
        frames: length of each clip in frames.
        seed: which clips; other seeds give other clips.
        shards: number of files a split, less where there are fewer clips.
        video_codec: how video is stored, see `data_pipelines.clip.encode`.
        playground: the fields of `World`, and `policy`, "mixed" where it is left out.
        vizdoom: see VizdoomConfig.
    """

    source: Literal["playground", "vizdoom"]
    train_clips: int
    test_clips: int
    frames: int
    seed: int
    shards: int
    video_codec: Literal["zstd", "h264"]
    playground: Mapping[str, Any] | None = None
    vizdoom: VizdoomConfig | None = None

    def __post_init__(self) -> None:
        for name, least in (("train_clips", 1), ("test_clips", 1), ("frames", 1), ("shards", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; use at least {least}")
        highest = max(max(self.seeds(split), default=0) for split in ("train", "test"))
        if highest > _MAX_SEED:
            raise ValueError(f"seed is {self.seed}, which gives clip seeds beyond 2**31 - 1; use a smaller one")
        if getattr(self, self.source) is None:
            raise ValueError(f"{self.source} is missing; source is {self.source!r}, so give the section {self.source}")

    def seeds(self, split: str) -> range:
        """Returns the seeds of a split's clips: even ones for `train`, odd ones for `test`."""
        first = 2 * _SEEDS_APART * self.seed + (split == "test")
        return range(first, first + 2 * self.clips[split], 2)

    @property
    def clips(self) -> dict[str, int]:
        """Number of clips of each split."""
        return {"train": self.train_clips, "test": self.test_clips}


def build_data(config: ml_collections.ConfigDict, directory: str | os.PathLike[str]) -> None:
    """Builds the dataset of a configuration, or keeps it where it was built before from the same section.

    Args:
        config: a configuration with the section `data`, see DataConfig.
        directory: the dataset's folder; made if missing.

    Raises:
        ConfigError: a field of the section is wrong.
        ShardError: the folder holds a dataset of another section, or cannot be written.
    """
    if "data" not in config:
        raise config_lib.ConfigError("config.data is missing; give the section that says what to build")
    data = config_lib.freeze(DataConfig, config.data, "config.data")
    record = {"playground": _playground, "vizdoom": _vizdoom}[data.source](data)
    spec = _spec(data, config.data)
    _check_same(pathlib.Path(directory), spec)
    build_lib.build(
        directory,
        {split: functools.partial(record, split) for split in data.clips},
        shards={split: min(data.shards, clips) for split, clips in data.clips.items()},
        spec=spec,
        video_codec=data.video_codec,
        counts=data.clips,
    )


def _spec(data: DataConfig, section: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the section as JSON, less those of sources that it does not use."""
    unused = {"playground", "vizdoom"} - {data.source}
    return {name: value for name, value in config_lib.to_plain(section).items() if name not in unused}


def _check_same(directory: pathlib.Path, spec: dict[str, Any]) -> None:
    """Raises ShardError if a dataset of another section is there: it may be what a model was trained on."""
    if not (directory / shards_lib.MANIFEST).exists():
        return
    found = shards_lib.read_manifest(directory).spec
    if found == spec:
        return
    old, new = _flat(found, "data"), _flat(spec, "data")
    name = next(name for name in sorted({*old, *new}) if old.get(name) != new.get(name))
    raise shards_lib.ShardError(
        f"{directory} holds other data: {name} is {old.get(name)!r} there and {new.get(name)!r} here; "
        "choose another --workdir, or delete that folder"
    )


def _flat(value: Any, path: str) -> dict[str, Any]:
    """Returns the leaves of nested dicts by their paths."""
    if not isinstance(value, dict):
        return {path: value}
    return {name: leaf for key, one in value.items() for name, leaf in _flat(one, f"{path}.{key}").items()}


def _playground(data: DataConfig) -> Callable[[str], Iterable[Clip]]:
    """Returns what records a split; the world is checked now."""
    from data_pipelines.sources import playground

    section = dict(data.playground or {})
    policy = section.pop("policy", "mixed")
    if policy not in playground.POLICIES:
        known = ", ".join(playground.POLICIES)
        raise config_lib.ConfigError(f"config.data.playground.policy is {policy!r}; use one of {known}")
    world = config_lib.freeze(playground.World, section, "config.data.playground")
    return lambda split: playground.record_many(world, data.seeds(split), policy, data.frames, split=split)


def _vizdoom(data: DataConfig) -> Callable[[str], Iterable[Clip]]:
    """Returns what records a split; every recording is checked now."""
    from data_pipelines.sources import vizdoom

    options = data.vizdoom
    assert options is not None, "DataConfig requires the section of its source"

    def recordings(split: str) -> Iterator[vizdoom.Recording]:
        for index, seed in enumerate(data.seeds(split)):
            turn, scenario = divmod(index, len(options.scenarios))
            yield vizdoom.Recording(
                options.scenarios[scenario],
                seed=seed,
                frames=data.frames,
                split=split,
                resolution=options.resolutions[turn % len(options.resolutions)],
                sample_rate=options.sample_rate,
                tics_per_frame=options.tics_per_frame,
            )

    try:
        planned = {split: list(recordings(split)) for split in data.clips}
    except ValueError as error:
        raise config_lib.ConfigError(f"config.data.vizdoom: {error}") from error
    return lambda split: vizdoom.record_many(planned[split])


def _shards_directory() -> pathlib.Path:
    # Brings jax with it, which `data inspect` does without.
    from pixr1_jax.training import setup

    return setup.shards_directory(config_lib.flag_workdir())


def define_flags() -> None:
    """Defines the flags of this verb."""
    config_lib.define_flags()
    flags.DEFINE_string("out", None, "build: the dataset's folder, in place of one in --workdir.")
    flags.DEFINE_bool("verify", False, "inspect: check the sums of all files and decode every record.")
    flags.DEFINE_string("png", None, "inspect: where to write a contact sheet of some clips.")


def main(argv: Sequence[str]) -> None:
    """Runs `data build` or `data inspect DIR`."""
    match argv[1:]:
        case ["build"]:
            build_data(config_lib.flag_config(), flags.FLAGS.out or _shards_directory())
        case ["inspect", directory]:
            inspect_lib.inspect(directory, verify=flags.FLAGS.verify, png=flags.FLAGS.png)
        case _:
            given = " ".join(argv[1:]) or "nothing"
            raise ValueError(f"pixr1 data takes `build` or `inspect DIR`, not {given}; see pixr1 data --help")


if __name__ == "__main__":
    define_flags()
    cli_errors.run(main)
