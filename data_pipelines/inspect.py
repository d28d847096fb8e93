"""Look at a dataset: totals from its index, a check of every record, and reports to read."""

from __future__ import annotations

import collections
import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import rich.console
import rich.table

from data_pipelines import files as files_lib
from data_pipelines.index import ClipInfo
from data_pipelines.plan import PackPlan
from data_pipelines.row_layout import TokenSpec
from data_pipelines.shards import Dataset, open_dataset
from data_pipelines.split import split_blocks
from pixr1_jax.core import progress

# Upper ends of the groups by duration, in seconds.
_DURATIONS = (1, 2, 5, 10, 30, 60)
_REASONS = 10


def summarise(dataset: Dataset) -> dict[str, Any]:
    """Returns what a dataset holds, from its manifest and index alone.

    Returns:
        JSON-able: `directory`, `version`, `spec`, `action_names`, `video_codec`, `rejected` (how many things gave no
        clip, and the commonest reasons), `facts` (for each name the `shape` of a frame's row and the `columns`, as in
        the first clip that has it), and under `splits` for each split `clips`, `frames`, `seconds`, `bytes`,
        `shards`, `silent` and `uncaptioned` clips, and the number of clips by `sizes` ("widthxheight"), `durations`,
        `frame_rates`, `sample_rates`, `channels`, `video_codecs`, `sources` (without what follows a colon),
        `licences` and `facts`.
    """
    manifest = dataset.manifest
    rejected = dataset.rejected()
    reasons = collections.Counter(one["reason"].split(":")[0] for one in rejected)
    return {
        "directory": str(dataset.directory),
        "version": manifest.version,
        "spec": manifest.spec,
        "action_names": list(manifest.action_names),
        "video_codec": manifest.video_codec,
        "facts": _facts(dataset),
        "rejected": {"count": len(rejected), "reasons": dict(reasons.most_common(_REASONS))},
        "splits": {split: _of_split(dataset, split) for split in dataset.splits},
    }


def inspect(directory: str | os.PathLike[str], *, verify: bool) -> tuple[Dataset, dict[str, Any]]:
    """Prints a table of what a dataset holds, and on request checks every record.

    Args:
        directory: the dataset.
        verify: whether to check all sums and decode all records.

    Returns:
        The dataset and its summary, see `summarise`.

    Raises:
        ShardError: the dataset is missing or damaged.
    """
    dataset = open_dataset(directory)
    summary = summarise(dataset)
    console = rich.console.Console(markup=False, highlight=False)
    actions = ", ".join(summary["action_names"]) or "none"
    console.print(f"{summary['directory']}: video {summary['video_codec']}, actions {actions}", soft_wrap=True)
    console.print(table(summary))
    for name, fact in summary["facts"].items():
        size = "x".join(map(str, fact["shape"])) or "one number"
        console.print(f"facts: {name}, {size} a frame ({', '.join(fact['columns'])})", soft_wrap=True)
    for reason, count in summary["rejected"]["reasons"].items():
        console.print(f"rejected: {count} x {reason}", soft_wrap=True)
    if verify:
        total = sum(split["clips"] for split in summary["splits"].values())
        with progress.track(total, "verifying") as tracker:
            dataset.verify(on_clip=lambda info: tracker.advance(split=info.split))
        console.print(f"verified: all {total} records are good")
    return dataset, summary


