"""A job as processes of this machine, and the small supervisor that keeps them together.

python -m launch.local FILE

runs the job that `pixr1 launch --to=local` wrote. All processes start together and meet at a free port; when one dies,
all are stopped and started again, and go on from the newest checkpoint. SIGTERM and Ctrl-C are handed on to all. The
exit code is 0 when the stage is finished, `STOPPED` when it was stopped and has saved, else that of the process that
failed. Process i writes to i.log in the folder `logs`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType

from launch.job import STOPPED, Job, LaunchConfig
from pixr1_jax.core import cli_errors
from pixr1_jax.core import config as config_lib

_POLL_SECONDS = 0.1
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclasses.dataclass(frozen=True)
class LocalJob:
    """Processes that run the same command.

    Attributes:
        command: program and arguments.
        processes: how many.
        logs: folder of their logs.
        max_restarts: restarts after failures; those after a stop do not count.
        grace_seconds: between SIGTERM and SIGKILL, time to save.
        environment: variables beside those of the caller.
    """

    command: tuple[str, ...]
    processes: int
    logs: str
    max_restarts: int
    grace_seconds: int
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.processes < 1:
            raise ValueError(f"--processes={self.processes} must be at least 1")


def from_job(job: Job, processes: int, launch: LaunchConfig) -> LocalJob:
    """Returns a job for this machine; compiled programs are shared by its processes and kept for the next start."""
    variables = {"PYTHONUNBUFFERED": "1"}
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        variables["JAX_COMPILATION_CACHE_DIR"] = f"{job.workdir}/compilation-cache"
    return LocalJob(
        command=(sys.executable, "-m", "pixr1_jax.cli", *job.arguments),
        processes=processes,
        logs=f"{job.workdir}/logs/{job.stage}",
        max_restarts=launch.max_restarts,
        grace_seconds=launch.grace_seconds,
        environment=variables,
    )


def to_json(job: LocalJob) -> str:
    """Returns a job as the text of a file for `python -m launch.local`."""
    return json.dumps(dataclasses.asdict(job), indent=2) + "\n"


def read(path: str | os.PathLike[str]) -> LocalJob:
    """Returns the job that a file holds.

    Raises:
        ConfigError: the file is missing, or no job.
    """
    try:
        section = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise config_lib.ConfigError(f"{path} does not exist; write it with pixr1 launch --to=local") from error
    except ValueError as error:
        raise config_lib.ConfigError(f"{path} is no job ({error}); write it with pixr1 launch --to=local") from error
    return config_lib.freeze(LocalJob, section, os.fspath(path))


def supervise(job: LocalJob) -> int:
    """Runs a job until it is finished, stopped, or has failed too often; returns the exit code.

    Call it from the main thread, where signals arrive.
    """
    logs = pathlib.Path(job.logs)
    logs.mkdir(parents=True, exist_ok=True)
    restarts = 0
    with _signals() as received:
        while True:
            code, process = _attempt(job, logs, received)
            if code == 0 or received:
                return code
            if code != STOPPED:
                restarts += 1
                if restarts > job.max_restarts:
                    _say(f"process {process} ended with {code}; {job.max_restarts} restarts are used up")
                    return code
            _say(f"process {process} ended with {code}, see {_log(logs, process)}; restart {restarts}")


def _attempt(job: LocalJob, logs: pathlib.Path, received: list[int]) -> tuple[int, int]:
    """Runs all processes once; returns the exit code and the process that it is of."""
    address = f"localhost:{_free_port()}"
    running: list[subprocess.Popen[bytes]] = []
    told, deadline = False, float("inf")
    try:
        for index in range(job.processes):
            running.append(_start(job, logs, index, address))
        while True:
            codes = [process.poll() for process in running]
            failed = [index for index, code in enumerate(codes) if code not in (None, 0, STOPPED)]
            if None not in codes or (failed and not told):
                break
            if received and not told:
                told, deadline = True, time.monotonic() + job.grace_seconds
                for process in running:
                    process.terminate()
            if time.monotonic() > deadline:
                _say(f"not all processes have saved within {job.grace_seconds} s")
                break
            time.sleep(_POLL_SECONDS)
    finally:
        # Where one process is gone the others wait for it in a collective, for ever: there is nothing to ask them.
        for process in running:
            process.kill()
        ends = [process.wait() for process in running]
    rank = lambda index: (index in failed, ends[index] not in (0, STOPPED), ends[index] != 0)
    worst = max(range(job.processes), key=rank)
    return (ends[worst] if ends[worst] >= 0 else 128 - ends[worst]), worst


def _start(job: LocalJob, logs: pathlib.Path, index: int, address: str) -> subprocess.Popen[bytes]:
    variables = dict(job.environment)
    if job.processes > 1:
        variables |= {
            "PIXR1_COORDINATOR": address,
            "PIXR1_PROCESSES": str(job.processes),
            "PIXR1_PROCESS": str(index),
        }
    with open(_log(logs, index), "ab") as log:
        log.write(f"== {time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(job.command)}\n".encode())
        log.flush()
        # A session of its own, since Ctrl-C reaches all processes of a terminal's and would then come twice.
        return subprocess.Popen(
            job.command,
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT for the length of a `with` block."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)

    former = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _log(logs: pathlib.Path, index: int) -> pathlib.Path:
    return logs / f"{index}.log"


def _free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def _say(words: str) -> None:
    print(f"pixr1: {words}", file=sys.stderr, flush=True)


def main(argv: Sequence[str]) -> None:
    """Runs the job of a file; ends the process with its exit code."""
    if len(argv) != 2:
        raise ValueError("give the file of one job: python -m launch.local FILE")
    raise SystemExit(supervise(read(argv[1])))


if __name__ == "__main__":
    cli_errors.run(main)
