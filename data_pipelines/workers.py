"""Shards written by several processes, which one bad file cannot take down: what kills a process is rejected."""

from __future__ import annotations

import collections
import dataclasses
import multiprocessing
import multiprocessing.connection
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from data_pipelines import writer as writer_lib
from data_pipelines.clip import one_line
from data_pipelines.index import ClipInfo
from data_pipelines.shards import ShardError
from data_pipelines.source import Item, Source
from data_pipelines.video import VideoCodec
from data_pipelines.writer import Job, Part
from pixr1_jax.core import progress as progress_lib


class Reporter:
    """Counts what is done for a progress display: items, clips and seconds of video; below zero takes it back."""

    def __init__(self, tracker: progress_lib.Tracker | None):
        self._tracker = tracker
        self._clips, self._seconds = 0, 0.0

    def items(self, count: int) -> None:
        """Adds finished items."""
        if self._tracker is not None and count:
            self._tracker.advance(count, clips=self._clips, hours=round(self._seconds / 3600, 2))

    def clip(self, info: ClipInfo) -> None:
        """Adds a clip."""
        self.add(1, info.seconds)

    def add(self, clips: int, seconds: float) -> None:
        """Adds clips that last so many seconds together."""
        self._clips += clips
        self._seconds += seconds


@dataclasses.dataclass
class _Worker:
    """A process, what it works on, the items it has in hand since when, and what it has done."""

    process: Any
    connection: multiprocessing.connection.Connection
    job: Job
    hand: tuple[str, ...] = ()
    since: float = 0.0
    items: int = 0
    clips: int = 0
    seconds: float = 0.0


def run(
    building: epath.Path,
    jobs: Sequence[Job],
    source: Source,
    video_codec: VideoCodec,
    processes: int,
    reporter: Reporter,
    *,
    patience: float | None = None,
) -> Iterator[tuple[str, Part]]:
    """Writes shards by up to `processes` processes; yields each shard's name and part when it is finished.

    Args:
        building: see `writer.open_building`.
        jobs: the shards.
        source: what records their items.
        video_codec: see `writer.write_shard`.
        processes: at least 1.
        reporter: told of the progress.
        patience: seconds after which items in hand are given up; None waits for ever.

    Raises:
        ShardError: a process failed over more than one item, or could not write.
    """
    waiting = collections.deque(jobs)
    lost: dict[str, dict[str, str]] = {job.name: {} for job in jobs}
    workers: list[_Worker] = []
    try:
        while waiting or workers:
            while waiting and len(workers) < processes:
                job = waiting.popleft()
                workers.append(_start(building, job, source, video_codec, lost[job.name]))
            for worker in _ready(workers, patience):
                part = _listen(worker, reporter, patience)
                if part is _GOING_ON:
                    continue
                workers.remove(worker)
                if isinstance(part, Part):
                    yield worker.job.name, part
                    continue
                lost[worker.job.name] |= _blame(worker, str(part))
                # The shard is begun again, without what was lost.
                reporter.add(-worker.clips, -worker.seconds)
                reporter.items(len(worker.hand) - worker.items)
                waiting.appendleft(worker.job)
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.join()


_GOING_ON = object()


def _start(building: epath.Path, job: Job, source: Source, video_codec: VideoCodec, lost: dict[str, str]) -> _Worker:
    # Forked processes would share the threads of jax and of the decoders, which do not survive it.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    arguments = (theirs, building, job, source, video_codec, dict(lost))
    process = context.Process(target=_work, args=arguments, daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours, job, since=time.monotonic())


def _work(
    connection: multiprocessing.connection.Connection,
    building: epath.Path,
    job: Job,
    source: Source,
    video_codec: VideoCodec,
    lost: dict[str, str],
) -> None:
    """What a process does: one shard."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its processes

    def begin(items: Sequence[Item]) -> None:
        connection.send(("begin", tuple(item.name for item in items)))

    def on_clip(info: ClipInfo) -> None:
        connection.send(("clip", info.seconds))

    try:
        part = writer_lib.write_shard(
            building, job, source, video_codec=video_codec, lost=lost, begin=begin, on_clip=on_clip
        )
    except Exception as error:  # told to the parent, which ends the build
        connection.send(("failed", one_line(error)))
        raise
    connection.send(("done", part))


def _ready(workers: Sequence[_Worker], patience: float | None) -> list[_Worker]:
    """The workers that have something to say, or that have kept silent too long."""
    by_connection = {worker.connection: worker for worker in workers}
    timeout = None if patience is None else min(1.0, patience)
    ready = [by_connection[one] for one in multiprocessing.connection.wait(list(by_connection), timeout)]  # pyright: ignore
    late = [worker for worker in workers if worker not in ready and _late(worker, patience)]
    return ready + late


def _late(worker: _Worker, patience: float | None) -> bool:
    return patience is not None and bool(worker.hand) and time.monotonic() - worker.since > patience


def _listen(worker: _Worker, reporter: Reporter, patience: float | None) -> Part | str | object:
    """Takes what a worker says: its part, why it ended without, or that it goes on."""
    if not worker.connection.poll():
        worker.process.kill()
        worker.process.join()
        return f"took longer than {patience:g} s"
    try:
        kind, said = worker.connection.recv()
    except EOFError:
        worker.process.join()
        code = worker.process.exitcode
        return f"the process died of {signal.Signals(-code).name}" if code < 0 else f"the process ended with {code}"
    if kind == "clip":
        worker.clips, worker.seconds = worker.clips + 1, worker.seconds + said
        reporter.add(1, said)
        return _GOING_ON
    if kind == "failed":
        raise ShardError(f"{worker.job.name} cannot be written: {said}")
    _finish_hand(worker, reporter)
    if kind == "begin":
        worker.hand, worker.since = said, time.monotonic()
        return _GOING_ON
    worker.process.join()
    return said


def _finish_hand(worker: _Worker, reporter: Reporter) -> None:
    reporter.items(len(worker.hand))
    worker.items += len(worker.hand)
    worker.hand = ()


def _blame(worker: _Worker, reason: str) -> dict[str, str]:
    if len(worker.hand) != 1:
        held = f"{len(worker.hand)} items in hand, from {worker.hand[0]}" if worker.hand else "nothing in hand"
        raise ShardError(f"{worker.job.name} cannot be written: {reason}, with {held}")
    return {worker.hand[0]: f"{reason} while this was recorded"}
