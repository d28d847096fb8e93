"""Real processes for tests, reached through the fixture `processes`: started as one job, watched, and always ended."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
WAIT = 600  # seconds until a test gives up on a process; a busy machine takes its time


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def environment(devices: int, cache: pathlib.Path | None = None, **more: str) -> dict[str, str]:
    """Variables of a process with `devices` CPU devices; programs in `cache` are compiled once for all processes."""
    found = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "PIXR1_CPU_DEVICES": str(devices),
        "PIXR1_CONNECT_SECONDS": "240",
        "PIXR1_HEARTBEAT_SECONDS": "30",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    if cache is not None:
        found |= {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3"}
    found.pop("XLA_FLAGS", None)
    return found | more


class Job:
    """Processes that run the same command, as one job of `count`; each writes to a log file of its own.

    As a context manager it kills what is left at the end, whatever happened.
    """

    def __init__(self, command: Sequence[str], logs: pathlib.Path, count: int, variables: dict[str, str]):
        self.count = count
        logs.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.logs = [logs / f"process_{i}-of-{count}.{port}.log" for i in range(count)]
        self.processes = []
        for i, path in enumerate(self.logs):
            who = {}
            if count > 1:
                who = {
                    "PIXR1_COORDINATOR": f"localhost:{port}",
                    "PIXR1_PROCESSES": str(count),
                    "PIXR1_PROCESS": str(i),
                }
            with path.open("w") as log:
                self.processes.append(
                    subprocess.Popen([sys.executable, *command], cwd=ROOT, env=variables | who, stdout=log, stderr=log)
                )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()

    def log(self, i: int) -> str:
        """What process i has said."""
        return self.logs[i].read_text()

    def said(self) -> str:
        """The ends of all logs, for the message of an assertion."""
        return "\n".join(f"--- process {i}\n{self.log(i)[-3000:]}" for i in range(self.count))

    def kill(self, i: int, number: int = signal.SIGKILL) -> None:
        """Sends a signal to process i."""
        self.processes[i].send_signal(number)

    def wait(self, seconds: float = WAIT) -> list[int]:
        """The exit codes of all processes, in order; negative for a signal."""
        deadline = time.monotonic() + seconds
        codes = []
        for process in self.processes:
            try:
                codes.append(process.wait(max(0.0, deadline - time.monotonic())))
            except subprocess.TimeoutExpired:
                raise AssertionError(f"a process still runs after {seconds} s\n{self.said()}") from None
        return codes

    def finish(self) -> None:
        """Waits for all processes, which must succeed."""
        assert self.wait() == [0] * self.count, self.said()

    def until(self, condition: Callable[[], object], seconds: float = WAIT) -> None:
        """Returns once the condition holds; no process may end before."""
        deadline = time.monotonic() + seconds
        while not condition():
            ended = [process for process in self.processes if process.poll() is not None]
            assert not ended and time.monotonic() < deadline, self.said()
            time.sleep(0.01)
