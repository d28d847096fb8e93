"""The pack plan: (seed, epoch, index) -> the clip windows of a packed row (design decision D12).

Every clip is cut into windows of equal length, at a random phase that changes by epoch. Windows of one
resolution and length form a size class, and every clip gives the same number of windows in every epoch, so
rows can be laid out once, as templates over size classes. An epoch then only deals its shuffled windows to
the places of their class and shuffles the rows: each window appears once an epoch, the number of rows is
constant, and a row is a pure function of its index.
"""

import collections
import dataclasses
import enum
import itertools
import threading
from collections.abc import Sequence

import numpy as np

from data_pipelines.row_layout import Cost, RowSpec, TokenSpec, window_cost
from data_pipelines.shards import ClipInfo

_CAPACITIES = tuple(field.name for field in dataclasses.fields(Cost))
_EPOCHS_KEPT = 3  # readers that run ahead straddle the boundary between two epochs


class PlanError(ValueError):
    """Clips that no plan can place; the message names the episode and what to change."""


@dataclasses.dataclass(frozen=True)
class WindowRef:
    """A window of a clip, to be read.

    Attributes:
      info: The clip.
      start: First frame, a multiple of the chunk.
      frames: Number of frames, a multiple of the chunk.
      sample_id: Identity of the window in its epoch, a uint32, for randomness keyed by sample.
    """

    info: ClipInfo
    start: int
    frames: int
    sample_id: int


@dataclasses.dataclass(frozen=True)
class Efficiency:
    """How full an average row is, as fractions.

    Attributes:
      tokens: Tokens that carry something, of all tokens that are computed.
      blocks: Blocks that hold at least one token, of all blocks.
    """

    tokens: float
    blocks: float


@dataclasses.dataclass(frozen=True)
class RowGroup:
    """Rows that hold the same number of windows of every size class.

    Attributes:
      rows: How many rows.
      counts: int64 [classes], windows of each class in one row.
    """

    rows: int
    counts: np.ndarray


