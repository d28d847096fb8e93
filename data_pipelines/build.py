"""Build a dataset once: from functions that make clips to a directory, kept while its spec is the same."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from data_pipelines import shards as shards_lib
from data_pipelines.clip import Clip, VideoCodec
from data_pipelines.shards import Manifest, ShardError
from pixr1_jax.core import progress as progress_lib

_LOCK = ".build.lock"


def build(
    directory: str | os.PathLike[str],
    sources: Mapping[str, Callable[[], Iterable[Clip]]],
    *,
    shards: Mapping[str, int],
    spec: Mapping[str, Any],
    video_codec: VideoCodec = "zstd",
    counts: Mapping[str, int] | None = None,
    progress: bool = True,
) -> Manifest:
    """Builds a dataset, or keeps the one that is there if it has the same spec, shards and codec.

    Processes of one machine may call this for one directory at once: one builds, the others wait and keep.

    Args:
        directory: where the dataset goes; a dataset of another spec is replaced once the new one is complete.
        sources: for each split a function that makes its clips; called only if they are needed.
        shards: number of shards of each split.
        spec: JSON-able description of the clips: equal specs must mean equal clips.
        video_codec: see `clip.encode`.
        counts: number of clips each split will have, for the time left; None where it is not known.
        progress: whether to report on standard error.

    Returns:
        The manifest of the dataset.

    Raises:
        ShardError, ClipError: see `shards.write_dataset`; also if `spec` is no JSON.
    """
    wanted = _as_json(spec)
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with _lock(directory / _LOCK):
        manifest, reason = _existing(directory, wanted, shards, video_codec)
        if manifest is not None:
            _say(progress, f"{directory}: already built, {manifest.index.records} clips")
            return manifest
        if reason:
            _say(progress, f"{directory}: building again, {reason}")
        total = None if counts is None else sum(counts.values())
        with _reporter(progress, total, f"clips of {directory.name}") as on_clip:
            return shards_lib.write_dataset(
                directory,
                {split: _lazy(source) for split, source in sources.items()},
                shards=shards,
                video_codec=video_codec,
                spec=wanted,
                on_clip=on_clip,
            )


def _lazy(source: Callable[[], Iterable[Clip]]) -> Iterator[Clip]:
    """Calls a source when its first clip is wanted, so a split starts when its turn comes."""
    yield from source()


@contextlib.contextmanager
def _reporter(progress: bool, total: int | None, description: str) -> Iterator[Callable[[str, Clip], None] | None]:
    """Yields what to call after each clip, or None where nothing is to be shown."""
    if not progress:
        yield None
        return
    with progress_lib.track(total, description) as tracker:
        yield lambda split, clip: tracker.advance(split=split)


def _existing(
    directory: pathlib.Path, spec: dict[str, Any], shards: Mapping[str, int], video_codec: str
) -> tuple[Manifest | None, str]:
    """Returns the manifest to keep, or None and the reason why what is there cannot be kept."""
    if not (directory / shards_lib.MANIFEST).exists():
        return None, ""
    try:
        manifest = shards_lib.read_manifest(directory)
    except ShardError as error:
        return None, str(error)
    found = {
        "spec": manifest.spec,
        "shards": {split: len(files) for split, files in manifest.splits.items()},
        "video_codec": manifest.video_codec,
    }
    wanted = {"spec": spec, "shards": dict(shards), "video_codec": video_codec}
    changed = [name for name in wanted if wanted[name] != found[name]]
    return (None, f"another {' and '.join(changed)}") if changed else (manifest, "")


def _as_json(spec: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(dict(spec), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ShardError(f"spec is no JSON ({error}); use strings, numbers, lists and dicts") from error


@contextlib.contextmanager
def _lock(path: pathlib.Path) -> Iterator[None]:
    """Holds an exclusive lock; the system frees it when the process ends, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _say(progress: bool, line: str) -> None:
    if progress:
        print(line, file=sys.stderr, flush=True)
