"""One run on several real processes: the same losses, the same saves, and the same run after any of them dies."""

import pathlib
import shutil
import signal
import time

import numpy as np
import pytest

from pixr1_jax.training import loop
from pixr1_jax.training.checkpoint import finished_steps
from pixr1_jax.training.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("quick_compile")

STEPS = 24
FIELDS = {"train.steps": STEPS, "train.checkpoint.every_steps": 8, "train.checkpoint.keep": 9}


@pytest.fixture(scope="module")
def clips(tiny, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("clips")
    tiny.write_clips(workdir)
    return workdir


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def start(tiny, processes, clips, cache):
    """Starts `pixr1 train` on a work directory, as one job of several processes with four devices in all."""

    def start(workdir: pathlib.Path, count: int, steps: int = STEPS):
        if not workdir.exists():
            shutil.copytree(clips / "shards", workdir / "shards")
        fields = tiny.EXPERIMENT | FIELDS | {"train.steps": steps}
        command = ["-m", "pixr1_jax.train", "--config=configs/quickstart.py:smoke", f"--workdir={workdir}"]
        command += [f"--config.{name}={value}" for name, value in fields.items()]
        return processes.Job(command, workdir / "logs", count, processes.environment(4 // count, cache))

    return start


def losses(workdir):
    """Everything that was measured, but for the speed."""
    lines = read_metrics(workdir / "train")
    return [{name: value for name, value in line.items() if name.startswith(("step", "train/"))} for line in lines]


def saved(workdir):
    return finished_steps(workdir / "train" / "checkpoints")


def at_step(workdir, step):
    metrics = workdir / "train" / "metrics.jsonl"
    return metrics.exists() and metrics.read_bytes().count(b"\n") >= step


@pytest.fixture(scope="module")
def alone(tiny, clips, tmp_path_factory):
    """The losses of this process with eight devices."""
    workdir = tmp_path_factory.mktemp("alone")
    shutil.copytree(clips / "shards", workdir / "shards")
    loop.run(tiny.experiment(**{name.replace(".", "__"): value for name, value in FIELDS.items()}), "train", workdir)
    return losses(workdir)


def assert_close(found, wanted):
    assert [line["step"] for line in found] == [line["step"] for line in wanted]
    for a, b in zip(found, wanted, strict=True):
        assert a.keys() == b.keys()
        for name in ("train/loss", "train/loss/video", "train/loss/audio"):
            np.testing.assert_allclose(a[name], b[name], rtol=2e-5, err_msg=f"{name} at step {a['step']}")


def test_killed_or_stopped_on_two_processes_it_is_the_same_run(start, alone, tmp_path):
    with start(tmp_path / "whole", 2) as job:
        job.finish()
        assert "step 0 of 24" in job.log(0) and "step 0 of 24" not in job.log(1)
    whole = losses(tmp_path / "whole")
    assert_close(whole, alone)
    assert saved(tmp_path / "whole") == [8, 16, 24]

    workdir = tmp_path / "killed"
    with start(workdir, 2) as job:
        job.until(lambda: at_step(workdir, 11) and saved(workdir))
        job.kill(1, signal.SIGKILL)
        killed = time.monotonic()
        codes = job.wait(120)  # the one that is left does not wait for ever, and says why it ends
        assert codes[1] == -signal.SIGKILL and codes[0] not in (0, -signal.SIGKILL), job.said()
        assert "another process of the job is gone" in job.log(0) or "another task died" in job.log(0), job.said()
        assert time.monotonic() - killed < 120
    assert losses(workdir)[-1]["step"] < STEPS

    with start(workdir, 2) as job:
        job.until(lambda: at_step(workdir, 13))
        job.kill(1, signal.SIGTERM)  # the second process alone is told; both save the same step and end well
        job.finish()
    stopped = losses(workdir)[-1]["step"]
    assert saved(workdir)[-1] == stopped <= STEPS

    with start(workdir, 2) as job:
        job.finish()
        assert f"step {stopped} of 24" in job.log(0)
    assert losses(workdir) == whole  # bit for bit


def test_a_run_moves_from_four_processes_to_two_to_one(start, alone, tiny, tmp_path):
    workdir = tmp_path / "run"
    for count, steps in ((4, 8), (2, 16)):
        with start(workdir, count, steps) as job:
            job.finish()
        assert saved(workdir)[-1] == steps
        files = (workdir / "train" / "checkpoints" / str(steps) / "data").glob("process_*")
        assert len(list(files)) == count
    config = tiny.experiment(**{name.replace(".", "__"): value for name, value in FIELDS.items()})
    loop.run(config, "train", workdir)  # in this process, on eight devices
    assert_close(losses(workdir), alone)
