"""Build a dataset once: from a source to a directory, by one process or many, kept while its spec is the same."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from data_pipelines import beam as beam_lib
from data_pipelines import files as files_lib
from data_pipelines import shards as shards_lib
from data_pipelines import workers as workers_lib
from data_pipelines import writer as writer_lib
from data_pipelines.clip import Clip
from data_pipelines.record import Record
from data_pipelines.shards import Manifest, ShardError
from data_pipelines.source import Clips, Item, Source
from data_pipelines.video import VideoCodec
from data_pipelines.writer import Job, Part
from pixr1_jax.core import progress as progress_lib

_LOCK = ".build.lock"


def build(
    directory: str | os.PathLike[str],
    source: Source,
    *,
    shards: Mapping[str, int],
    spec: Mapping[str, Any],
    items: Sequence[Item] | None = None,
    video_codec: VideoCodec = "zstd",
    processes: int = 0,
    patience: float | None = None,
    beam: Sequence[str] = (),
    progress: bool = True,
) -> Manifest:
    """Builds a dataset, or keeps the one that is there if it has the same spec, shards and codec.

    A build that was stopped goes on where it was: finished shards are checked and kept. Processes of one machine may
    call this for one directory at once: one builds, the others wait and keep.

    Args:
        directory: where the dataset goes; a dataset of another spec is replaced once the new one is complete.
        source: what makes the clips.
        items: those of the source, where they are known; else it is asked if they are needed.
        shards: number of shards of each split.
        spec: JSON-able description of the clips: equal specs must mean equal clips.
        video_codec: how clips are encoded that the source has not encoded, see `record.encode`.
        processes: how many write shards side by side; 0 leaves it to this one, which a broken decoder may then end.
        patience: seconds after which an item is given up; None waits for ever, as does `processes` of 0.
        beam: arguments of an Apache Beam pipeline that writes the shards instead, see `data_pipelines.beam`.
        progress: whether to report on standard error.

    Returns:
        The manifest of the dataset.

    Raises:
        ShardError: `spec` is no JSON, the items do not fit the shards, there are no clips, or the disk refuses.
        ClipError: a clip is not valid.
    """
    wanted = as_json(spec)
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with _lock(directory):
        manifest, reason = _existing(directory, wanted, shards, video_codec)
        if manifest is not None:
            _say(progress, f"{directory}: already built, {manifest.index.records} clips")
            return manifest
        if reason:
            _say(progress, f"{directory}: building again, {reason}")
        items = source.items() if items is None else items
        jobs = writer_lib.make_jobs(items, shards)
        request = {"spec": wanted, "shards": dict(shards), "video_codec": video_codec, "items": len(items)}
        building = writer_lib.open_building(directory, request)
        found = [writer_lib.finished_part(building, job) for job in jobs]
        left = [job for job, part in zip(jobs, found, strict=True) if part is None]
        if len(left) < len(jobs):
            _say(progress, f"{directory}: {len(jobs) - len(left)} of {len(jobs)} shards are finished")
        if beam and left:
            beam_lib.run(building, left, source, video_codec, beam)
            written = ((job, writer_lib.finished_part(building, job)) for job in left)
            made = {job.name: part for job, part in written if part is not None}
        else:
            with _reporter(progress, left, directory) as reporter:
                made = dict(_write(building, left, source, video_codec, processes, patience, reporter))
        if len(made) < len(left):
            raise ShardError(f"{building} lacks shards that were written; give a directory that all workers reach")
        parts = [part or made[job.name] for job, part in zip(jobs, found, strict=True)]
        manifest = writer_lib.publish(directory, jobs, parts, wanted, video_codec)
        _say(progress and manifest.rejected.records > 0, _rejections(directory, manifest))
        return manifest


def write_dataset(
    directory: str | os.PathLike[str],
    clips_by_split: Mapping[str, Sequence[Clip | Record]],
    *,
    shards: Mapping[str, int],
    video_codec: VideoCodec = "zstd",
    spec: Mapping[str, Any] | None = None,
) -> Manifest:
    """Writes clips at hand as a dataset, in place of one that is there; see `build`."""
    directory = epath.Path(directory)
    source = Clips(tuple((split, clip) for split, clips in clips_by_split.items() for clip in clips))
    jobs = writer_lib.make_jobs(source.items(), shards)
    directory.mkdir(parents=True, exist_ok=True)
    # Other clips may have the same spec, so nothing of an earlier write is kept.
    building = writer_lib.open_building(directory, {"write": os.urandom(8).hex()})
    try:
        parts = [writer_lib.write_shard(building, job, source, video_codec=video_codec) for job in jobs]
        return writer_lib.publish(directory, jobs, parts, as_json(spec or {}), video_codec)
    except BaseException:
        writer_lib.remove(building)
        raise


def as_json(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a spec as JSON has it.

    Raises:
        ShardError: it has no JSON form.
    """
    try:
        return json.loads(json.dumps(dict(spec), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ShardError(f"spec is no JSON ({error}); use strings, numbers, lists and dicts") from error


def _write(
    building: epath.Path,
    jobs: Sequence[Job],
    source: Source,
    video_codec: VideoCodec,
    processes: int,
    patience: float | None,
    reporter: workers_lib.Reporter,
) -> Iterator[tuple[str, Part]]:
    if processes == 0:
        for job in jobs:
            count = 0

            def begin(items: Sequence[Item]) -> None:
                nonlocal count
                reporter.items(count)
                count = len(items)

            part = writer_lib.write_shard(
                building, job, source, video_codec=video_codec, begin=begin, on_clip=reporter.clip
            )
            reporter.items(count)
            yield job.name, part
        return
    yield from workers_lib.run(building, jobs, source, video_codec, processes, reporter, patience=patience)


@contextlib.contextmanager
def _reporter(progress: bool, jobs: Sequence[Job], directory: epath.Path) -> Iterator[workers_lib.Reporter]:
    if not progress:
        yield workers_lib.Reporter(None)
        return
    with progress_lib.track(sum(len(job.items) for job in jobs), f"items of {directory.name}") as tracker:
        yield workers_lib.Reporter(tracker)


def _existing(
    directory: epath.Path, spec: dict[str, Any], shards: Mapping[str, int], video_codec: str
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


def _rejections(directory: epath.Path, manifest: Manifest) -> str:
    return f"{directory}: {manifest.rejected.records} rejected, see {directory / shards_lib.REJECTED}"


@contextlib.contextmanager
def _lock(directory: epath.Path) -> Iterator[None]:
    """Holds an exclusive lock; the system frees it when the process ends, however it ends. Buckets have none."""
    if files_lib.is_remote(directory):
        yield
        return
    with (pathlib.Path(directory) / _LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _say(progress: bool, line: str) -> None:
    if progress:
        print(line, file=sys.stderr, flush=True)
