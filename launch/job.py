"""What is launched: one stage of one config on some slices or processes, before it is said to GKE, gcloud or a shell.

Everything that a run makes goes to its work directory, on a pod a folder of the bucket, which every machine mounts at
`MOUNT`: so a restarted job finds its checkpoints, and every start after the first the compiled programs.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shlex
from collections.abc import Mapping
from typing import Any

import ml_collections

from pixr1_jax.core import config as config_lib
from pixr1_jax.core.topology import Topology

MOUNT = "/bucket"
STOPPED = 75  # exit code of a stage that was stopped by a signal and saved: EX_TEMPFAIL, "try again"
SHARDS = "shards"  # where a work directory has its dataset
STAGES = ("train", "distill")

_BUCKET = re.compile(r"gs://(?P<name>[a-z0-9][a-z0-9._-]{1,220}[a-z0-9])(/(?P<folder>[\w./-]*))?")
_LABEL = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_LONGEST_NAME = 40  # GKE adds the slice, the process and a suffix, and stops at 63


@dataclasses.dataclass(frozen=True)
class LaunchConfig:
    """The section `launch` of a config. An empty string means: not given.

    Attributes:
        bucket: gs://NAME or gs://NAME/FOLDER; holds work directories and compiled programs.
        image: container image, built from launch/Dockerfile.
        max_restarts: restarts after failures; those after a preemption do not count.
        grace_seconds: between SIGTERM and SIGKILL, time to save. Spot machines grant about 25.
        namespace: of Kubernetes.
        queue: LocalQueue of Kueue; without it the job is not queued.
        priority: WorkloadPriorityClass of Kueue.
        service_account: Kubernetes service account that may write to the bucket.
        spot: take machines that may be preempted.
        reservation: take machines of this reservation; queued resources take any of the project.
        project: Google Cloud project, for queued resources.
        zone: zone of the queued resources.
        runtime: runtime version of queued resources, in place of the generation's.
    """

    bucket: str = ""
    image: str = ""
    max_restarts: int = 10
    grace_seconds: int = 120
    namespace: str = "default"
    queue: str = ""
    priority: str = ""
    service_account: str = ""
    spot: bool = False
    reservation: str = ""
    project: str = ""
    zone: str = ""
    runtime: str = ""

    def __post_init__(self):
        if self.bucket and not _BUCKET.fullmatch(self.bucket):
            raise ValueError(f"bucket={self.bucket!r} is no bucket; give gs://NAME or gs://NAME/FOLDER")
        if self.max_restarts < 0 or self.grace_seconds < 1:
            raise ValueError(
                f"max_restarts={self.max_restarts} and grace_seconds={self.grace_seconds} must be at least 0 and 1"
            )
        if self.spot and self.reservation:
            raise ValueError("spot machines are of no reservation; give spot or reservation")

    @property
    def bucket_name(self) -> str:
        """The bucket without its scheme and folder."""
        return self.bucket.removeprefix("gs://").partition("/")[0]

    @property
    def bucket_folder(self) -> str:
        """The folder of the bucket, without slashes around it; "" for the whole bucket."""
        return self.bucket.removeprefix("gs://").partition("/")[2].strip("/")

    def require(self, *names: str) -> None:
        """Raises ConfigError for the first of the named fields that is not given."""
        meanings = {
            "bucket": "the bucket for checkpoints and compiled programs, as in gs://NAME",
            "image": "the container image, built from launch/Dockerfile",
            "project": "the Google Cloud project",
            "zone": "the zone, as in us-east5-b",
        }
        for name in names:
            if not getattr(self, name):
                raise config_lib.ConfigError(
                    f"config.launch.{name} is missing; give {meanings[name]}, in the config or with "
                    f"--config.launch.{name}=..."
                )


@dataclasses.dataclass(frozen=True)
class Job:
    """One stage of one config.

    Attributes:
        name: lower-case letters, digits and dashes.
        stage: "train" or "distill".
        config: FILE.py or FILE.py:ARGUMENT, as --config takes it.
        overrides: fields of the config that differ, by their path without "config.".
        workdir: where the run keeps what it makes, as its processes see it.
        shards: a dataset folder beside `workdir` that it shares; "" where it has its own.
    """

    name: str
    stage: str
    config: str
    overrides: Mapping[str, Any]
    workdir: str
    shards: str = ""

    def __post_init__(self):
        if self.stage not in STAGES:
            raise ValueError(f"--stage={self.stage} is no stage; use one of {', '.join(STAGES)}")
        if not _LABEL.fullmatch(self.name) or len(self.name) > _LONGEST_NAME:
            raise ValueError(
                f"--name={self.name!r} cannot name a job; use up to {_LONGEST_NAME} lower-case letters, digits and "
                "dashes, a letter first"
            )

    @property
    def arguments(self) -> list[str]:
        """What follows `pixr1`: the verb and its flags."""
        overrides = [f"--config.{field}={flag_text(value)}" for field, value in self.overrides.items()]
        flags = [f"--config={self.config}", *overrides, f"--workdir={self.workdir}", f"--stopped_code={STOPPED}"]
        return [self.stage, *flags]

    @property
    def script(self) -> str:
        """The job as one line of a shell, which hands signals on."""
        line = f"exec pixr1 {shlex.join(self.arguments)}"
        if not self.shards:
            return line
        here = shlex.quote(f"{self.workdir}/{SHARDS}")
        # All processes of the job do this, one of them first.
        link = f"{{ ln -sT {shlex.quote(self.shards)} {here} 2>/dev/null || test -e {here}; }}"
        return f"mkdir -p {shlex.quote(self.workdir)} && {link} && {line}"


def settings(config: ml_collections.ConfigDict) -> LaunchConfig:
    """Returns the section `launch` of a config, or its defaults where there is none.

    Raises:
        ConfigError: a field is unknown or wrong.
    """
    return config_lib.freeze(LaunchConfig, config.get("launch", {}), "config.launch")


def pod_job(job: Job) -> Job:
    """Returns a job whose work directory is below the bucket, named as it was given.

    Raises:
        ValueError: the work directory or the config file cannot be what it is on another machine.
    """
    path = pathlib.PurePosixPath(job.workdir)
    if path.is_absolute() or ".." in path.parts or "://" in job.workdir:
        raise ValueError(f"--workdir={job.workdir} is not below the bucket; give a name, as in --workdir={job.name}")
    file = pathlib.PurePosixPath(job.config.partition(":")[0])
    if file.is_absolute() or ".." in file.parts:
        raise ValueError(f"--config={job.config} is not in the image; give a path below the repository, as in configs/")
    return dataclasses.replace(job, workdir=f"{MOUNT}/{path}")


def default_name(config: str, stage: str) -> str:
    """Returns a job's name from its config, as in "quickstart-smoke-train" for configs/quickstart.py:smoke."""
    file, _, argument = config.partition(":")
    words = re.sub(r"[^a-z0-9]+", "-", f"{pathlib.PurePath(file).stem} {argument} {stage}".lower())
    return words.strip("-")[:_LONGEST_NAME].strip("-")


def environment() -> dict[str, str]:
    """The environment variables of a process on a pod; who is who is told by GKE and by the TPU machines themselves."""
    return {"JAX_COMPILATION_CACHE_DIR": f"{MOUNT}/compilation-cache", "PYTHONUNBUFFERED": "1"}


def flag_text(value: Any) -> str:
    """Returns a value as a flag takes it: strings as they are, others as Python writes them."""
    return value if isinstance(value, str) else repr(value)


def check_mesh(config: ml_collections.ConfigDict, topology: Topology, slices: int) -> None:
    """Checks that the mesh of a config can be laid over slices.

    Raises:
        ConfigError: it cannot; the message says how many chips there are.
    """
    # It brings jax with it, which a mistake in another flag need not wait for.
    from pixr1_jax.core.partition import AXES, MeshShape

    sizes = {name: size for name, size in config.mesh.items() if name in AXES}
    shape = config_lib.freeze(MeshShape, sizes, "config.mesh")
    try:
        shape.resolve(topology.chips * slices, slices)
    except ValueError as error:
        raise config_lib.ConfigError(f"config.{error}; --topology has {slices} x {topology.name}") from error
