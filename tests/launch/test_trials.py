"""Trials: which there are, what they share, how they run side by side, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from ml_collections import ConfigDict

from launch import trials
from launch.job import STOPPED
from launch.trials import SweepError, Trial

# In the place of Python: does what a file beside it says for the trial, and notes when it ran.
RUNNER = """#!{python}
import json, os, pathlib, signal, sys, time
here = pathlib.Path(__file__).parent
workdir = pathlib.Path(next(word.split("=", 1)[1] for word in sys.argv if word.startswith("--workdir=")))
plan = json.loads((here / "plan.json").read_text()).get(workdir.name, [0.3, 0])
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
(here / f"began-{{workdir.name}}").write_text(str(time.monotonic()))
until = time.monotonic() + plan[0]
while time.monotonic() < until and not (stopped and plan[1] != "refuse"):
    time.sleep(0.02)
(here / f"ended-{{workdir.name}}").write_text(str(time.monotonic()))
(workdir / "environment.json").write_text(json.dumps([sys.argv[1:], dict(os.environ)]))
if plan[1] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit({stopped} if stopped else plan[1])
"""


@pytest.fixture
def directory(tmp_path, monkeypatch):
    runner = tmp_path / "tools" / "python"
    runner.parent.mkdir()
    runner.write_text(RUNNER.format(python=sys.executable, stopped=STOPPED))
    runner.chmod(0o755)
    monkeypatch.setattr(trials.sys, "executable", str(runner))
    (tmp_path / "sweep" / "shards").mkdir(parents=True)
    return tmp_path / "sweep"


def jobs(directory, names, **plan):
    (directory.parent / "tools" / "plan.json").write_text(json.dumps(plan))
    return {
        name: trials.job(Trial(name, {"seed": n}), "x", "train", "c.py", {"a.b": (1, 2)}, str(directory))
        for n, name in enumerate(names)
    }


def time_of(directory, what, name) -> float:
    return float((directory.parent / "tools" / f"{what}-{name}").read_text())


def most_at_once(directory, names) -> int:
    spans = [(time_of(directory, "began", name), time_of(directory, "ended", name)) for name in names]
    return max(sum(begin <= moment < end for begin, end in spans) for moment, _ in spans)


def test_trials_run_side_by_side_on_one_dataset_and_one_failure_ends_no_other(directory, capsys):
    names = ["a", "b", "c", "d"]
    codes = trials.run(directory, jobs(directory, names, b=[0.1, 7], c=[0.1, "kill"]), 2, 20)
    assert codes == {"a": 0, "b": 7, "c": 137, "d": 0}
    assert most_at_once(directory, names) == 2
    said = capsys.readouterr().out
    assert "b: failed with 7, see its log.txt" in said and "d: finished" in said
    for name in names:
        assert (directory / name / "shards").resolve() == directory / "shards"
    arguments, environment = json.loads((directory / "d" / "environment.json").read_text())
    assert arguments[2:] == [
        "train",
        "--config=c.py",
        "--config.a.b=(1, 2)",
        "--config.seed=3",
        f"--workdir={directory}/d",
        "--stopped_code=75",
    ]
    expected = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(directory / "compilation-cache")
    assert environment["JAX_COMPILATION_CACHE_DIR"] == expected


def test_the_same_call_continues(directory):
    given = jobs(directory, ["a"])
    assert trials.run(directory, given, 1, 20) == trials.run(directory, given, 1, 20) == {"a": 0}
    assert (directory / "a" / "log.txt").read_text().count("== ") == 2


def test_a_signal_stops_what_runs_and_starts_no_other(directory):
    given = jobs(directory, ["a", "b", "c"], a=[60, 0], b=[60, "refuse"])
    before = signal.getsignal(signal.SIGTERM)
    timer = threading.Thread(target=_terminate_when, args=(directory, ["a", "b"]))
    timer.start()
    codes = trials.run(directory, given, 2, 1)
    timer.join()
    # One saves, the other does not stop in time.
    assert codes == {"a": STOPPED, "b": 137}
    assert signal.getsignal(signal.SIGTERM) is before


def _terminate_when(directory, names):
    deadline = time.monotonic() + 60
    while not all((directory.parent / "tools" / f"began-{name}").exists() for name in names):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)


CONFIG = ConfigDict({"train": {"steps": 8, "rate": 0.5}, "model": {"width": 3}, "data": {"seed": 0}, "seed": 1})


def listed(tmp_path, body: str) -> list[Trial]:
    (tmp_path / "c.py").write_text(f"def sweep():\n    {body}\n")
    return trials.load(f"{tmp_path / 'c.py'}:smoke", CONFIG)


def test_trials_are_those_of_the_file_generators_included(tmp_path):
    found = listed(tmp_path, "yield {'train.rate': 1}\n    yield {'model.width': 4, 'seed': 2}")
    assert found == [Trial("rate=1", {"train.rate": 1}), Trial("width=4,seed=2", {"model.width": 4, "seed": 2})]
    config = trials.changed(CONFIG, found[1])
    assert (config.model.width, config.seed, config.train.rate, CONFIG.model.width) == (4, 2, 0.5, 3)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return []", "has no trial"),
        ("return [{'model.depth': 4}]", "config.model.depth, which is not in the config"),
        ("return [{'model.width.x': 4}]", "config.model.width.x, which is not in the config"),
        ("return [{'mode.width': 4}]", "config.mode.width, which is not in the config"),
        ("return [{'model.width': 'wide'}]", "config.model.width to 'wide'"),
        ("return [{'data.seed': 4}]", "config.data.seed, but trials share one dataset"),
        ("return [{'seed': 4}, {'seed': 4}]", "two trials seed=4"),
    ],
)
def test_a_sweep_that_does_not_fit_is_refused(tmp_path, body, message):
    with pytest.raises(SweepError, match=message):
        listed(tmp_path, body)


def test_a_config_without_a_sweep_is_refused(tmp_path):
    (tmp_path / "c.py").write_text("")
    with pytest.raises(SweepError, match=r"has no sweep\(\); add one"):
        trials.load(str(tmp_path / "c.py"), CONFIG)


def test_a_folder_belongs_to_one_config_and_takes_more_trials(tmp_path):
    first, second = Trial("seed=1", {"seed": 1}), Trial("width=2", {"model.width": 2})
    trials.record(tmp_path, CONFIG, [first])
    trials.record(tmp_path, CONFIG, [second])
    config, found = trials.recorded(tmp_path)
    assert found == [first, second] and config.to_dict() == CONFIG.to_dict()
    with pytest.raises(SweepError, match=r"config.train.steps is 8 there and 9 here"):
        trials.record(tmp_path, trials.changed(CONFIG, Trial("", {"train.steps": 9})), [first])
    with pytest.raises(SweepError, match=r"sweep.json does not exist"):
        trials.recorded(tmp_path / "other")


def test_the_link_to_the_dataset_is_made_once_by_many_processes(tmp_path):
    """What pods run first: all of them do, at the same time."""
    (tmp_path / "sweep" / "shards").mkdir(parents=True)
    job = trials.job(Trial("a=1,b=2", {}), "x", "train", "c.py", {}, f"{tmp_path}/sweep")
    (tmp_path / "pixr1").write_text('#!/bin/sh\nfor word; do echo "$word"; done | grep workdir\n')
    (tmp_path / "pixr1").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    pods = [subprocess.Popen(["bash", "-c", job.script], env=environment, stdout=subprocess.PIPE) for _ in range(8)]
    for pod in pods:
        out, _ = pod.communicate(timeout=60)
        assert pod.returncode == 0 and out.decode().strip() == f"--workdir={tmp_path}/sweep/a=1,b=2"
    assert (tmp_path / "sweep/a=1,b=2/shards").resolve() == tmp_path / "sweep/shards"
    assert list((tmp_path / "sweep/shards").iterdir()) == []
