"""Every configuration in configs/: its sections build what they describe, and they agree with one another."""

import fractions
import importlib.util
import pathlib
import re
import types

import jax
import pytest
from ml_collections import ConfigDict

from data_pipelines import config as data_config
from data_pipelines.clip import TextEvent
from data_pipelines.index import ClipInfo
from data_pipelines.source import Item
from data_pipelines.sources import playground, vizdoom
from pixr1_jax import data as data_verb
from pixr1_jax import evaluate as evaluate_verb
from pixr1_jax.core import config as config_lib
from pixr1_jax.engine import script as script_lib
from pixr1_jax.engine.step import Stream
from pixr1_jax.evaluation import rollout
from pixr1_jax.omni.model import Omni
from pixr1_jax.training import setup
from pixr1_jax.training.optimizer import make_optimizer

ROOT = pathlib.Path(data_verb.__file__).resolve().parents[1]
MIXED = ROOT / "configs" / "mixed_tiny.py"
# Those that the quickstart takes from data to scores.
FILES = sorted(set((ROOT / "configs").glob("*.py")) - {MIXED})
VARIANTS = [(path, variant) for path in FILES for variant in ("", "smoke")]
VARIANTS += [(path, "sparse") for path in FILES if path.stem == "quickstart"]
VARIANTS += [(path, "v6e") for path in FILES if path.stem == "omni_8b"]
EVERY = pytest.mark.parametrize(
    ("path", "variant"),
    VARIANTS,
    ids=[f"{path.stem}{variant and ':' + variant}" for path, variant in VARIANTS],
)


