"""From a config to the objects of a run, and the errors on the way."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipelines.live import LivePlayground
from data_pipelines.loader import row_source
from data_pipelines.mix import Shares, mix
from data_pipelines.plan import PlanError
from data_pipelines.row_layout import RowSpec
from data_pipelines.shards import open_dataset
from pixr1_jax.attention import select
from pixr1_jax.attention.blocks import Blocks, visible
from pixr1_jax.data import build_data
from pixr1_jax.objectives.flow_map import FlowMap
from pixr1_jax.objectives.pretrain import Pretrain
from pixr1_jax.omni import tokens
from pixr1_jax.training import setup

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def dataset(tiny, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("setup")
    tiny.write_clips(workdir)
    return open_dataset(setup.shards_directory(workdir))


def test_places_in_a_work_directory():
    here = pathlib.Path("run")
    assert setup.shards_directory(here) == here / "shards"
    assert setup.checkpoint_directory(here, "distill") == here / "distill" / "checkpoints"
    assert setup.artifact_directory(here) == here / "artifact"


def test_sizes_come_from_their_sections(tiny):
    sizes = setup.model_config(tiny.experiment())
    assert (sizes.width, sizes.layers, sizes.tokens.patch, sizes.memory.window) == (16, 1, 4, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__dtype": "float16"}, "model: model.dtype='float16'; use 'float32' or 'bfloat16'"),
        ({"memory__window": 0}, "memory: memory policy needs window >= 1"),
        ({"memory__horizon": 1}, "memory.horizon=1 must exceed memory.window=2"),
        ({"tokens__audio_tokens": 3}, "tokens.hops=4 must be a multiple of tokens.audio_tokens=3"),
    ],
)
def test_sizes_that_cannot_be_name_their_field(tiny, changes, message):
    with pytest.raises(ValueError, match=message):
        setup.model_config(tiny.experiment(**changes))


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("model", "depth", 3, "model.depth is unknown"),
        ("tokens", "patches", 3, "tokens.patches is unknown.*did you mean patch"),
        ("train.objective", "speed", 3, "train.objective.speed is unknown"),
        ("train.objective", "time_floor", "low", "train.objective.time_floor is 'low'"),
        ("train.objective", "tasks", {"dance": 1.0}, r"objective.tasks names \['dance'\]; known tasks are"),
        ("train.objective", "tasks", {"joint": 0.0}, "objective.tasks has weights {'joint': 0.0}; use none below 0"),
        ("train.objective", "tables", {"films": {"joint": 1.0}}, "train.objective.tables.films .* no data.mix"),
    ],
)
def test_fields_that_do_not_exist_or_fit(tiny, dataset, section, field, value, message):
    config = tiny.experiment()
    plan = setup.pack_plan(config, dataset)
    here = config
    for part in section.split("."):
        here = here[part]
    with here.unlocked(), here.ignore_type():
        here[field] = value
    with pytest.raises(ValueError, match=message):
        setup.objective(config, "train", plan)


@pytest.mark.parametrize("changes", [{}, {"memory__window": 1, "memory__sinks": 0}, {"pack__window_chunks": 6}])
@pytest.mark.parametrize("windows", [1, 2])
def test_the_bound_on_keys_holds_and_is_reached(tiny, dataset, changes, windows):
    """Counted on rows: no query sees more blocks, and with the longest text some query sees as many."""
    config = tiny.experiment(**changes, pack__windows_per_row=windows)
    sizes, plan = setup.model_config(config), setup.pack_plan(config, dataset)
    bound = setup.max_keys(sizes, plan, config.pack.window_chunks, ramped=True)
    source = row_source(dataset, plan, sizes.tokens)
    most = 0
    for index in range(6):
        blocks = Blocks.of(source[index])
        seen = np.asarray(visible(blocks, blocks, sizes.memory))
        most = max(most, seen.sum(-1).max())
    # The last chunk has no clean blocks, so the fullest query lacks a memory block of its own.
    assert bound - 1 <= most <= bound


def test_a_budget_bounds_the_keys_and_its_ramp_does_not(tiny, dataset):
    """On rows, the bound holds for the list of every query; while the ramp lasts, everything may be read."""
    config = tiny.experiment(pack__window_chunks=6)
    sizes, plan = setup.model_config(config), setup.pack_plan(config, dataset)
    everything = setup.max_keys(sizes, plan, 6, ramped=True)
    limits = {}
    for ramp_steps in (0, 5):
        attention = tiny.attention(clean=(1,), noisy=(2,), early=(1,), group=2, ramp_steps=ramp_steps)
        sizes = dataclasses.replace(sizes, attention=attention)
        limits[ramp_steps] = [setup.max_keys(sizes, plan, 6, ramped=ramped) for ramped in (True, False)]
    assert limits[5] == [everything, limits[0][0]] and limits[0][0] == limits[0][1] < everything
    budget = sizes.attention.budget
    source = row_source(dataset, plan, sizes.tokens)
    most = 0
    for index in range(3):
        blocks = Blocks.of({name: value[None] for name, value in source[index].items()})
        seen = visible(blocks, blocks, sizes.memory)
        options = select.candidates(blocks, blocks, seen, sizes.memory, budget, layers=1)
        most = max(most, int((options.always.sum(-1) + jnp.minimum(options.keep[0], options.free.sum(-1))).max()))
    assert most <= limits[0][0] <= most + 4


def test_rows_are_filled_as_the_section_says(tiny, dataset):
    filled = tiny.experiment()
    with filled.unlocked():
        filled.pack.row_blocks = 60
    assert setup.pack_plan(filled, dataset).row_spec.blocks == 60
    with filled.unlocked():
        filled.pack.clean_blocks = 21
    assert setup.pack_plan(filled, dataset).row_spec.clean_blocks == 21
    filled.pack.clean_blocks = 60
    with pytest.raises(ValueError, match="pack.clean_blocks is 60; .* part of pack.row_blocks, which is 60"):
        setup.pack_plan(filled, dataset)


def test_each_dataset_of_a_mixture_has_its_tasks(tiny, dataset):
    config = tiny.experiment()
    with config.unlocked():
        config.data = ConfigDict({"mix": {"first": {}, "second": {}, "third": {}}})
        config.pack.shares = ({"from_row": 0, "weights": {"first": 1.0, "second": 1.0, "third": 1.0}},)
        config.train.objective.tables = ConfigDict({"second": {"video_to_audio": 2.0, "joint": 1.0}})
    plan = setup.pack_plan(config, dict.fromkeys(config.data.mix, dataset))
    sampling = setup.objective(config, "train", plan).sampling
    weights = {name: dict((sampling.tasks, *sampling.tables)[plan.row(place)[0].table]) for name, place in places(plan)}
    assert weights["second"] == {"video_to_audio": 2.0, "joint": 1.0}
    assert weights["first"] == weights["third"] == dict(config.train.objective.tasks)
    # The other stage has weights of its own, for the same rows.
    assert set(setup.objective(config, "distill", plan).sampling.tables) == {sampling.tasks}
    with config.unlocked():
        config.train.objective.tables = ConfigDict({"fourth": {"joint": 1.0}})
    with pytest.raises(ValueError, match="tables.fourth is of no dataset; data.mix has first, second, third"):
        setup.objective(config, "train", plan)


def places(plan):
    return {plan.place(index)[0]: index for index in range(40)}.items()


def test_the_dataset_that_is_shown_is_named(tiny, tmp_path):
    config = tiny.experiment()
    assert setup.shown_directory(config, tmp_path) == tmp_path / "shards"
    with config.unlocked():
        config.data = ConfigDict({"mix": {"games": {}, "films": {"directory": "elsewhere"}}})
    with pytest.raises(ValueError, match="export.dataset is missing; .* one of films, games"):
        setup.shown_dataset(config)
    with config.unlocked():
        config.export.dataset = "games"
    assert setup.shown_directory(config, tmp_path) == tmp_path / "shards" / "games"
    config.export.dataset = "films"
    assert setup.shown_directory(config, tmp_path) == pathlib.Path("elsewhere")
    config.export.dataset = "film"
    with pytest.raises(ValueError, match="export.dataset is 'film'; .* one of films, games"):
        setup.shown_dataset(config)


def test_windows_beyond_the_horizon(tiny, dataset):
    config = tiny.experiment(pack__window_chunks=6, memory__horizon=5)
    with pytest.raises(ValueError, match="pack.window_chunks=6 exceeds memory.horizon=5"):
        setup.objective(config, "train", setup.pack_plan(config, dataset))


def test_each_stage_has_its_objective(tiny, dataset):
    config = tiny.experiment()
    plan = setup.pack_plan(config, dataset)
    train, distill = (setup.objective(config, stage, plan) for stage in ("train", "distill"))
    assert isinstance(train, Pretrain) and isinstance(distill, FlowMap)
    assert train.clean_blocks == plan.row_spec.clean_blocks
    assert train.sampling.drop == 0.1 and distill.sampling.drop == 0
    assert dict(train.sampling.tasks)["joint"] == 0.8
    assert hash(train) == hash(setup.objective(config, "train", plan))


def test_a_new_model_starts_from_the_data(tiny, dataset):
    config = tiny.experiment()
    sizes, plan = setup.model_config(config), setup.pack_plan(config, dataset)
    model = setup.initial_model(sizes, dataset, plan, seed=0)
    source = row_source(dataset, plan, sizes.tokens)
    rows = [source[i] for i in range(plan.rows_per_epoch)]
    pixels = np.concatenate([row["patches"][row["patch_slot"] >= 0] for row in rows]) / 127.5 - 1
    np.testing.assert_allclose(model.video_in.mean[...], pixels.mean(0), atol=1e-3)
    covariance = np.cov(pixels.T, bias=True)
    down = np.asarray(model.video_in.down[...])
    caught = np.trace(down.T @ covariance @ down)
    np.testing.assert_allclose(caught, np.linalg.eigvalsh(covariance)[-12:].sum(), rtol=1e-3)
    batch = jax.tree.map(lambda x: x[None], rows[0])
    assert tokens.content(sizes, batch).video.shape[1] == plan.row_spec.patches
    again, other = (setup.initial_model(sizes, dataset, plan, seed=seed) for seed in (0, 1))
    assert tiny.largest_difference(model, again) == 0 and tiny.largest_difference(model, other) > 0


class Silent:
    """A dataset without its sound."""

    def __init__(self, dataset):
        self.dataset = dataset

    def read(self, info, start=0, stop=None):
        clip = self.dataset.read(dataclasses.replace(info, channels=2), start, stop)
        return dataclasses.replace(clip, audio=clip.audio[:, :0])


def test_a_mixture_with_and_without_sound_begins_and_has_a_loss(tiny, dataset):
    config = tiny.experiment()
    sizes, infos = setup.model_config(config), dataset.clips("train")
    clips = {"heard": infos, "silent": [dataclasses.replace(info, channels=0) for info in infos]}
    shares = [Shares(0, (("heard", 1.0), ("silent", 20.0)))]
    mixture = mix(clips, sizes.tokens, shares, window_chunks=3, row_blocks=60, seed=0)
    readers = {"heard": dataset, "silent": Silent(dataset)}
    model = setup.initial_model(sizes, readers, mixture, seed=0)
    # What sound is fitted to is sound: its mean is that of the heard rows.
    source, sound = row_source(readers, mixture, sizes.tokens), []
    rows = [source[index] for index in range(23)]  # one of them is heard
    for row in rows:
        content = tokens.content(sizes, jax.tree.map(lambda x: jnp.asarray(x[None]), row))
        sound.append(np.asarray(content.audio)[0, np.repeat(row["chunk_audio"], sizes.tokens.audio_tokens)])
    assert len(np.concatenate(sound)) >= sizes.audio_rank
    np.testing.assert_allclose(model.audio_in.mean[...], np.concatenate(sound).mean(0), atol=0.02)
    objective = setup.objective(config, "train", mixture)
    heard = next(number for number, row in enumerate(rows) if row["chunk_audio"].any())
    batch = {name: np.stack([row[name] for row in rows[heard - 1 : heard + 3]]) for name in rows[0]}
    assert batch["chunk_audio"].any() and (batch["chunk_valid"] & ~batch["chunk_audio"]).any()
    loss, metrics = jax.jit(lambda batch: objective.loss(model, None, batch, 0, jnp.int32(0)))(batch)
    assert np.isfinite(loss) and metrics["loss/video"] > 0


def test_a_live_run_stores_its_test_clips_and_plays_those_of_training(tiny, tmp_path):
    config = tiny.experiment(tokens__text_bytes=16, tokens__action_dim=3)
    config.data.live = True
    config.data.frames = 2 * config.pack.window_chunks * config.tokens.chunk_frames
    build_data(config, setup.shards_directory(tmp_path))
    live = setup.open_data(config, tmp_path)
    assert isinstance(live, LivePlayground) and live.stored.splits == ("test",)
    plan = setup.pack_plan(config, live)
    seeds = {ref.info.seed for i in range(3 * plan.rows_per_epoch) for ref in plan.row(i)}
    assert len(seeds) == 3 * config.data.train_clips and not {info.seed for info in live.clips("test")} & seeds
    assert setup.objective(config, "train", plan).max_keys <= plan.row_spec.blocks
    assert setup.pack_plan(config, live, "test").infos


FIXED = {"chunks": 8, "patches": 48, "text": 64, "clean_blocks": 30, "noisy_blocks": 24}


def fixed(tiny, fill=False, picture=(8, 12), **changes):
    config = tiny.experiment()
    with config.unlocked():
        config.pack.row = ConfigDict(FIXED | changes)
        config.pack.fill, config.pack.picture = fill, picture
    return config


@pytest.mark.parametrize("fill", [False, True])
def test_rows_of_a_given_shape_need_no_data(tiny, dataset, fill):
    config = fixed(tiny, fill)
    plan, rows = setup.pack_plan(config, dataset), setup.fixed_rows(config)
    assert plan.row_spec == rows.row_spec == RowSpec(**FIXED)
    # The objective, and with it the program, is the same before there is data.
    assert setup.objective(config, "train", plan) == setup.objective(config, "train", rows)
    packed = row_source(dataset, plan, setup.model_config(config).tokens)[0]
    assert packed["block_valid"].shape == (54,) and packed["patches"].shape[0] == 48


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"picture": (4, 8)}, r"a picture of 8x12 has 6 patches, and pack.picture=\(4, 8\) 2; raise pack.picture"),
        ({"fill": True, "patches": 12}, "rows that are filled need more room; raise row.patches=12 to 48"),
        ({"patches": 12}, "fits no row; raise row.patches=12 to 18"),
    ],
)
def test_clips_beyond_the_given_shape_are_refused(tiny, dataset, changes, message):
    with pytest.raises(PlanError, match=message):
        setup.pack_plan(fixed(tiny, **changes), dataset)


def test_a_shape_that_does_not_follow_from_the_config_is_an_error(tiny):
    with pytest.raises(ValueError, match="pack.row is missing; the shape of a row must follow .* give pack.row"):
        setup.fixed_rows(tiny.experiment())
