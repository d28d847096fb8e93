"""The verb data: which clips a configuration means, and when a dataset is kept or refused."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipelines import config as data_config
from data_pipelines import shards as shards_lib
from data_pipelines.sources import playground
from pixr1_jax import data as data_verb
from pixr1_jax.core import config as config_lib
from pixr1_jax.core.config import ConfigError
from pixr1_jax.training import setup

ROOT = pathlib.Path(data_verb.__file__).resolve().parents[1]


def make_config(**changes) -> ConfigDict:
    section = {
        "source": "playground",
        "train_clips": 3,
        "test_clips": 1,
        "frames": 4,
        "seed": 2,
        "shards": 2,
        "video_codec": "zstd",
        "playground": {"height": 16, "width": 24, "frame_rate": 12, "sample_rate": 6000, "policy": "wander"},
        "vizdoom": {"scenarios": ("basic", "deathmatch"), "resolutions": ("RES_160X120", "RES_256X144")},
    }
    return ConfigDict({"data": section | changes})


def freeze(**changes) -> data_config.DataConfig:
    return config_lib.freeze(data_config.DataConfig, make_config(**changes).data, "config.data")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data") / "shards"
    data_verb.build_data(make_config(), directory)
    return directory


def test_build_writes_the_clips_of_the_section(built):
    dataset = shards_lib.open_dataset(built)
    dataset.verify()
    assert {split: len(dataset.clips(split)) for split in dataset.splits} == {"train": 3, "test": 1}
    assert {split: len(files) for split, files in dataset.manifest.splits.items()} == {"train": 2, "test": 1}
    world = playground.World(16, 24, 12, 6000)
    info = next(one for one in dataset.clips("test"))
    truth = playground.record(world, info.seed, "wander", 4, split="test")
    found = dataset.read(info)
    np.testing.assert_array_equal(found.video, truth.video)
    np.testing.assert_array_equal(found.actions, truth.actions)


def test_the_spec_is_the_section_without_other_sources(built):
    spec = json.loads((built / "manifest.json").read_text())["spec"]
    expected = make_config().data.to_dict()
    del expected["vizdoom"]
    assert spec == expected


def test_a_second_build_keeps_the_files(built):
    before = {path.name: path.stat().st_mtime_ns for path in built.glob("*.array_record")}
    data_verb.build_data(make_config(vizdoom={"scenarios": ("basic",)}), built)
    assert {path.name: path.stat().st_mtime_ns for path in built.glob("*.array_record")} == before


def test_another_section_is_refused_by_its_first_difference(built):
    with pytest.raises(ValueError, match="data.frames is 4 there and 5 here; choose another folder"):
        data_verb.build_data(make_config(frames=5), built)


def test_splits_and_seeds_are_disjoint():
    seeds = [
        seed
        for number in range(3)
        for split in ("train", "test")
        for seed in freeze(seed=number, train_clips=1000, test_clips=1000).seeds[split]
    ]
    assert len(seeds) == len(set(seeds)) == 6000
    more = freeze(train_clips=9, test_clips=7)
    assert more.seeds["test"][0] == freeze().seeds["test"][0], "test clips do not depend on the training clips"
    assert [len(more.seeds[split]) for split in ("train", "test")] == [9, 7]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"source": "doom"},
            "config.data.source is 'doom'; use one of 'ale', 'gymnasium', 'playground', 'tfds', 'videos', 'vizdoom'",
        ),
        ({"train_clips": None}, "config.data: train_clips is missing; source 'playground' makes its clips from seeds"),
        (
            {"source": "videos", "videos": {"path": "x"}, "video_codec": "h264_420"},
            "config.data: train_clips is given; source 'videos' has the",
        ),
        ({"source": "videos", "videos": {"path": "x"}}, "config.data: video_codec is 'zstd'; what is not copied"),
        ({"test_clips": 0}, "config.data: test_clips is 0; use 1 or more"),
        ({"seed": 20_000}, "config.data: seed is 20000, which gives clip seeds beyond"),
        ({"playground": None}, "config.data: playground is missing"),
        ({"playground": {"height": 16}}, "config.data.playground.width is missing"),
        ({"playground": {"hight": 16}}, "did you mean height?"),
        (
            {"playground": {"height": 16, "width": 24, "frame_rate": 12, "sample_rate": 6000, "policy": "fly"}},
            "config.data.playground: policy is 'fly'; use one of wander,",
        ),
        ({"source": "vizdoom", "vizdoom": {"scenarios": ("basc",)}}, "config.data.vizdoom: scenario is 'basc'"),
        ({"source": "vizdoom", "vizdoom": {"scenarios": ()}}, "config.data.vizdoom: scenarios is empty"),
    ],
)
def test_mistakes_name_the_field(tmp_path, changes, message):
    with pytest.raises(ConfigError) as raised:
        data_verb.build_data(make_config(**changes), tmp_path)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_each_dataset_of_a_mixture_goes_to_a_folder_of_its_name(tmp_path, built):
    one = make_config(train_clips=1, shards=1).data
    mixed = ConfigDict({"data": {"mix": {"first": one, "second": one.copy_and_resolve_references(), "there": {}}}})
    with mixed.unlocked():
        mixed.data.mix.second.seed = 3
        mixed.data.mix.there.directory = str(built)
    workdir = tmp_path / "run"
    data_verb.build_data(mixed, setup.shards_directory(workdir))
    found = setup.open_data(mixed, workdir)
    assert isinstance(found, dict)
    with pytest.raises(ValueError, match="it holds the datasets first, second; name one of them"):
        shards_lib.open_dataset(setup.shards_directory(workdir))
    assert {name: len(dataset.clips("train")) for name, dataset in found.items()} == {
        "first": 1,
        "second": 1,
        "there": 3,
    }
    with mixed.unlocked():
        mixed.data.mix.there.shards = 1
    with pytest.raises(ConfigError, match="config.data.mix.there has directory and more"):
        data_verb.build_data(mixed, setup.shards_directory(workdir))


def test_a_missing_section_is_named(tmp_path):
    with pytest.raises(ConfigError, match="config.data is missing"):
        data_verb.build_data(ConfigDict(), tmp_path)


def test_doom_takes_scenarios_and_resolutions_in_turn():
    config = freeze(source="vizdoom", train_clips=5)
    items = data_config.make_source(config, "config.data").items()
    assert [(item.what.scenario, item.what.resolution) for item in items if item.split == "train"] == [
        ("basic", "RES_160X120"),
        ("deathmatch", "RES_160X120"),
        ("basic", "RES_256X144"),
        ("deathmatch", "RES_256X144"),
        ("basic", "RES_160X120"),
    ]
    assert {(one.what.frames, one.what.sample_rate, one.what.tics_per_frame) for one in items} == {(4, 11025, 4)}
    assert data_config.shards_of(config, items) == {"train": 2, "test": 1}


def test_inspect_reports_and_draws(built, tmp_path):
    png = tmp_path / "sheet.png"
    reports = [f"--png={png}", f"--json={tmp_path}/facts.json", f"--html={tmp_path}/page.html"]
    command = [sys.executable, "-m", "pixr1_jax.data", "inspect", str(built), "--verify", *reports]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "verified: all 4 records are good" in done.stdout
    assert png.read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "facts.json").read_text())["splits"]["train"]["clips"] == 3
    assert "<h2>Clips</h2>" in (tmp_path / "page.html").read_text()


def test_build_goes_where_training_looks(tmp_path):
    config = f"from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({make_config().to_dict()})\n"
    (tmp_path / "settings.py").write_text(config)
    command = [sys.executable, "-m", "pixr1_jax.data", "build", f"--config={tmp_path}/settings.py"]
    done = subprocess.run(
        [*command, f"--workdir={tmp_path}/run"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(shards_lib.open_dataset(setup.shards_directory(tmp_path / "run")).clips("train")) == 3