def packing(dataset: Dataset, spec: TokenSpec, *, window_chunks: int, row_tokens: int) -> dict[str, float]:
    """How full rows of about `row_tokens` tokens would be with the clips of the split `train`.

    Returns:
        `row_tokens`, `clean_blocks` and `noisy_blocks` of a row, `rows` in an epoch, the fractions `tokens` and
        `blocks` (see `data_pipelines.plan.Efficiency`) and `context`, see `PackPlan`.

    Raises:
        PlanError: no row of that length holds the clips.
    """
    infos = dataset.clips("train")
    blocks = split_blocks([infos], spec, window_chunks, row_tokens // spec.block)
    plan = PackPlan(infos, spec, window_chunks=window_chunks, row=blocks, seed=0)
    fill = plan.efficiency()
    return {
        "row_tokens": row_tokens,
        "clean_blocks": blocks.clean,
        "noisy_blocks": blocks.noisy,
        "rows": plan.rows_per_epoch,
        "tokens": fill.tokens,
        "blocks": fill.blocks,
        "context": plan.context,
    }


def rows(summary: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """The table of a summary as text: a label and a cell for each split."""
    splits = list(summary["splits"].values())
    found = [
        ("clips", [f"{split['clips']}" for split in splits]),
        ("frames", [f"{split['frames']}" for split in splits]),
        ("duration", [_duration(split["seconds"]) for split in splits]),
        ("size on disk", [f"{split['bytes'] / 2**20:.1f} MiB" for split in splits]),
        ("shards", [f"{split['shards']}" for split in splits]),
        ("clips without sound", [f"{split['silent']}" for split in splits]),
        ("clips without caption", [f"{split['uncaptioned']}" for split in splits]),
    ]
    counted = {
        "width x height": "sizes",
        "seconds": "durations",
        "frames/s": "frame_rates",
        "audio Hz": "sample_rates",
        "audio channels": "channels",
        "video": "video_codecs",
        "source": "sources",
        "licence": "licences",
        "facts": "facts",
    }
    return found + [(label, [_counted(split[key]) for split in splits]) for label, key in counted.items()]


def table(summary: dict[str, Any]) -> rich.table.Table:
    """The table of a summary, for a terminal."""
    drawn = rich.table.Table(highlight=False)
    drawn.add_column("")
    for split in summary["splits"]:
        drawn.add_column(split, justify="right")
    for label, cells in rows(summary):
        drawn.add_row(label, *cells)
    return drawn


def write_json(summary: dict[str, Any], path: pathlib.Path) -> None:
    """Writes a summary as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files_lib.write_bytes(path, (json.dumps(summary, ensure_ascii=False, indent=2) + "\n").encode())


def _of_split(dataset: Dataset, split: str) -> dict[str, Any]:
    infos, files = dataset.clips(split), dataset.manifest.splits[split]
    return {
        "clips": len(infos),
        "frames": sum(info.frames for info in infos),
        "seconds": sum(info.seconds for info in infos),
        "bytes": sum(file.bytes for file in files),
        "shards": len(files),
        "silent": sum(info.channels == 0 for info in infos),
        "uncaptioned": sum(not info.events for info in infos),
        "sizes": _count(f"{info.width}x{info.height}" for info in infos),
        "durations": _by_duration(infos),
        "frame_rates": _count(str(info.frame_rate) for info in infos),
        "sample_rates": _count(str(info.sample_rate) for info in infos if info.channels),
        "channels": _count(str(info.channels) for info in infos),
        "video_codecs": _count(info.video_codec for info in infos),
        "sources": _count(info.source.split(":")[0] for info in infos),
        "licences": _count(info.licence for info in infos),
        "facts": _count(fact.name for info in infos for fact in info.facts),
    }


def _facts(dataset: Dataset) -> dict[str, Any]:
    infos = [info for split in reversed(dataset.splits) for info in reversed(dataset.clips(split))]
    return {
        fact.name: {"shape": list(fact.shape), "columns": list(fact.columns)} for info in infos for fact in info.facts
    }


def _count(values: Iterable[str]) -> dict[str, int]:
    return dict(collections.Counter(values).most_common())


def _by_duration(infos: Sequence[ClipInfo]) -> dict[str, int]:
    groups = [f"up to {end}" for end in _DURATIONS] + [f"over {_DURATIONS[-1]}"]
    found = collections.Counter(groups[sum(info.seconds > end for end in _DURATIONS)] for info in infos)
    return {group: found[group] for group in groups if found[group]}


def _counted(counts: dict[str, int], most: int = 4) -> str:
    if len(counts) <= 1:
        return next(iter(counts), "")
    lines = [f"{value} ({count})" for value, count in list(counts.items())[:most]]
    if len(counts) > most:
        lines.append(f"and {len(counts) - most} more")
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:04.1f}"
