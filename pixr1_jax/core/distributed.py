"""Several processes as one job: who they are, how they meet, and how one leaves when something goes wrong.

A verb calls `join` before anything else touches jax. Where the job comes from, first match:

1. the flags --coordinator=HOST:PORT --processes=N --process=I, or the environment PIXR1_COORDINATOR,
   PIXR1_PROCESSES, PIXR1_PROCESS; a flag goes before its variable;
2. a cluster that `jax.distributed` knows (TPU pods on GCE and GKE, Slurm, Open MPI, Kubernetes);
3. none: a single process.

PIXR1_CPU_DEVICES=N gives each process N devices on CPU. PIXR1_CONNECT_SECONDS (300) bounds the wait for the
others, PIXR1_HEARTBEAT_SECONDS (60) the time until a process that died is noticed where no collective fails.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from absl import flags

_FLAGS = {"coordinator": "PIXR1_COORDINATOR", "processes": "PIXR1_PROCESSES", "process": "PIXR1_PROCESS"}
_CPU_DEVICES = "PIXR1_CPU_DEVICES"
_CONNECT, _CONNECT_DEFAULT = "PIXR1_CONNECT_SECONDS", 300
_HEARTBEAT, _HEARTBEAT_DEFAULT = "PIXR1_HEARTBEAT_SECONDS", 60
# A status of the runtime that says that another process is gone: gloo on CPU, NCCL, the coordination service.
_LOST_PEER = re.compile(
    r"\A(UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED|DEADLINE_EXCEEDED|CANCELLED|FAILED_PRECONDITION)\b"
    r".*(gloo|nccl|connection|heartbeat|coordination|barrier|peer)",
    re.DOTALL | re.IGNORECASE,
)


class DistributedError(ValueError):
    """The processes of a job do not come together, or one of them is gone; the message says what to check."""


@dataclasses.dataclass(frozen=True)
class Job:
    """An explicitly given job.

    Attributes:
        coordinator: HOST:PORT of process 0, reachable by all.
        processes: How many there are.
        process: Which one this is, from 0.
    """

    coordinator: str
    processes: int
    process: int

    def __post_init__(self):
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise DistributedError(
                f"coordinator is {self.coordinator!r}; give HOST:PORT of process 0, as in 10.0.0.1:8476"
            )
        if self.processes < 1:
            raise DistributedError(f"processes is {self.processes}; it must be 1 or more")
        if not 0 <= self.process < self.processes:
            raise DistributedError(
                f"process is {self.process}; with processes={self.processes} it is from 0 to {self.processes - 1}"
            )


def define_flags() -> None:
    """Defines --coordinator, --processes and --process; call it from a verb's `define_flags`."""
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, for several processes with no known cluster.")
    flags.DEFINE_integer("processes", None, "How many processes there are.")
    flags.DEFINE_integer("process", None, "Which one this is, from 0.")
    for name in _FLAGS:
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])


def given_job(given: Mapping[str, str | int | None], environment: Mapping[str, str]) -> Job | None:
    """Returns the job that flags or the environment name, or None where neither names any part.

    Args:
        given: The flags `coordinator`, `processes` and `process`; None or absent where one is not given.
        environment: The variables.

    Raises:
        DistributedError: If a part is missing or is no number; the message names it.
    """
    found = {name: given.get(name) for name in _FLAGS}
    for name, variable in _FLAGS.items():
        if found[name] is None and environment.get(variable, ""):
            found[name] = environment[variable] if name == "coordinator" else _number(environment, variable, 0)
    missing = [f"--{name} (or {_FLAGS[name]})" for name, value in found.items() if value is None]
    if len(missing) == len(_FLAGS):
        return None
    if missing:
        present = ", ".join(f"{name}={value}" for name, value in found.items() if value is not None)
        raise DistributedError(
            f"a job of several processes is half given ({present}); also give {' and '.join(missing)}"
        )
    return Job(str(found["coordinator"]), int(found["processes"] or 0), int(found["process"] or 0))


