"""How the clips of a plan are cut into windows, and which windows share a row; the same in every epoch."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from data_pipelines.best_fit import fill_rows
from data_pipelines.fill import Blocks, Shapes, Stock, fill
from data_pipelines.index import ClipInfo
from data_pipelines.row_layout import Cost, RowSpec, TokenSpec, window_cost
from data_pipelines.windows import chunks_of, has_sound

_CAPACITIES = tuple(field.name for field in dataclasses.fields(Cost))
_CLEAN, _NOISY = (_CAPACITIES.index(name) for name in ("clean_blocks", "noisy_blocks"))


class PlanError(ValueError):
    """Clips that no plan can place; the message names the episode and what to change."""


@dataclasses.dataclass(frozen=True, eq=False)
class RowGroup:
    """Rows that hold the same number of windows of every class.

    Attributes:
      rows: How many rows.
      classes: int64 [kinds], rising.
      counts: int64 [kinds], windows of each of these classes in one row.
    """

    rows: int
    classes: np.ndarray
    counts: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Cuts:
    """The windows of an epoch and their rows.

    Attributes:
      clip: int64 [windows], rising.
      chunks: int64 [windows], length.
      kind: int64 [windows], class; windows of a class take the same place of a row.
      spare: int64 [clips], chunks that no window has.
      row: Capacities of every row.
      groups: Rows that together hold every window once.
    """

    clip: np.ndarray
    chunks: np.ndarray
    kind: np.ndarray
    spare: np.ndarray
    row: RowSpec
    groups: list[RowGroup]


@dataclasses.dataclass(frozen=True)
class TextLoad:
    """Text tokens and blocks of a clip's windows: the most, and the mean, over every place a cut can fall."""

    most_tokens: int
    most_blocks: int
    mean_tokens: float
    mean_blocks: float


def text_load(info: ClipInfo, spec: TokenSpec, window: int, *, anywhere: bool) -> TextLoad:
    """The text of a clip's windows of `window` chunks, that begin anywhere or where equal windows can."""
    chunks = chunks_of(info, spec)
    if len(info.events) < 2 and all(event.frame < spec.chunk_frames for event in info.events):
        tokens = sum(len(event.text.encode()) for event in info.events)
        blocks = spec.blocks_for(tokens)
        return TextLoad(tokens, blocks, float(tokens), float(blocks))
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
    if not anywhere:
        loads = loads[np.arange(last + 1) % window <= chunks % window]
    most, mean = loads.max(0), loads.mean(0)
    return TextLoad(int(most[0]), int(most[1]), float(mean[0]), float(mean[1]))


def check_actions(actions: tuple[str, ...], spec: TokenSpec) -> None:
    """Raises PlanError if a run has more actions than the tokens hold."""
    if len(actions) > spec.action_dim:
        raise PlanError(
            f"{len(actions)} actions ({', '.join(actions)}) but tokens.action_dim={spec.action_dim}; raise it to "
            f"{len(actions)}"
        )


def check_text(info: ClipInfo, spec: TokenSpec) -> None:
    """Raises PlanError if a text of a clip is longer than the tokens hold."""
    longest = max((len(event.text.encode()) for event in info.events), default=0)
    if longest > spec.text_bytes:
        raise PlanError(f"{info.episode}: a text event has {longest} bytes; raise tokens.text_bytes={spec.text_bytes}")


def equal_cuts(
    infos: Sequence[ClipInfo], spec: TokenSpec, window_chunks: int, row: RowSpec | None, rows_windows: int
) -> Cuts:
    """Windows of equal length, as many of a clip as it has room for, in rows by best fit; see `PackPlan`."""
    chunks = np.array([chunks_of(info, spec) for info in infos], np.int64)
    length = np.minimum(chunks, window_chunks)  # [clips], chunks of each of a clip's windows
    count = chunks // length  # [clips], windows
    loads = [text_load(info, spec, int(n), anywhere=False) for info, n in zip(infos, length, strict=True)]
    costs = np.stack([_cost(info, spec, int(n), load) for info, n, load in zip(infos, length, loads, strict=True)])
    sounds = [has_sound(info, spec) for info in infos]
    sizes = np.array([(info.height, info.width, *more) for info, *more in zip(infos, length, sounds, strict=True)])
    class_of, worst = _classes(sizes, costs)
    row = row or _row_for(worst, rows_windows)
    for info, n, cost in zip(infos, length, costs, strict=True):
        _check_fit(info, int(n), cost, row)
    windows_of = np.bincount(class_of, weights=count).astype(np.int64)
    groups = fill_rows(worst, windows_of, np.array(dataclasses.astuple(row), np.int64))
    return Cuts(
        clip=np.repeat(np.arange(len(infos)), count),
        chunks=np.repeat(length, count),
        kind=np.repeat(class_of, count),
        spare=chunks - count * length,
        row=row,
        groups=[RowGroup(rows, np.flatnonzero(counts), counts[np.flatnonzero(counts)]) for rows, counts in groups],
    )


