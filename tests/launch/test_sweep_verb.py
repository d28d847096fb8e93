"""`pixr1 sweep`: mistakes, what it writes for GKE, and two real trials of which one is killed and goes on."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from pixr1_jax.training.metrics import read_metrics

ROOT = pathlib.Path(__file__).resolve().parents[2]
SWEEP = """
def sweep():
    for width in (8, 16):
        yield {"model.width": width, "train.optimizer.learning_rate": 0.5 / width}
"""
STEPS = 30
FIELDS = {
    "data.train_clips": 4,
    "data.test_clips": 1,
    "data.frames": 24,
    "model.width": 16,
    "model.layers": 1,
    "model.head_dim": 8,
    "model.hidden": 24,
    "model.video_rank": 12,
    "model.audio_rank": 10,
    "pack.batch_rows": 2,
    "pack.window_chunks": 3,
    "train.log_every": 1,
    "train.checkpoint.every_steps": 5,
    "train.steps": STEPS,
}


@pytest.fixture
def swept(repository):
    with open(repository / "configs" / "pod.py", "a") as file:
        file.write(SWEEP)
    return repository


def test_gke_writes_a_job_set_a_trial(swept, pixr1):
    arguments = ["--config=configs/pod.py:smoke", "--config.seed=3", "--config.launch.priority="]
    code, out, err = pixr1("sweep", *arguments, "--to=gke", "--topology=v6e-256", "--jobs=2")
    assert (code, err) == (0, "")
    sets = list(yaml.safe_load_all((swept / "runs/launch/pod-smoke-train.sweep.yaml").read_text()))
    assert [one["metadata"]["name"] for one in sets] == ["pod-smoke-train-000", "pod-smoke-train-001"]
    commands = [
        one["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["command"][-1]
        for one in sets
    ]
    folder = "/bucket/pod-smoke-train/width=16,learning_rate=0.03125"
    assert commands[1] == (
        f"mkdir -p {folder} && {{ ln -sT ../shards {folder}/shards 2>/dev/null || test -e {folder}/shards; }} && "
        "exec pixr1 train --config=configs/pod.py:smoke --config.seed=3 --config.model.width=16 "
        f"--config.train.optimizer.learning_rate=0.03125 --workdir={folder} --stopped_code=75"
    )
    _, queue, _ = yaml.safe_load_all((swept / "runs/launch/pod-smoke-train.queue.yaml").read_text())
    # The queue admits two trials of 256 chips.
    assert queue["spec"]["resourceGroups"][0]["flavors"][0]["resources"][0]["nominalQuota"] == 512
    assert "--out=gs://bucket-of-ours/pixr1/pod-smoke-train/shards" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--to is missing", "--report"]),
        (["--to=local"], ["--workdir is missing"]),
        (["--to=local", "--workdir=w", "--jobs=0"], ["--jobs=0"]),
        (["--to=gke"], ["--topology is missing"]),
        (["--to=gke", "--topology=v6e-12"], ["v6e-12", "v6e-16"]),
        (["--to=gke", "--topology=v6e-64"], ["config.mesh (", "1 x v6e:8x8"]),
        (["--to=gke", "--topology=v6e-256", "--config.launch.bucket="], ["config.launch.bucket is missing"]),
        (["--report"], ["--workdir is missing"]),
        (["--report", "--workdir=w"], ["w/sweep.json does not exist"]),
        (["--to=local", "--workdir=w", "all"], ["'all'"]),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(swept, pixr1, arguments, words):
    code, out, err = pixr1("sweep", "--config=configs/pod.py:smoke", *arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert all(word in err for word in words), err
    assert not (swept / "runs").exists() and not (swept / "w").exists()


def test_a_killed_trial_goes_on_and_the_finished_one_is_left(swept, pixr1, here, tmp_path):
    """The losses of the trial are those of a run that nobody killed: the one that the whole sweep had before."""
    changes = [f"--config.{field}={value}" for field, value in (FIELDS | here).items()]
    arguments = ["--config=configs/pod.py:smoke", *changes, "--to=local", "--jobs=2", "--workdir=sweep"]
    variables = {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "pixr1_jax.cli", "sweep", *arguments]
    process = subprocess.Popen(command, env=os.environ | variables, stdout=subprocess.PIPE, text=True)
    short, wide = "width=8,learning_rate=0.0625", "width=16,learning_rate=0.03125"
    metrics = pathlib.Path("sweep") / wide / "train" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 10):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(_process_of(wide), signal.SIGKILL)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 1
    assert f"{wide}: failed with 137" in out and f"{short}: finished" in out
    assert read_metrics(metrics.parent)[-1]["step"] < STEPS

    finished = (pathlib.Path("sweep") / short / "train" / "metrics.jsonl").stat().st_mtime_ns
    code, out, err = pixr1("sweep", *arguments, **variables)
    assert code == 0, err
    assert f"{short}: finished\n{wide}: unfinished\n{wide}: started, 1 of 1" in out
    assert (pathlib.Path("sweep") / short / "train" / "metrics.jsonl").stat().st_mtime_ns == finished
    assert [line["step"] for line in read_metrics(metrics.parent)] == list(range(1, STEPS + 1))

    shutil.copytree("sweep/shards", "whole/shards")
    whole = [f"--config.{field}" for field in ("model.width=16", "train.optimizer.learning_rate=0.03125")]
    code, _, err = pixr1("train", "--config=configs/pod.py:smoke", *changes, *whole, "--workdir=whole", **variables)
    assert code == 0, err
    losses = [line["train/loss"] for line in read_metrics("whole/train")]
    assert losses == [line["train/loss"] for line in read_metrics(metrics.parent)]

    code, out, err = pixr1("sweep", "--report", "--workdir=sweep", **variables)
    assert code == 0, err
    table = json.loads(pathlib.Path("sweep/report.json").read_text())["trials"]
    assert {row["trial"]: row["state"] for row in table} == {short: "finished", wide: "finished"}


def _process_of(trial: str) -> int:
    word = f"--workdir=sweep/{trial}".encode()
    here = pathlib.Path.cwd()
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if word in (folder / "cmdline").read_bytes().split(b"\0") and (folder / "cwd").resolve() == here:
                return int(folder.name)
        except OSError:
            continue  # it ended meanwhile
    raise AssertionError(f"nothing runs {trial}")
