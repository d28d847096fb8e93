"""Builds: kept while the spec is the same, resumed shard by shard, and not ended by one bad item."""

import importlib
import inspect
import json
import pathlib
import signal
import subprocess
import sys
import textwrap

import pytest
from etils import epath

import data_pipelines
from data_pipelines import build as build_lib
from data_pipelines import source, writer
from data_pipelines.shards import ShardError, open_dataset

# A source in a module of its own, since other processes import it.
SOURCE = """
    import dataclasses, fractions, os, signal, time
    import numpy as np
    from data_pipelines.clip import Clip
    from data_pipelines.source import Item, Rejected

    @dataclasses.dataclass(frozen=True)
    class Numbers:
        count: int
        log: str = ""       # file that names what was recorded
        kill: int = -1      # item that ends the process
        hang: int = -1      # item that never ends
        batch: int = 1
        reject: int = -1

        def items(self):
            return [Item("train" if n % 4 else "test", f"number {n}", n) for n in range(self.count)]

        def record(self, items):
            for item in items:
                n = item.what
                if self.log:
                    with open(self.log, "a") as file:
                        file.write(f"{n}\\n")
                if n == self.kill:
                    os.kill(os.getpid(), signal.SIGSEGV)
                while n == self.hang:
                    time.sleep(0.1)
                if n == self.reject:
                    yield item, Rejected(item.name, "is not liked")
                    continue
                yield item, Clip(
                    video=np.full((4, 6, 8, 3), n, np.uint8), audio=np.full((80, 1), n, np.int16),
                    actions=np.zeros((4, 0), np.float32), action_names=(), events=(),
                    frame_rate=fractions.Fraction(10), sample_rate=200, source="numbers", licence="CC0-1.0",
                    seed=n, episode=item.name,
                )
"""
SHARDS = {"train": 3, "test": 2}


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("module")
    (folder / "numbers_source.py").write_text(textwrap.dedent(SOURCE))
    sys.path.insert(0, str(folder))
    yield importlib.import_module("numbers_source").Numbers
    sys.path.remove(str(folder))


def build(directory, made, **options):
    return build_lib.build(directory, made, **({"shards": SHARDS, "spec": {}, "progress": False} | options))


def build_elsewhere(numbers, directory, arguments: str) -> subprocess.Popen:
    """Starts a build of Numbers(ARGUMENTS) in a process of its own."""
    paths = [str(pathlib.Path(inspect.getfile(one)).parent) for one in (data_pipelines, numbers)]
    paths[0] = str(pathlib.Path(paths[0]).parent)
    code = f"""
        import sys
        sys.path[:0] = {paths!r}
        from numbers_source import Numbers
        from data_pipelines import build
        build.build({str(directory)!r}, Numbers({arguments}), shards={SHARDS!r}, spec={{}})
    """
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])


def names(directory):
    return sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))


def seeds(directory):
    dataset = open_dataset(directory)
    dataset.verify()
    return {split: [info.seed for info in dataset.clips(split)] for split in dataset.splits}


EXPECTED = {"train": [1, 2, 3, 5, 6, 7, 9, 10, 11], "test": [0, 4, 8]}


def test_clips_are_in_the_order_of_the_items_and_one_process_or_many_give_equal_files(tmp_path, numbers):
    one = build(tmp_path / "one", numbers(12))
    assert seeds(tmp_path / "one") == EXPECTED
    assert [file.records for file in one.splits["train"]] == [3, 3, 3]
    many = build(tmp_path / "many", numbers(12), processes=2)
    assert many == one
    assert build(tmp_path / "batches", numbers(12, batch=5)) == one


