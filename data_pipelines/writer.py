"""Writing a dataset, shard by shard: each is finished on its own, and all together are published.

While a dataset is built its finished shards stand in the folder `.building` of its directory, each with a part file
that says what is in it. So a build that was stopped goes on with the shards that are left, shards may be written by any
number of processes, and a dataset that is already in the directory stays whole until the new one is complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
from etils import epath

from data_pipelines import files as files_lib
from data_pipelines import index as index_lib
from data_pipelines import record as record_lib
from data_pipelines.clip import Clip, one_line
from data_pipelines.index import INDEX, ClipInfo
from data_pipelines.shards import MANIFEST, REJECTED, VERSION, FileInfo, Manifest, ShardError, shard_name
from data_pipelines.source import Item, Rejected, Source
from data_pipelines.video import VideoCodec

BUILDING = ".building"

_SPEC = "spec.json"
_PART = ".part"
_WRITER_OPTIONS = "group_size:1,uncompressed"


@dataclasses.dataclass(frozen=True)
class Job:
    """A shard to write.

    Attributes:
        split: its split.
        shard: its number.
        count: shards of the split.
        items: (number within the split, item): what it holds.
    """

    split: str
    shard: int
    count: int
    items: tuple[tuple[int, Item], ...]

    @property
    def name(self) -> str:
        """Name of the shard's file."""
        return shard_name(self.split, self.shard, self.count)


@dataclasses.dataclass(frozen=True)
class Part:
    """A finished shard.

    Attributes:
        file: the shard's file.
        infos: (number of the item, clip) in the order of the records.
        rejected: (number of the item, what gave no clip).
    """

    file: FileInfo
    infos: tuple[tuple[int, ClipInfo], ...]
    rejected: tuple[tuple[int, Rejected], ...]


def make_jobs(items: Sequence[Item], shards: Mapping[str, int]) -> list[Job]:
    """Deals the items of each split to its shards, item i to shard i modulo their number.

    Raises:
        ShardError: `shards` is not for the splits of the items, or a number or name of it cannot be used.
    """
    by_split: dict[str, list[Item]] = {}
    for item in items:
        by_split.setdefault(item.split, []).append(item)
    if not by_split:
        raise ShardError("there is nothing to build; the source has no items")
    missing = sorted(set(by_split) ^ set(shards))
    if missing:
        raise ShardError(f"shards is for {sorted(shards)}, the splits are {sorted(by_split)}; name the same")
    for split, count in shards.items():
        if not re.fullmatch(r"[A-Za-z0-9_]+", split):
            raise ShardError(f"split {split!r} is no file name; use letters, digits and _")
        if type(count) is not int or not 0 < count < 100_000:
            raise ShardError(f"shards of split {split!r} is {count!r}; use an int from 1 to 99999")
    return [
        Job(split, shard, count, tuple(list(enumerate(by_split[split]))[shard::count]))
        for split, count in shards.items()
        for shard in range(count)
    ]


def open_building(directory: epath.Path, request: Mapping[str, Any]) -> epath.Path:
    """Returns the folder of shards that are being built, emptied if they were begun for another request."""
    building = directory / BUILDING
    text = json.dumps(request, ensure_ascii=False, sort_keys=True)
    spec = building / _SPEC
    if not files_lib.is_file(spec) or spec.read_text(encoding="utf-8") != text:
        remove(building)
        building.mkdir(parents=True)
        files_lib.write_bytes(spec, text.encode())
    return building


