"""Scalars of a run: a line a write in metrics.jsonl, the same in TensorBoard event files.

`metrics.jsonl` is the record: after any number of kills and restarts it is one clean sequence of steps, and
its floats read back bit for bit.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, SupportsFloat

import jax
from tensorboardX import SummaryWriter

FILE_NAME = "metrics.jsonl"
_FLUSH_SECONDS = 10
_NON_FINITE = ("nan", "inf", "-inf")


class MetricsError(ValueError):
    """A metrics file, or a write to it, breaks the contract; the message names the file and the field."""


class Board(Protocol):
    """Another place that scalars are written to."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the scalars of a step."""
        ...

    def close(self) -> None:
        """Ends what is open; called once."""
        ...


class MetricWriter:
    """Writes scalars by step to `metrics.jsonl`, to TensorBoard event files, and to one more board if there is one.

    Only the first process of a job writes; on the others every method checks nothing and does nothing.
    """

    def __init__(self, directory: str | os.PathLike[str], *, first_step: int = 0, board: Board | None = None):
        """Opens the files, and drops what an earlier run wrote at or beyond `first_step`.

        Args:
            directory: A local folder, created if absent.
            first_step: The first step that this run will write: 0 for a new run; lines from it on go.
            board: Gets every line too, and is closed with the writer.

        Raises:
            MetricsError: If the folder cannot be written, or an existing file is damaged before its last
                line.
        """
        self._file = None
        if jax.process_index() != 0:
            return
        self._path = Path(directory) / FILE_NAME
        self._last_step = first_step
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.exists():
                _truncate(self._path, first_step)
            self._file = open(self._path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 (closed by `close`)
        except OSError as error:
            raise MetricsError(f"{self._path}: cannot be written ({error.strerror}); choose another folder") from error
        self._other_board = board
        self._board = SummaryWriter(
            str(self._path.parent),
            flush_secs=_FLUSH_SECONDS,
            purge_step=first_step if first_step > 0 else None,
            # Two runs within one second would otherwise write the same file.
            filename_suffix=f".{first_step}",
        )

    def write(self, step: int, scalars: Mapping[str, SupportsFloat]) -> None:
        """Writes one line: `{"step": step, name: value, ...}`.

        Args:
            step: Not below the step of an earlier write.
            scalars: Numbers by name ("train/loss/video"); anything that `float` takes, device scalars
                included.

        Raises:
            MetricsError: If the step goes back, a name is empty or "step", or a value is not a number.
        """
        if self._file is None:
            return
        if step < self._last_step:
            raise MetricsError(f"{self._path}: step {step} after step {self._last_step}; steps never go back")
        values = {name: self._number(name, value) for name, value in scalars.items()}
        # JSON has no numbers for nan and the infinities: they are strings in the file, floats when read.
        line = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
        self._file.write(json.dumps({"step": int(step), **line}, allow_nan=False) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if self._other_board is not None:
            self._other_board.write(step, values)
        self._last_step = step

    def close(self) -> None:
        """Flushes and closes the files; later writes do nothing."""
        if self._file is not None:
            self._file.close()
            self._board.close()
            if self._other_board is not None:
                self._other_board.close()
            self._file = None

    def _number(self, name: str, value: Any) -> float:
        if not name or name == "step":
            raise MetricsError(f"{self._path}: the scalar name {name!r} is reserved; rename it")
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise MetricsError(f"{self._path}: {name} is not a scalar number: {value!r}") from error


def read_metrics(directory: str | os.PathLike[str]) -> list[dict[str, float]]:
    """Reads `metrics.jsonl` of a folder: one dict a line, "step" included, a torn last line left out.

    Raises:
        MetricsError: If the file is missing, or damaged before its last line; the message names the line.
    """
    path = Path(directory) / FILE_NAME
    if not path.exists():
        raise MetricsError(f"{path}: no such file; give the folder of a run")
    return [record for record, _ in _records(path)]


def _records(path: Path) -> Iterator[tuple[dict[str, float], str]]:
    """Yields the records of a file with their lines; a last line that a kill cut short is skipped."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not line.endswith("\n"):
                raise ValueError("no line end")
            yield (
                {name: float(value) if value in _NON_FINITE else value for name, value in record.items()},
                line,
            )
        except (ValueError, AttributeError) as error:
            if number < len(lines):
                raise MetricsError(f"{path}: line {number} is not a metrics record; remove that line") from error


def _truncate(path: Path, first_step: int) -> None:
    kept = "".join(line for record, line in _records(path) if record["step"] < first_step)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(kept, encoding="utf-8")
    os.replace(temporary, path)
