"""What a step of a config needs of a TPU slice: one mesh compiled, or all that are possible, as a table and JSON."""

import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import rich.box
import rich.console
import rich.table
from ml_collections import ConfigDict

from pixr1_jax.benchmarks import bounds, results
from pixr1_jax.benchmarks.aot import CompileError, Compiler, libtpu_version
from pixr1_jax.core import config as config_lib
from pixr1_jax.core import progress, topology
from pixr1_jax.core.partition import MeshShape
from pixr1_jax.core.topology import Topology

NOTE = (
    "Compiler figures and bounds, not measurements. Memory is what the compiler lays out for a chip. A bound is the "
    "least time that one resource takes at its published peak for what the compiled step does: operations executed "
    "(recomputation included), bytes of operands and results in HBM, bytes sent. Nothing is faster; how much slower it "
    "is shows only on hardware."
)
STEPS = ("train", "distill", "stream")
TIMEOUT = 3600.0


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
      slice: Each slice.
      num_slices: How many.
      step: One of `STEPS`.
      quick: Whether the compiler should hurry.
    """

    slice: Topology
    num_slices: int
    step: str
    quick: bool


def question(config: ConfigDict, name: str | None, num_slices: int | None, step: str, quick: bool) -> Question:
    """Checks what is asked; the config says what is left out.

    Raises:
      ValueError: No topology, an unknown one, an unknown step, or no libtpu; the message says what there is.
    """
    if step not in STEPS:
        raise ValueError(f"--step={step}: use one of {', '.join(STEPS)}")
    found, count = topology.asked(config.get("plan", {}), name, num_slices)
    if libtpu_version() is None:
        raise ValueError("pixr1 plan needs libtpu: pip install 'pixr1-jax[tpu]' (a TPU is not needed)")
    return Question(found, count, step, quick)


def ask(compiler: Compiler, config: ConfigDict, asked: Question) -> dict[str, Any]:
    """Compiles the step with the config's own mesh; returns `bounds.report`.

    Raises:
      CompileError: It does not compile, for another reason than memory.
    """
    where = {"topology": asked.slice.name, "num_slices": asked.num_slices}
    facts = compiler.step(config_lib.to_plain(config), asked.step, quick=asked.quick, **where)
    return bounds.report(facts, asked.slice.generation)


def search(compiler: Compiler, config: ConfigDict, asked: Question) -> list[dict[str, Any]]:
    """Compiles the step for every mesh shape that the slice, the rows and the heads allow.

    Returns:
      Rows of `ask`, or "mesh" and "error", the best first: those that fit by their bound, then by memory.
    """
    found = []
    shapes = list(mesh_shapes(config, asked))
    with progress.track(len(shapes), "planning") as tracker:
        for shape in shapes:
            row: dict[str, Any] = {"mesh": dataclasses.asdict(shape)}
            try:
                row = ask(compiler, with_mesh(config, shape), asked)
            except CompileError as error:
                row["error"] = str(error)
            found.append(row)
            tracker.advance(now=_mesh(row["mesh"]))
    return sorted(found, key=_rank)


def _rank(row: Mapping[str, Any]) -> tuple[float, ...]:
    if "error" in row:
        return (2, 0, 0)
    if not row["fits"]:
        return (1, row["peak_hbm_gib"], 0)
    # Bounds within two percent are equal, and memory to spare decides.
    return (0, round(row["bound"]["seconds"] * 50 / max(row["seconds"]["compute"], 1e-12)), row["peak_hbm_gib"])


def mesh_shapes(config: ConfigDict, asked: Question) -> Iterator[MeshShape]:
    """The shapes that use every chip, divide rows and heads, and have one `slice` for each slice."""
    chips, heads = asked.slice.chips, config.model.heads
    rows = config.pack.batch_rows // config[asked.step].accumulate
    ulysses = config.mesh.context_parallel == "ulysses"
    for tensor, context in itertools.product(_divisors(chips), repeat=2):
        if heads % (tensor * context if ulysses else tensor) or chips % (tensor * context):
            continue
        rest = chips // (tensor * context)
        if rows % (asked.num_slices * rest):
            continue
        # Parameters copied over `data` only pay where they are small; both ends of that choice are tried.
        for data in sorted({1, rest}):
            yield MeshShape(asked.num_slices, data, rest // data, context, tensor)


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, min(number, 32) + 1) if number % size == 0]


def with_mesh(config: ConfigDict, shape: MeshShape) -> ConfigDict:
    """The config with another mesh."""
    changed = ConfigDict(config.to_dict())
    changed.mesh.update(dataclasses.asdict(shape))
    return changed


def write(path: str | os.PathLike[str], table: Mapping[str, Any]) -> None:
    """Writes a table as JSON, whole or not at all."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(table, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def whole(config: ConfigDict, asked: Question, command: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The JSON table: the first row's figures, where they come from, and the other rows of a search."""
    searched = {"search": list(rows)} if len(rows) > 1 else {}
    return {
        **results.provenance(command),
        "note": NOTE,
        "config": fingerprint(config, asked.step),
        "topology": asked.slice.name,
        "num_slices": asked.num_slices,
        "step": asked.step,
        "effort": "quick" if asked.quick else "full",
        **rows[0],
        **searched,
    }


