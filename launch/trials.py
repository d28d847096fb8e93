"""The trials of a sweep: which there are, what has become of each, and running those that are not finished.

A sweep's folder holds `sweep.json`, `shards/` (the dataset, which all trials share) and a folder a trial, named by its
changes: a work directory like any other.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import ml_collections

from launch import sweeps
from launch.job import SHARDS, STOPPED, Job
from launch.sweeps import SweepError
from pixr1_jax.core import config as config_lib

RECORD = "sweep.json"
LOG = "log.txt"
_POLL_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        name: from its changes; also its folder in the sweep's.
        changes: values by field.
    """

    name: str
    changes: Mapping[str, Any]


def load(config_file: str, config: ml_collections.ConfigDict) -> list[Trial]:
    """Returns the trials of the `sweep()` in a config file.

    Args:
        config_file: FILE.py or FILE.py:ARGUMENT.
        config: the config that the trials change.

    Raises:
        SweepError: the file has no sweep, or a change does not fit the config.
    """
    file = config_file.partition(":")[0]
    sweep = runpy.run_path(file).get("sweep")
    if sweep is None:
        raise SweepError(f"{file} has no sweep(); add one, launch/sweeps.py says how")
    changes = list(sweep())
    if not changes:
        raise SweepError(f"sweep() of {file} has no trial")
    found = [Trial(*one) for one in zip(sweeps.names(changes), changes, strict=True)]
    for trial in found:
        changed(config, trial)
    return found


def changed(config: ml_collections.ConfigDict, trial: Trial) -> ml_collections.ConfigDict:
    """Returns the config of a trial.

    Raises:
        SweepError: a field is not in the config, takes no such value, or says what the data are.
    """
    found = config.copy_and_resolve_references()
    for field, value in trial.changes.items():
        *path, last = field.split(".")
        if path[:1] == ["data"]:
            raise SweepError(f"the sweep changes config.{field}, but trials share one dataset; sweep over other fields")
        section = found
        for name in path:
            section = section[name] if isinstance(section, ml_collections.ConfigDict) and name in section else None
        if not isinstance(section, ml_collections.ConfigDict) or last not in section:
            raise SweepError(f"the sweep changes config.{field}, which is not in the config")
        try:
            section[last] = value
        except TypeError as error:
            raise SweepError(f"the sweep sets config.{field} to {value!r}: {error}") from error
    return found


def job(trial: Trial, name: str, stage: str, config_file: str, overrides: Mapping[str, Any], directory: str) -> Job:
    """Returns a trial as a job, whose work directory is in the sweep's folder `directory`."""
    workdir = f"{directory}/{trial.name}"
    return Job(name, stage, config_file, {**overrides, **trial.changes}, workdir, shards=f"../{SHARDS}")


def record(directory: pathlib.Path, config: ml_collections.ConfigDict, trials: Sequence[Trial]) -> None:
    """Writes what a sweep is, and adds trials to one that is there.

    Raises:
        SweepError: the folder holds a sweep of another config.
    """
    base = config_lib.to_plain(config)
    new = {trial.name: config_lib.to_plain(dict(trial.changes)) for trial in trials}
    path = directory / RECORD
    old = {}
    if path.exists():
        found = _read(directory)
        old, before, now = found["trials"], _flat(found["config"]), _flat(base)
        for field in sorted({*before, *now}):
            if before.get(field) != now.get(field):
                raise SweepError(
                    f"{directory} holds a sweep of another config: {field} is {before.get(field)!r} there and "
                    f"{now.get(field)!r} here; choose another --workdir"
                )
    directory.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps({"config": base, "trials": old | new}, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def recorded(directory: pathlib.Path) -> tuple[ml_collections.ConfigDict, list[Trial]]:
    """Returns the config and the trials of a sweep's folder.

    Raises:
        SweepError: there is no sweep.
    """
    found = _read(directory)
    trials = [Trial(name, changes) for name, changes in found["trials"].items()]
    return ml_collections.ConfigDict(found["config"]), trials


def state(
    directory: pathlib.Path, config: ml_collections.ConfigDict, trial: Trial, stage: str
) -> Literal["new", "unfinished", "finished"]:
    """Returns what has become of a trial."""
    # They bring jax with them, which writing the trials for a cluster does without.
    from pixr1_jax.training import setup
    from pixr1_jax.training.checkpoint import finished_steps

    workdir = directory / trial.name
    saved = finished_steps(setup.checkpoint_directory(workdir, stage))
    if saved and saved[-1] >= changed(config, trial)[stage].steps:
        return "finished"
    return "unfinished" if (workdir / stage).exists() else "new"


def run(directory: pathlib.Path, jobs: Mapping[str, Job], at_once: int, grace_seconds: int) -> dict[str, int]:
    """Runs trials as processes of this machine.

    Their output goes to log.txt of each. After SIGTERM or Ctrl-C all that run may save, and no other is started.

    Args:
        directory: of the sweep; has `shards/`.
        jobs: those to run, by the name of the trial.
        at_once: how many run side by side.
        grace_seconds: between SIGTERM and SIGKILL.

    Returns:
        The exit codes of those that were started.
    """
    waiting = list(jobs)
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    codes: dict[str, int] = {}
    stopping: list[float] = []
    former = {
        number: signal.signal(number, lambda *_: stopping.append(time.monotonic()))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    told = False
    try:
        while running or (waiting and not stopping):
            while waiting and len(running) < at_once and not stopping:
                name = waiting.pop(0)
                running[name] = _start(directory / name, jobs[name], directory), time.monotonic()
                print(f"{name}: started, {len(jobs) - len(waiting)} of {len(jobs)}", flush=True)
            if stopping and not told:
                told = True
                for process, _ in running.values():
                    process.terminate()
            for name, (process, since) in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    codes[name] = process.returncode if process.returncode >= 0 else 128 - process.returncode
                    print(f"{name}: {_ending(codes[name])}, {time.monotonic() - since:.0f} s", flush=True)
            if stopping and time.monotonic() > stopping[0] + grace_seconds:
                break
            time.sleep(_POLL_SECONDS)
    finally:
        for name, (process, _) in running.items():
            process.kill()
            codes[name] = 128 - process.wait()
        for number, handler in former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    return codes


def _start(workdir: pathlib.Path, given: Job, directory: pathlib.Path) -> subprocess.Popen[bytes]:
    workdir.mkdir(exist_ok=True)
    shards = workdir / SHARDS
    if not shards.is_symlink():
        shards.symlink_to(given.shards, target_is_directory=True)
    # Trials of one shape compile the same programs.
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(directory.absolute() / "compilation-cache")
    command = [sys.executable, "-m", "pixr1_jax.cli", *given.arguments]
    with open(workdir / LOG, "ab") as log:
        log.write(f"== {time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(command)}\n".encode())
        log.flush()
        return subprocess.Popen(
            command,
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _ending(code: int) -> str:
    return {0: "finished", STOPPED: "stopped and saved"}.get(code, f"failed with {code}, see its {LOG}")


def _read(directory: pathlib.Path) -> dict[str, Any]:
    path = directory / RECORD
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SweepError(f"{path} does not exist; give the folder of a sweep that was started") from error
    except ValueError as error:
        raise SweepError(f"{path} is no record of a sweep ({error}); start the sweep in another folder") from error


def _flat(value: Any, path: str = "config") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {name: leaf for key, one in value.items() for name, leaf in _flat(one, f"{path}.{key}").items()}
