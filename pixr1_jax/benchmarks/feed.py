"""How fast this host feeds a trainer: decoding by picture size, and whole rows, against what a step needs."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from data_pipelines import patches
from data_pipelines.index import ClipInfo
from data_pipelines.row_layout import TokenSpec
from data_pipelines.shards import Dataset


class Rows(Protocol):
    """Rows by their numbers; safe to share between threads."""

    def __getitem__(self, index: int) -> Mapping[str, np.ndarray]:
        """Row `index`."""
        ...


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Reading windows of clips of one size and codec, per core: seconds are of processor time.

    Attributes:
        size: "widthxheight".
        codec: how the video is stored.
        windows: how many were read.
        clips_per_second: windows a core reads in a second.
        frames_per_second: frames a core reads in a second.
        tokens_per_second: video tokens of the configuration's patches.
    """

    size: str
    codec: str
    windows: int
    clips_per_second: float
    frames_per_second: float
    tokens_per_second: float


def decoding(
    datasets: Mapping[str, Dataset], spec: TokenSpec, *, window_chunks: int, windows: int, seed: int = 0
) -> Iterator[Decoding]:
    """Times reads of `windows` windows of `window_chunks` chunks, by size and codec, one after another."""
    kinds: dict[tuple[int, int, str], list[tuple[Dataset, ClipInfo]]] = {}
    for dataset in datasets.values():
        for info in dataset.clips("train"):
            kinds.setdefault((info.height, info.width, info.video_codec), []).append((dataset, info))
    for (height, width, codec), clips in sorted(kinds.items()):
        rng = np.random.default_rng(seed)
        chosen = [clips[i] for i in rng.integers(len(clips), size=windows)]
        lengths = [min(info.frames, window_chunks * spec.chunk_frames) for _, info in chosen]
        starts = [int(rng.integers(info.frames - n + 1)) for (_, info), n in zip(chosen, lengths, strict=True)]
        chosen[0][0].read(chosen[0][1], 0, 1)  # opens the file
        begin = time.process_time()
        for (dataset, info), start, length in zip(chosen, starts, lengths, strict=True):
            dataset.read(info, start, start + length)
        seconds = time.process_time() - begin
        rows, columns = patches.grid_shape(height, width, spec.patch)
        frames = sum(lengths)
        yield Decoding(
            size=f"{width}x{height}",
            codec=codec,
            windows=windows,
            clips_per_second=windows / seconds,
            frames_per_second=frames / seconds,
            tokens_per_second=frames / spec.chunk_frames * rows * columns / seconds,
        )


def feeding(batches: Iterator[Any], *, batch_rows: int, row_tokens: int, seconds: float) -> dict[str, float]:
    """Times the loader as a trainer would run it, for about `seconds` of wall-clock time.

    Returns:
        `rows_per_second`, `tokens_per_second` (all tokens of a row, as the trainer counts them), `cores` used on
        average, and `tokens_per_second_per_core`.
    """
    next(batches)  # starts the threads and opens the files
    begin, processor = time.perf_counter(), time.process_time()
    count = 0
    while time.perf_counter() - begin < seconds:
        next(batches)
        count += 1
    wall, used = time.perf_counter() - begin, time.process_time() - processor
    tokens = count * batch_rows * row_tokens
    return {
        "rows_per_second": count * batch_rows / wall,
        "tokens_per_second": tokens / wall,
        "cores": used / wall,
        "tokens_per_second_per_core": tokens / max(used, 1e-9),
    }


def verdict(fed: Mapping[str, float], needed: float) -> str:
    """One line: how many times a trainer's need of tokens a second this host feeds."""
    times = fed["tokens_per_second"] / needed
    line = f"this host feeds {times:.2g}x the step: {fed['tokens_per_second']:,.0f} of {needed:,.0f} tokens/s"
    if times < 1:
        line += f"; it takes {math.ceil(needed / fed['tokens_per_second_per_core'])} such cores"
    return line
