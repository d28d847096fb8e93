"""A dataset directory: ArrayRecord shards of clips, their index, and the manifest that makes it complete.

    manifest.json                        format version, spec, action names, totals, size and sum of each file
    index.jsonl                          one line a clip: where it is, and all that planning needs
    SPLIT-00000-of-00004.array_record    clip records, one a group, not compressed again

Everything is written under temporary names, synced and renamed; the manifest comes last. So a directory with
a manifest is whole, and one without is free to be written again.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import fractions
import hashlib
import json
import os
import pathlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from data_pipelines import clip as clip_lib
from data_pipelines.clip import Clip, ClipError, TextEvent, VideoCodec, one_line

VERSION = 1
MANIFEST = "manifest.json"
INDEX = "index.jsonl"

_PARTIAL = ".partial"
_WRITER_OPTIONS = "group_size:1,uncompressed"
# Random access: no read-ahead, no reader threads.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


class ShardError(ValueError):
    """A dataset is missing, incomplete, damaged or asked for what it lacks; names the file and the record."""


@dataclasses.dataclass(frozen=True)
class FileInfo:
    """A file of the dataset: its name, number of records (clips), size in bytes and sha256 in hex."""

    file: str
    records: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a dataset holds.

    Attributes:
        version: the format of the directory.
        spec: what the dataset was built from, as its builder describes it; JSON values.
        action_names: the action schema that all clips share.
        video_codec: how the video is stored.
        index: the index file.
        splits: for each split its shards.
        totals: for each split its number of clips, frames and seconds.
    """

    version: int
    spec: dict[str, Any]
    action_names: tuple[str, ...]
    video_codec: str
    index: FileInfo
    splits: dict[str, tuple[FileInfo, ...]]
    totals: dict[str, dict[str, float]]

    @property
    def files(self) -> tuple[FileInfo, ...]:
        """All data files, the index first."""
        return (self.index, *(file for files in self.splits.values() for file in files))


@dataclasses.dataclass(frozen=True)
class ClipInfo:
    """One line of the index: where a clip is, and its shape, clock, schema and texts."""

    split: str
    file: str
    record: int
    episode: str
    frames: int
    height: int
    width: int
    frame_rate: fractions.Fraction
    sample_rate: int
    channels: int
    action_names: tuple[str, ...]
    events: tuple[TextEvent, ...]
    source: str
    licence: str
    seed: int

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return float(self.frames / self.frame_rate)


def write_dataset(
    directory: str | os.PathLike[str],
    clips_by_split: Mapping[str, Iterable[Clip]],
    *,
    shards: Mapping[str, int],
    video_codec: VideoCodec = "zstd",
    spec: Mapping[str, Any] | None = None,
    on_clip: Callable[[str, Clip], None] | None = None,
) -> Manifest:
    """Writes a dataset, clip i of a split into shard i modulo the split's number of shards.

    A dataset that is already in the directory stays whole until the new one is complete, then gives way.

    Args:
        directory: made if missing.
        clips_by_split: the clips of each split, taken one at a time.
        shards: number of shards of each split.
        video_codec: see `clip.encode`.
        spec: JSON-able description of what is built, kept in the manifest.
        on_clip: called with the split and the clip after each clip is written.

    Returns:
        The manifest written.

    Raises:
        ShardError: shards do not fit the splits, a split is empty, an episode occurs twice, the action names
            differ between clips, or the disk refuses.
        ClipError: a clip is not valid.
    """
    _check_request(clips_by_split, shards)
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    _remove(_own_files(directory, _PARTIAL))
    infos: dict[str, ClipInfo] = {}
    try:
        for split, clips in clips_by_split.items():
            _write_split(directory, split, clips, shards[split], video_codec, infos, on_clip)
        _write_text(directory / (INDEX + _PARTIAL), "".join(map(_index_line, infos.values())))
        manifest = _describe(directory, list(infos.values()), shards, dict(spec or {}), video_codec)
        text = json.dumps(dataclasses.asdict(manifest), ensure_ascii=False, indent=2) + "\n"
        _write_text(directory / (MANIFEST + _PARTIAL), text)
        _publish(directory, manifest)
    except BaseException:
        _remove(_own_files(directory, _PARTIAL))
        raise
    return manifest


