"""How fast this host feeds a trainer: decoding by picture size, and whole rows, against what a step needs."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import rich.console
import rich.table
from ml_collections import ConfigDict

from data_pipelines import files, patches
from data_pipelines.index import ClipInfo
from data_pipelines.live import LivePlayground
from data_pipelines.loader import make_iterator
from data_pipelines.row_layout import TokenSpec
from data_pipelines.shards import Dataset
from pixr1_jax.benchmarks import results
from pixr1_jax.training import setup
from pixr1_jax.training.metrics import FILE_NAME, read_metrics

FILE = "data.json"


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
    datasets: Mapping[str, Dataset | LivePlayground],
    spec: TokenSpec,
    *,
    window_chunks: int,
    windows: int,
    seed: int = 0,
) -> Iterator[Decoding]:
    """Times reads of `windows` windows of `window_chunks` chunks, by size and codec, one after another."""
    kinds: dict[tuple[int, int, str], list[tuple[Dataset | LivePlayground, ClipInfo]]] = {}
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


def run(
    config: ConfigDict,
    workdir: pathlib.Path,
    command: str,
    *,
    out: str | os.PathLike[str] | None,
    needs: float | None,
    quick: bool,
) -> dict[str, Any]:
    """Measures the datasets of a run, prints a table and a verdict, and writes data.json into `out` if given.

    Args:
        config: the run's configuration.
        workdir: its folder, with the datasets.
        command: what was called, for the file.
        out: folder of the file.
        needs: tokens a second that a trainer takes; None takes what the run itself has reached, if it was trained.
        quick: fewer and shorter measurements.
    """
    data = setup.open_data(config, workdir)
    plan = setup.pack_plan(config, data)
    datasets = data if isinstance(data, dict) else {"": data}
    windows, seconds = (4, 2.0) if quick else (24, 20.0)
    found = list(decoding(datasets, plan.spec, window_chunks=config.pack.window_chunks, windows=windows))
    pack = config.pack
    batches = make_iterator(
        data, plan, batch_size=pack.batch_rows, threads=pack.threads, prefetch=pack.prefetch, max_bad=pack.max_bad
    )
    row_tokens = plan.row_spec.blocks * plan.spec.block
    fed = feeding(batches, batch_rows=pack.batch_rows, row_tokens=row_tokens, seconds=seconds)
    needed = needs or _reached(workdir)
    report = results.provenance(command) | {
        "decoding": [dataclasses.asdict(one) for one in found],
        "feeding": fed,
        "needed_tokens_per_second": needed,
        "verdict": verdict(fed, needed) if needed else None,
    }
    _show(report)
    if out is not None:
        folder = pathlib.Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        files.write_bytes(folder / FILE, (json.dumps(report, indent=1) + "\n").encode())
    return report


def _reached(workdir: pathlib.Path) -> float | None:
    """Tokens a second of the run's training: its best, since waiting for data may have slowed it."""
    folder = workdir / "train"
    if not (folder / FILE_NAME).exists():
        return None
    rates = [line["perf/tokens_per_second"] for line in read_metrics(folder) if "perf/tokens_per_second" in line]
    return max(rates, default=None)


def _show(report: Mapping[str, Any]) -> None:
    console = rich.console.Console(markup=False, highlight=False)
    table = rich.table.Table("size", "video", "clips/s", "frames/s", "video tokens/s", highlight=False)
    for one in report["decoding"]:
        rates = (one["clips_per_second"], one["frames_per_second"], one["tokens_per_second"])
        table.add_row(one["size"], one["codec"], *(f"{rate:,.1f}" for rate in rates))
    console.print("Windows read and decoded, per core:")
    console.print(table)
    fed = report["feeding"]
    console.print(
        f"rows: {fed['rows_per_second']:,.2f}/s, {fed['tokens_per_second']:,.0f} tokens/s by {fed['cores']:.1f} cores, "
        f"{fed['tokens_per_second_per_core']:,.0f} per core"
    )
    console.print(report["verdict"] or "no need is known; give --needs, or a --workdir that was trained")
