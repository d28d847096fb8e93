"""Shards and builds: what is written is read back, damage is named, a killed build leaves no dataset."""

import concurrent.futures
import dataclasses
import fractions
import hashlib
import json
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from data_pipelines import build as build_lib
from data_pipelines import clip as clip_lib
from data_pipelines import shards
from data_pipelines.clip import Clip, ClipError, TextEvent
from data_pipelines.shards import ShardError, open_dataset, write_dataset


def make_clip(split="train", number=0, frames=6, height=8, width=10, channels=1) -> Clip:
    rng = np.random.default_rng([number, *split.encode()])
    return Clip(
        video=rng.integers(0, 256, (frames, height, width, 3), np.uint8),
        audio=rng.integers(-(2**15), 2**15, (frames * 80, channels), np.int16),
        actions=rng.normal(size=(frames, 2)).astype(np.float32),
        action_names=("left", "right"),
        events=(TextEvent(0, f"clip {number} ☀"), TextEvent(3, "rain")),
        frame_rate=fractions.Fraction(100),
        sample_rate=8000,
        source="test",
        licence="CC0-1.0",
        seed=number,
        episode=f"test/{split}/{number:06d}",
    )


def make_clips(split, count, **sizes):
    return [make_clip(split, number, **sizes) for number in range(count)]


def write(directory, **options):
    clips = {"train": make_clips("train", 7), "test": make_clips("test", 2, height=4, channels=2)}
    return write_dataset(directory, clips, shards={"train": 3, "test": 1}, **options), clips


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def assert_same(found: Clip, expected: Clip) -> None:
    for field in dataclasses.fields(Clip):
        np.testing.assert_equal(getattr(found, field.name), getattr(expected, field.name))


FILES = [
    "index.jsonl",
    "manifest.json",
    "test-00000-of-00001.array_record",
    *[f"train-0000{shard}-of-00003.array_record" for shard in range(3)],
]


def test_roundtrip_in_order(tmp_path):
    _, clips = write(tmp_path / "data")
    dataset = open_dataset(tmp_path / "data")
    assert names(tmp_path / "data") == FILES
    assert dataset.splits == ("train", "test")
    for split, expected in clips.items():
        infos = dataset.clips(split)
        assert [info.episode for info in infos] == [clip.episode for clip in expected]
        for info, clip in zip(infos, expected, strict=True):
            assert_same(dataset.read(info), clip)
            assert_same(dataset.read(info, 2, 5), clip_lib.decode(clip_lib.encode(clip), 2, 5))
            assert (info.height, info.width, info.frames, info.channels) == (
                *clip.video.shape[1:3],
                *clip.video.shape[:1],
                clip.channels,
            )
            assert info.events == clip.events and info.seed == clip.seed and info.split == split
            assert info.frame_rate == clip.frame_rate and info.seconds == 0.06
    dataset.verify()


def test_files_read_without_this_code(tmp_path):
    """The documented layout: plain JSON, and shards that the ArrayRecord package reads."""
    manifest, clips = write(tmp_path, spec={"world": {"size": (8, 10)}})
    stored = json.loads((tmp_path / "manifest.json").read_text())
    assert stored["version"] == 1 and stored["spec"] == {"world": {"size": [8, 10]}}
    assert stored["action_names"] == ["left", "right"] and stored["video_codec"] == "zstd"
    assert stored["totals"]["train"] == {"clips": 7, "frames": 42, "seconds": pytest.approx(0.42)}
    for entry in [stored["index"], *stored["splits"]["train"], *stored["splits"]["test"]]:
        data = (tmp_path / entry["file"]).read_bytes()
        assert len(data) == entry["bytes"] and hashlib.sha256(data).hexdigest() == entry["sha256"]
    assert [entry["records"] for entry in stored["splits"]["train"]] == [3, 2, 2]
    lines = [json.loads(line) for line in (tmp_path / "index.jsonl").read_text().splitlines()]
    assert lines[4]["frame_rate"] == "100/1" and lines[4]["events"] == [[0, "clip 4 ☀"], [3, "rain"]]
    reader = array_record_module.ArrayRecordReader(str(tmp_path / lines[4]["file"]))
    assert_same(clip_lib.decode(reader.read([lines[4]["record"]])[0]), clips["train"][4])
    assert shards.read_manifest(tmp_path) == manifest


