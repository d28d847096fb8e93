"""`pixr1 launch`: a job for a cluster, for TPU machines or for this one, as files; with --submit it is started.

pixr1 launch --config=FILE --to=gke    [--topology=v6e-256] [--num_slices=N] [--stage=distill] [--submit]
    Writes NAME.jobset.yaml, and NAME.queue.yaml for a new cluster; --submit runs kubectl apply on the first.
pixr1 launch --config=FILE --to=queued [--topology=v6e-256] [--num_slices=N] [--stage=distill] [--submit]
    Writes NAME.queued.sh, which asks for machines and runs the job there; --submit runs it.
pixr1 launch --config=FILE --to=local --workdir=DIR [--processes=N] [--stage=distill] [--submit]
    Writes NAME.local.json, processes of this machine; --submit runs them, as python -m launch.local FILE does.

Without --topology it is the config's `plan.topology`. A job's bucket, image, queue and so on are the section `launch`
of the config (launch/job.py). On a pod --workdir is a folder of the bucket, the job's name by default.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Sequence

from absl import flags

from launch import gke, local, queued
from launch import job as job_lib
from launch.files import write
from pixr1_jax.core import cli_errors, topology
from pixr1_jax.core import config as config_lib

_TARGETS = ("gke", "queued", "local")


def define_flags() -> None:
    """Defines the flags of this verb."""
    config_lib.define_flags()
    flags.DEFINE_enum("to", None, _TARGETS, "Where the job runs.")
    flags.DEFINE_string("topology", None, "gke, queued: the slice, as in v6e-256, v6e:16x16 or v5p:8x8x4.")
    flags.DEFINE_integer("num_slices", None, "gke, queued: how many slices, joined by the data center network.")
    flags.DEFINE_integer("processes", 1, "local: how many processes.")
    flags.DEFINE_enum("stage", "train", job_lib.STAGES, "What is run.")
    flags.DEFINE_string("name", None, "The job's name; from the config and the stage by default.")
    flags.DEFINE_string("out", "runs/launch", "Folder for the files.")
    flags.DEFINE_bool("submit", False, "Starts the job.")


def main(argv: Sequence[str]) -> None:
    """Writes the files of a job, and starts it if asked to."""
    if len(argv) > 1:
        raise ValueError(f"pixr1 launch takes no argument {argv[1]!r}; see pixr1 launch --help")
    given = flags.FLAGS
    if given.to is None:
        raise ValueError(f"--to is missing; use one of {', '.join(_TARGETS)}")
    config = config_lib.flag_config()
    launch = job_lib.settings(config)
    file, overrides = config_lib.flag_source()
    name = given.name or job_lib.default_name(file, given.stage)
    # What says how the job is launched is no business of its run.
    overrides = {field: value for field, value in overrides.items() if not field.startswith("launch.")}
    workdir = str(config_lib.flag_workdir()) if given.to == "local" else given.workdir or name
    job = job_lib.Job(name=name, stage=given.stage, config=file, overrides=overrides, workdir=workdir)
    out = pathlib.Path(given.out)
    if given.to == "local":
        path = out / f"{name}.local.json"
        write(path, local.to_json(local.from_job(job, given.processes, launch)))
        _end(given.submit, path, [sys.executable, "-m", "launch.local", str(path)])
        return
    slice_, num_slices = topology.asked(config.get("plan", {}), given.topology, given.num_slices)
    job_lib.check_mesh(config, slice_, num_slices)
    job = job_lib.pod_job(job)
    if given.to == "gke":
        path = out / f"{name}.jobset.yaml"
        write(path, gke.to_yaml([gke.job_set(job, slice_, num_slices, launch)]))
        if launch.queue:
            write(out / f"{name}.queue.yaml", gke.to_yaml(gke.queue(slice_, num_slices, launch)))
        _end(given.submit, path, ["kubectl", "apply", "-f", str(path)])
    else:
        path = out / f"{name}.queued.sh"
        write(path, queued.script(job, slice_, num_slices, launch))
        path.chmod(0o755)
        _end(given.submit, path, ["bash", str(path)])


def _end(submit: bool, path: pathlib.Path, command: list[str]) -> None:
    """Becomes the command that starts the job, or says it."""
    if not submit:
        print(f"start it with: {' '.join(command)}")
        return
    if shutil.which(command[0]) is None:
        raise ValueError(f"{command[0]} is not installed here; install it, or start {path} where it is")
    sys.stdout.flush()
    if command[0] == "kubectl":
        raise SystemExit(subprocess.run(command).returncode)
    # The job's signals are then its own.
    os.execvp(command[0], command)


if __name__ == "__main__":
    define_flags()
    cli_errors.run(main)