def filling_cuts(infos: Sequence[ClipInfo], spec: TokenSpec, window_chunks: int, blocks: Blocks, seed: int) -> Cuts:
    """Windows of up to `window_chunks`, cut so that rows of `blocks` are full; no chunk is left out."""
    shape_of, shapes, worst = shapes_of(infos, spec, window_chunks)
    chunks = np.array([chunks_of(info, spec) for info in infos], np.int64)
    made = pieces(shape_of, shapes, chunks, blocks, window_chunks)
    for number in np.flatnonzero(made.longest == 0)[:1]:
        shape = shape_of[number]
        raise PlanError(
            f"{infos[number].episode}: a chunk of {infos[number].height}x{infos[number].width} takes "
            f"{shapes.noisy[shape]} noisy and its text {shapes.text[shape]} clean blocks, a row has {blocks.noisy} and "
            f"{blocks.clean}; raise the blocks of a row"
        )
    stock = Stock(made.windows)
    patterns = fill(shapes, stock, blocks, seed)

    clip, length = _windows_of_clips(shape_of, made, stock)
    lengths = made.windows.shape[1]
    kinds, kind = np.unique(shape_of[clip] * lengths + length, return_inverse=True)
    groups, most = [], np.zeros(len(_CAPACITIES), np.int64)
    for pattern in patterns:
        classes, of = np.unique(np.searchsorted(kinds, pattern.shape * lengths + pattern.chunks), return_inverse=True)
        groups.append(RowGroup(pattern.rows, classes, np.bincount(of, weights=pattern.counts).astype(np.int64)))
        content = worst[pattern.shape] * np.stack([pattern.chunks, pattern.chunks, np.ones_like(pattern.chunks)], 1)
        most[:3] = np.maximum(most[:3], (content * pattern.counts[:, None]).sum(0))
    row = RowSpec(int(most[0]), int(most[1]), max(int(most[2]), 1), blocks.clean, blocks.noisy)
    return Cuts(clip, length, kind, np.zeros(len(infos), np.int64), row, groups)


@dataclasses.dataclass(frozen=True, eq=False)
class Pieces:
    """What clips are cut into at first: windows of the greatest length that a row holds, and the rest.

    Attributes:
      longest: int64 [clips], chunks of the longest window of each; 0 where a row holds none.
      whole: int64 [clips], windows of that length.
      rest: int64 [clips], chunks of the last window, which may be none.
      windows: int64 [shapes, longest + 1], how many there are of each shape and length.
    """

    longest: np.ndarray
    whole: np.ndarray
    rest: np.ndarray
    windows: np.ndarray


def pieces(shape_of: np.ndarray, shapes: Shapes, chunks: np.ndarray, blocks: Blocks, window_chunks: int) -> Pieces:
    """Cuts clips of `chunks` chunks and of the shapes `shape_of`, int64 [clips] each, for rows of `blocks`."""
    longest = shapes.longest(blocks, window_chunks)[shape_of]
    whole, rest = np.divmod(chunks, np.maximum(longest, 1))
    windows = np.zeros((len(shapes.noisy), int(longest.max()) + 1), np.int64)
    np.add.at(windows, (shape_of, longest), whole)
    np.add.at(windows, (shape_of, rest), rest > 0)
    return Pieces(longest, whole, rest, windows)


def within(needed: RowSpec, row: RowSpec) -> RowSpec:
    """Returns `row`, or raises PlanError where filled rows need more of it."""
    pairs = [(name, getattr(needed, name), getattr(row, name)) for name in _CAPACITIES]
    short = [f"row.{name}={held} to {need}" for name, need, held in pairs if need > held]
    if short:
        raise PlanError(f"rows that are filled need more room; raise {', '.join(short)}")
    return row