def write_shard(
    building: epath.Path,
    job: Job,
    source: Source,
    *,
    video_codec: VideoCodec,
    lost: Mapping[str, str] | None = None,
    begin: Callable[[Sequence[Item]], None] = lambda items: None,
    on_clip: Callable[[ClipInfo], None] = lambda info: None,
) -> Part:
    """Records the items of a shard and writes it with its part file.

    Args:
        building: see `open_building`.
        job: which shard.
        source: what records its items.
        video_codec: how clips are encoded that the source has not encoded.
        lost: names of items that are rejected unseen, with the reasons.
        begin: called with the items that are recorded next.
        on_clip: called after each clip.

    Raises:
        ClipError: a clip is not valid.
        ShardError: the disk refuses.
    """
    infos: list[tuple[int, ClipInfo]] = []
    rejected: list[tuple[int, Rejected]] = []
    number_of = {item.name: number for number, item in job.items}
    for name, reason in (lost or {}).items():
        rejected.append((number_of[name], Rejected(name, reason)))
    items = [item for _, item in job.items if item.name not in (lost or {})]
    with _writer(building / job.name) as write:
        for batch in _batches(items, source.batch):
            begin(batch)
            for item, made in source.record(batch):
                number = number_of[item.name]
                if isinstance(made, Rejected):
                    rejected.append((number, made))
                    continue
                record = record_lib.encode(made, video_codec=video_codec) if isinstance(made, Clip) else made
                data = record.to_bytes()
                info = index_lib.describe(record, job.split, job.name, len(infos), len(data))
                write(data)
                infos.append((number, info))
                on_clip(info)
    path = building / job.name
    file = FileInfo(job.name, len(infos), files_lib.size(path), files_lib.sha256(path))
    part = Part(file, tuple(infos), tuple(rejected))
    files_lib.write_bytes(building / (job.name + _PART), _part_to_json(part))
    return part


def finished_part(building: epath.Path, job: Job) -> Part | None:
    """Returns what a finished shard holds; None if it is not there, or not as it was finished."""
    path, part_path = building / job.name, building / (job.name + _PART)
    if not files_lib.is_file(path) or not files_lib.is_file(part_path):
        return None
    try:
        part = _part_from_json(part_path.read_bytes())
    except (ValueError, LookupError, TypeError):
        return None
    return part if files_lib.sha256(path) == part.file.sha256 else None


def publish(
    directory: epath.Path, jobs: Sequence[Job], parts: Sequence[Part], spec: Mapping[str, Any], video_codec: str
) -> Manifest:
    """Makes the finished shards the dataset of the directory, the manifest last; a split without clips is left out.

    Raises:
        ShardError: there are no clips, an episode occurs twice, or the action names differ.
    """
    building = directory / BUILDING
    infos, rejected = _in_order(jobs, parts)
    lines = [
        json.dumps({"split": split, "name": one.name, "reason": one.reason}, ensure_ascii=False)
        for split, one in rejected
    ]
    if not infos:
        # Who reads that there are no clips wants to know why.
        files_lib.write_bytes(directory / REJECTED, _joined(lines))
        raise ShardError(f"{directory} has no clips; {len(rejected)} rejected, see {directory / REJECTED}")
    splits = [split for split in dict.fromkeys(job.split for job in jobs) if any(info.split == split for info in infos)]
    _check(infos)
    tables = {
        INDEX: (index_lib.to_parquet(infos), len(infos)),
        REJECTED: (_joined(lines), len(lines)),
    }
    described = {}
    for name, (data, count) in tables.items():
        files_lib.write_bytes(building / name, data)
        described[name] = FileInfo(name, count, len(data), files_lib.sha256(building / name))
    totals = {}
    for split in splits:
        own = [info for info in infos if info.split == split]
        frames, seconds = sum(info.frames for info in own), sum(info.seconds for info in own)
        totals[split] = {"clips": len(own), "frames": frames, "seconds": seconds}
    manifest = Manifest(
        version=VERSION,
        spec=json.loads(json.dumps(spec)),
        action_names=infos[0].action_names,
        video_codec=video_codec,
        index=described[INDEX],
        rejected=described[REJECTED],
        splits={
            split: tuple(part.file for job, part in zip(jobs, parts, strict=True) if job.split == split)
            for split in splits
        },
        totals=totals,
    )
    text = json.dumps(dataclasses.asdict(manifest), ensure_ascii=False, indent=2) + "\n"
    files_lib.write_bytes(building / MANIFEST, text.encode())
    _move(building, directory, {file.file for file in manifest.files})
    return manifest


