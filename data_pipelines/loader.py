"""The loader: rows of a plan, read and packed in threads, as one stream that all hosts share.

Row i of the stream is row i of the plan, global batch k is rows [k * batch, (k + 1) * batch), and each process reads
the places of every batch that its devices need. So the position is one integer, equal on all hosts and valid for any
number of them, and epochs follow one another with no boundary. Reading needs no accelerator and no jax.
"""

import collections
import dataclasses
import threading
from collections.abc import Mapping, Sequence
from typing import Protocol

import grain
import numpy as np

from data_pipelines.bad_records import BadRecords
from data_pipelines.clip import Clip, ClipError, cut
from data_pipelines.index import ClipInfo
from data_pipelines.packing import Window, pack_row
from data_pipelines.plan import WindowRef
from data_pipelines.row_layout import RowSpec, TokenSpec
from data_pipelines.shards import ShardError
from data_pipelines.windows import read_window

Row = dict[str, np.ndarray]
_ENDLESS = 2**60  # rows; a stream needs some length, and no run gets this far
_UNREADABLE = (ClipError, ShardError)  # errors that say of a record that it is bad


class ClipReader(Protocol):
    """What the loader needs of a dataset."""

    def read(self, info: ClipInfo, start: int = 0, stop: int | None = None) -> Clip:
        """Reads the frames `start` to `stop` of a clip; called from several threads."""
        ...


class Plan(Protocol):
    """What the loader needs of a `PackPlan` or a `Mixture`."""

    spec: TokenSpec
    row_spec: RowSpec
    actions: tuple[str, ...]

    @property
    def infos(self) -> Sequence[ClipInfo]:
        """All clips."""
        ...

    def row(self, index: int) -> list[WindowRef]:
        """The windows of row `index`."""
        ...


Readers = ClipReader | Mapping[str, ClipReader]  # one dataset, or those of a mixture by name


class RowSource:
    """Random access to the packed rows of a plan, over all epochs; safe to share between threads.

    Attributes:
      bad: The records that could not be read.
    """

    def __init__(self, readers: Readers, plan: Plan, spec: TokenSpec, *, cache_mb: int, max_bad: float):
        """Binds a plan to the datasets that hold its clips; see `row_source`."""
        if spec != plan.spec:
            raise ValueError(f"row_source: spec {spec} is not the plan's {plan.spec}; pass plan.spec")
        self._plan, self._spec = plan, spec
        readers = readers if isinstance(readers, Mapping) else {"": readers}
        self._clips = ClipCache(readers, plan.infos, cache_mb * 2**20)
        self.bad = BadRecords(len(plan.infos), max_bad)

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index: int) -> Row:
        """Row `index` as `pack_row` gives it; the place of a window that cannot be read stays empty.

        Raises:
          BadRecordsError: More clips than the limit cannot be read; the message names them.
        """
        windows = [self._read(ref) for ref in self._plan.row(index)]
        return pack_row(self._spec, self._plan.row_spec, [window for window in windows if window is not None])

    def _read(self, ref: WindowRef) -> Window | None:
        try:
            window = read_window(
                lambda start, stop: self._clips.window(ref.info, start, stop, ref.dataset),
                ref.info,
                self._spec,
                self._plan.actions,
                first_chunk=ref.start // self._spec.chunk_frames,
                chunks=max(1, ref.frames // self._spec.chunk_frames),
                sample_id=ref.sample_id,
            )
        except _UNREADABLE as error:
            self.bad.add(ref.dataset, ref.info.episode, error)
            return None
        return dataclasses.replace(window, table=ref.table)


def row_source(
    readers: Readers, plan: Plan, spec: TokenSpec, *, cache_mb: int = 512, max_bad: float = 0.01
) -> RowSource:
    """Random access to packed rows: `source[i]` reads and packs row i of `plan`.

    Args:
      readers: Where the plan's clips are; of a mixture the datasets by name.
      plan: Which windows make a row.
      spec: The plan's token layout.
      cache_mb: Most memory for decoded clips, in MiB.
      max_bad: Share of the plan's clips that may be unreadable before reading stops.

    Raises:
      ValueError: `spec` is not the plan's.
    """
    return RowSource(readers, plan, spec, cache_mb=cache_mb, max_bad=max_bad)


def make_iterator(
    readers: Readers,
    plan: Plan,
    *,
    batch_size: int,
    threads: int,
    prefetch: int,
    rows: Sequence[int] | None = None,
    cache_mb: int = 512,
    max_bad: float = 0.01,
) -> grain.DatasetIterator[Row]:
    """Endless iterator over this process's part of every global batch.

    Its `get_state` and `set_state` hold the number of the next global batch and nothing else, so a state
    saved by one number of processes continues on another.

    Args:
      readers: As in `row_source`.
      plan: Which windows make a row.
      batch_size: Rows in a global batch, over all processes.
      threads: Threads that read ahead; 0 reads in the caller's.
      prefetch: Batches to read ahead.
      rows: The places in every global batch that this process reads, ascending; None reads all.
      cache_mb: Most memory for decoded clips, in MiB.
      max_bad: As in `row_source`; each process counts what it reads.

    Returns:
      A grain iterator of the arrays of `pack_row`, each with a leading axis [rows].

    Raises:
      ValueError: The rows are not places of the batch.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be 1 or more")
    own = tuple(range(batch_size) if rows is None else rows)
    if not own or list(own) != sorted({row for row in own if 0 <= row < batch_size}):
        raise ValueError(f"rows={own} must be places from 0 to {batch_size - 1}, ascending")
    source = row_source(readers, plan, plan.spec, cache_mb=cache_mb, max_bad=max_bad)
    part = grain.MapDataset.source(ProcessPart(source, batch_size, own)).batch(len(own))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(part.to_iter_dataset(options))


def skip_to(iterator: grain.DatasetIterator[Row], global_batch: int) -> None:
    """Makes `global_batch` the next batch of `make_iterator`'s iterator, without reading those before it."""
    if global_batch < 0:
        raise ValueError(f"global_batch={global_batch} must not be negative")
    iterator.set_state({"next_index": global_batch})


@dataclasses.dataclass(frozen=True)
class ProcessPart:
    """The rows of one process, in order: the places `rows` of every global batch."""

    source: RowSource
    batch_size: int
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.source) // self.batch_size * len(self.rows)

    def __getitem__(self, index: int) -> Row:
        """Local row `index`."""
        batch, place = divmod(index, len(self.rows))
        return self.source[batch * self.batch_size + self.rows[place]]


