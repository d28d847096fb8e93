"""Where the time of a run goes, over all its restarts: a ledger of seconds, and the share of them that trained.

`goodput.jsonl` of a stage is append-only, a line an event. A process that is killed loses what it spent since its last
line and nothing before; the gap to the next start counts as `down`. Steps that are run again after a restart, since
they came after the newest checkpoint, were not productive: their time moves from `step` to `lost`.

    {"event": "start", "time": 1700000000.0}                     the process began; times are Unix seconds
    {"event": "resume", "step": 40, "lost_steps": 7, ...}        it continues from the checkpoint of step 40
    {"event": "spent", "step": 50, "seconds": {"step": 8.1}}     since the line before, up to step 50
    {"event": "end", "finished": true}                           it left in order
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

FILE_NAME = "goodput.jsonl"
# What a process can be doing; `save` is the time that training waits for a save.
KINDS: tuple[str, ...] = ("init", "compile", "data_wait", "step", "save", "idle")


class LedgerError(ValueError):
    """A ledger cannot be read or written; the message names the file."""


@dataclasses.dataclass
class Account:
    """The sum of a ledger.

    Attributes:
        seconds: Seconds by kind (`KINDS`); those of `step` hold what was lost later.
        down: Seconds without a process, from the last line of one to the start of the next.
        lost: Seconds of steps that were run again.
        lost_steps: How many.
        starts: Processes that began.
        step: Step of the newest line.
    """

    seconds: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    down: float = 0.0
    lost: float = 0.0
    lost_steps: int = 0
    starts: int = 0
    step: int = 0
    _time: float | None = None  # of the newest line; None after a finished run, whose rest is no loss

    def add(self, record: Mapping[str, Any]) -> None:
        """Adds the next line of a ledger."""
        match record["event"]:
            case "start":
                self.starts += 1
                if self._time is not None:
                    self.down += max(0.0, record["time"] - self._time)
            case "resume":
                self.step = record["step"]
                self.lost += record["lost_seconds"]
                self.lost_steps += record["lost_steps"]
            case "spent":
                self.step = record["step"]
                for kind, seconds in record["seconds"].items():
                    self.seconds[kind] += seconds
        finished = record["event"] == "end" and record["finished"]
        self._time = None if finished else record["time"]

    @property
    def total(self) -> float:
        """All seconds from the first start on, those after a finished run left out."""
        return sum(self.seconds.values()) + self.down

    @property
    def goodput(self) -> float:
        """The share of all time that went into steps which count, 0 to 1."""
        return (self.seconds["step"] - self.lost) / self.total if self.total > 0 else 0.0

    def table(self) -> str:
        """The account as lines of text, largest first."""
        parts = self.seconds | {"step": self.seconds["step"] - self.lost, "lost": self.lost, "down": self.down}
        notes = {"lost": f"  steps run again: {self.lost_steps}", "down": f"  restarts: {max(0, self.starts - 1)}"}
        lines = [f"goodput {self.goodput:.1%} of {self.total:.1f} s"]
        for kind, seconds in sorted(parts.items(), key=lambda part: -part[1]):
            if seconds > 0:
                name = kind.replace("_", " ")
                lines.append(f"  {name:<10}{seconds:>12.1f} s {seconds / self.total:>7.1%}{notes.get(kind, '')}")
        return "\n".join(lines)


class Goodput:
    """A stopwatch that always runs for one kind of work, and keeps the ledger of a stage.

    Every process measures; only the first of a job reads and writes the file.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        clock: Callable[[], float] = time.perf_counter,
        now: Callable[[], float] = time.time,
    ):
        """Opens the ledger and starts to measure `init`.

        Args:
            directory: Folder of the stage, created if absent.
            clock: Returns seconds, monotonic.
            now: Returns Unix seconds.

        Raises:
            LedgerError: The folder cannot be written, or the ledger is damaged before its last line.
        """
        self._clock, self._now = clock, now
        self._kind, self._since = "init", clock()
        self._spent = dict.fromkeys(KINDS, 0.0)
        self._path = Path(directory) / FILE_NAME
        self._history: list[dict[str, Any]] = []
        self._file = None
        self.account = Account()
        if jax.process_index() == 0:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                if self._path.exists():
                    self._history = _repair(self._path)
                self._file = open(self._path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 (closed by `close`)
            except OSError as error:
                raise LedgerError(
                    f"{self._path}: cannot be written ({error.strerror}); choose another folder"
                ) from error
        for record in self._history:
            self.account.add(record)
        self._append("start")

    def enter(self, kind: str) -> None:
        """From now on the time is spent on `kind`, one of `KINDS`."""
        self._split()
        self._spent[kind]  # an unknown kind is a mistake of the caller, seen here and not hours later
        self._kind = kind

    def resume(self, step: int) -> None:
        """Says from which step the run goes on, 0 for a new one; what was done beyond it is lost."""
        lost_steps, lost_seconds = _beyond(self._history, step)
        self._history = []
        self._append("resume", step=step, lost_steps=lost_steps, lost_seconds=lost_seconds)

    def write(self, step: int) -> dict[str, float]:
        """Writes down what was spent since the last time.

        Args:
            step: Steps taken so far; they must have ended on the device.

        Returns:
            The seconds by kind.
        """
        self._split()
        spent, self._spent = self._spent, dict.fromkeys(KINDS, 0.0)
        self._append("spent", step=step, seconds={kind: round(value, 6) for kind, value in spent.items() if value > 0})
        return spent

    def close(self, step: int, *, finished: bool) -> None:
        """Writes what is left and that the process leaves in order.

        Args:
            step: Steps taken.
            finished: Whether the run is complete: what passes until it is started again is then no loss.
        """
        self.write(step)
        self._append("end", finished=finished)
        if self._file is not None:
            self._file.close()
            self._file = None

    def _split(self) -> None:
        now = self._clock()
        self._spent[self._kind] += now - self._since
        self._since = now

    def _append(self, event: str, **fields: Any) -> None:
        record = {"event": event, "time": self._now(), **fields}
        self.account.add(record)
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")


def read_account(directory: str | os.PathLike[str]) -> Account:
    """Sums the ledger of a stage; a last line that a kill cut short is left out.

    Raises:
        LedgerError: If there is none, or it is damaged before its last line.
    """
    path = Path(directory) / FILE_NAME
    if not path.exists():
        raise LedgerError(f"{path}: no such file; give the folder of a stage")
    account = Account()
    for record in _records(path)[0]:
        account.add(record)
    return account


def _beyond(records: Iterable[Mapping[str, Any]], step: int) -> tuple[int, float]:
    """Steps that had been done beyond `step` at the end of the records, and the seconds that they took.

    A line that stands on both sides of a step is divided in proportion.
    """
    done: list[tuple[int, int, float]] = []  # first and last step, seconds; ascending and without a gap
    last = 0

    def cut(at: int) -> list[tuple[int, int, float]]:
        return [(a, min(b, at), s * (min(b, at) - a) / (b - a)) for a, b, s in done if a < at]

    for record in records:
        if record["event"] == "resume":
            last = record["step"]
            done = cut(last)
        elif record["event"] == "spent" and record["step"] > last:
            done.append((last, record["step"], record["seconds"].get("step", 0.0)))
            last = record["step"]
    seconds = sum(s for *_, s in done) - sum(s for *_, s in cut(step))
    return max(0, last - step), seconds


def _records(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records of a ledger, and the bytes that they take: a last line without an end is left out."""
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    records = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            record = json.loads(line)
            Account().add(record)
            records.append(record)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise LedgerError(f"{path}: line {number} is no record of a ledger; remove that line") from error
    return records, len(whole)


def _repair(path: Path) -> list[dict[str, Any]]:
    """Reads the records, and cuts off a line that a kill left without its end."""
    records, size = _records(path)
    os.truncate(path, size)
    return records
