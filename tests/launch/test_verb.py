"""`pixr1 launch`: what it writes, what it starts, and what a mistake costs."""

import functools
import os
import pathlib
import stat
import subprocess
import sys

import pytest
import yaml
from absl import flags
from ml_collections import config_flags

from launch import local


def launch(pixr1, *arguments: str, config: str = "configs/pod.py:smoke") -> tuple[int, str, str]:
    return pixr1("launch", f"--config={config}", *arguments)


def test_gke_writes_a_job_set_and_a_queue(repository, pixr1):
    code, out, err = launch(
        pixr1,
        "--topology=v6e-256",
        "--to=gke",
        "--num_slices=2",
        "--config.train.steps=7",
        "--config.export.steps=(1,)",
        "--config.launch.max_restarts=3",
    )
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "start it with: kubectl apply -f runs/launch/pod-smoke-train.jobset.yaml"
    (found,) = yaml.safe_load_all((repository / "runs/launch/pod-smoke-train.jobset.yaml").read_text())
    assert found["metadata"]["name"] == "pod-smoke-train"
    # From the command line, and not handed on to the run.
    assert found["spec"]["failurePolicy"]["maxRestarts"] == 3
    (slices,) = found["spec"]["replicatedJobs"]
    assert slices["replicas"] == 2
    (container,) = slices["template"]["spec"]["template"]["spec"]["containers"]
    assert container["command"][-1] == (
        "exec pixr1 train --config=configs/pod.py:smoke --config.train.steps=7 '--config.export.steps=(1,)' "
        "--workdir=/bucket/pod-smoke-train --stopped_code=75"
    )
    kinds = [
        one["kind"] for one in yaml.safe_load_all((repository / "runs/launch/pod-smoke-train.queue.yaml").read_text())
    ]
    assert kinds == ["ResourceFlavor", "ClusterQueue", "LocalQueue", "WorkloadPriorityClass"]


def test_what_is_handed_on_is_read_as_it_was_given(repository, pixr1, monkeypatch):
    """The flags that a job gives its run make the same config again, values of every type included."""
    given = [
        "--config.train.steps=7",
        "--config.export.steps=(1,)",
        "--config.data.live=true",
        "--config.model.audio_scale=2",
    ]
    (repository / "configs" / "live.py").write_text(
        (repository / "configs" / "pod.py")
        .read_text()
        .replace("config.launch =", "config.data.live = False; config.launch =")
    )
    code, out, err = launch(pixr1, "--to=local", "--workdir=w", *given, config="configs/live.py")
    assert code == 0, err
    job = local.read("runs/launch/live-train.local.json")
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values)
    # Which fields are overridden is read from there.
    monkeypatch.setattr("sys.argv", ["pixr1", *[word for word in job.command if word.startswith("--config")]])
    values(sys.argv)
    config = values.config
    assert (config.train.steps, config.export.steps, config.data.live, config.model.audio_scale) == (7, (1,), True, 2.0)


def test_queued_writes_a_script_that_can_be_started(repository, pixr1):
    code, out, err = launch(
        pixr1, "--topology=v5p:8x8x4", "--to=queued", "--stage=distill", "--name=mine", "--workdir=run"
    )
    assert (code, err) == (0, "")
    path = repository / "runs/launch/mine.queued.sh"
    assert path.stat().st_mode & stat.S_IXUSR
    assert "pixr1 distill --config=configs/pod.py:smoke --workdir=/bucket/run" in path.read_text()
    assert subprocess.run(["bash", "-n", path]).returncode == 0


def test_local_writes_processes(repository, pixr1, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    code, out, err = launch(pixr1, "--to=local", "--processes=2", "--workdir=work")
    assert (code, err) == (0, "")
    job = local.read("runs/launch/pod-smoke-train.local.json")
    assert (job.processes, job.max_restarts, job.grace_seconds, job.logs) == (2, 7, 90, "work/logs/train")
    assert job.environment["JAX_COMPILATION_CACHE_DIR"] == "work/compilation-cache"
    assert job.command[1:4] == ("-m", "pixr1_jax.cli", "train")


GKE = ("--to=gke", "--topology=v6e-256")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to=gke", "--topology=v6e-255"], ["'v6e-255'", "v6e-256"]),
        (["--to=gke", "--topology=v6e:15x16"], ["cannot be 15x16", "16x16"]),
        (["--to=queued", "--topology=tpu"], ["'tpu' is no TPU slice", "v5p:"]),
        (["--to=gke"], ["--topology is missing"]),
        (["--topology=v6e-256"], ["--to is missing", "gke, queued, local"]),
        (
            ["--to=gke", "--topology=v6e-64"],
            ["config.mesh (", "fsdp=64", "does not fit 64 devices", "--topology has 1 x v6e:8x8"],
        ),
        ([*GKE, "--num_slices=0"], ["--num_slices=0"]),
        (
            ["--to=gke", "--topology=v6e-256", "--config.launch.bucket="],
            ["config.launch.bucket is missing", "gs://NAME"],
        ),
        (
            ["--to=gke", "--topology=v6e-256", "--config.launch.bucket=/disk"],
            ["config.launch: bucket='/disk' is no bucket"],
        ),
        (
            ["--to=gke", "--topology=v6e-256", "--config.launch.image="],
            ["config.launch.image is missing", "Dockerfile"],
        ),
        (["--to=queued", "--topology=v6e-256", "--config.launch.zone="], ["config.launch.zone is missing"]),
        ([*GKE, "--name=Big_Job"], ["--name='Big_Job'"]),
        ([*GKE, "--workdir=/tmp/x"], ["--workdir=/tmp/x is not below the bucket"]),
        (["--to=local"], ["--workdir is missing"]),
        (["--to=local", "--workdir=w", "--processes=0"], ["--processes=0"]),
        (["--to=local", "--workdir=w", "now"], ["'now'"]),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(repository, pixr1, arguments, words):
    code, out, err = launch(pixr1, *arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert all(word in err for word in words), err
    assert not (repository / "runs").exists()


def test_a_config_elsewhere_is_not_in_the_image(repository, pixr1):
    code, _, err = launch(pixr1, "--to=gke", "--topology=v6e-256", config=str(repository / "configs/pod.py"))
    assert code == 1 and "is not in the image" in err


def test_submit_applies_the_job_set(repository, pixr1):
    submit = functools.partial(
        pixr1, "launch", "--config=configs/pod.py:smoke", "--to=gke", "--topology=v6e-256", "--submit"
    )
    tools = repository / "tools"
    tools.mkdir()
    (tools / "kubectl").write_text(f'#!/bin/sh\necho "$@" > {tools}/called\nexit 3\n')
    (tools / "kubectl").chmod(0o755)
    code, _, _ = submit(PATH=f"{tools}:{os.environ['PATH']}")
    assert code == 3
    assert (tools / "called").read_text() == "apply -f runs/launch/pod-smoke-train.jobset.yaml\n"
    code, _, err = submit(PATH=str(repository))
    assert code == 1 and "kubectl is not installed here" in err and err.count("\n") == 1


def test_the_image_holds_what_a_job_needs():
    """Every folder that is imported or named by a job is copied, and nothing that .dockerignore hides."""
    root = pathlib.Path(local.__file__).parents[1]
    copied = {
        word.rstrip("/")
        for line in (root / "launch" / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY")
        for word in line.split()[1:-1]
    }
    assert {"pixr1_jax", "data_pipelines", "launch", "configs", "requirements.lock", "pyproject.toml"} <= copied
    seen = {line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == seen
    assert all((root / name).exists() for name in copied)
