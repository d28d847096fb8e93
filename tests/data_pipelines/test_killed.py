"""Readers of a mixture that are killed: however many go on, the global batches are the same sequence."""

import fractions
import hashlib
import importlib
import json
import multiprocessing
import pathlib
import signal
import sys
import textwrap
import time

import numpy as np
import pytest

from data_pipelines.build import write_dataset
from data_pipelines.clip import Clip, TextEvent
from data_pipelines.fill import Blocks
from data_pipelines.loader import row_source
from data_pipelines.mix import Shares, mix
from data_pipelines.row_layout import TokenSpec
from data_pipelines.shards import open_dataset

SPEC = TokenSpec(
    patch=4, chunk_frames=2, block=8, hop=4, hops=2, audio_tokens=2, channels=1, action_dim=2, text_bytes=16
)
BLOCKS = Blocks(40, 50)
BATCH, END, CHANGE = 4, 40, 19  # rows of a batch, batches in all, the batch from which other shares hold
SHARES = [
    Shares(0, (("games", 1.0), ("films", 1.0), ("stills", 0.5))),
    Shares(CHANGE * BATCH, (("games", 0.2), ("films", 1.0))),
]
WAIT = 120  # seconds until the test gives up on a process

# What a process does: reads its part of every batch, and notes sums of rows and the next position. A module of its own,
# since a server that has imported it forks the processes.
READER = """
    import hashlib, json, os, time
    from data_pipelines.loader import make_iterator
    from data_pipelines.mix import mix
    from data_pipelines.shards import open_dataset

    def read(folders, spec, shares, blocks, own, batch, start, end, pause, seen):
        datasets = {name: open_dataset(folder) for name, folder in folders.items()}
        clips = {name: dataset.clips("train") for name, dataset in datasets.items()}
        plan = mix(clips, spec, shares, window_chunks=4, row_blocks=blocks, seed=3)
        batches = make_iterator(
            datasets, plan, batch_size=batch, rows=own, threads=2, prefetch=3, max_bad=0.2
        )
        if start is not None:
            batches.set_state(start)
        number = batches.get_state()["next_index"]
        with open(seen, "a") as file:
            while number < end:
                if number % 3 == 0:  # as a checkpoint is: before the next batch is drawn
                    with open(seen + ".partial", "w") as position:
                        json.dump(batches.get_state(), position)
                    os.replace(seen + ".partial", seen + ".position")
                rows = next(batches)
                for row in range(len(rows["patches"])):
                    arrays = [rows[name][row].tobytes() for name in sorted(rows)]
                    print(number, row, hashlib.sha256(b"".join(arrays)).hexdigest(), file=file, flush=True)
                number += 1
                time.sleep(pause)
"""


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    folder = tmp_path_factory.mktemp("module")
    (folder / "mixture_reader.py").write_text(textwrap.dedent(READER))
    sys.path.insert(0, str(folder))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mixture_reader"])
    yield context, importlib.import_module("mixture_reader").read
    sys.path.remove(str(folder))