def read_manifest(directory: str | os.PathLike[str]) -> Manifest:
    """Reads a manifest and checks that every file it names is there in full length.

    Raises:
        ShardError: no manifest, another version, or a file missing or of another size.
    """
    directory = pathlib.Path(directory)
    path = directory / MANIFEST
    if not path.is_file():
        raise ShardError(f"{path} is missing: no dataset, or its build was interrupted; build it")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values["version"]
        if version != VERSION:
            raise ShardError(f"{path} has version {version}, this code reads {VERSION}; rebuild the dataset")
        values["action_names"] = tuple(values["action_names"])
        values["index"] = FileInfo(**values["index"])
        values["splits"] = {
            split: tuple(FileInfo(**file) for file in files) for split, files in values["splits"].items()
        }
        manifest = Manifest(**values)
    except ShardError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ShardError(f"{path} is damaged ({one_line(error)}); rebuild the dataset") from error
    for file in manifest.files:
        _check_size(directory / file.file, file.bytes)
    return manifest


def open_dataset(directory: str | os.PathLike[str]) -> Dataset:
    """Opens a dataset for reading: checks its manifest, the sizes of its files and its index.

    Raises:
        ShardError: see `read_manifest`; or the index is damaged.
    """
    directory = pathlib.Path(directory)
    manifest = read_manifest(directory)
    path = directory / INDEX
    if _sha256(path) != manifest.index.sha256:
        raise ShardError(f"{path} is damaged (sha256 differs); rebuild the dataset")
    clips: dict[str, list[ClipInfo]] = {split: [] for split in manifest.splits}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            try:
                info = _parse_index_line(line)
                clips[info.split].append(info)
            except (ValueError, LookupError, TypeError) as error:
                raise ShardError(f"{path} line {number + 1} is bad ({one_line(error)}); rebuild it") from error
    return Dataset(directory, manifest, clips)


class Dataset:
    """A dataset open for reading; made by `open_dataset`.

    Safe to use from many threads. Pickles (readers open again where they are first needed), so loader
    processes can share it.
    """

    def __init__(self, directory: pathlib.Path, manifest: Manifest, clips: Mapping[str, list[ClipInfo]]) -> None:
        self.directory = directory
        self.manifest = manifest
        self._clips = dict(clips)
        self._readers: dict[str, Any] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"directory": self.directory, "manifest": self.manifest, "clips": self._clips}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self._clips)

    def clips(self, split: str) -> list[ClipInfo]:
        """Returns the clips of a split, in the order in which they were written.

        Raises:
            ShardError: the dataset has no such split.
        """
        if split not in self._clips:
            raise ShardError(f"{self.directory} has no split {split!r}; use one of {', '.join(self._clips)}")
        return list(self._clips[split])

    def read(self, info: ClipInfo, start: int = 0, stop: int | None = None) -> Clip:
        """Reads the frames `start` to `stop` (exclusive; None is the end) of a clip.

        Raises:
            ShardError: the file cannot be opened, the record is damaged or not the clip of the index, or the
                window does not fit.
        """
        where = f"{self.directory / info.file} record {info.record}"
        try:
            (data,) = self._reader(info.file).read([info.record])
            clip = clip_lib.decode(data, start, stop)
        except ClipError as error:
            raise ShardError(f"{where}: {error}") from error
        except (RuntimeError, IndexError, TypeError) as error:
            raise ShardError(f"{where} cannot be read ({one_line(error)}); rebuild the dataset") from error
        if clip.episode != info.episode:
            raise ShardError(f"{where} is {clip.episode!r}, the index says {info.episode!r}; rebuild the dataset")
        return clip

    def verify(self, *, on_clip: Callable[[ClipInfo], None] | None = None) -> None:
        """Checks the size and sum of every file, and that every record decodes to what the index says.

        Args:
            on_clip: called after each clip that is found good.

        Raises:
            ShardError: the first thing found wrong.
        """
        for file in self.manifest.files:
            path = self.directory / file.file
            _check_size(path, file.bytes)
            if _sha256(path) != file.sha256:
                raise ShardError(f"{path} is damaged (sha256 differs); rebuild the dataset")
        for split, files in self.manifest.splits.items():
            for file in files:
                found = [info.record for info in self._clips[split] if info.file == file.file]
                count = self._reader(file.file).num_records()
                if sorted(found) != list(range(file.records)) or count != file.records:
                    path = self.directory / file.file
                    raise ShardError(
                        f"{path} has {count} records, the index {len(found)}, the manifest {file.records}; "
                        "rebuild the dataset"
                    )
            for info in self._clips[split]:
                if _info(self.read(info), info.split, info.file, info.record) != info:
                    path = self.directory / info.file
                    raise ShardError(f"{path} record {info.record} differs from the index; rebuild the dataset")
                if on_clip is not None:
                    on_clip(info)

    def _reader(self, file: str) -> Any:
        with self._lock:
            if file not in self._readers:
                path = self.directory / file
                # The reader takes a missing file for an empty one.
                if not path.is_file():
                    raise ShardError(f"{path} is missing; rebuild the dataset")
                try:
                    self._readers[file] = array_record_module.ArrayRecordReader(str(path), _READER_OPTIONS)
                except RuntimeError as error:
                    message = f"{path} cannot be opened ({one_line(error)}); rebuild the dataset"
                    raise ShardError(message) from error
            return self._readers[file]


