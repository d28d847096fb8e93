"""The job that `pixr1 launch --to=local` writes, run for real: two processes train, one is killed, the job recovers."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from launch import local
from pixr1_jax.training.checkpoint import finished_steps
from pixr1_jax.training.metrics import read_metrics

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 12
FIELDS = {"train.steps": STEPS, "train.checkpoint.every_steps": 5, "pack.batch_rows": 2, "pack.prefetch": 2}
WAIT = 400  # seconds until a test gives up


@pytest.fixture
def write(repository, pixr1, tiny, here):
    """Writes a local job with the command line, on a work directory that has clips; returns its file."""

    def write(workdir: str, processes: int) -> pathlib.Path:
        tiny.write_clips(pathlib.Path(workdir))
        fields = tiny.EXPERIMENT | FIELDS | here
        changes = [f"--config.{field}={value}" for field, value in fields.items()]
        arguments = ["--to=local", f"--processes={processes}", f"--workdir={workdir}", f"--name={workdir}"]
        code, _, err = pixr1("launch", "--config=configs/pod.py:smoke", *changes, *arguments)
        assert code == 0, err
        return pathlib.Path("runs/launch") / f"{workdir}.local.json"

    return write


@pytest.fixture
def start(repository, tmp_path, processes):
    """Starts the supervisor on a file, as the command line says."""
    started = []
    variables = processes.environment(1, tmp_path / "compiled")

    def start(path):
        log = open(f"{path}.log", "w")  # noqa: SIM115 (the process has it)
        command = [sys.executable, "-m", "launch.local", str(path)]
        started.append(subprocess.Popen(command, env=variables, stdout=log, stderr=log, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(WAIT)


def said(path: pathlib.Path) -> str:
    logs = [pathlib.Path(f"{path}.log"), *pathlib.Path(local.read(path).logs).glob("*.log")]
    return "\n".join(f"--- {log}\n{log.read_text()[-2000:]}" for log in logs)


def wait_for_step(process, path, workdir, step):
    """Returns once the metrics have a line for `step`, and a checkpoint of it or before is there."""
    train = pathlib.Path(workdir) / "train"
    deadline = time.monotonic() + WAIT
    while not (
        (train / "metrics.jsonl").exists()
        and (train / "metrics.jsonl").read_bytes().count(b"\n") >= step
        and finished_steps(train / "checkpoints")
    ):
        assert process.poll() is None and time.monotonic() < deadline, said(path)
        time.sleep(0.02)


def process_of(supervisor: int, number: int) -> int:
    """The process of the job with this number."""
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended meanwhile
        if parent == supervisor and f"PIXR1_PROCESS={number}".encode() in variables:
            return int(folder.name)
    raise AssertionError(f"no process {number}")


def test_a_job_of_two_recovers_from_its_checkpoint_when_one_is_killed(write, start):
    path = write("work", 2)
    process = start(path)
    wait_for_step(process, path, "work", 6)
    os.kill(process_of(process.pid, 1), signal.SIGKILL)
    assert process.wait(WAIT) == 0, said(path)
    assert "process 1 ended with 137" in pathlib.Path(f"{path}.log").read_text()
    first, second = re.findall(rf"step (\d+) of {STEPS}", pathlib.Path("work/logs/train/0.log").read_text())
    assert first == "0" and int(second) >= 5 and int(second) % 5 == 0
    # Every step once, those that the first attempt had not saved included.
    assert [line["step"] for line in read_metrics("work/train")] == list(range(1, STEPS + 1))
    assert finished_steps("work/train/checkpoints")[-1] == STEPS