def _windows_of_clips(shape_of: np.ndarray, made: Pieces, stock: Stock) -> tuple[np.ndarray, np.ndarray]:
    """Deals the stock's cut pieces to the clips they came from: clip and length of every window, by clip."""
    number = np.arange(len(made.whole))
    clip_of_piece = np.concatenate([np.repeat(number, made.whole), number[made.rest > 0]])
    length_of_piece = np.concatenate([np.repeat(made.longest, made.whole), made.rest[made.rest > 0]])
    order = np.lexsort((clip_of_piece, length_of_piece, shape_of[clip_of_piece]))
    clips, lengths = [], []
    first = 0
    for cuts in stock.cuts:
        by_length = sorted((sum(parts), parts, pieces) for parts, pieces in cuts.items() if pieces)
        for _, parts, pieces in by_length:
            here = clip_of_piece[order[first : first + pieces]]
            clips.append(np.repeat(here, len(parts)))
            lengths.append(np.tile(np.array(parts, np.int64), pieces))
            first += pieces
    clip, length = np.concatenate(clips), np.concatenate(lengths)
    by_clip = np.argsort(clip, kind="stable")
    return clip[by_clip], length[by_clip]


def shapes_of(infos: Sequence[ClipInfo], spec: TokenSpec, window_chunks: int) -> tuple[np.ndarray, Shapes, np.ndarray]:
    """Shape of each clip, the shapes, and the chunks, patches (of a chunk) and text bytes that each takes at most."""
    sizes, costs = [], []
    for info in infos:
        load = text_load(info, spec, min(chunks_of(info, spec), window_chunks), anywhere=True)
        cost = window_cost(spec, info.height, info.width, 2, (), sound=has_sound(info, spec))
        sizes.append((cost.noisy_blocks // 2, cost.clean_blocks, load.most_blocks))
        costs.append((1, cost.patches // 2, load.most_tokens))
    shape_of, worst = _classes(np.array(sizes), np.array(costs, np.int64))
    shapes = np.zeros((len(worst), 3), np.int64)
    shapes[shape_of] = sizes
    return shape_of, Shapes(*shapes.T), worst


def _classes(sizes: np.ndarray, costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class of each clip, int64 [clips], and the most that a window of it takes, int64 [classes, costs]."""
    _, class_of = np.unique(sizes, axis=0, return_inverse=True)
    class_of = class_of.reshape(-1)
    worst = np.zeros((class_of.max() + 1, costs.shape[1]), np.int64)
    np.maximum.at(worst, class_of, costs)
    return class_of, worst


def _cost(info: ClipInfo, spec: TokenSpec, chunks: int, text: TextLoad) -> np.ndarray:
    cost = window_cost(spec, info.height, info.width, chunks, (), sound=has_sound(info, spec))
    cost = cost + Cost(chunks=0, patches=0, text=text.most_tokens, clean_blocks=text.most_blocks, noisy_blocks=0)
    return np.array(dataclasses.astuple(cost), np.int64)


def _row_for(class_costs: np.ndarray, windows: int) -> RowSpec:
    """Sizes a row for `windows` windows of the largest class; blocks, the cost of a row, are all it is limited by."""
    capacities = class_costs.max(0) * windows
    blocks = [_CLEAN, _NOISY]
    # More windows of a smaller class fit the blocks, and together they may have more chunks and text.
    room = (capacities[blocks] // np.maximum(class_costs[:, blocks], 1)).min(1)
    capacities = np.maximum(capacities, (class_costs * room[:, None]).max(0))
    row = RowSpec(*(int(value) for value in capacities))
    return dataclasses.replace(row, text=max(row.text, 1))  # an array of no bytes cannot be indexed


def _check_fit(info: ClipInfo, chunks: int, cost: np.ndarray, row: RowSpec) -> None:
    held = dataclasses.asdict(row)
    needs = dict(zip(_CAPACITIES, cost.tolist(), strict=True))
    short = [f"row.{name}={held[name]} to {n}" for name, n in needs.items() if n > held[name]]
    if short:
        raise PlanError(
            f"{info.episode}: a window of {chunks} chunks of {info.height}x{info.width} fits no row; "
            f"raise {', '.join(short)}"
        )
