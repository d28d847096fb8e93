"""The report of an evaluation: scores.json with every number, scores.png to look at, tables to read."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import rich.box
import rich.console
import rich.table

from pixr1_jax.evaluation import figure as figure_lib
from pixr1_jax.evaluation.figure import label

SCORES, PICTURE = "scores.json", "scores.png"


def artifact_id(manifest: Mapping[str, Any]) -> str:
    """Returns a short name of an artifact that changes with anything its manifest says, its weights' sum included."""
    text = json.dumps(manifest, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write(directory: str | os.PathLike[str], scores: Mapping[str, Any], strips: Sequence[figure_lib.Strip]) -> None:
    """Writes scores.json and scores.png into a directory, each whole or not at all.

    Args:
        directory: made if missing.
        scores: as `pixr1_jax.evaluate.evaluate` returns them; NaN becomes null.
        strips: the film strips to draw.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_finite(scores), indent=1, allow_nan=False) + "\n"
    partial = directory / f"{SCORES}.{os.getpid()}.partial"
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, directory / SCORES)
        figure_lib.draw(scores, strips).savefig(partial, format="png")
        os.replace(partial, directory / PICTURE)
    finally:
        partial.unlink(missing_ok=True)


def show(scores: Mapping[str, Any], console: rich.console.Console) -> None:
    """Prints the scores as tables: mean and 95 % interval over clips."""
    for table in _tables(scores):
        console.print(table)


def _tables(scores: Mapping[str, Any]) -> list[rich.table.Table]:
    tables = [_fidelity_table(scores, "psnr", "PSNR, dB", 1), _fidelity_table(scores, "ssim", "SSIM", 3)]
    tables.append(_control_table(scores))
    if scores["sound"]:
        tables.append(_sound_table(scores["sound"]))
    return tables


def _fidelity_table(scores: Mapping[str, Any], kind: str, heading: str, digits: int) -> rich.table.Table:
    settings = scores["settings"]
    table = _table(
        f"{heading}, by frames after {settings['context_chunks']} chunks of context ({settings['clips']} test clips)"
    )
    for horizon in scores["horizons"]:
        table.add_column(f"+{horizon}", justify="right", no_wrap=True)
    for name, values in scores["fidelity"].items():
        table.add_row(label(name), *(_estimate(values[kind][str(horizon)], digits) for horizon in scores["horizons"]))
    return table


def _control_table(scores: Mapping[str, Any]) -> rich.table.Table:
    control = scores["control"]
    table = _table("control gain, dB: PSNR under its own minus under another clip's actions")
    for name in ("over all horizons", "at +8", "frames that differ in action"):
        table.add_column(name, justify="right")
    table.add_row(
        label(str(control["steps"])),
        _estimate(control["over_horizons"], 2),
        _estimate(control["at_8"], 2),
        f"{100 * control['changed']:.0f} %",
    )
    return table


def _sound_table(sound: Mapping[str, Any]) -> rich.table.Table:
    table = _table("sound: log-spectral distance in dB, and onsets found (by chance) within a tolerance")
    for name in ("distance", "onsets", "precision", "recall", "F1"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, values in sound.items():
        first = (label(name), _estimate(values["log_spectral_distance"], 1))
        if not values["onsets"]:
            table.add_row(*first)
        for tolerance, rates in values["onsets"].items():
            cells = (_with_chance(rates, rate) for rate in ("precision", "recall", "f1"))
            table.add_row(*first, tolerance, *cells)
            first = ("", "")
    return table


def _table(title: str) -> rich.table.Table:
    """A table narrow enough for a terminal of 80 columns; its first column names the row."""
    table = rich.table.Table(title=title, title_justify="left", title_style="bold", box=rich.box.SIMPLE_HEAD)
    table.add_column("mean, 95 %")
    return table


def _with_chance(rates: Mapping[str, Any], rate: str) -> str:
    return f"{_number(rates[rate]['mean'], 2)} ({_number(rates[f'chance_{rate}']['mean'], 2)})"


def _estimate(values: Mapping[str, Any], digits: int) -> str:
    if values["mean"] is None:
        return "–"
    low, high = (_number(values[end], digits) for end in ("low", "high"))
    return f"{_number(values['mean'], digits)}\n[dim]{low} – {high}[/dim]"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _finite(value: Any) -> Any:
    """Replaces NaN and infinities, which JSON does not know, by None."""
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
