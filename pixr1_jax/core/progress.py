"""Progress of a long loop: a live bar in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any, Protocol, TextIO

import rich.console
import rich.progress

_PLAIN_INTERVAL = 10.0


class Tracker(Protocol):
    """What `track` hands to the loop."""

    def advance(self, count: int = 1, **info: Any) -> None:
        """Adds `count` finished items; `info` is shown beside the bar until the next call."""


@contextlib.contextmanager
def track(
    total: int | None,
    description: str,
    *,
    file: TextIO | None = None,
    interval: float = _PLAIN_INTERVAL,
    shown: bool = True,
) -> Iterator[Tracker]:
    """Shows the progress of the `with` block.

    Args:
        total: number of items, or None where it is not known (then no time left is shown).
        description: what is being done, a few words.
        file: where to write; None is standard error. A terminal gets a live bar.
        interval: least number of seconds between two plain lines.
        shown: False shows nothing, as all but one of many processes should.

    Yields:
        A Tracker; call its `advance` after each item.
    """
    output: TextIO = sys.stderr if file is None else file
    if not shown:
        yield _Nothing()
        return
    console = rich.console.Console(file=output)
    if console.is_terminal:
        with _bar(console) as bar:
            yield _Bar(bar, bar.add_task(description, total=total, rate="", info=""))
        return
    lines = _Lines(total, description, output, interval)
    yield lines
    lines.write()


def _bar(console: rich.console.Console) -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[rate]}"),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn("{task.fields[info]}"),
        console=console,
    )


class _Nothing:
    """Shows nothing."""

    def advance(self, count: int = 1, **info: Any) -> None:
        pass


class _Bar:
    """A live bar."""

    def __init__(self, bar: rich.progress.Progress, task: rich.progress.TaskID) -> None:
        self._bar, self._task = bar, task
        self._count, self._start = 0, time.monotonic()

    def advance(self, count: int = 1, **info: Any) -> None:
        self._count += count
        rate = _rate(self._count, self._start)
        self._bar.update(self._task, advance=count, rate=f"{rate:.3g}/s", info=_info(info))


class _Lines:
    """Plain lines: one at most every `interval` seconds, and one at the end."""

    def __init__(self, total: int | None, description: str, file: TextIO, interval: float) -> None:
        self._total, self._description, self._file, self._interval = total, description, file, interval
        self._count, self._start, self._shown = 0, time.monotonic(), {}
        self._last = self._start

    def advance(self, count: int = 1, **info: Any) -> None:
        self._count += count
        self._shown = info
        if time.monotonic() - self._last >= self._interval:
            self.write()

    def write(self) -> None:
        self._last = time.monotonic()
        rate = _rate(self._count, self._start)
        parts = [f"{self._count}" if self._total is None else f"{self._count}/{self._total}", f"{rate:.3g}/s"]
        if self._total is not None and rate > 0 and self._count < self._total:
            parts.append(f"{(self._total - self._count) / rate:.0f} s left")
        if self._shown:
            parts.append(_info(self._shown))
        print(f"{self._description}: {', '.join(parts)}", file=self._file, flush=True)


def _rate(count: int, start: float) -> float:
    return count / max(time.monotonic() - start, 1e-9)


def _info(info: dict[str, Any]) -> str:
    return " ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in info.items()
    )