def _in_order(jobs: Sequence[Job], parts: Sequence[Part]) -> tuple[list[ClipInfo], list[tuple[str, Rejected]]]:
    """The clips, and the rejections with their splits, in the order of the items."""
    place = {split: number for number, split in enumerate(dict.fromkeys(job.split for job in jobs))}
    both = list(zip(jobs, parts, strict=True))
    infos = [(place[job.split], number, info.record, info) for job, part in both for number, info in part.infos]
    rejected = [
        (place[job.split], number, turn, (job.split, one))
        for job, part in both
        for turn, (number, one) in enumerate(part.rejected)
    ]
    return (
        [info for *_, info in sorted(infos, key=lambda one: one[:3])],
        [one for *_, one in sorted(rejected, key=lambda one: one[:3])],
    )


def _joined(lines: Sequence[str]) -> bytes:
    return "".join(line + "\n" for line in lines).encode()


def _check(infos: Sequence[ClipInfo]) -> None:
    seen: set[str] = set()
    for info in infos:
        if info.episode in seen:
            raise ShardError(f"episode {info.episode!r} occurs twice; give every clip a unique id")
        seen.add(info.episode)
        if info.action_names != infos[0].action_names:
            raise ShardError(
                f"episode {info.episode!r} has action_names {info.action_names}, the clips before it "
                f"{infos[0].action_names}; write one schema into one dataset"
            )


def _move(building: epath.Path, directory: epath.Path, names: set[str]) -> None:
    """Renames the finished files into place and removes those of an older dataset; the manifest goes first and last."""
    (directory / MANIFEST).unlink(missing_ok=True)
    files_lib.sync_names(directory)
    for name in sorted(names):
        files_lib.move(building / name, directory / name)
    for path in directory.iterdir():
        if re.fullmatch(r"\w+-\d{5}-of-\d{5}\.array_record", path.name) and path.name not in names:
            path.unlink()
    files_lib.sync_names(directory)
    files_lib.move(building / MANIFEST, directory / MANIFEST)
    files_lib.sync_names(directory)
    remove(building)


def remove(building: epath.Path) -> None:
    """Removes the folder of shards that are being built, if it is there."""
    if building.exists():
        building.rmtree()


def _batches(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    remaining = iter(items)
    while batch := list(itertools.islice(remaining, size)):
        yield batch


@contextlib.contextmanager
def _writer(path: epath.Path) -> Iterator[Callable[[bytes], None]]:
    """Yields what writes a record of a shard."""

    def refuse(error: RuntimeError) -> ShardError:
        return ShardError(f"{path} cannot be written ({one_line(error)}); check the disk")

    with files_lib.new_file(path) as local:
        writer = array_record_module.ArrayRecordWriter(str(local), _WRITER_OPTIONS)

        def write(data: bytes) -> None:
            try:
                writer.write(data)
            except RuntimeError as error:
                raise refuse(error) from error

        try:
            yield write
        finally:
            try:
                writer.close()
            except RuntimeError as error:
                raise refuse(error) from error


def _part_to_json(part: Part) -> bytes:
    """A part's clips go as the table of the index, since JSON has no fractions."""
    table = index_lib.to_parquet(info for _, info in part.infos)
    values = {
        "file": dataclasses.asdict(part.file),
        "numbers": [number for number, _ in part.infos],
        "infos": table.hex(),
        "rejected": [[number, one.name, one.reason] for number, one in part.rejected],
    }
    return json.dumps(values, ensure_ascii=False).encode()


def _part_from_json(data: bytes) -> Part:
    values = json.loads(data)
    infos: Iterable[ClipInfo] = index_lib.from_parquet(bytes.fromhex(values["infos"]))
    return Part(
        FileInfo(**values["file"]),
        tuple(zip(values["numbers"], infos, strict=True)),
        tuple((number, Rejected(name, reason)) for number, name, reason in values["rejected"]),
    )