def test_equal_clips_give_equal_files(tmp_path):
    first, second = write(tmp_path / "a")[0], write(tmp_path / "b")[0]
    assert first == second


def test_more_shards_than_clips(tmp_path):
    write_dataset(tmp_path, {"train": make_clips("train", 1)}, shards={"train": 3})
    dataset = open_dataset(tmp_path)
    dataset.verify()
    assert len(dataset.clips("train")) == 1


def test_threads_share_a_dataset(tmp_path):
    _, clips = write(tmp_path)
    dataset = open_dataset(tmp_path)
    infos = dataset.clips("train") * 10
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(dataset.read, infos))
    for clip, expected in zip(found, clips["train"] * 10, strict=True):
        assert_same(clip, expected)


def test_pickled_after_use(tmp_path):
    _, clips = write(tmp_path)
    dataset = open_dataset(tmp_path)
    dataset.read(dataset.clips("train")[0])
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.clips("test") == dataset.clips("test")
    assert_same(copy.read(copy.clips("test")[1]), clips["test"][1])


def test_bad_requests(tmp_path):
    clips = make_clips("train", 2)
    for split_shards in ({}, {"test": 1}, {"train": 1, "test": 1}):
        with pytest.raises(ShardError, match="name the same"):
            write_dataset(tmp_path, {"train": clips}, shards=split_shards)
    for count in (0, -1, 1.0, 100_000):
        with pytest.raises(ShardError, match="shards of split 'train'"):
            write_dataset(tmp_path, {"train": clips}, shards={"train": count})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ShardError, match="no file name"):
        write_dataset(tmp_path, {"a/b": clips}, shards={"a/b": 1})
    with pytest.raises(ShardError, match="split 'train' .* no clips"):
        write_dataset(tmp_path, {"train": []}, shards={"train": 1})
    with pytest.raises(ShardError, match="'test/train/000000' occurs twice"):
        write_dataset(tmp_path, {"train": clips, "test": clips}, shards={"train": 1, "test": 1})
    other = dataclasses.replace(clips[1], action_names=("left", "jump"))
    with pytest.raises(ShardError, match="'test/train/000001' has action_names"):
        write_dataset(tmp_path, {"train": [clips[0], other]}, shards={"train": 1})
    with pytest.raises(ClipError, match="episode is empty"):
        write_dataset(tmp_path, {"train": [dataclasses.replace(clips[0], episode="")]}, shards={"train": 1})
    assert names(tmp_path) == []


def test_missing_dataset_and_split(tmp_path):
    with pytest.raises(ShardError, match="manifest.json is missing"):
        open_dataset(tmp_path / "nothing")
    write(tmp_path)
    dataset = open_dataset(tmp_path)
    with pytest.raises(ShardError, match="no split 'val'; use one of train, test"):
        dataset.clips("val")
    with pytest.raises(ShardError, match=r"train-00000-of-00003.array_record record 0: window 3:99 "):
        dataset.read(dataset.clips("train")[0], 3, 99)


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"version": 2}', "version 2, this code reads 1"),
        ("{}", "manifest.json is damaged"),
        ("[]", "manifest.json is damaged"),
        ('{"version": 1, "act', "manifest.json is damaged"),
        ('{"version": 1, "action_names": [], "index": {}, "splits": {}}', "manifest.json is damaged"),
    ],
)
def test_bad_manifest(tmp_path, text, message):
    write(tmp_path)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ShardError, match=message) as error:
        open_dataset(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["index.jsonl", "train-00001-of-00003.array_record"])