def load(path: pathlib.Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def info(number, split, frames, height, width, frame_rate, sample_rate, names, text, seed) -> ClipInfo:
    return ClipInfo(
        split=split,
        file=f"{split}-00000-of-00001.array_record",
        record=number,
        bytes=0,
        episode=f"{split}/{number}",
        frames=frames,
        height=height,
        width=width,
        frame_rate=fractions.Fraction(frame_rate),
        sample_rate=sample_rate,
        channels=2,
        video_codec="zstd",
        action_names=names,
        events=(TextEvent(0, text),),
        source="",
        licence="",
        seed=seed,
    )


def doom_info(number: int, item: Item) -> ClipInfo:
    one = item.what
    width, height = map(int, re.findall(r"\d+", one.resolution))
    text = vizdoom.find_scenario(one.scenario).caption
    names, rate = vizdoom.ACTION_NAMES, fractions.Fraction(35, one.tics_per_frame)
    return info(number, item.split, one.frames, height, width, rate, one.sample_rate, names, text, one.seed)


def playground_info(number: int, item: Item, source: playground.PlaygroundSource) -> ClipInfo:
    text, world = max(playground.EVENTS, key=len), source.world
    sizes = (source.frames, world.height, world.width, world.frame_rate, world.sample_rate)
    return info(number, item.split, *sizes, playground.ACTION_NAMES, text, item.what)


def film_info(number: int, split: str, height: int, width: int) -> ClipInfo:
    text = "a street in the rain"
    return info(number, split, 240, height, width, 24, 48000, (), text, number)


@pytest.fixture
def index(monkeypatch, tmp_path):
    """Returns the dataset that a configuration would build, its index only: clips that nobody recorded."""

    def build(config: ConfigDict):
        clips: dict[str, list[ClipInfo]] = {}
        if config.data.source == "videos":  # a folder that could be anyone's
            sizes = [(1080, 1920)] * 200 + [(720, 1280)] * 100 + [(480, 854), (360, 640)] * 50
            for split, found in (("train", sizes), ("test", sizes[:100])):
                clips[split] = [film_info(number, split, *size) for number, size in enumerate(found)]
            return types.SimpleNamespace(directory=tmp_path, clips=clips.__getitem__)

        def listed(directory, source, **_):
            for item in source.items():
                found = clips.setdefault(item.split, [])
                of_doom = isinstance(source, vizdoom.VizdoomSource)
                found.append(doom_info(len(found), item) if of_doom else playground_info(len(found), item, source))

        monkeypatch.setattr(data_verb.build_lib, "build", listed)
        data_verb.build_data(config, tmp_path / "shards")
        stored = types.SimpleNamespace(directory=tmp_path, clips=clips.__getitem__)
        if config.data.get("live"):
            section = config_lib.freeze(data_config.DataConfig, config.data, "data")
            return data_config.live_playground(section, "data", stored)
        return stored

    return build


def manifest(config: ConfigDict, first: ClipInfo) -> dict:
    """What the artifact's manifest would say of the streams it takes."""
    tokens, (height, width) = config.tokens, config.export.size
    rate = f"{first.frame_rate.numerator}/{first.frame_rate.denominator}"
    return {
        "height": height,
        "width": width,
        "frame_rate": rate,
        "sample_rate": first.sample_rate,
        "channels": tokens.channels if tokens.audio_tokens else 0,
        "chunk_frames": tokens.chunk_frames,
        "action_names": list(first.action_names),
        "steps": list(config.export.steps),
    }


def test_there_are_configurations():
    assert {path.name for path in FILES} >= {"quickstart.py", "doom_tiny.py"}


@EVERY
def test_data_model_and_objectives_are_built(path, variant, index):
    config = load(path).get_config(variant).lock()
    assert config_lib.to_plain(config)
    dataset = index(config)
    plan, sizes = setup.pack_plan(config, dataset), setup.model_config(config)
    template = jax.eval_shape(lambda: Omni(sizes, jax.random.key(0)))
    for stage in ("train", "distill"):
        objective = setup.objective(config, stage, plan)
        assert 0 < objective.max_keys <= plan.row_spec.blocks
        section = config[stage]
        assert section.steps == section.optimizer.total_steps > section.optimizer.warmup_steps
        jax.eval_shape(make_optimizer(section.optimizer).init, template)
    assert plan.rows_per_epoch >= config.pack.batch_rows
    assert plan.efficiency().blocks > 0.7, "more than 30 % of all blocks would be empty"


@EVERY
def test_training_rows_reach_the_memory_that_streams_will_read(path, variant):
    config = load(path).get_config(variant)
    memory, window = config.memory, config.pack.window_chunks
    assert memory.window + memory.sinks < window, "no chunk in training would read a memory block alone"
    assert memory.window < window <= memory.horizon
    if config.data.source != "videos":
        assert config.data.frames >= window * config.tokens.chunk_frames


@EVERY
def test_the_artifact_fits_the_film_and_the_test_clips(path, variant, index):
    config = load(path).get_config(variant)
    dataset = index(config)
    test, size = dataset.clips("test"), tuple(config.export.size)
    assert size in {(one.height, one.width) for one in dataset.clips("train")}
    Stream(setup.model_config(config), *size).start(jax.numpy.uint32(0))
    facts = manifest(config, test[0])

    film = config.stream
    assert {film.steps, *config.evaluate.steps} <= set(config.export.steps)
    context = test[film.clip]
    assert not rollout.misfit(facts, context)
    assert 0 < film.context_seconds * context.frame_rate <= context.frames
    script = script_lib.parse(ROOT / film.script, context.action_names)
    assert all(len(text.encode()) <= config.tokens.text_bytes for _, text in script.prompts)

    section = config.evaluate
    chosen = evaluate_verb.choose(facts, dataset, section.clips, section.context_chunks, section.frames)
    assert len(chosen) == section.clips


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_film_of_the_whole_script_is_shot(path):
    config = load(path).get_config()
    sources = {"playground": playground.ACTION_NAMES, "vizdoom": vizdoom.ACTION_NAMES, "videos": ()}
    script = script_lib.parse(ROOT / config.stream.script, sources[config.data.source])
    assert 0 < max(seconds for seconds, _ in (*script.holds, *script.prompts)) < config.stream.seconds


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_docstring_has_the_command_and_mistakes_are_named(path):
    module = load(path)
    assert f"--config=configs/{path.name}" in module.__doc__
    with pytest.raises(ValueError, match=rf"configs/{path.name} has no variant 'small'; use 'smoke'.* or none"):
        module.get_config("small")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_smoke_runs_on_one_device(path):
    mesh = setup.partition(load(path).get_config("smoke"), jax.devices()[:1]).mesh
    assert mesh.size == 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_smoke_is_a_fraction_of_the_whole(path):
    whole, smoke = load(path).get_config(), load(path).get_config("smoke")
    assert sorted(whole) == sorted(smoke)
    for stage in ("train", "distill"):
        assert smoke[stage].steps <= 20 and 10 * smoke[stage].steps <= whole[stage].steps
    if whole.data.source != "videos":
        assert 10 * smoke.data.train_clips <= whole.data.train_clips


@pytest.mark.parametrize("variant", ["", "smoke"])
def test_mixed_rows_hold_every_dataset_in_its_share(variant):
    config = load(MIXED).get_config(variant)
    config.path = "somewhere"
    film, doom = fractions.Fraction(30000, 1001), fractions.Fraction(35, 4)
    clips = {
        "playground": [info(n, "train", 48, 80, 120, 12, 6000, playground.ACTION_NAMES, "day", n) for n in range(8)],
        "doom": [info(n, "train", 48, 120, 160, doom, 11025, vizdoom.ACTION_NAMES, "", n) for n in range(4)],
        "videos": [info(n, "train", 200, 720 - 240 * n, 1280 - 560 * n, film, 44100, (), "", n) for n in range(2)],
    }
    datasets = {name: types.SimpleNamespace(clips=lambda _, own=own: own) for name, own in clips.items()}
    plan = setup.pack_plan(config, datasets)  # pyright: ignore[reportArgumentType]
    assert set(plan.actions) == {*playground.ACTION_NAMES, *vizdoom.ACTION_NAMES}
    assert len(plan.actions) == config.tokens.action_dim
    found = [plan.row(number)[0].dataset for number in range(1024)]
    assert {name: found.count(name) for name in clips} == {"playground": 512, "doom": 256, "videos": 256}
    assert plan.row_spec.blocks == config.pack.row_blocks
    for stage in ("train", "distill"):
        assert setup.objective(config, stage, plan).max_keys <= plan.row_spec.blocks
    with config.unlocked():
        del config.pack.shares
    with pytest.raises(config_lib.ConfigError, match="pack.shares is missing; .*doom, playground, videos"):
        setup.pack_plan(config, {})


@pytest.mark.parametrize("variant", ["", "smoke"])
def test_the_mixture_is_filmed_and_scored_on_one_of_its_datasets(variant):
    config = load(MIXED).get_config(variant)
    name = setup.shown_dataset(config)
    section, world = config.data.mix[name], config.data.mix[name].playground
    assert name == "playground" and tuple(config.export.size) == (world.height, world.width)
    clip = info(0, "test", section.frames, *config.export.size, 12, 6000, playground.ACTION_NAMES, "day", 1)
    names = (*playground.ACTION_NAMES, *vizdoom.ACTION_NAMES)
    facts = manifest(config, clip) | {"action_names": list(names)}
    rollout.check_window(facts, clip, config.evaluate.context_chunks, config.evaluate.frames)
    assert 2 <= config.evaluate.clips <= section.test_clips
    assert {config.stream.steps, *config.evaluate.steps} <= set(config.export.steps)
    script = script_lib.parse(ROOT / config.stream.script, names)
    assert all(len(text.encode()) <= config.tokens.text_bytes for _, text in script.prompts)


def test_doom_tiny_packs_two_aspect_ratios_into_the_same_rows(index):
    config = load(ROOT / "configs" / "doom_tiny.py").get_config()
    plan = setup.pack_plan(config, index(config))
    assert {fractions.Fraction(one.width, one.height) for one in plan.infos} == {
        fractions.Fraction(4, 3),
        fractions.Fraction(16, 9),
    }
    rows = [plan.row(number) for number in range(plan.rows_per_epoch)]
    assert {len(row) for row in rows} == {2, 3}
    assert sum(len(row) for row in rows) == plan.windows


def test_doom_tiny_scenarios_share_their_buttons():
    config = load(ROOT / "configs" / "doom_tiny.py").get_config()
    buttons = {vizdoom.find_scenario(name).buttons for name in config.data.vizdoom.scenarios}
    assert len(buttons) == 1, "another clip's actions must mean something, else the control gain does not"