def fingerprint(config: ConfigDict, step: str) -> str:
    """The fingerprint of what a step's program follows from: a plan holds as long as it stays."""
    sections = (
        "tokens",
        "memory",
        "model",
        "pack",
        "mesh",
        "plan",
        *(("export", "stream") if step == "stream" else (step,)),
    )
    return config_lib.fingerprint({name: config_lib.to_plain(config[name]) for name in sections if name in config})


def show(row: Mapping[str, Any], asked: Question, console: rich.console.Console) -> None:
    """Prints one step's figures."""
    slices = f"{asked.num_slices} x " if asked.num_slices > 1 else ""
    console.print(
        f"{asked.step} on {slices}{asked.slice.name}, mesh {_mesh(row['mesh'])}, compiled in {row['compile_seconds']} s"
    )
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, show_header=False)
    line = lambda name, value: table.add_row(name, value)
    line("parameters", f"{row['parameters'] / 1e6:,.1f} M")
    if row["fits"]:
        line("HBM of a chip", f"{row['peak_hbm_gib']:.2f} GiB of {row['limit_hbm_gib']:.0f}")
    else:
        line("HBM of a chip", f"does not fit: needs {row['peak_hbm_gib']:.1f} GiB, has {row['limit_hbm_gib']:.1f}")
    for name, amount in row["memory_gib"].items():
        line(f"  {name}", f"{amount:.2f} GiB")
    line("operations a step", f"{row['flops_per_step']:.3g}, executed {row['executed_flops']:.3g}")
    if row["fits"]:
        for kind, amounts in row["collectives"].items():
            sent = amounts.get("bytes", 0.0) + amounts.get("dcn_bytes", 0.0)
            line(kind, f"{amounts['count']:.0f} times, {sent / bounds.GIB:.2f} GiB sent by a chip")
        for name, value in row["seconds"].items():
            line(f"at least, by {name}", f"{value * 1e3:.4g} ms")
        line("bound", f"{row['bound']['seconds'] * 1e3:.4g} ms by {row['bound']['by']}")
        line("MFU at most", f"{row['mfu_bound']:.1%}")
        line("frames/s at most", f"{row['frames_per_second_bound']:,.4g}")
    console.print(table)


def show_search(rows: Sequence[Mapping[str, Any]], console: rich.console.Console) -> None:
    """Prints the meshes of a search, the best first."""
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
    for name in ("mesh", "fits", "GiB a chip", "bound ms", "by", "MFU at most"):
        table.add_column(name, justify="left" if name == "mesh" else "right", no_wrap=True)
    for row in rows:
        if "error" in row:
            table.add_row(_mesh(row["mesh"]), "error", "", "", "", "")
        elif row["fits"]:
            bound = row["bound"]
            figures = (
                f"{row['peak_hbm_gib']:.1f}",
                f"{bound['seconds'] * 1e3:.4g}",
                bound["by"],
                f"{row['mfu_bound']:.1%}",
            )
            table.add_row(_mesh(row["mesh"]), "yes", *figures)
        else:
            table.add_row(_mesh(row["mesh"]), "no", f"{row['peak_hbm_gib']:.1f}", "", "", "")
    console.print(table)
    for row in rows:
        if "error" in row:
            console.print(f"{_mesh(row['mesh'])}: {row['error']}", markup=False)


def _mesh(mesh: Mapping[str, int]) -> str:
    return " ".join(f"{name}={size}" for name, size in mesh.items() if size > 1) or "one chip"