def test_truncated_or_missing_file_is_found_when_opening(tmp_path, name):
    write(tmp_path)
    path = tmp_path / name
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(ShardError, match=f"{name} has {len(data) - 1} of {len(data)} bytes"):
        open_dataset(tmp_path)
    path.unlink()
    with pytest.raises(ShardError, match=f"{name} is missing"):
        open_dataset(tmp_path)


def test_changed_index_is_found_when_opening(tmp_path):
    write(tmp_path)
    path = tmp_path / "index.jsonl"
    path.write_text(path.read_text().replace('"width": 10', '"width": 11'))
    with pytest.raises(ShardError, match="index.jsonl is damaged"):
        open_dataset(tmp_path)


def test_flipped_byte_in_a_shard(tmp_path):
    _, clips = write(tmp_path)
    path = tmp_path / FILES[3]
    dataset = open_dataset(tmp_path)
    data = bytearray(path.read_bytes())
    # Inside the second record of the shard, which is clip 3.
    at = data.index(clip_lib.encode(clips["train"][3])[200:300])
    data[at] ^= 1
    path.write_bytes(data)
    assert_same(dataset.read(dataset.clips("train")[0]), clips["train"][0])
    with pytest.raises(ShardError, match=f"{FILES[3]} record 1 ") as error:
        dataset.read(dataset.clips("train")[3])
    assert "\n" not in str(error.value)
    with pytest.raises(ShardError, match=f"{FILES[3]} is damaged .sha256"):
        dataset.verify()


def forge(directory, name, records):
    """Replaces a shard by other records, with a manifest that fits it."""
    writer = array_record_module.ArrayRecordWriter(str(directory / name), "group_size:1,uncompressed")
    for record in records:
        writer.write(record)
    writer.close()
    manifest = json.loads((directory / "manifest.json").read_text())
    for entry in manifest["splits"]["test"]:
        data = (directory / name).read_bytes()
        entry["bytes"], entry["sha256"] = len(data), hashlib.sha256(data).hexdigest()
    (directory / "manifest.json").write_text(json.dumps(manifest))


def test_forged_records(tmp_path):
    _, clips = write(tmp_path)
    good = [clip_lib.encode(clip) for clip in clips["test"]]
    forge(tmp_path, FILES[2], [good[0], b"nothing of the kind, but long enough for a preamble"])
    dataset = open_dataset(tmp_path)
    with pytest.raises(ShardError, match=f"{FILES[2]} record 1: bytes are no clip record"):
        dataset.read(dataset.clips("test")[1])
    forge(tmp_path, FILES[2], [good[1], good[0]])
    dataset = open_dataset(tmp_path)
    with pytest.raises(ShardError, match="record 0 is 'test/test/000001', the index says 'test/test/000000'"):
        dataset.read(dataset.clips("test")[0])
    forge(tmp_path, FILES[2], good[:1])
    dataset = open_dataset(tmp_path)
    with pytest.raises(ShardError, match="has 1 records, the index 2, the manifest 2"):
        dataset.verify()
    with pytest.raises(ShardError, match="record 1 cannot be read"):
        dataset.read(dataset.clips("test")[1])
    forge(tmp_path, FILES[2], [good[0], clip_lib.encode(dataclasses.replace(clips["test"][1], seed=5))])
    with pytest.raises(ShardError, match="record 1 differs from the index"):
        open_dataset(tmp_path).verify()


def failing(count):
    yield from make_clips("train", count)
    raise RuntimeError("the world ended")


def test_failed_write_leaves_nothing_and_an_older_dataset_whole(tmp_path):
    with pytest.raises(RuntimeError, match="the world ended"):
        write_dataset(tmp_path, {"train": failing(3)}, shards={"train": 2})
    assert names(tmp_path) == []
    write(tmp_path)
    with pytest.raises(RuntimeError, match="the world ended"):
        write_dataset(tmp_path, {"train": failing(3)}, shards={"train": 2})
    assert names(tmp_path) == FILES
    open_dataset(tmp_path).verify()


