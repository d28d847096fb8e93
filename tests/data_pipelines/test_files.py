"""Files are whole or not there; a dataset in a bucket is built, resumed and read as a local one."""

import fractions

import fsspec
import numpy as np
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from data_pipelines import build, files, writer
from data_pipelines.clip import Clip
from data_pipelines.shards import open_dataset
from data_pipelines.source import Clips


class Bucket(MemoryFileSystem):
    """A bucket in memory, in place of the one that needs a network."""

    protocol = "s3"
    store = {}
    pseudo_dirs = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(str(path).removeprefix("s3://"))


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    monkeypatch.setattr(Bucket, "store", {})
    monkeypatch.setattr(Bucket, "pseudo_dirs", [""])
    fsspec.register_implementation("s3", Bucket, clobber=True)
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path / "cache"))
    return "s3://bucket/data"


def clips(count: int) -> Clips:
    def clip(number: int) -> Clip:
        return Clip(
            video=np.full((4, 6, 8, 3), number, np.uint8),
            audio=np.full((80, 1), number, np.int16),
            actions=np.zeros((4, 0), np.float32),
            action_names=(),
            events=(),
            frame_rate=fractions.Fraction(10),
            sample_rate=200,
            source="test",
            licence="CC0-1.0",
            seed=number,
            episode=f"clip {number}",
        )

    return Clips(tuple(("train", clip(number)) for number in range(count)))


def test_a_dataset_in_a_bucket(bucket, tmp_path):
    source, shards = clips(5), {"train": 2}
    local = build.build(tmp_path / "local", source, shards=shards, spec={}, progress=False)
    # One shard was finished when the build was stopped.
    request = {"spec": {}, "shards": shards, "video_codec": "zstd", "items": 5}
    building = writer.open_building(epath.Path(bucket), request)
    writer.write_shard(building, writer.make_jobs(source.items(), shards)[1], source, video_codec="zstd")
    assert build.build(bucket, source, shards=shards, spec={}, progress=False) == local
    names = sorted(path.removeprefix("/bucket/data/") for path in Bucket.store)
    assert names == sorted(path.name for path in (tmp_path / "local").iterdir() if path.name != ".build.lock")
    dataset = open_dataset(bucket)
    dataset.verify()
    assert [int(dataset.read(info).video[0, 0, 0, 0]) for info in dataset.clips("train")] == list(range(5))
    assert len(list((tmp_path / "cache").rglob("*.array_record"))) == 2
    assert build.build(bucket, source, shards=shards, spec={}, progress=False) == local


def test_a_file_that_failed_leaves_the_older_one(tmp_path, bucket):
    for directory in (tmp_path, bucket):
        path = epath.Path(directory) / "file"
        files.write_bytes(path, b"old")
        with pytest.raises(RuntimeError), files.new_file(path) as local:
            local.write_bytes(b"half of the n")
            raise RuntimeError
        assert path.read_bytes() == b"old"
        assert [one.name for one in path.parent.iterdir() if one.name != "cache"] == ["file"]
