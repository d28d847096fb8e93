"""The script for queued resources: checked by shellcheck, and run against a gcloud that is played."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from launch import queued
from launch.job import STOPPED, Job, LaunchConfig, pod_job
from pixr1_jax.core import topology

LAUNCH = LaunchConfig(
    bucket="gs://bucket-of-ours/pixr1", image="eu-docker.pkg.dev/p/r/pixr1:1", project="p", zone="z", max_restarts=1
)
JOB = pod_job(Job("big", "train", "configs/pod.py:big", {"train.note": "it's big"}, "big"))

# Says what it was called with, and answers from files: the state of the machines, and a line of codes for runs.
GCLOUD = """#!/usr/bin/env bash
set -eu
here=$(dirname "$0")
command=("$@")
echo "${command[*]:0:5} ${command[*]: -1}" | head -1 >> "$here/calls"
case "$4" in
  describe) [[ -e $here/state ]] && cat "$here/state" ;;
  create) printf '%s\\n' "${command[@]:5}" > "$here/request"; echo ACTIVE > "$here/state" ;;
  delete) rm "$here/state" ;;
  ssh)
    case "${command[*]: -1}" in
      *"docker run"*)
        echo "$5" >> "$here/runs"
        code=$(head -1 "$here/codes"); sed -i 1d "$here/codes"
        case "$code" in
          wait) touch "$here/running"; while [[ -e $here/running ]]; do read -rt 0.1 < <(:) || true; done; exit 75 ;;
          preempted) echo SUSPENDED > "$here/state"; exit 255 ;;
          *) exit "$code" ;;
        esac ;;
      *"docker stop"*) rm -f "$here/running" ;;
    esac ;;
esac
"""


def script(name="v6e-256", slices=1, launch=LAUNCH) -> str:
    return queued.script(JOB, topology.parse(name), slices, launch)


def play(folder: pathlib.Path, codes: list[object], **changes) -> subprocess.Popen:
    """Starts the script where gcloud is the one above and sleep takes no time."""
    for name, text in (("gcloud", GCLOUD), ("sleep", "#!/bin/sh\n")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "codes").write_text("".join(f"{code}\n" for code in codes))
    (folder / "job.sh").write_text(script(**changes))
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.Popen(
        ["bash", str(folder / "job.sh")], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def played(folder: pathlib.Path, codes: list[object], **changes) -> tuple[int, str]:
    process = play(folder, codes, **changes)
    out, _ = process.communicate(timeout=60)
    return process.returncode, out


@pytest.mark.parametrize(
    ("name", "slices", "changes"), [("v6e-256", 1, {"spot": True}), ("v5p:8x8x4", 3, {"bucket": "gs://whole-bucket"})]
)
def test_shellcheck_finds_nothing(tmp_path, name, slices, changes):
    checker = shutil.which("shellcheck", path=pathlib.Path(sys.executable).parent)
    assert checker, "shellcheck is missing (extra dev)"
    launch = LaunchConfig(**({"bucket": LAUNCH.bucket, "image": "i", "project": "p", "zone": "z"} | changes))
    text = script(name, slices, launch)
    (tmp_path / "job.sh").write_text(text)
    done = subprocess.run([checker, "--enable=all", "--exclude=SC2310,SC2312,SC2250", tmp_path / "job.sh"], text=True)
    assert done.returncode == 0
    # What runs on the machines stands in here-documents, which the checker does not read.
    parts = [part.split("\nEND\n")[0] for part in text.split("<<'END'\n")[1:]]
    assert len(parts) == 2
    for part in parts:
        (tmp_path / "part.sh").write_text("#!/usr/bin/env bash\n" + part + "\n")
        assert subprocess.run([checker, tmp_path / "part.sh"]).returncode == 0


def test_it_asks_for_machines_runs_on_all_slices_and_ends(tmp_path):
    launch = LaunchConfig(bucket="gs://abc", image="r.dev/i", project="p", zone="z", reservation="mine")
    code, out = played(tmp_path, [0, 0], name="v5p-512", slices=2, launch=launch)
    assert (code, out) == (0, "pixr1: finished\n")
    assert (tmp_path / "request").read_text().split() == [
        "--project=p",
        "--zone=z",
        "--accelerator-type=v5p-512",
        "--runtime-version=v2-alpha-tpuv5",
        "--node-count=2",
        "--node-prefix=big",
        "--reserved",
    ]
    assert sorted((tmp_path / "runs").read_text().split()) == ["big-0", "big-1"]


def test_a_failure_is_retried_so_often_and_a_preemption_always(tmp_path):
    code, out = played(tmp_path, ["preempted", 1, "preempted", 0])
    assert code == 0, out
    assert out.splitlines() == [
        "pixr1: the machines are gone, asking for others",
        "pixr1: restart 1 of 1",
        "pixr1: the machines are gone, asking for others",
        "pixr1: finished",
    ]
    calls = (tmp_path / "calls").read_text()
    assert calls.count("queued-resources create") == 3 and calls.count("queued-resources delete") == 2


def test_it_gives_up(tmp_path):
    code, out = played(tmp_path, [1, 1, 0])
    assert code == 1 and "failed 2 times, giving up" in out
    assert (tmp_path / "codes").read_text() == "0\n"


def test_sigterm_lets_the_run_save(tmp_path):
    process = play(tmp_path, ["wait"])
    deadline = time.monotonic() + 60
    while not (tmp_path / "running").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == STOPPED, out
    assert out == "pixr1: stopping; the run saves\n"
    assert not (tmp_path / "running").exists()


def test_the_command_survives_all_quoting(tmp_path):
    """What docker gets on the machine are the words of the job, an apostrophe included."""
    run = script().split("run=$(cat <<'END'\n")[1].split("\nEND\n")[0]
    (tmp_path / "sudo").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "sudo").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", run], env=environment, capture_output=True, text=True, check=True)
    words = done.stdout.splitlines()
    assert words[:3] == ["docker", "run", "--rm"]
    assert words[-4:-1] == [LAUNCH.image, "bash", "-c"] and words[-1] == JOB.script
    assert "--env=JAX_COMPILATION_CACHE_DIR=/bucket/compilation-cache" in words and "--volume=/bucket:/bucket" in words
    inner = subprocess.run(
        ["bash", "-c", "pixr1() { printf '%s\\n' \"$@\"; }; " + words[-1].replace("exec ", "")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert inner.stdout.splitlines() == JOB.arguments


def test_what_is_missing_or_not_offered_is_one_line():
    with pytest.raises(ValueError, match=r"config.launch.zone is missing; give the zone"):
        script(launch=LaunchConfig(bucket="gs://abc", image="i", project="p"))
    with pytest.raises(ValueError, match="have v5p-512 as 4x8x8 only, not 4x4x16"):
        script("v5p:4x4x16")