def _write_split(
    directory: pathlib.Path,
    split: str,
    clips: Iterable[Clip],
    count: int,
    video_codec: VideoCodec,
    infos: dict[str, ClipInfo],
    on_clip: Callable[[str, Clip], None] | None,
) -> None:
    """Writes the shards of one split under temporary names, and adds its entries, by episode, to `infos`."""
    names = [_shard_name(split, shard, count) for shard in range(count)]
    number = -1
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(_writer(directory / (name + _PARTIAL))) for name in names]
        for number, clip in enumerate(clips):
            record, shard = divmod(number, count)
            data = clip_lib.encode(clip, video_codec=video_codec)
            info = _info(clip, split, names[shard], record)
            _check_fits(info, infos)
            try:
                writers[shard].write(data)
            except RuntimeError as error:
                raise ShardError(f"{directory / names[shard]} cannot be written ({one_line(error)})") from error
            infos[info.episode] = info
            if on_clip is not None:
                on_clip(split, clip)
    if number < 0:
        raise ShardError(f"split {split!r} of {directory} has no clips; give it some or leave it out")


def _check_fits(info: ClipInfo, infos: Mapping[str, ClipInfo]) -> None:
    """Raises ShardError if the episode is taken or the action schema is not that of the first clip."""
    if info.episode in infos:
        raise ShardError(f"episode {info.episode!r} occurs twice; give every clip a unique id")
    expected = next(iter(infos.values()), info).action_names
    if info.action_names != expected:
        raise ShardError(
            f"episode {info.episode!r} has action_names {info.action_names}, the clips before it {expected}; "
            "write one schema into one dataset"
        )


@contextlib.contextmanager
def _writer(path: pathlib.Path) -> Iterator[Any]:
    writer = array_record_module.ArrayRecordWriter(str(path), _WRITER_OPTIONS)
    try:
        yield writer
    finally:
        try:
            writer.close()
        except RuntimeError as error:
            raise ShardError(f"{path} cannot be written ({one_line(error)}); check the disk") from error
    _sync(path)


def _publish(directory: pathlib.Path, manifest: Manifest) -> None:
    """Renames the finished files into place, the manifest last, and removes those of an older dataset."""
    (directory / MANIFEST).unlink(missing_ok=True)
    _sync(directory)
    names = {file.file for file in manifest.files}
    for name in sorted(names):
        os.replace(directory / (name + _PARTIAL), directory / name)
    _remove(path for path in _own_files(directory, "") if path.name not in names)
    _sync(directory)
    os.replace(directory / (MANIFEST + _PARTIAL), directory / MANIFEST)
    _sync(directory)


