"""A dataset directory: ArrayRecord shards of clips, their index, and the manifest that makes it complete.

    manifest.json                        format version, spec, action names, totals, size and sum of each file
    index.parquet                        one row a clip: where it is, and all that planning needs
    rejected.jsonl                       one line for each thing that gave no clip: its name, split and the reason
    SPLIT-00000-of-00004.array_record    clip records, one a group, not compressed again

The manifest comes last (see `data_pipelines.writer`), so a directory with a manifest is whole.
"""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
from etils import epath

from data_pipelines import files as files_lib
from data_pipelines import index as index_lib
from data_pipelines import record as record_lib
from data_pipelines.clip import Clip, ClipError, one_line
from data_pipelines.index import INDEX, ClipInfo

VERSION = 3
MANIFEST = "manifest.json"
REJECTED = "rejected.jsonl"

# Random access: no read-ahead, no reader threads.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


class ShardError(ValueError):
    """A dataset is missing, incomplete, damaged or asked for what it lacks; names the file and the record."""


@dataclasses.dataclass(frozen=True)
class FileInfo:
    """A file of the dataset: its name, number of records (clips, or lines), size in bytes and sha256 in hex."""

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
        video_codec: how video is stored that was not copied.
        index: the index file.
        rejected: the file of rejections.
        splits: for each split its shards.
        totals: for each split its number of clips, frames and seconds.
    """

    version: int
    spec: dict[str, Any]
    action_names: tuple[str, ...]
    video_codec: str
    index: FileInfo
    rejected: FileInfo
    splits: dict[str, tuple[FileInfo, ...]]
    totals: dict[str, dict[str, float]]

    @property
    def files(self) -> tuple[FileInfo, ...]:
        """All data files, the index first."""
        return (self.index, self.rejected, *(file for files in self.splits.values() for file in files))


def shard_name(split: str, shard: int, count: int) -> str:
    """Name of shard `shard` of `count`."""
    return f"{split}-{shard:05d}-of-{count:05d}.array_record"


def read_manifest(directory: str | os.PathLike[str]) -> Manifest:
    """Reads a manifest and checks that every file it names is there in full length.

    Raises:
        ShardError: no manifest, another version, or a file missing or of another size.
    """
    directory = epath.Path(directory)
    path = directory / MANIFEST
    if not files_lib.is_file(path):
        inside = [one.name for one in _folders(directory) if files_lib.is_file(one / MANIFEST)]
        fix = f"it holds the datasets {', '.join(sorted(inside))}; name one of them" if inside else "build it"
        raise ShardError(f"{path} is missing: no dataset, or its build was interrupted; {fix}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values["version"]
        if version != VERSION:
            raise ShardError(f"{path} has version {version}, this code reads {VERSION}; rebuild the dataset")
        values["action_names"] = tuple(values["action_names"])
        values["index"] = FileInfo(**values["index"])
        values["rejected"] = FileInfo(**values["rejected"])
        values["splits"] = {
            split: tuple(FileInfo(**file) for file in files) for split, files in values["splits"].items()
        }
        manifest = Manifest(**values)
    except ShardError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ShardError(f"{path} is damaged ({one_line(error)}); rebuild the dataset") from error
    for file in manifest.files:
        check_size(directory / file.file, file.bytes)
    return manifest


def _folders(directory: epath.Path) -> list[epath.Path]:
    return [path for path in directory.iterdir() if path.is_dir()] if directory.exists() else []


def open_dataset(directory: str | os.PathLike[str]) -> Dataset:
    """Opens a dataset for reading: checks its manifest, the sizes of its files and its index.

    Raises:
        ShardError: see `read_manifest`; or the index is damaged.
    """
    directory = epath.Path(directory)
    manifest = read_manifest(directory)
    path = directory / INDEX
    if files_lib.sha256(path) != manifest.index.sha256:
        raise ShardError(f"{path} is damaged (sha256 differs); rebuild the dataset")
    try:
        infos = index_lib.from_parquet(path.read_bytes())
    except index_lib.IndexDamagedError as error:
        raise ShardError(f"{path} is damaged ({error}); rebuild the dataset") from error
    clips: dict[str, list[ClipInfo]] = {split: [] for split in manifest.splits}
    for info in infos:
        clips[info.split].append(info)
    return Dataset(directory, manifest, clips)


class Dataset:
    """A dataset open for reading; made by `open_dataset`.

    Safe to use from many threads. Pickles (readers open again where they are first needed), so loader
    processes can share it.
    """

    def __init__(self, directory: epath.Path, manifest: Manifest, clips: Mapping[str, list[ClipInfo]]) -> None:
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
        data = self.read_bytes(info)
        where = self._where(info)
        try:
            clip = record_lib.decode(data, start, stop)
        except ClipError as error:
            raise ShardError(f"{where}: {error}") from error
        if clip.episode != info.episode:
            raise ShardError(f"{where} is {clip.episode!r}, the index says {info.episode!r}; rebuild the dataset")
        return clip

    def read_bytes(self, info: ClipInfo) -> bytes:
        """Reads a clip's record as it is stored; `data_pipelines.record.read` opens it.

        Raises:
            ShardError: the file cannot be opened or has no such record.
        """
        try:
            return self._reader(info.file).read([info.record])[0]
        except (RuntimeError, IndexError, TypeError) as error:
            raise ShardError(f"{self._where(info)} cannot be read ({one_line(error)}); rebuild the dataset") from error

    def rejected(self) -> list[dict[str, str]]:
        """What gave no clip: `split`, `name` and `reason` of each."""
        text = (self.directory / REJECTED).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def verify(self, *, on_clip: Callable[[ClipInfo], None] | None = None) -> None:
        """Checks the size and sum of every file, and that every record decodes to what the index says.

        Args:
            on_clip: called after each clip that is found good.

        Raises:
            ShardError: the first thing found wrong.
        """
        for file in self.manifest.files:
            path = self.directory / file.file
            check_size(path, file.bytes)
            if files_lib.sha256(path) != file.sha256:
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
                self.read(info)
                data = self.read_bytes(info)
                found = index_lib.describe(record_lib.read(data), info.split, info.file, info.record, len(data))
                if found != info:
                    raise ShardError(f"{self._where(info)} differs from the index; rebuild the dataset")
                if on_clip is not None:
                    on_clip(info)

    def _where(self, info: ClipInfo) -> str:
        return f"{self.directory / info.file} record {info.record}"

    def _reader(self, file: str) -> Any:
        with self._lock:
            if file not in self._readers:
                path = self.directory / file
                # The reader takes a missing file for an empty one.
                if not files_lib.is_file(path):
                    raise ShardError(f"{path} is missing; rebuild the dataset")
                try:
                    self._readers[file] = array_record_module.ArrayRecordReader(
                        str(files_lib.local_copy(path)), _READER_OPTIONS
                    )
                except RuntimeError as error:
                    message = f"{path} cannot be opened ({one_line(error)}); rebuild the dataset"
                    raise ShardError(message) from error
            return self._readers[file]


def check_size(path: epath.Path, size: int) -> None:
    """Raises ShardError if a file is missing or of another size."""
    if not files_lib.is_file(path):
        raise ShardError(f"{path} is missing; rebuild the dataset")
    if files_lib.size(path) != size:
        raise ShardError(f"{path} has {files_lib.size(path)} of {size} bytes; rebuild the dataset")
