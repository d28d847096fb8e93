"""Where a table of figures comes from, and how it is written: JSON and a picture, each whole or not at all."""

import datetime
import json
import os
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from matplotlib.figure import Figure

from pixr1_jax.benchmarks.aot import libtpu_version

_DENSE = {"flash_attention": "--", "xla": ":", "splash": "--", "cudnn": "--"}
_COLORS = ("#2a6f97", "#e07a5f", "#5b8e3e", "#8e5ba6", "#c9a227")


def provenance(command: str) -> dict[str, Any]:
    """Returns command, machine, versions and date, all that a figure needs to be repeated."""
    return {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {_processor()}",
        "python": platform.python_version(),
        "jax": jax.__version__,
        "libtpu": libtpu_version(),
    }


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write(directory: str | os.PathLike[str], name: str, table: Mapping[str, Any]) -> list[pathlib.Path]:
    """Writes NAME.json and NAME.png into a directory, which is made if missing.

    Args:
      directory: Where.
      name: Of both files.
      table: "rows" with at least "kernel", "variant", "queries", "keys", "dim", "density", "tail" and "us" or "error",
        "chip" where there are several, and anything else.

    Returns:
      The two paths.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f".{name}.{os.getpid()}.partial"
    paths = [directory / f"{name}.json", directory / f"{name}.png"]
    try:
        rows = ",\n".join("  " + json.dumps(row, allow_nan=False) for row in table["rows"])
        head = {key: value for key, value in table.items() if key != "rows"}
        # A row a line: a renewed file shows what changed.
        text = json.dumps(head, indent=1, allow_nan=False)[:-2] + ',\n "rows": [\n' + rows + "\n ]\n}\n"
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, paths[0])
        draw(table).savefig(partial, format="png")
        os.replace(partial, paths[1])
    finally:
        partial.unlink(missing_ok=True)
    return paths


def draw(table: Mapping[str, Any]) -> Figure:
    """Draws time against density: a row of plots for each chip, a plot for each shape and head dimension."""
    rows = [row for row in table["rows"] if "us" in row]
    chips = list(dict.fromkeys(row.get("chip", "") for row in rows)) or [""]
    columns = list(dict.fromkeys((row["queries"], row["keys"], row["dim"]) for row in rows)) or [(0, 0, 0)]
    figure = Figure(figsize=(3.6 * len(columns) + 1.2, 3.2 * len(chips) + 1.0), dpi=110, layout="constrained")
    figure.suptitle(f"{table['title']} ({table['date']}, jax {table['jax']}, libtpu {table['libtpu']})", fontsize=10)
    plots = figure.subplots(len(chips), len(columns), squeeze=False)
    for plot_row, chip in zip(plots, chips, strict=True):
        for plot, (queries, keys, dim) in zip(plot_row, columns, strict=True):
            here = [r for r in rows if (r["queries"], r["keys"], r["dim"]) == (queries, keys, dim)]
            _draw_one(plot, [row for row in here if row.get("chip", "") == chip])
            plot.set_title(f"{chip} {queries} queries, {keys} keys, dim {dim}".strip(), fontsize=8)
    return figure


def _draw_one(plot, rows: Sequence[Mapping[str, Any]]) -> None:
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    lines = dict.fromkeys((row["kernel"], row["variant"], row["tail"], row.get("mask", "")) for row in rows)
    for kernel, variant, tail, mask in lines:
        points = sorted(
            (row["density"], row["us"])
            for row in rows
            if (row["kernel"], row["variant"], row["tail"], row.get("mask", "")) == (kernel, variant, tail, mask)
        )
        color = _COLORS[variants.index(variant) % len(_COLORS)]
        label = " ".join(word for word in (kernel, variant, mask, "with tail" if tail else "") if word)
        if len(points) == 1:
            plot.axhline(points[0][1], color=color, linestyle=_DENSE.get(kernel, "-."), linewidth=1, label=label)
        else:
            marker = "^" if tail else "o"
            style = "-" if kernel == "ours" else _DENSE.get(kernel, "-.")
            plot.plot(*zip(*points, strict=True), color=color, marker=marker, linestyle=style, ms=3, lw=1, label=label)
    plot.set_xscale("log", base=2)
    plot.set_yscale("log")
    plot.set_xlabel("density", fontsize=7)
    plot.set_ylabel("microseconds", fontsize=7)
    plot.tick_params(labelsize=7)
    if rows:
        plot.legend(fontsize=5)
