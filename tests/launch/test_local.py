"""The supervisor, with processes that die, stop, refuse to stop, or finish."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from launch import local
from launch.job import STOPPED

# Waits for a file that says what process I does in attempt A: a number is its exit code, "wait" waits for SIGTERM.
WORKER = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
me = os.environ.get("PIXR1_PROCESS", "0")
attempt = len(list(folder.glob(f"started-{me}-*")))
(folder / f"started-{me}-{attempt}").write_text(os.environ.get("PIXR1_COORDINATOR", "none") + " " + str(os.getpid()))
print("attempt", attempt, "of process", me, flush=True)
plan = eval(sys.argv[2])
what = plan.get((int(me), attempt), plan.get("else"))
def stop(*_):
    if what == "wait":
        (folder / f"saved-{me}").touch()
        sys.exit(75)
signal.signal(signal.SIGTERM, stop)
if isinstance(what, int):
    if what < 0:
        os.kill(os.getpid(), -what)
    sys.exit(what)
time.sleep(60)
"""


def job(folder, plan, processes=2, **changes) -> local.LocalJob:
    (folder / "worker.py").write_text(WORKER)
    fields = {"max_restarts": 2, "grace_seconds": 20, "environment": {"SHARED": "yes"}}
    command = (sys.executable, str(folder / "worker.py"), str(folder), repr(plan))
    return local.LocalJob(command=command, processes=processes, logs=str(folder / "logs"), **(fields | changes))


def started(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("started-*"))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_one_killed_process_restarts_all_at_a_new_address(tmp_path, capsys):
    # Process 0 would wait for ever for the one that was killed.
    plan = {(0, 0): "wait", (1, 0): -signal.SIGKILL, "else": 0}
    assert local.supervise(job(tmp_path, plan)) == 0
    assert started(tmp_path) == ["started-0-0", "started-0-1", "started-1-0", "started-1-1"]
    addresses = [(tmp_path / name).read_text().split()[0] for name in started(tmp_path)]
    assert addresses[0] == addresses[2] != addresses[1] == addresses[3]
    assert not alive(int((tmp_path / "started-0-0").read_text().split()[1]))
    assert "process 1 ended with 137" in capsys.readouterr().err
    log = (tmp_path / "logs" / "1.log").read_text()
    assert "attempt 0 of process 1" in log and "attempt 1 of process 1" in log


def test_restarts_are_used_up_and_the_code_is_that_of_the_process_that_failed(tmp_path, capsys):
    assert local.supervise(job(tmp_path, {"else": 0} | {(1, attempt): 3 for attempt in range(9)})) == 3
    assert len(started(tmp_path)) == 2 * 3
    assert "process 1 ended with 3; 2 restarts are used up" in capsys.readouterr().err


def test_a_stop_from_outside_the_supervisor_restarts_without_counting(tmp_path):
    plan = {(0, attempt): STOPPED for attempt in range(4)} | {(0, 4): 0}
    assert local.supervise(job(tmp_path, plan, processes=1, max_restarts=0)) == 0
    assert len(started(tmp_path)) == 5
    # One process alone meets nobody.
    assert (tmp_path / "started-0-0").read_text().startswith("none ")


def supervise_elsewhere(folder, plan, **changes):
    (folder / "job.json").write_text(local.to_json(job(folder, plan, **changes)))
    command = [sys.executable, "-m", "launch.local", str(folder / "job.json")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len([path for path in folder.glob("logs/*.log") if "attempt" in path.read_text()]) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_handed_on_and_all_may_save(tmp_path, number):
    process = supervise_elsewhere(tmp_path, {"else": "wait"})
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == STOPPED, err
    assert sorted(path.name for path in tmp_path.glob("saved-*")) == ["saved-0", "saved-1"]
    assert len(started(tmp_path)) == 2


def test_who_does_not_stop_in_time_is_killed(tmp_path):
    process = supervise_elsewhere(tmp_path, {(0, 0): "wait", (1, 0): "refuse"}, grace_seconds=1)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL
    assert "have saved within 1 s" in err and (tmp_path / "saved-0").exists()
    assert not any(alive(int(path.read_text().split()[1])) for path in tmp_path.glob("started-*"))


def test_a_job_is_read_as_it_was_written_or_refused_in_one_line(tmp_path):
    given = job(tmp_path, {})
    path = tmp_path / "job.json"
    path.write_text(local.to_json(given))
    assert local.read(path) == given
    path.write_text(json.dumps(json.loads(local.to_json(given)) | {"proceses": 3}))
    with pytest.raises(ValueError, match=r"job.json.proceses is unknown.*did you mean processes"):
        local.read(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="job.json is no job"):
        local.read(path)
    with pytest.raises(ValueError, match="absent.json does not exist"):
        local.read(tmp_path / "absent.json")
