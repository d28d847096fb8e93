"""What attention costs over density: estimated for named TPUs, or timed here; a table, a JSON file and a plot."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import rich.box
import rich.console
import rich.table

from pixr1_jax.benchmarks import estimates, results, timing
from pixr1_jax.benchmarks.aot import Compiler
from pixr1_jax.core import progress
from pixr1_jax.core.chips import CHIPS

QUICK_DENSITIES = (1.0, 0.125)


def run_aot(
    sweep: estimates.Sweep, out: str | os.PathLike[str], command: str, timeout: float = 120.0
) -> dict[str, Any]:
    """Estimates a sweep and writes `kernels-aot.json` and `.png`, what there is of them every few rows.

    Args:
      sweep: What to estimate.
      out: Folder to write to.
      command: What the user called, for the record.
      timeout: Seconds that one program may take; one that takes longer is reported as such.

    Returns:
      The table.
    """
    todo = list(sweep)
    rows: list[dict[str, Any]] = []
    table = {
        "title": "Compiler estimates, no TPU was used",
        **results.provenance(command),
        "note": estimates.NOTE,
        "chips": {name: dataclasses.asdict(CHIPS[name]) for name in sweep.chips},
        "rows": rows,
    }
    with Compiler(timeout) as compiler, progress.track(len(todo), "estimating") as tracker:
        for key in todo:
            rows.append(estimates.estimate(compiler, key))
            tracker.advance(now=f"{key['chip']} {key['kernel']} {key['variant']} {key['density']:g}")
            if len(rows) % 10 == 0:
                results.write(out, "kernels-aot", table)
    if all("error" in row for row in rows):
        raise ValueError(f"nothing could be estimated; the first reason: {rows[0]['error']}")
    return _finish(table, out, "kernels-aot")


def run_here(
    out: str | os.PathLike[str], command: str, *, quick: bool = False, heads: int | None = None, repeats: int = 10
) -> dict[str, Any]:
    """Times attention on the first device and writes `kernels-PLATFORM.json` and `.png`.

    Args:
      out: Folder to write to.
      command: What the user called, for the record.
      quick: Fewer densities and head dimensions.
      heads: Attention heads; None takes 8, or 1 on a CPU.
      repeats: Timed calls.

    Returns:
      The table.
    """
    platform = jax.default_backend()
    platform = "gpu" if platform in ("cuda", "rocm") else platform
    notes = ["Times of one call with all its heads, median of repeats after warm-up."]
    if platform == "cpu":
        notes.append(
            "This is a CPU: there is no kernel to time here, only 'gather' and 'reference', at a small shape. "
            "--aot=v5e,v5p,v6e gives the compiler's estimates for TPUs."
        )
        print(notes[-1])
    # On a CPU backward passes of a gather are scatters and take seconds.
    dims, densities = ((128,), QUICK_DENSITIES) if quick or platform == "cpu" else ((128, 256), estimates.DENSITIES)
    heads = heads or (1 if platform == "cpu" else 8)
    rows = []
    with progress.track(None, f"timing on {platform}") as tracker:
        for row in timing.rows(platform, heads=heads, dims=dims, densities=densities, repeats=repeats):
            rows.append(row)
            tracker.advance(now=f"{row['kernel']} {row['variant']} {row['density']:.3g}")
    table = {
        "title": f"Times on {jax.devices()[0].device_kind}",
        **results.provenance(command),
        "device": jax.devices()[0].device_kind,
        "note": " ".join(notes),
        "rows": rows,
    }
    return _finish(table, out, f"kernels-{platform}")


def _finish(table: dict[str, Any], out: str | os.PathLike[str], name: str) -> dict[str, Any]:
    paths = results.write(out, name, table)
    show(table["rows"], rich.console.Console())
    print(table["note"])
    print("wrote " + ", ".join(str(pathlib.Path(path)) for path in paths))
    return table


def show(rows: Sequence[dict[str, Any]], console: rich.console.Console) -> None:
    """Prints the rows as a table; what failed is named below it."""
    names = ["chip", "kernel", "variant", "queries", "keys", "dim", "mask", "density", "tail", "us", "bound"]
    names += ["mxu_percent", "marginal_mxu_percent", "vmem_bytes"]
    names = [name for name in names if any(name in row for row in rows)]
    headings = {"mxu_percent": "% MXU", "marginal_mxu_percent": "% MXU marginal", "vmem_bytes": "VMEM MiB"}
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
    for name in names:
        table.add_column(headings.get(name, name), no_wrap=True, justify="left" if name == "kernel" else "right")
    for row in rows:
        if "us" in row:
            table.add_row(*(_cell(name, row.get(name)) for name in names))
    console.print(table)
    for row in rows:
        if "error" in row:
            what = " ".join(str(row[name]) for name in names[:6] if name in row)
            console.print(f"no figure: {what}, density {row['density']:g}: {row['error']}", markup=False)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if name == "vmem_bytes":
        return f"{value / 2**20:.1f}"
    if name == "tail":
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