class ClipCache:
    """Reads windows of clips, keeping the least recently used decoded clips within a bound of bytes.

    A miss may decode the whole clip, for the sake of later windows, or the window alone. Under a global
    shuffle a later read finds a clip with the probability that it is still held, about bound / dataset size.
    So the whole clip is worth its price where it is expected to cost no more frames than the window has.
    """

    def __init__(self, readers: Mapping[str, ClipReader], infos: Sequence[ClipInfo], limit: int):
        self._readers, self._limit = readers, limit
        self._held = min(1.0, limit / sum(map(_decoded_bytes, infos)))
        self._reset()

    def window(self, info: ClipInfo, start: int, stop: int, dataset: str = "") -> Clip:
        """The frames `start` to `stop` of a clip of a dataset."""
        reader, key = self._readers[dataset], (dataset, info.episode)
        whole = (1.0 - self._held) * info.frames <= stop - start and _decoded_bytes(info) <= self._limit
        if not whole:
            return reader.read(info, start, stop)
        with self._lock:
            clip = self._clips.get(key)
            if clip is not None:
                self._clips.move_to_end(key)
        if clip is None:
            try:
                clip = reader.read(info)
            except _UNREADABLE:
                # Whether a window can be read must not depend on the size of this cache.
                return reader.read(info, start, stop)
            self._keep(key, clip)
        return cut(clip, start, stop)

    @property
    def used(self) -> int:
        """Bytes of decoded clips held."""
        return self._used

    def _keep(self, key: tuple[str, str], clip: Clip) -> None:
        with self._lock:
            if key in self._clips:  # another thread was first
                return
            self._clips[key] = clip
            self._used += _clip_bytes(clip)
            while self._used > self._limit:
                _, oldest = self._clips.popitem(last=False)
                self._used -= _clip_bytes(oldest)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._clips: collections.OrderedDict[tuple[str, str], Clip] = collections.OrderedDict()
        self._used = 0

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_clips", "_used")}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._reset()


def _clip_bytes(clip: Clip) -> int:
    facts = sum(fact.values.nbytes for fact in clip.facts.values())
    return clip.video.nbytes + clip.audio.nbytes + clip.actions.nbytes + facts


def _decoded_bytes(info: ClipInfo) -> int:
    samples = int(info.frames * info.sample_rate / info.frame_rate)
    return info.frames * (info.height * info.width * 3 + 4 * len(info.action_names)) + 2 * samples * info.channels