def initialize() -> None:
    """Makes this process a part of its job; call it before any other use of jax, at most once.

    Raises:
        DistributedError: If the job is half given or wrong, or the coordinator's port cannot be used. When the
            others do not come in time, the process ends with one line and exit code 1: jax offers no way back.
    """
    if os.environ.get(_CPU_DEVICES):
        jax.config.update("jax_num_cpu_devices", _number(os.environ, _CPU_DEVICES, 1))
    seconds = _number(os.environ, _CONNECT, 1, _CONNECT_DEFAULT)
    heartbeat = _number(os.environ, _HEARTBEAT, 1, _HEARTBEAT_DEFAULT)
    job = given_job({name: _flag(name) for name in _FLAGS}, os.environ)
    if job is not None and job.process == 0:
        _check_port(job.coordinator)
    # jax aborts with a stack trace of its own when its time is over, so ours is over first.
    arguments: dict[str, Any] = {"initialization_timeout": seconds + 30, "heartbeat_timeout_seconds": heartbeat}
    if job is not None:
        arguments |= {
            "coordinator_address": job.coordinator,
            "num_processes": job.processes,
            "process_id": job.process,
            "cluster_detection_method": "deactivate",
        }
    deadline = threading.Timer(seconds, _give_up, (job, seconds))
    deadline.daemon = True
    deadline.start()
    try:
        jax.distributed.initialize(**arguments)
    except ValueError as error:
        if job is not None or "coordinator_address should be defined" not in str(error):
            raise DistributedError(f"this cluster's job cannot be joined: {_first_line(error)}") from error
    finally:
        deadline.cancel()


@contextlib.contextmanager
def join() -> Iterator[None]:
    """Makes this process a part of its job for a `with` block, and leaves it at once when the block fails.

    A process of a job that ends waits for the others, which is right at a regular end. After an error the others
    are in a collective that this one will never join, so it ends without waiting, and they notice.

    Raises:
        DistributedError: As `initialize`, and in the place of the runtime's error when another process is gone.
    """
    initialize()
    try:
        yield
    except BaseException as error:
        if jax.distributed.is_initialized():
            # Runs before jax's own handler, after the message is printed.
            atexit.register(_leave, error.code if isinstance(error, SystemExit) else 1)
            lost = _lost_peer(error)
            if lost:
                raise DistributedError(
                    f"process {jax.process_index()} of {jax.process_count()}: another process of the job is gone, see "
                    "its log; start all of them again, they go on from the newest checkpoint "
                    f"({lost})"
                ) from error
        raise


def _flag(name: str) -> str | int | None:
    return flags.FLAGS[name].value if name in flags.FLAGS and flags.FLAGS.is_parsed() else None


def _number(environment: Mapping[str, str], variable: str, least: int, default: int | None = None) -> int:
    text = environment.get(variable, "") or ("" if default is None else str(default))
    if not text.isdecimal() or int(text) < least:
        raise DistributedError(f"{variable} is {text!r}; give a whole number, {least} or more")
    return int(text)


def _check_port(address: str) -> None:
    """Raises where the coordinator's port is taken, on which the runtime would crash."""
    try:
        socket.create_server(("", int(address.rpartition(":")[2]))).close()
    except OSError as error:
        raise DistributedError(
            f"coordinator {address}: process 0 cannot listen on this port ({os.strerror(error.errno or 0)}); "
            "choose another one"
        ) from error


def _give_up(job: Job | None, seconds: int) -> None:
    """Ends the process with one line: the runtime is waiting in C++ and cannot be called back."""
    if job is None:
        line = f"the other processes of this cluster's job did not come within {seconds} s; check that all have started"
    elif _answers(job.coordinator):
        line = (
            f"process {job.process} of {job.processes}: not all processes met at {job.coordinator} within {seconds} s; "
            "check that each was started, once, with its own --process"
        )
    else:
        line = (
            f"process {job.process} of {job.processes}: no coordinator answers at {job.coordinator} within {seconds} "
            "s; start process 0 there, or correct --coordinator"
        )
    print(f"error: {line} ({_CONNECT} sets the time)", file=sys.stderr, flush=True)
    os._exit(1)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def _lost_peer(error: BaseException | None) -> str:
    """The first line of the status that says it, of an error or of what caused it; "" if there is none."""
    while error is not None:
        if _LOST_PEER.match(str(error)):
            return _first_line(error)
        error = error.__cause__
    return ""


def _leave(code: object) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
