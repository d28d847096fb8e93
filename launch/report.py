"""What a sweep came to: a table and a picture of a metric of its trials, from their metrics.jsonl."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from launch import trials as trials_lib
from launch.sweeps import SweepError
from pixr1_jax.training.metrics import FILE_NAME, read_metrics

_LAST = 0.1  # share of a trial's lines whose mean is its value
_INK, _PALE = "#2b2d33", "#9aa0a8"


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """One trial.

    Attributes:
        trial: its name and changes.
        state: "new", "unfinished" or "finished".
        steps: of each line that has the metric.
        values: the metric there.
        step_seconds: median over the lines that say it, else None.
    """

    trial: trials_lib.Trial
    state: str
    steps: np.ndarray
    values: np.ndarray
    step_seconds: float | None

    @property
    def value(self) -> float | None:
        """The mean over the last tenth of the lines; None where there is none or it is not finite."""
        if not len(self.values):
            return None
        mean = float(np.mean(self.values[-max(1, round(_LAST * len(self.values))) :]))
        return mean if math.isfinite(mean) else None


def results(directory: pathlib.Path, stage: str, metric: str) -> list[Result]:
    """Reads the trials of a sweep's folder, the lowest value first, those without one last.

    Raises:
        SweepError: there is no sweep, or no trial has the metric.
    """
    config, trials = trials_lib.recorded(directory)
    found, known = [], set()
    for trial in trials:
        folder = directory / trial.name / stage
        lines = read_metrics(folder) if (folder / FILE_NAME).exists() else []
        known |= {name for line in lines for name in line}
        kept = [line for line in lines if metric in line]
        seconds = [line["perf/step_seconds"] for line in lines if "perf/step_seconds" in line]
        found.append(
            Result(
                trial,
                trials_lib.state(directory, config, trial, stage),
                np.array([line["step"] for line in kept]),
                np.array([line[metric] for line in kept]),
                float(np.median(seconds)) if seconds else None,
            )
        )
    if known and metric not in known:
        raise SweepError(f"no trial has --metric={metric}; they have {', '.join(sorted(known - {'step'}))}")
    if not known:
        raise SweepError(f"no trial of {directory} has metrics of {stage!r} yet; run the sweep first")
    return sorted(found, key=lambda one: math.inf if one.value is None else one.value)


def rows(found: Sequence[Result], metric: str) -> list[dict[str, Any]]:
    """Returns the table: a row a trial, with a column for each field that the sweep changes."""
    fields = list(dict.fromkeys(field for one in found for field in one.trial.changes))
    return [
        {
            "trial": one.trial.name,
            **{field: one.trial.changes.get(field) for field in fields},
            "state": one.state,
            "step": int(one.steps[-1]) if len(one.steps) else None,
            metric: one.value,
            "step_seconds": one.step_seconds,
        }
        for one in found
    ]


def write(found: Sequence[Result], metric: str, directory: pathlib.Path) -> str:
    """Writes report.json, report.csv, report.txt and report.png; returns the table as text."""
    table = rows(found, metric)
    text, sheet, picture = _text(table), io.StringIO(), io.BytesIO()
    writer = csv.DictWriter(sheet, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    draw(found, metric).savefig(picture, format="png")
    files = {
        "json": (json.dumps({"metric": metric, "trials": table}, indent=2) + "\n").encode(),
        "csv": sheet.getvalue().encode(),
        "txt": text.encode(),
        "png": picture.getvalue(),
    }
    for ending, content in files.items():
        partial = directory / f"report.{ending}.partial"
        partial.write_bytes(content)
        os.replace(partial, directory / f"report.{ending}")
    return text


def _text(table: Sequence[Mapping[str, Any]]) -> str:
    cells = [[*table[0]], *([_cell(value) for value in row.values()] for row in table)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]]) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def draw(found: Sequence[Result], metric: str) -> Figure:
    """Draws the metric over the steps of each trial, and its last values over the first field that is changed."""
    figure = Figure(figsize=(12, 4.6), dpi=110, facecolor="white", layout="constrained")
    curves, ends = figure.subplots(1, 2, width_ratios=(3, 2))
    fields = list(dict.fromkeys(field for one in found for field in one.trial.changes))
    groups = _order([_group(one, fields[1:]) for one in found])
    color = {group: _color(number, len(groups)) for number, group in enumerate(groups)}
    first = _order([one.trial.changes.get(field) for one in found for field in fields[:1]])
    dashes = ("-", "--", ":", "-.")
    for one in sorted(found, key=lambda one: one.trial.name):
        if not len(one.values):
            continue
        look = color[_group(one, fields[1:])]
        line = dashes[first.index(one.trial.changes.get(fields[0])) % len(dashes)] if fields else "-"
        width = max(1, len(one.values) // 20)
        # Means of the last lines at every line, so that noise does not hide the order.
        means = [float(np.mean(one.values[max(0, end - width) : end])) for end in range(1, len(one.values) + 1)]
        note = "" if one.state == "finished" else f" ({one.state})"
        curves.plot(one.steps, means, line, color=look, linewidth=1.3, label=one.trial.name + note)
    _style(curves, metric, "step")
    if len(found) <= 12:
        curves.legend(fontsize=7.5, frameon=False, labelcolor=_INK)
    if fields:
        _draw_ends(ends, found, fields, color)
        _style(ends, f"{metric}, mean of the last tenth", fields[0])
    else:
        ends.set_axis_off()
    _spread(curves, np.concatenate([one.values for one in found]))
    _spread(ends, np.array([one.value for one in found if one.value is not None]))
    return figure


def _draw_ends(
    axes: Axes, found: Sequence[Result], fields: Sequence[str], color: Mapping[tuple[Any, ...], Any]
) -> None:
    choices = _order([one.trial.changes.get(fields[0]) for one in found])
    numbers = all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in choices)
    place: Callable[[Any], Any] = choices.index if not numbers else lambda choice: choice
    for group, look in color.items():
        ended = [
            (place(one.trial.changes.get(fields[0])), one.value)
            for one in found
            if _group(one, fields[1:]) == group and one.value is not None
        ]
        across, values = zip(*sorted(ended), strict=True) if ended else ((), ())
        words = ", ".join(f"{field.rpartition('.')[2]}={value}" for field, value in zip(fields[1:], group, strict=True))
        axes.plot(across, values, "o-", color=look, markersize=5, linewidth=1.3, label=words)
    if numbers and min(choices) > 0 and max(choices) >= 4 * min(choices):
        axes.set_xscale("log")
    axes.set_xticks([place(choice) for choice in choices], [str(choice) for choice in choices])
    axes.minorticks_off()
    if len(fields) > 1 and len(color) <= 12:
        axes.legend(fontsize=7.5, frameon=False, labelcolor=_INK)


def _spread(axes: Axes, values: np.ndarray) -> None:
    """Makes the axis logarithmic where one value would flatten all others."""
    if values.size and np.all(values > 0) and values.max() > 8 * values.min():
        axes.set_yscale("log")


def _group(one: Result, fields: Sequence[str]) -> tuple[Any, ...]:
    return tuple(_plain(one.trial.changes.get(field)) for field in fields)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _order(items: Sequence[Any]) -> list[Any]:
    """The different items, sorted where they can be."""
    different: list[Any] = []
    for item in items:
        if item not in different:
            different.append(item)
    try:
        return sorted(different)
    except TypeError:
        return different


def _color(number: int, count: int) -> Any:
    return colormaps["viridis"](0.85 * number / max(1, count - 1))


def _style(axes: Axes, title: str, across: str) -> None:
    axes.set_title(title, fontsize=10, loc="left", color=_INK, weight="bold")
    axes.set_xlabel(across, fontsize=8, color=_INK)
    axes.tick_params(which="both", labelsize=8, length=3, colors=_INK)
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set(color=_PALE, linewidth=0.8)