def test_rewrite_removes_only_what_it_wrote(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "other.array_record").write_text("mine")
    write(tmp_path)
    write_dataset(tmp_path, {"train": make_clips("train", 2)}, shards={"train": 1})
    assert names(tmp_path) == [
        "index.jsonl",
        "manifest.json",
        "notes.txt",
        "other.array_record",
        "train-00000-of-00001.array_record",
    ]


def start(function, directory) -> subprocess.Popen:
    """Calls a function of this file with a directory, in a fresh process."""
    code = f"import runpy; runpy.run_path({__file__!r})[{function.__name__!r}]({str(directory)!r})"
    root = str(pathlib.Path(shards.__file__).parents[1])
    return subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": root})


def kill_self_while_writing(directory):
    def clips():
        yield from make_clips("train", 3)
        os.kill(os.getpid(), signal.SIGKILL)

    write_dataset(directory, {"train": clips()}, shards={"train": 2})


def test_killed_write_leaves_no_manifest_and_is_cleaned_up(tmp_path):
    assert start(kill_self_while_writing, tmp_path).wait() == -signal.SIGKILL
    assert names(tmp_path) and all(name.endswith(".partial") for name in names(tmp_path))
    with pytest.raises(ShardError, match="manifest.json is missing"):
        open_dataset(tmp_path)
    write(tmp_path)
    assert names(tmp_path) == FILES


class Source:
    """Counts how often its clips are asked for."""

    def __init__(self, count):
        self.count, self.calls = count, 0

    def __call__(self):
        self.calls += 1
        return iter(make_clips("train", self.count))


def build(directory, source, spec, **options):
    options = {"shards": {"train": 2}, "progress": False} | options
    return build_lib.build(directory, {"train": source}, spec=spec, **options)


def test_build_keeps_an_equal_spec_and_replaces_another(tmp_path, capsys):
    source = Source(3)
    first = build(tmp_path, source, {"size": (8, 8), "seed": 1})
    assert build(tmp_path, source, {"seed": 1, "size": [8, 8]}, progress=True) == first
    assert source.calls == 1
    assert "already built, 3 clips" in capsys.readouterr().err
    build(tmp_path, source, {"seed": 2}, progress=True, counts={"train": 3})
    assert source.calls == 2
    lines = capsys.readouterr().err.splitlines()
    assert "building again, another spec" in lines[0] and ": 3/3, " in lines[-1]
    build(tmp_path, source, {"seed": 2}, shards={"train": 1})
    assert source.calls == 3
    manifest = build(tmp_path, source, {"seed": 2}, shards={"train": 1}, video_codec="h264")
    assert source.calls == 4 and manifest.video_codec == "h264"
    open_dataset(tmp_path).verify()


def test_build_repairs_a_truncated_dataset(tmp_path):
    source = Source(3)
    first = build(tmp_path, source, {})
    with (tmp_path / first.files[1].file).open("r+b") as file:
        file.truncate(100)
    assert build(tmp_path, source, {}) == first
    assert source.calls == 2
    open_dataset(tmp_path).verify()


def test_build_needs_a_json_spec(tmp_path):
    for value in (object(), float("nan")):
        with pytest.raises(ShardError, match="spec is no JSON"):
            build(tmp_path, Source(1), {"value": value})


def build_slowly(directory):
    def clips():
        for clip in make_clips("train", 4):
            time.sleep(0.05)
            yield clip

    build(directory, clips, {"seed": 1}, progress=True)


def test_builders_of_one_directory_take_turns(tmp_path, capfd):
    processes = [start(build_slowly, tmp_path) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    errors = capfd.readouterr().err
    assert errors.count(": 4, ") == 1 and errors.count("already built, 4 clips") == 1
    open_dataset(tmp_path).verify()
