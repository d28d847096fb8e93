"""Apache Beam builds the shards that the local builder builds."""

import fractions

import numpy as np
import pytest

from data_pipelines import build
from data_pipelines.clip import Clip
from data_pipelines.shards import ShardError, open_dataset
from data_pipelines.source import Clips

pytest.importorskip("apache_beam")

SHARDS = {"train": 3, "test": 1}


def clips() -> Clips:
    rng = np.random.default_rng(0)

    def clip(number: int) -> Clip:
        return Clip(
            video=rng.integers(0, 256, (4, 6, 8, 3), np.uint8),
            audio=rng.integers(-99, 99, (80, 1), np.int16),
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

    return Clips(tuple(("test" if number % 4 == 0 else "train", clip(number)) for number in range(10)))


def test_two_processes_build_the_same_shards(tmp_path):
    source = clips()
    local = build.build(tmp_path / "local", source, shards=SHARDS, spec={}, progress=False)
    arguments = ["--runner=DirectRunner", "--direct_num_workers=2", "--direct_running_mode=multi_processing"]
    beam = build.build(tmp_path / "beam", source, shards=SHARDS, spec={}, progress=False, beam=arguments)
    assert beam == local, "every file has the same sum"
    open_dataset(tmp_path / "beam").verify()


def test_what_fails_in_a_worker_is_told(tmp_path):
    source = Clips((("train", Clip(**(clips().clips[0][1].__dict__ | {"episode": ""}))),))
    with pytest.raises(ShardError, match="the Beam pipeline failed: .*episode is empty"):
        build.build(tmp_path, source, shards={"train": 1}, spec={}, progress=False, beam=["--runner=DirectRunner"])
