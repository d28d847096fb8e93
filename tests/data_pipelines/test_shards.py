"""Shards: what is written is read back, and damage is named."""

import concurrent.futures
import dataclasses
import fractions
import hashlib
import json
import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from data_pipelines import record as record_lib
from data_pipelines import shards
from data_pipelines.build import write_dataset
from data_pipelines.clip import Clip, ClipError, TextEvent
from data_pipelines.shards import ShardError, open_dataset


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


def encode(clip: Clip) -> bytes:
    return record_lib.encode(clip).to_bytes()


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
    "index.parquet",
    "manifest.json",
    "rejected.jsonl",
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
            assert_same(dataset.read(info, 2, 5), record_lib.decode(encode(clip), 2, 5))
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
    assert stored["version"] == 3 and stored["spec"] == {"world": {"size": [8, 10]}}
    assert stored["action_names"] == ["left", "right"] and stored["video_codec"] == "zstd"
    assert stored["totals"]["train"] == {"clips": 7, "frames": 42, "seconds": pytest.approx(0.42)}
    for entry in [stored["index"], *stored["splits"]["train"], *stored["splits"]["test"]]:
        data = (tmp_path / entry["file"]).read_bytes()
        assert len(data) == entry["bytes"] and hashlib.sha256(data).hexdigest() == entry["sha256"]
    assert [entry["records"] for entry in stored["splits"]["train"]] == [3, 2, 2]
    lines = pq.read_table(tmp_path / "index.parquet").to_pylist()
    assert lines[4]["frame_rate"] == "100/1"
    assert lines[4]["events"] == [{"frame": 0, "text": "clip 4 ☀"}, {"frame": 3, "text": "rain"}]
    assert (lines[4]["seconds"], lines[4]["samples"], lines[4]["patches"], lines[4]["text_bytes"]) == (0.06, 480, 6, 14)
    reader = array_record_module.ArrayRecordReader(str(tmp_path / lines[4]["file"]))
    assert_same(record_lib.decode(reader.read([lines[4]["record"]])[0]), clips["train"][4])
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
    with pytest.raises(ShardError, match="the source has no items"):
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
        ('{"version": 9}', "version 9, this code reads 3"),
        ("{}", "manifest.json is damaged"),
        ("[]", "manifest.json is damaged"),
        ('{"version": 3, "act', "manifest.json is damaged"),
        ('{"version": 3, "action_names": [], "index": {}, "splits": {}}', "manifest.json is damaged"),
    ],
)
def test_bad_manifest(tmp_path, text, message):
    write(tmp_path)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ShardError, match=message) as error:
        open_dataset(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["index.parquet", "train-00001-of-00003.array_record"])
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
    path = tmp_path / "index.parquet"
    path.write_bytes(path.read_bytes().replace(b"CC0-1.0", b"CC0-2.0"))
    with pytest.raises(ShardError, match="index.parquet is damaged .sha256"):
        open_dataset(tmp_path)


def test_flipped_byte_in_a_shard(tmp_path):
    _, clips = write(tmp_path)
    path = tmp_path / FILES[4]
    dataset = open_dataset(tmp_path)
    data = bytearray(path.read_bytes())
    # Inside the second record of the shard, which is clip 3.
    at = data.index(encode(clips["train"][3])[200:300])
    data[at] ^= 1
    path.write_bytes(data)
    assert_same(dataset.read(dataset.clips("train")[0]), clips["train"][0])
    with pytest.raises(ShardError, match=f"{FILES[4]} record 1 ") as error:
        dataset.read(dataset.clips("train")[3])
    assert "\n" not in str(error.value)
    with pytest.raises(ShardError, match=f"{FILES[4]} is damaged .sha256"):
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
    good = [encode(clip) for clip in clips["test"]]
    forge(tmp_path, FILES[3], [good[0], b"nothing of the kind, but long enough for a preamble"])
    dataset = open_dataset(tmp_path)
    with pytest.raises(ShardError, match=f"{FILES[3]} record 1: bytes are no clip record"):
        dataset.read(dataset.clips("test")[1])
    forge(tmp_path, FILES[3], [good[1], good[0]])
    dataset = open_dataset(tmp_path)
    with pytest.raises(ShardError, match="record 0 is 'test/test/000001', the index says 'test/test/000000'"):
        dataset.read(dataset.clips("test")[0])
    forge(tmp_path, FILES[3], good[:1])
    dataset = open_dataset(tmp_path)
    with pytest.raises(ShardError, match="has 1 records, the index 2, the manifest 2"):
        dataset.verify()
    with pytest.raises(ShardError, match="record 1 cannot be read"):
        dataset.read(dataset.clips("test")[1])
    forge(tmp_path, FILES[3], [good[0], encode(dataclasses.replace(clips["test"][1], seed=5))])
    with pytest.raises(ShardError, match="record 1 differs from the index"):
        open_dataset(tmp_path).verify()
