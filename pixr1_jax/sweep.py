"""`pixr1 sweep`: the trials that a config's `sweep()` lists.

pixr1 sweep --config=FILE --to=local --workdir=DIR [--jobs=N] [--stage=distill]
    Builds the dataset once, then runs each trial in DIR/TRIAL, N side by side. The same command skips what is finished
    and continues what is not.
pixr1 sweep --config=FILE --to=gke --topology=v6e-256 [--jobs=N] [--workdir=NAME] [--num_slices=N] [--out=DIR]
    Writes a JobSet a trial, and a queue that admits N of them at a time. The dataset is expected in NAME/shards of the
    bucket.
pixr1 sweep --report --workdir=DIR [--metric=train/loss] [--stage=distill]
    Writes and prints report.txt, and report.json, report.csv and report.png beside it.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from launch import gke, trials
from launch import job as job_lib
from launch.files import write
from pixr1_jax.core import cli_errors, topology
from pixr1_jax.core import config as config_lib

_TARGETS = ("local", "gke")


def define_flags() -> None:
    """Defines the flags of this verb."""
    config_lib.define_flags()
    flags.DEFINE_enum("to", None, _TARGETS, "Where the trials run.")
    flags.DEFINE_integer("jobs", 1, "How many trials run side by side.")
    flags.DEFINE_enum("stage", "train", job_lib.STAGES, "What is run, or reported on.")
    flags.DEFINE_string("topology", None, "gke: the slice of a trial, as in v6e-256, v6e:16x16 or v5p:8x8x4.")
    flags.DEFINE_integer("num_slices", 1, "gke: how many slices a trial has.")
    flags.DEFINE_string("out", "runs/launch", "gke: folder for the files.")
    flags.DEFINE_bool("report", False, "Writes a table and a picture of what came out.")
    flags.DEFINE_string("metric", None, "report: the metric, STAGE/loss by default.")


def main(argv: Sequence[str]) -> None:
    """Runs or writes the trials, or reports on them."""
    if len(argv) > 1:
        raise ValueError(f"pixr1 sweep takes no argument {argv[1]!r}; see pixr1 sweep --help")
    given = flags.FLAGS
    if given.report:
        _report(config_lib.flag_workdir(), given.stage, given.metric or f"{given.stage}/loss")
        return
    if given.to is None:
        raise ValueError(f"--to is missing; use one of {', '.join(_TARGETS)}, or --report")
    if given.jobs < 1:
        raise ValueError(f"--jobs={given.jobs} must be at least 1")
    if given.to == "local":
        _run(config_lib.flag_workdir(), given.stage, given.jobs)
    else:
        _write(given.stage, given.jobs)


def _run(directory: pathlib.Path, stage: str, at_once: int) -> None:
    config = config_lib.flag_config()
    file, overrides = config_lib.flag_source()
    listed = trials.load(file, config)
    name = job_lib.default_name(file, stage)
    trials.record(directory, config, listed)
    states = {trial.name: trials.state(directory, config, trial, stage) for trial in listed}
    for trial, state in states.items():
        print(f"{trial}: {state}")
    jobs = {
        trial.name: trials.job(trial, name, stage, file, overrides, str(directory))
        for trial in listed
        if states[trial.name] != "finished"
    }
    if jobs:
        from pixr1_jax.data import build_data  # slow to import, and only needed here

        build_data(config, directory / job_lib.SHARDS)
    codes = trials.run(directory, jobs, at_once, job_lib.settings(config).grace_seconds)
    failed = [trial for trial, code in codes.items() if code not in (0, job_lib.STOPPED)]
    if failed:
        logs = ", ".join(str(directory / trial / trials.LOG) for trial in failed)
        raise ValueError(f"{len(failed)} of {len(listed)} trials failed, see {logs}; the same command continues them")
    if len(codes) < len(jobs) or job_lib.STOPPED in codes.values():
        print("stopped and saved; the same command continues")
        raise SystemExit(job_lib.STOPPED)
    print(f"all {len(listed)} trials are finished; pixr1 sweep --report --workdir={directory} says what came out")


def _write(stage: str, at_once: int) -> None:
    given = flags.FLAGS
    config = config_lib.flag_config()
    file, overrides = config_lib.flag_source()
    overrides = {field: value for field, value in overrides.items() if not field.startswith("launch.")}
    if not given.topology:
        raise ValueError("--topology is missing; name the slice of a trial, as in --topology=v6e-256")
    slice_, launch = topology.parse(given.topology), job_lib.settings(config)
    name = job_lib.default_name(file, stage)
    directory = given.workdir or name
    sets = []
    for number, trial in enumerate(trials.load(file, config)):
        job_lib.check_mesh(trials.changed(config, trial), slice_, given.num_slices)
        job = trials.job(trial, f"{name[:36]}-{number:03d}", stage, file, overrides, directory)
        sets.append(gke.job_set(job_lib.pod_job(job), slice_, given.num_slices, launch))
    out = pathlib.Path(given.out)
    path = out / f"{name}.sweep.yaml"
    write(path, gke.to_yaml(sets))
    if launch.queue:
        write(out / f"{name}.queue.yaml", gke.to_yaml(gke.queue(slice_, given.num_slices * at_once, launch)))
    print(f"build the dataset: pixr1 data build --config={file} --out={launch.bucket}/{directory}/{job_lib.SHARDS}")
    print(f"start {len(sets)} trials with: kubectl apply -f {path}")


def _report(directory: pathlib.Path, stage: str, metric: str) -> None:
    from launch import report  # matplotlib, which running does without

    print(report.write(report.results(directory, stage, metric), metric, directory), end="")
    print(f"picture: {directory / 'report.png'}", file=sys.stderr)


if __name__ == "__main__":
    define_flags()
    cli_errors.run(main)