def test_a_build_keeps_an_equal_spec_and_replaces_another(tmp_path, numbers, capsys):
    log = tmp_path / "log"
    made, directory = numbers(8, log=str(log)), tmp_path / "data"
    first = build(directory, made, spec={"size": (8, 8), "seed": 1})
    assert build(directory, made, spec={"seed": 1, "size": [8, 8]}, progress=True) == first
    assert len(log.read_text().split()) == 8
    assert "already built, 8 clips" in capsys.readouterr().err
    build(directory, made, spec={"seed": 2}, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert "building again, another spec" in lines[0] and ": 8/8, " in lines[-1]
    again = build(directory, made, spec={"seed": 2}, shards={"train": 1, "test": 1})
    assert [len(files) for files in again.splits.values()] == [1, 1]
    assert build(directory, made, spec={"seed": 2}, video_codec="h264_444").video_codec == "h264_444"
    assert len(log.read_text().split()) == 32
    open_dataset(directory).verify()


def test_a_stopped_build_goes_on_with_the_shards_that_are_left(tmp_path, numbers):
    log, directory = tmp_path / "log", tmp_path / "data"
    assert build_elsewhere(numbers, directory, f"12, log={str(log)!r}, kill=7").wait() == -signal.SIGSEGV
    assert names(directory) == []
    with pytest.raises(ShardError, match="manifest.json is missing"):
        open_dataset(directory)
    log.unlink()
    build(directory, numbers(12, log=str(log)))
    # Two shards of `train` were finished when item 7 ended the process in the third.
    assert [int(n) for n in log.read_text().split()] == [3, 7, 11, 0, 8, 4]
    assert seeds(directory) == EXPECTED


def test_a_finished_shard_that_was_damaged_is_written_again(tmp_path, numbers):
    directory, made = tmp_path / "data", numbers(12)
    jobs = writer.make_jobs(made.items(), SHARDS)
    request = {"spec": {}, "shards": SHARDS, "video_codec": "zstd", "items": 12}
    building = writer.open_building(epath.Path(directory), request)
    writer.write_shard(building, jobs[0], made, video_codec="zstd")
    assert writer.finished_part(building, jobs[0]) is not None
    data = bytearray((building / jobs[0].name).read_bytes())
    data[-1] ^= 1
    (building / jobs[0].name).write_bytes(data)
    assert writer.finished_part(building, jobs[0]) is None
    build(directory, made)
    assert seeds(directory) == EXPECTED
    assert not (directory / writer.BUILDING).exists()


def test_an_item_that_kills_or_hangs_its_process_is_rejected(tmp_path, numbers):
    build(tmp_path / "kill", numbers(12, kill=6, reject=4), processes=2)
    assert seeds(tmp_path / "kill") == {"train": [1, 2, 3, 5, 7, 9, 10, 11], "test": [0, 8]}
    lines = [json.loads(line) for line in (tmp_path / "kill" / "rejected.jsonl").read_text().splitlines()]
    assert lines == [
        {"split": "train", "name": "number 6", "reason": "the process died of SIGSEGV while this was recorded"},
        {"split": "test", "name": "number 4", "reason": "is not liked"},
    ]
    assert open_dataset(tmp_path / "kill").rejected() == lines
    build(tmp_path / "hang", numbers(4, hang=2), processes=1, patience=2.0, shards={"train": 1, "test": 1})
    assert open_dataset(tmp_path / "hang").rejected()[0]["reason"] == "took longer than 2 s while this was recorded"
    assert seeds(tmp_path / "hang") == {"train": [1, 3], "test": [0]}
    with pytest.raises(ShardError, match="died of SIGSEGV, with 2 items in hand, from number 1"):
        build(tmp_path / "batch", numbers(4, kill=1, batch=2), processes=1, shards={"train": 1, "test": 1})


def test_progress_counts_a_shard_that_was_begun_again_once(tmp_path, numbers, capfd):
    build(tmp_path, numbers(9, kill=7), processes=1, shards={"train": 1, "test": 1}, progress=True)
    assert ": 9/9, " in (found := capfd.readouterr().err) and "clips=8" in found


def test_items_that_are_known_are_not_listed_again(tmp_path, numbers):
    made = numbers(8, log=str(tmp_path / "listed"))
    known = [item for item in made.items() if item.what != 5]
    build(tmp_path / "data", made, items=known)
    assert seeds(tmp_path / "data") == {"train": [1, 2, 3, 6, 7], "test": [0, 4]}


def test_a_split_of_rejections_alone_is_left_out_and_a_dataset_of_them_is_an_error(tmp_path, numbers):
    build(tmp_path / "some", numbers(4, reject=0), shards={"train": 1, "test": 1})
    assert seeds(tmp_path / "some") == {"train": [1, 2, 3]}
    assert open_dataset(tmp_path / "some").rejected()[0]["split"] == "test"
    with pytest.raises(ShardError, match="all has no clips; 1 rejected, see .*rejected.jsonl"):
        build(tmp_path / "all", numbers(1, reject=0), shards={"test": 1})
    assert json.loads((tmp_path / "all" / "rejected.jsonl").read_text())["reason"] == "is not liked"


def test_a_truncated_dataset_is_built_again(tmp_path, numbers):
    first = build(tmp_path, numbers(8))
    with (tmp_path / first.files[2].file).open("r+b") as file:
        file.truncate(100)
    assert build(tmp_path, numbers(8)) == first
    open_dataset(tmp_path).verify()


def test_only_what_a_build_wrote_is_replaced(tmp_path, numbers):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "other.array_record").write_text("mine")
    build(tmp_path, numbers(8))
    build(tmp_path, numbers(8), shards={"train": 1, "test": 1})
    assert names(tmp_path) == [
        "index.parquet",
        "manifest.json",
        "notes.txt",
        "other.array_record",
        "rejected.jsonl",
        "test-00000-of-00001.array_record",
        "train-00000-of-00001.array_record",
    ]


def test_the_older_dataset_stays_whole_until_the_new_one_is_complete(tmp_path, numbers):
    build(tmp_path, numbers(8))
    with pytest.raises(ShardError):
        build(tmp_path, numbers(8, kill=3, batch=2), spec={"seed": 2}, processes=1)
    assert seeds(tmp_path) == {"train": [1, 2, 3, 5, 6, 7], "test": [0, 4]}


def test_a_spec_that_is_no_json(tmp_path, numbers):
    for value in (object(), float("nan")):
        with pytest.raises(ShardError, match="spec is no JSON"):
            build(tmp_path, numbers(4), spec={"value": value})


def test_builders_of_one_directory_take_turns(tmp_path, numbers, capfd):
    started = [build_elsewhere(numbers, tmp_path, "8") for _ in range(2)]
    assert [process.wait() for process in started] == [0, 0]
    errors = capfd.readouterr().err
    assert errors.count(": 8/8, ") == 1 and errors.count("already built, 8 clips") == 1
    open_dataset(tmp_path).verify()


def test_splits_by_hash_are_the_shares_and_never_change():
    found = [source.split_by_hash(f"video {n}.mp4", (("train", 0.9), ("test", 0.1))) for n in range(4000)]
    assert 0.08 < found.count("test") / 4000 < 0.12
    assert found.index("test") == 22 and source.split_by_hash("a", (("train", 1.0),)) == "train"