def _describe(
    directory: pathlib.Path,
    infos: list[ClipInfo],
    shards: Mapping[str, int],
    spec: dict[str, Any],
    video_codec: str,
) -> Manifest:
    records = collections.Counter(info.file for info in infos)
    records[INDEX] = len(infos)

    def describe(name: str) -> FileInfo:
        path = directory / (name + _PARTIAL)
        return FileInfo(name, records[name], path.stat().st_size, _sha256(path))

    totals = {}
    for split in shards:
        own = [info for info in infos if info.split == split]
        frames, seconds = sum(info.frames for info in own), sum(info.seconds for info in own)
        totals[split] = {"clips": len(own), "frames": frames, "seconds": seconds}
    return Manifest(
        version=VERSION,
        spec=json.loads(json.dumps(spec)),
        action_names=infos[0].action_names,
        video_codec=video_codec,
        index=describe(INDEX),
        splits={
            split: tuple(describe(_shard_name(split, shard, count)) for shard in range(count))
            for split, count in shards.items()
        },
        totals=totals,
    )


def _check_request(clips_by_split: Mapping[str, Any], shards: Mapping[str, int]) -> None:
    if not clips_by_split or set(clips_by_split) != set(shards):
        raise ShardError(f"shards is for {sorted(shards)}, the splits are {sorted(clips_by_split)}; name the same")
    for split, count in shards.items():
        if not re.fullmatch(r"[A-Za-z0-9_]+", split):
            raise ShardError(f"split {split!r} is no file name; use letters, digits and _")
        if type(count) is not int or not 0 < count < 100_000:
            raise ShardError(f"shards of split {split!r} is {count!r}; use an int from 1 to 99999")


def _info(clip: Clip, split: str, file: str, record: int) -> ClipInfo:
    frames, height, width, _ = clip.video.shape
    return ClipInfo(
        split=split,
        file=file,
        record=record,
        episode=clip.episode,
        frames=frames,
        height=height,
        width=width,
        frame_rate=clip.frame_rate,
        sample_rate=clip.sample_rate,
        channels=clip.channels,
        action_names=clip.action_names,
        events=clip.events,
        source=clip.source,
        licence=clip.licence,
        seed=clip.seed,
    )


def _index_line(info: ClipInfo) -> str:
    values = {field.name: getattr(info, field.name) for field in dataclasses.fields(info)}
    values["frame_rate"] = f"{info.frame_rate.numerator}/{info.frame_rate.denominator}"
    values["events"] = [[event.frame, event.text] for event in info.events]
    return json.dumps(values, ensure_ascii=False) + "\n"


def _parse_index_line(line: str) -> ClipInfo:
    values = json.loads(line)
    values["frame_rate"] = fractions.Fraction(values["frame_rate"])
    values["action_names"] = tuple(values["action_names"])
    values["events"] = tuple(TextEvent(*event) for event in values["events"])
    return ClipInfo(**values)


def _shard_name(split: str, shard: int, count: int) -> str:
    return f"{split}-{shard:05d}-of-{count:05d}.array_record"


def _own_files(directory: pathlib.Path, suffix: str) -> list[pathlib.Path]:
    """Lists the files in the directory that have the names `write_dataset` gives, plus a suffix."""
    name = re.compile(rf"(\w+-\d{{5}}-of-\d{{5}}\.array_record|{INDEX}|{MANIFEST}){suffix}")
    return [path for path in directory.iterdir() if name.fullmatch(path.name)]


def _check_size(path: pathlib.Path, size: int) -> None:
    if not path.is_file():
        raise ShardError(f"{path} is missing; rebuild the dataset")
    if path.stat().st_size != size:
        raise ShardError(f"{path} has {path.stat().st_size} of {size} bytes; rebuild the dataset")


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_text(path: pathlib.Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    _sync(path)


def _sync(path: pathlib.Path) -> None:
    """Forces a file's data, or a directory's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(paths: Iterable[pathlib.Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