class PackPlan:
    """An addressable, endless sequence of rows; each holds windows of one or more clips.

    Attributes:
      infos: The clips.
      spec: How their content becomes tokens.
      row_spec: Capacities of every row.
      window_chunks: Chunks in a window; a shorter clip gives one window of all its whole chunks.
      windows: Windows in an epoch.
      rows_per_epoch: Rows in an epoch.
      chunks_per_row: Chunks in an average row, at most `row_spec.chunks`.
    """

    def __init__(
        self,
        infos: Sequence[ClipInfo],
        spec: TokenSpec,
        *,
        window_chunks: int,
        row: RowSpec | None,
        rows_windows: int = 1,
        seed: int,
    ):
        """Lays out the rows.

        Args:
          infos: The clips to draw from.
          spec: How content becomes tokens.
          window_chunks: Chunks in a window.
          row: Capacities of a row; None sizes it for `rows_windows` windows of the largest size class, or as many
            more of the others as its blocks hold.
          rows_windows: Windows of the largest class in a row, where `row` is None.
          seed: Seed of every shuffle and phase.

        Raises:
          PlanError: There are no clips, or a clip disagrees with `spec` or fits no row.
        """
        if window_chunks < 1 or rows_windows < 1:
            raise PlanError(f"window_chunks={window_chunks} and rows_windows={rows_windows} must be at least 1")
        if not infos:
            raise PlanError("the plan has no clips; check the dataset's split")
        self.infos, self.spec, self.window_chunks = tuple(infos), spec, window_chunks
        self._seed = seed
        for info in self.infos:
            _check_clip(info, spec)
        chunks = np.array([info.frames // spec.chunk_frames for info in self.infos], np.int64)
        self._length = np.minimum(chunks, window_chunks)  # [clips], chunks of each of a clip's windows
        self._count = chunks // self._length  # [clips], windows
        self._spare = chunks - self._count * self._length  # [clips], chunks by which the cut may move
        self._first = np.cumsum(self._count) - self._count  # [clips], number of a clip's first window
        self.windows = int(self._count.sum())

        texts = [_text_load(info, spec, int(n)) for info, n in zip(self.infos, self._length, strict=True)]
        costs = np.stack(
            [
                _clip_cost(info, spec, int(n), text)
                for info, n, text in zip(self.infos, self._length, texts, strict=True)
            ]
        )
        self._class, class_costs = _size_classes(self.infos, self._length, costs)
        self.row_spec = row or _row_for(class_costs, rows_windows)
        for info, length, cost in zip(self.infos, self._length, costs, strict=True):
            _check_fit(info, int(length), cost, self.row_spec)

        sizes = np.bincount(self._class, weights=self._count).astype(np.int64)
        self._groups = fill_rows(class_costs, sizes, np.array(dataclasses.astuple(self.row_spec), np.int64))
        rows = np.array([group.rows for group in self._groups], np.int64)
        self._group_start = np.cumsum(rows) - rows
        used = np.stack([group.rows * group.counts for group in self._groups])
        # [groups, classes], where a group's windows of a class begin in an epoch's windows, sorted by class.
        self._deal_start = np.cumsum(used, 0) - used + (np.cumsum(sizes) - sizes)
        self.rows_per_epoch = int(rows.sum())
        self.chunks_per_row = float((self._count * self._length).sum() / self.rows_per_epoch)
        self._mean_text = np.array([[text.mean_tokens, text.mean_blocks] for text in texts])
        self._reset_cache()

    def row(self, index: int) -> list[WindowRef]:
        """The windows of row `index`, counted over all epochs: a pure function of the seed and `index`."""
        if index < 0:
            raise IndexError(f"row {index} is before the first row")
        epoch, place = divmod(int(index), self.rows_per_epoch)
        order = self._epoch(epoch)
        row = int(order.rows[place])
        group = int(np.searchsorted(self._group_start, row, side="right")) - 1
        counts = self._groups[group].counts
        starts = self._deal_start[group] + (row - self._group_start[group]) * counts
        places = [slice(starts[kind], starts[kind] + counts[kind]) for kind in np.flatnonzero(counts)]
        return [self._window(epoch, order, int(window)) for here in places for window in order.windows[here]]

    def efficiency(self) -> Efficiency:
        """How full an average row is, text at its expected length over all phases."""
        tokens = blocks = 0.0
        for info, count, chunks, (text_tokens, text_blocks) in zip(
            self.infos, self._count, self._length, self._mean_text, strict=True
        ):
            cost = window_cost(self.spec, info.height, info.width, int(chunks), ())
            picture = cost.patches // chunks
            content = (2 * chunks - 1) * (self.spec.head_tokens + picture) + (chunks - 1) * self.spec.block
            tokens += count * (content + text_tokens)
            blocks += count * (cost.clean_blocks + cost.noisy_blocks + text_blocks)
        computed = self.rows_per_epoch * self.row_spec.blocks
        return Efficiency(tokens=float(tokens / (computed * self.spec.block)), blocks=float(blocks / computed))

    def _window(self, epoch: int, order: "_EpochOrder", window: int) -> WindowRef:
        clip = int(np.searchsorted(self._first, window, side="right")) - 1
        length = int(self._length[clip])
        chunk = int(order.phases[clip]) + (window - int(self._first[clip])) * length
        return WindowRef(
            info=self.infos[clip],
            start=chunk * self.spec.chunk_frames,
            frames=length * self.spec.chunk_frames,
            sample_id=(epoch * self.windows + window) % 2**32,
        )

    def _epoch(self, epoch: int) -> "_EpochOrder":
        with self._lock:
            if epoch in self._orders:
                self._orders.move_to_end(epoch)
            else:
                self._orders[epoch] = self._draw_epoch(epoch)
                if len(self._orders) > _EPOCHS_KEPT:
                    self._orders.popitem(last=False)
            return self._orders[epoch]

    def _draw_epoch(self, epoch: int) -> "_EpochOrder":
        spare = (self._spare + 1).astype(np.uint64)
        window_keys = _draw(self._seed, epoch, _Purpose.WINDOWS, self.windows)
        row_keys = _draw(self._seed, epoch, _Purpose.ROWS, self.rows_per_epoch)
        return _EpochOrder(
            phases=(_draw(self._seed, epoch, _Purpose.PHASE, len(self.infos)) % spare).astype(np.int64),
            windows=np.lexsort((window_keys, np.repeat(self._class, self._count))),
            rows=np.argsort(row_keys, kind="stable"),
        )

    def _reset_cache(self):
        self._lock = threading.Lock()
        self._orders: collections.OrderedDict[int, _EpochOrder] = collections.OrderedDict()

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_orders")}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._reset_cache()


class _Purpose(enum.IntEnum):
    """What a stream of random numbers is for."""

    PHASE = 0
    WINDOWS = 1
    ROWS = 2


@dataclasses.dataclass(frozen=True, eq=False)
class _EpochOrder:
    """The random choices of one epoch."""

    phases: np.ndarray  # [clips], chunk at which a clip's first window starts
    windows: np.ndarray  # [windows], sorted by class, shuffled within
    rows: np.ndarray  # [rows], place in the epoch -> row of the layout


def _draw(seed: int, epoch: int, purpose: _Purpose, count: int) -> np.ndarray:
    """Random uint64 [count]; raw words, since numpy keeps no other stream equal across its versions."""
    key = np.array([seed % 2**64, purpose], np.uint64)
    counter = np.array([0, 0, 0, epoch], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


@dataclasses.dataclass(frozen=True)
class _TextLoad:
    """Text tokens and blocks of a clip's windows: the most, and the mean, over every place a cut can fall."""

    most_tokens: int
    most_blocks: int
    mean_tokens: float
    mean_blocks: float


def _text_load(info: ClipInfo, spec: TokenSpec, window: int) -> _TextLoad:
    chunks = info.frames // spec.chunk_frames
    starts = [event.frame // spec.chunk_frames for event in info.events]
    lengths = [len(event.text.encode()) for event in info.events]
    last = chunks - window  # the last chunk at which a window can start
    change = np.zeros((last + 2, 2), np.int64)  # change of (tokens, blocks) from one window start to the next
    for (start, end), length in zip(itertools.pairwise([*starts, chunks]), lengths, strict=True):
        # A text is in a window that begins before the text ends and ends after the text begins.
        low, high = max(0, start - window + 1), min(end, last + 1)
        if start < end and low < high:
            load = np.array([length, spec.blocks_for(length)])
            change[low] += load
            change[high] -= load
    loads = np.cumsum(change, 0)[: last + 1]
    loads = loads[np.arange(last + 1) % window <= chunks % window]
    most, mean = loads.max(0), loads.mean(0)
    return _TextLoad(int(most[0]), int(most[1]), float(mean[0]), float(mean[1]))


def _clip_cost(info: ClipInfo, spec: TokenSpec, chunks: int, text: _TextLoad) -> np.ndarray:
    cost = window_cost(spec, info.height, info.width, chunks, ())
    cost = cost + Cost(chunks=0, patches=0, text=text.most_tokens, clean_blocks=text.most_blocks, noisy_blocks=0)
    return np.array(dataclasses.astuple(cost), np.int64)


def _size_classes(infos: Sequence[ClipInfo], lengths: np.ndarray, costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class of each clip, int64 [clips], and the most that its windows take, int64 [classes, capacities]."""
    sizes = np.array([(info.height, info.width, length) for info, length in zip(infos, lengths, strict=True)])
    _, class_of = np.unique(sizes, axis=0, return_inverse=True)
    class_of = class_of.reshape(-1)
    worst = np.zeros((class_of.max() + 1, len(_CAPACITIES)), np.int64)
    np.maximum.at(worst, class_of, costs)
    return class_of, worst


def _row_for(class_costs: np.ndarray, windows: int) -> RowSpec:
    """Sizes a row for `windows` windows of the largest class; blocks, the cost of a row, are all it is limited by."""
    capacities = class_costs.max(0) * windows
    blocks = [_CAPACITIES.index("clean_blocks"), _CAPACITIES.index("noisy_blocks")]
    # More windows of a smaller class fit the blocks, and together they may have more chunks and text.
    room = (capacities[blocks] // np.maximum(class_costs[:, blocks], 1)).min(1)
    capacities = np.maximum(capacities, (class_costs * room[:, None]).max(0))
    row = RowSpec(*(int(value) for value in capacities))
    return dataclasses.replace(row, text=max(row.text, 1))  # an array of no bytes cannot be indexed


def fill_rows(costs: np.ndarray, sizes: np.ndarray, capacity: np.ndarray) -> list[RowGroup]:
    """Best-fit decreasing vector packing, on groups of equal rows instead of single rows.

    Args:
      costs: int64 [classes, capacities], what one window of a class takes; each must fit an empty row.
      sizes: int64 [classes], how many windows there are.
      capacity: int64 [capacities] of a row.

    Returns:
      Groups that together hold every window once.
    """
    scale = np.maximum(capacity, 1)
    rows: dict[tuple[int, ...], int] = {}  # windows of each class in a row -> rows like it
    for kind in np.argsort(-(costs / scale).max(1), kind="stable"):
        left = int(sizes[kind])
        while left:
            counts, room = _tightest(rows, costs, capacity, scale, int(kind))
            available = rows.pop(counts, None)
            # Best fit goes on with the row it has just used, so whole rows fill up together.
            full = left // room if available is None else min(left // room, available)
            taken = [(full, room)] if full else [(1, left)]
            if available is not None and available > taken[0][0]:
                taken.append((available - taken[0][0], 0))
            for number, added in taken:
                key = (*counts[:kind], counts[kind] + added, *counts[kind + 1 :])
                rows[key] = rows.get(key, 0) + number
                left -= number * added
    return [RowGroup(number, np.array(counts, np.int64)) for counts, number in sorted(rows.items())]


def _tightest(
    rows: dict[tuple[int, ...], int], costs: np.ndarray, capacity: np.ndarray, scale: np.ndarray, kind: int
) -> tuple[tuple[int, ...], int]:
    """The fullest sort of row that takes a window of class `kind`, or an empty one, and how many it takes."""
    needs = costs[kind] > 0
    best, least = ((0,) * len(costs), int((capacity[needs] // costs[kind][needs]).min())), np.inf
    for counts in rows:
        free = capacity - np.array(counts) @ costs
        room, slack = int((free[needs] // costs[kind][needs]).min()), float((free / scale).sum())
        if room and slack < least:
            best, least = (counts, room), slack
    return best


def _check_clip(info: ClipInfo, spec: TokenSpec) -> None:
    if info.frames < spec.chunk_frames:
        raise PlanError(
            f"{info.episode}: {info.frames} frames are less than a chunk of tokens.chunk_frames="
            f"{spec.chunk_frames}; leave the clip out"
        )
    samples = info.sample_rate * spec.chunk_frames / info.frame_rate
    if spec.audio_tokens and (samples, info.channels) != (spec.chunk_samples, spec.channels):
        raise PlanError(
            f"{info.episode}: {samples} samples a chunk and {info.channels} channels, but tokens.hop * "
            f"tokens.hops is {spec.chunk_samples} and tokens.channels is {spec.channels}; change the "
            "tokens or resample the clip"
        )
    if samples.denominator != 1:
        raise PlanError(
            f"{info.episode}: {samples} samples a chunk is not whole; make tokens.chunk_frames a multiple of "
            f"{(info.sample_rate / info.frame_rate).denominator}"
        )
    if len(info.action_names) != spec.action_dim:
        raise PlanError(
            f"{info.episode}: {len(info.action_names)} action values but tokens.action_dim={spec.action_dim}"
        )
    longest = max((len(event.text.encode()) for event in info.events), default=0)
    if longest > spec.text_bytes:
        raise PlanError(f"{info.episode}: a text event has {longest} bytes; raise tokens.text_bytes={spec.text_bytes}")


def _check_fit(info: ClipInfo, chunks: int, cost: np.ndarray, row: RowSpec) -> None:
    held = dataclasses.asdict(row)
    needs = dict(zip(_CAPACITIES, cost.tolist(), strict=True))
    short = [f"row.{name}={held[name]} to {n}" for name, n in needs.items() if n > held[name]]
    if short:
        raise PlanError(
            f"{info.episode}: a window of {chunks} chunks of {info.height}x{info.width} fits no row; "
            f"raise {', '.join(short)}"
        )
