"""The pack plan: (seed, epoch, index) -> the clip windows of a packed row (design decision D12).

Every clip is cut into windows, the same number of the same lengths in every epoch, so that rows can be laid out once,
as templates over classes of windows that take equal places (`data_pipelines.cuts`). An epoch then only moves the cuts
within each clip, deals its shuffled windows to the places of their class and shuffles the rows: each window appears
once an epoch, the number of rows is constant, and a row is a pure function of its index.

Windows are of equal length where a row is sized for them, at a random phase. Where the blocks of a row are given
(`Blocks`), windows are cut to fill it, and follow one another in a random order.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Sequence

import numpy as np

from data_pipelines import cuts
from data_pipelines.cuts import PlanError
from data_pipelines.draws import Purpose, draw
from data_pipelines.fill import Blocks
from data_pipelines.index import ClipInfo
from data_pipelines.row_layout import RowSpec, TokenSpec, window_cost
from data_pipelines.windows import action_schema, chunks_of, has_sound, is_image

_EPOCHS_KEPT = 3  # readers that run ahead straddle the boundary between two epochs


@dataclasses.dataclass(frozen=True)
class WindowRef:
    """A window of a clip, to be read.

    Attributes:
      info: The clip.
      start: First frame, a multiple of the chunk.
      frames: Number of frames, a multiple of the chunk, or 1 of an image, which is held for a chunk.
      sample_id: Identity of the window in its epoch, a uint32, for randomness keyed by sample.
      dataset: Name of the clip's dataset in a mixture, else empty.
      table: Which table of task weights holds for it.
    """

    info: ClipInfo
    start: int
    frames: int
    sample_id: int
    dataset: str = ""
    table: int = 0


@dataclasses.dataclass(frozen=True)
class Efficiency:
    """How full an average row is, as fractions.

    Attributes:
      tokens: Tokens that carry something (action, sound, patch and memory tokens of both halves, bytes of text), of all
        tokens that are computed: `row_spec.blocks * block` a row, whatever is in it.
      blocks: Blocks that hold at least one such token, of all blocks.
    """

    tokens: float
    blocks: float


class PackPlan:
    """An addressable, endless sequence of rows; each holds windows of one or more clips.

    Attributes:
      infos: The clips that give windows.
      left_out: How many clips are shorter than a chunk and no image, and give none.
      spec: How their content becomes tokens.
      actions: The schema that the actions of all clips are put into.
      row_spec: Capacities of every row.
      window_chunks: Chunks in the longest window.
      windows: Windows in an epoch.
      rows_per_epoch: Rows in an epoch.
      chunks_per_row: Chunks in an average row, at most `row_spec.chunks`.
      context: Chunks before a chunk in its window, on average.
    """

    def __init__(
        self,
        infos: Sequence[ClipInfo],
        spec: TokenSpec,
        *,
        window_chunks: int,
        row: RowSpec | Blocks | None,
        rows_windows: int = 1,
        fill: bool = False,
        seed: int,
        actions: tuple[str, ...] | None = None,
    ):
        """Lays out the rows.

        Args:
          infos: The clips to draw from.
          spec: How content becomes tokens.
          window_chunks: Chunks in a window; a shorter clip gives one window of all its whole chunks.
          row: Capacities of a row. `Blocks` has windows cut to fill it, and its other capacities follow. None sizes it
            for `rows_windows` windows of the largest size class, or as many more of the others as its blocks hold.
          rows_windows: Windows of the largest class in a row, where `row` is None.
          fill: Whether windows are cut to fill rows of given capacities.
          seed: Seed of every shuffle and cut.
          actions: The run's schema; None takes that of the clips, in order.

        Raises:
          PlanError: No clip gives a window, or a clip disagrees with `spec` or fits no row.
        """
        if window_chunks < 1 or rows_windows < 1:
            raise PlanError(f"window_chunks={window_chunks} and rows_windows={rows_windows} must be at least 1")
        self.infos = tuple(info for info in infos if chunks_of(info, spec))
        self.left_out = len(infos) - len(self.infos)
        if not self.infos:
            short = f"; {self.left_out} are shorter than tokens.chunk_frames={spec.chunk_frames}" * (self.left_out > 0)
            raise PlanError(f"the plan has no clips{short}; check the dataset's split")
        self.spec, self.window_chunks, self._seed = spec, window_chunks, seed
        self.actions = action_schema(self.infos) if actions is None else actions
        cuts.check_actions(self.actions, spec)
        for info in self.infos:
            cuts.check_text(info, spec)

        self._moves = isinstance(row, Blocks) or fill  # whether the windows of a clip change their order
        if isinstance(row, Blocks):
            made = cuts.filling_cuts(self.infos, spec, window_chunks, row, seed)
        elif fill:
            assert row is not None, "rows to fill need capacities"
            made = cuts.filling_cuts(self.infos, spec, window_chunks, Blocks(row.clean_blocks, row.noisy_blocks), seed)
            made = dataclasses.replace(made, row=cuts.within(made.row, row))
        else:
            made = cuts.equal_cuts(self.infos, spec, window_chunks, row, rows_windows)
        self._clip, self._chunks, self._kind, self._spare = made.clip, made.chunks, made.kind, made.spare
        self._first = np.searchsorted(made.clip, np.arange(len(self.infos)))  # [clips], a clip's first window
        self.row_spec = made.row
        self.windows = len(made.clip)

        rows = np.array([group.rows for group in made.groups], np.int64)
        self._groups = made.groups
        self._group_start = np.cumsum(rows) - rows
        # Where a group's windows of each of its classes begin in an epoch's windows, sorted by class.
        sizes = np.bincount(made.kind)
        dealt = np.cumsum(sizes) - sizes
        self._deal_start = []
        for group in made.groups:
            self._deal_start.append(dealt[group.classes])
            dealt[group.classes] += group.rows * group.counts
        self.rows_per_epoch = int(rows.sum())
        self.chunks_per_row = float(made.chunks.sum() / self.rows_per_epoch)
        self.context = float((made.chunks * (made.chunks - 1)).sum() / (2 * made.chunks.sum()))
        self._reset_cache()

    def row(self, index: int) -> list[WindowRef]:
        """The windows of row `index`, counted over all epochs: a pure function of the seed and `index`."""
        if index < 0:
            raise IndexError(f"row {index} is before the first row")
        epoch, place = divmod(int(index), self.rows_per_epoch)
        order = self._epoch(epoch)
        row = int(order.rows[place])
        number = int(np.searchsorted(self._group_start, row, side="right")) - 1
        counts = self._groups[number].counts
        starts = self._deal_start[number] + (row - self._group_start[number]) * counts
        places = [slice(start, start + count) for start, count in zip(starts, counts, strict=True)]
        return [self._window(epoch, order, int(window)) for here in places for window in order.windows[here]]

    def efficiency(self) -> Efficiency:
        """How full an average row is, text at its expected length over all cuts."""
        tokens = blocks = 0.0
        sorts = np.stack([self._clip, self._chunks], 1)
        for (clip, chunks), count in zip(*np.unique(sorts, axis=0, return_counts=True), strict=True):
            info = self.infos[clip]
            sound = has_sound(info, self.spec)
            text = cuts.text_load(info, self.spec, int(chunks), anywhere=self._moves)
            cost = window_cost(self.spec, info.height, info.width, int(chunks), (), sound=sound)
            picture = cost.patches // chunks
            content = (2 * chunks - 1) * (self.spec.head(sound) + picture) + (chunks - 1) * self.spec.block
            tokens += count * (content + text.mean_tokens)
            blocks += count * (cost.clean_blocks + cost.noisy_blocks + text.mean_blocks)
        computed = self.rows_per_epoch * self.row_spec.blocks
        return Efficiency(tokens=float(tokens / (computed * self.spec.block)), blocks=float(blocks / computed))

    def _window(self, epoch: int, order: _EpochOrder, window: int) -> WindowRef:
        info = self.infos[self._clip[window]]
        frames = 1 if is_image(info, self.spec) else int(self._chunks[window]) * self.spec.chunk_frames
        return WindowRef(
            info=info,
            start=int(order.starts[window]) * self.spec.chunk_frames,
            frames=frames,
            sample_id=(epoch * self.windows + window) % 2**32,
        )

    def _epoch(self, epoch: int) -> _EpochOrder:
        with self._lock:
            if epoch in self._orders:
                self._orders.move_to_end(epoch)
            else:
                self._orders[epoch] = self._draw_epoch(epoch)
                if len(self._orders) > _EPOCHS_KEPT:
                    self._orders.popitem(last=False)
            return self._orders[epoch]

    def _draw_epoch(self, epoch: int) -> _EpochOrder:
        spare = (self._spare + 1).astype(np.uint64)
        phases = (draw(self._seed, epoch, Purpose.PHASE, len(self.infos)) % spare).astype(np.int64)
        order = np.arange(self.windows)
        if self._moves:
            order = np.lexsort((draw(self._seed, epoch, Purpose.CUTS, self.windows), self._clip))
        ends = np.cumsum(self._chunks[order])  # in a clip after all clips before it
        begins = ends - self._chunks[order]
        starts = np.empty_like(begins)
        starts[order] = begins - (begins[self._first] - phases)[self._clip]
        window_keys = draw(self._seed, epoch, Purpose.WINDOWS, self.windows)
        row_keys = draw(self._seed, epoch, Purpose.ROWS, self.rows_per_epoch)
        return _EpochOrder(
            starts=starts,
            windows=np.lexsort((window_keys, self._kind)),
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


@dataclasses.dataclass(frozen=True, eq=False)
class _EpochOrder:
    """The random choices of one epoch."""

    starts: np.ndarray  # [windows], chunk of its clip at which a window starts
    windows: np.ndarray  # [windows], sorted by class, shuffled within
    rows: np.ndarray  # [rows], place in the epoch -> row of the layout
