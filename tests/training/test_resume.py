"""Real processes that are killed or asked to stop, and go on as if nothing had happened."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from pixr1_jax.training.checkpoint import finished_steps
from pixr1_jax.training.goodput import read_account
from pixr1_jax.training.metrics import read_metrics

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 60
FIELDS = {"train.steps": STEPS, "train.checkpoint.every_steps": 7, "pack.batch_rows": 2, "train.max_skipped": 5}
WAIT = 120  # seconds until a test gives up on a process


@pytest.fixture(scope="module")
def clips(tiny, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("clips")
    tiny.write_clips(workdir)
    return workdir


@pytest.fixture
def make_workdir(clips, tmp_path):
    def make(name):
        shutil.copytree(clips / "shards", tmp_path / name / "shards")
        return tmp_path / name

    return make


@pytest.fixture(scope="module")
def start(tiny, tmp_path_factory):
    """Starts `pixr1 train` on a work directory; what it says goes to `log` there."""
    cache = tmp_path_factory.mktemp("compiled")  # the same program is compiled once for all processes
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }
    environment.pop("XLA_FLAGS", None)

    def start(workdir, **changes):
        fields = tiny.EXPERIMENT | FIELDS | {name.replace("__", "."): value for name, value in changes.items()}
        command = [sys.executable, "-m", "pixr1_jax.train", "--config=configs/quickstart.py:smoke"]
        command += [f"--workdir={workdir}", *(f"--config.{name}={value}" for name, value in fields.items())]
        with (workdir / "log").open("a") as log:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    return start


def finish(process, workdir, code=0):
    assert process.wait(WAIT) == code, (workdir / "log").read_text()[-2000:]


def wait_for_step(process, workdir, step):
    """Returns once the metrics hold `step` and a checkpoint is finished."""
    metrics = workdir / "train" / "metrics.jsonl"
    deadline = time.monotonic() + WAIT
    while not (
        metrics.exists()
        and metrics.read_bytes().count(b"\n") >= step
        and finished_steps(workdir / "train" / "checkpoints")
    ):
        assert process.poll() is None and time.monotonic() < deadline, (workdir / "log").read_text()[-2000:]
        time.sleep(0.01)


def losses(workdir):
    """Everything that was measured, but for the speed."""
    lines = read_metrics(workdir / "train")
    return [{name: value for name, value in line.items() if name.startswith(("step", "train/"))} for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(clips, start, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    shutil.copytree(clips / "shards", workdir / "shards")
    finish(start(workdir), workdir)
    found = losses(workdir)
    assert [line["step"] for line in found] == list(range(1, STEPS + 1))
    return found


def test_a_killed_run_goes_on_bit_for_bit(start, make_workdir, uninterrupted):
    workdir = make_workdir("killed")
    lost, begin = 0, time.time()
    for step in (10, 30):
        process = start(workdir)
        wait_for_step(process, workdir, step)
        process.kill()
        finish(process, workdir, code=-signal.SIGKILL)
        assert losses(workdir)[-1]["step"] < STEPS
        told = [line for line in (workdir / "train" / "goodput.jsonl").read_text().splitlines() if '"spent"' in line]
        lost += json.loads(told[-1])["step"] - finished_steps(workdir / "train" / "checkpoints")[-1]
    finish(start(workdir), workdir)
    assert losses(workdir) == uninterrupted
    account = read_account(workdir / "train")
    assert (account.starts, account.step, account.lost_steps) == (3, STEPS, lost)
    # All time but what Python needs to start, and to leave, is in the ledger.
    assert 0 < account.lost < account.seconds["step"] < account.total < time.time() - begin
    assert account.down > 0 and 0 < account.goodput < 1
    assert f"steps run again: {lost}" in (workdir / "log").read_text()


def test_a_run_that_is_asked_to_stop_saves_and_goes_on(start, make_workdir, uninterrupted):
    workdir = make_workdir("stopped")
    process = start(workdir)
    wait_for_step(process, workdir, 12)
    process.terminate()
    finish(process, workdir, code=0)
    stopped = losses(workdir)[-1]["step"]
    assert stopped < STEPS
    assert finished_steps(workdir / "train" / "checkpoints")[-1] == stopped  # no step is lost
    finish(start(workdir), workdir)
    assert losses(workdir) == uninterrupted


def test_a_hopeless_run_ends_with_one_line(start, make_workdir):
    workdir = make_workdir("hopeless")
    process = start(workdir, train__optimizer__learning_rate=1e30)
    finish(process, workdir, code=1)
    errors = [line for line in (workdir / "log").read_text().splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "5 steps in a row had a loss or gradient that is not finite" in errors[0]
    assert "Traceback" not in (workdir / "log").read_text()
    assert losses(workdir)[-1]["train/skipped_in_a_row"] >= 4