def make_clip(name: str, number: int, frames: int, size: int, channels: int, actions: tuple[str, ...]) -> Clip:
    rng = np.random.default_rng([number, *name.encode()])
    return Clip(
        video=rng.integers(0, 256, (frames, size, size, 3), np.uint8),
        audio=rng.integers(-999, 999, (frames * 4, channels), np.int16),
        actions=rng.normal(size=(frames, len(actions))).astype(np.float32),
        action_names=actions,
        events=(TextEvent(0, f"{name} {number}"),),
        frame_rate=fractions.Fraction(2),
        sample_rate=8,
        source=name,
        licence="CC0-1.0",
        seed=number,
        episode=f"{name}/{number}",
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {
        "games": [make_clip("games", n, 20, 12, 1, ("left", "right")) for n in range(6)],
        "films": [make_clip("films", n, 9 + n, 8, 0, ()) for n in range(9)],
        "stills": [make_clip("stills", n, 1, 16, 0, ()) for n in range(3)],
    }
    folder = tmp_path_factory.mktemp("mixture")
    for name, clips in made.items():
        write_dataset(folder / name, {"train": clips}, shards={"train": 1})
    damage(folder / "films", 4)
    return {name: str(folder / name) for name in made}


def damage(folder: pathlib.Path, record: int) -> None:
    """Changes a byte of one record on the disk."""
    dataset = open_dataset(folder)
    needle = dataset.read_bytes(dataset.clips("train")[record])[-40:]
    (shard,) = folder.glob("train-*")
    data = bytearray(shard.read_bytes())
    assert data.count(needle) == 1
    data[data.index(needle)] ^= 1
    shard.write_bytes(data)


def plan_of(folders, shares):
    clips = {name: open_dataset(folder).clips("train") for name, folder in folders.items()}
    return mix(clips, SPEC, shares, window_chunks=4, row_blocks=BLOCKS, seed=3)


def run(reader, folders, workdir: pathlib.Path, count: int, shares, start: dict | None, until: int | None):
    """Reads with `count` processes to the end, or kills them once all have read batch `until`.

    Returns:
      (batch, row of the batch, sum) of all processes, and the position that was saved last.
    """
    context, read = reader
    seen = [workdir / f"seen-{count}-{process}" for process in range(count)]
    pause = 0.0 if until is None else 0.05
    processes = []
    for process in range(count):
        sizes = (range(process, BATCH, count), BATCH, start, END, pause, str(seen[process]))
        processes.append(context.Process(target=read, args=(folders, SPEC, shares, BLOCKS, *sizes), daemon=True))
        processes[-1].start()
    if until is not None:
        deadline = time.monotonic() + WAIT
        while not all(path.exists() and f"\n{until} " in path.read_text() for path in seen):
            assert {process.exitcode for process in processes} == {None} and time.monotonic() < deadline
            time.sleep(0.01)
        for process in processes:
            process.kill()
    for process in processes:
        process.join(WAIT)
        assert process.exitcode == (0 if until is None else -signal.SIGKILL)
    found = []
    for process, path in enumerate(seen):
        # What was being written when the process was killed may be half a line.
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        for number, row, digest in map(str.split, lines):
            found.append((int(number), process + count * int(row), digest))
    # In a run no process is ahead of the others, since a step is of all; here the last one counts.
    saved = [json.loads(path.with_name(path.name + ".position").read_text()) for path in seen]
    return found, min(saved, key=lambda state: state["next_index"])


def test_killed_readers_of_a_mixture_go_on_with_the_same_global_batches(reader, folders, tmp_path):
    whole = plan_of(folders, SHARES)
    source = row_source({name: open_dataset(folder) for name, folder in folders.items()}, whole, SPEC, max_bad=0.2)
    expected = {}
    for index in range(END * BATCH):
        row = source[index]
        digest = hashlib.sha256(b"".join(row[name].tobytes() for name in sorted(row))).hexdigest()
        expected[divmod(index, BATCH)] = digest
    assert set(source.bad.reasons) == {("films", "films/4")}

    # One process, killed; two, killed where the shares were changed meanwhile; four, to the end.
    first, saved = run(reader, folders, tmp_path, 1, SHARES[:1], None, until=8)
    second, later = run(reader, folders, tmp_path, 2, SHARES, saved, until=26)
    third, _ = run(reader, folders, tmp_path, 4, SHARES, later, until=None)
    runs = [first, second, third]
    for found in runs:
        assert found and all(expected[number, row] == digest for number, row, digest in found)
    assert {(number, row) for found in runs for number, row, _ in found} == set(expected)
    # Each goes on where the one before had saved, not at the beginning, and the end is read by the last alone.
    firsts = [min(number for number, _, _ in found) for found in runs]
    assert firsts == [0, saved["next_index"], later["next_index"]] and 0 < firsts[1] < firsts[2]
    assert {number for number, _, _ in runs[2]} == set(range(firsts[2], END))

    # The bad record is on both sides of what was killed, and the change of shares before the second.
    bad = [index // BATCH for index in range(END * BATCH) if any(r.info.episode == "films/4" for r in whole.row(index))]
    assert min(bad) < firsts[1] and any(firsts[1] <= number < 26 for number in bad) and max(bad) >= firsts[2]
    assert firsts[1] < CHANGE < 26
    before = plan_of(folders, SHARES[:1])
    assert any(before.place(index) != whole.place(index) for index in range(CHANGE * BATCH, 26 * BATCH))
