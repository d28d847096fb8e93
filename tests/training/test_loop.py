"""The training loop in one process: what it leaves, what it compiles, and how it refuses to go on."""

import json
import shutil

import jax
import numpy as np
import pytest

from pixr1_jax.training import loop, setup
from pixr1_jax.training import state as state_lib
from pixr1_jax.training.checkpoint import CheckpointError, load_params
from pixr1_jax.training.goodput import read_account
from pixr1_jax.training.metrics import read_metrics
from pixr1_jax.training.profile import Steps

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def clips(tiny, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("clips")
    tiny.write_clips(workdir)
    return workdir


@pytest.fixture
def workdir(clips, tmp_path):
    shutil.copytree(clips / "shards", tmp_path / "shards")
    return tmp_path


def config_of(tiny, **changes):
    return tiny.experiment(**({"train__steps": 4, "train__checkpoint__every_steps": 2} | changes))


@pytest.fixture
def traces(monkeypatch):
    """How often a step was traced, and with that compiled."""
    counted, original = [], state_lib.train_step

    def train_step(*args, **kwargs):
        counted.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(state_lib, "train_step", train_step)
    return counted


@pytest.fixture(scope="module")
def trained(tiny, clips, tmp_path_factory):
    """A work directory after four steps of training, and the state."""
    workdir = tmp_path_factory.mktemp("trained")
    shutil.copytree(clips / "shards", workdir / "shards")
    return workdir, loop.run(config_of(tiny), "train", workdir, Steps(2, 3))


def test_a_run_leaves_metrics_checkpoints_and_its_config(tiny, trained):
    workdir, state = trained
    config = config_of(tiny)
    lines = read_metrics(workdir / "train")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert np.isfinite(line["train/loss"]) and line["train/skipped"] == 0
        assert {"train/loss/video", "train/loss/audio", "train/grad_norm", "train/learning_rate"} <= set(line)
        norms = [value for name, value in line.items() if name.startswith("train/grad_norm/")]
        assert np.linalg.norm(norms) == pytest.approx(line["train/grad_norm"], rel=1e-5)
        assert 0 < line["train/update_ratio/mlp"] < 1
        assert line["perf/tflops_per_chip"] > 0 and 0 <= line["perf/data_wait"] < 1 and 0 < line["goodput/share"] < 1
        # The clips have 10 frames a second.
        assert line["perf/frames_per_second_per_chip"] == pytest.approx(
            10 * line["perf/video_seconds_per_second_per_chip"]
        )
        assert "perf/mfu" not in line  # a CPU has no peak
        assert line["train/loss"] == pytest.approx(line["train/loss/video"] + 0.3 * line["train/loss/audio"], rel=1e-5)
    assert "perf/step_seconds" in lines[-1]
    steps = sorted(int(path.name) for path in (workdir / "train" / "checkpoints").iterdir() if path.name.isdecimal())
    assert steps == [2, 4]
    saved = json.loads((workdir / "train" / "config.json").read_text())
    assert saved["model"]["width"] == 16
    assert int(state.step) == 4
    assert list((workdir / "train" / "profile").glob("**/*.trace.json.gz"))
    account = read_account(workdir / "train")
    assert account.step == 4 and account.starts == 1 and account.lost == account.down == 0
    assert min(account.seconds[kind] for kind in ("init", "compile", "data_wait", "step", "save")) > 0
    assert loop.finished(config, "train", workdir)
    assert not loop.finished(config, "distill", workdir)
    assert not loop.finished(config_of(tiny, train__steps=5), "train", workdir)
    kept = load_params(setup.checkpoint_directory(workdir, "train"), jax.eval_shape(lambda: state.ema))
    assert tiny.largest_difference(kept, state.ema) == 0


def test_a_finished_run_does_nothing_more(tiny, trained, tmp_path):
    workdir = shutil.copytree(trained[0], tmp_path / "again")
    before = (workdir / "train" / "metrics.jsonl").read_bytes()
    state = loop.run(config_of(tiny), "train", workdir)
    assert (workdir / "train" / "metrics.jsonl").read_bytes() == before
    assert tiny.largest_difference(state.params, trained[1].params) == 0


def test_distillation_starts_from_the_average_and_compiles_once(tiny, trained, tmp_path, traces):
    workdir = shutil.copytree(trained[0], tmp_path / "run")
    config = config_of(tiny, distill__steps=3, distill__optimizer__learning_rate=1e-12)
    state = loop.run(config, "distill", workdir)
    assert tiny.largest_difference(state.params, trained[1].ema) < 1e-8
    assert [line["step"] for line in read_metrics(workdir / "distill")] == [1, 2, 3]
    assert len(traces) == 1


def test_a_continued_run_is_the_same_run_and_compiles_once(tiny, trained, tmp_path, traces):
    workdir = shutil.copytree(trained[0], tmp_path / "run")
    shutil.rmtree(workdir / "train" / "checkpoints" / "4")
    state = loop.run(config_of(tiny), "train", workdir)
    assert len(traces) == 1
    assert tiny.largest_difference(state, trained[1]) == 0
    losses = lambda where: [line["train/loss"] for line in read_metrics(where / "train")]
    assert losses(workdir) == losses(trained[0])


def test_a_hopeless_run_stops(tiny, workdir):
    config = config_of(tiny, train__steps=30, train__max_skipped=3)
    config.train.optimizer.learning_rate = 1e30
    with pytest.raises(loop.TrainingError, match=r"3 steps in a row .*max_skipped=3\); lower optimizer.learning_rate"):
        loop.run(config, "train", workdir)
    lines = read_metrics(workdir / "train")
    assert len(lines) < 10 and lines[-1]["train/skipped"] >= 2


def test_errors_before_the_first_step(tiny, workdir):
    with pytest.raises(loop.TrainingError, match="pack.batch_rows=6 must be a multiple of 8: 8 parts on the mesh"):
        loop.run(config_of(tiny, pack__batch_rows=6), "train", workdir)
    with pytest.raises(CheckpointError, match="holds no finished checkpoint"):
        loop.run(config_of(tiny), "distill", workdir)
    with pytest.raises(ValueError, match=r"2 actions \(axis0, axis1\) but tokens.action_dim=1; raise it to 2"):
        loop.run(config_of(tiny, tokens__action_dim=1), "train", workdir)
    shutil.rmtree(workdir / "shards")
    with pytest.raises(ValueError, match="shards"):
        loop.run(config_of(tiny), "train", workdir)


def test_another_model_does_not_continue_a_run(tiny, trained, tmp_path):
    workdir = shutil.copytree(trained[0], tmp_path / "run")
    with pytest.raises(CheckpointError, match="in the checkpoint and .* in this run; use the config"):
        loop.run(config_of(tiny, model__hidden=32, train__steps=6), "train", workdir)
