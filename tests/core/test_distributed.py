"""Jobs: who is who by flags and environment, real processes that meet, and clear ends where they do not."""

import signal
import socket
import time

import pytest

from pixr1_jax.core.distributed import DistributedError, Job, given_job

_MEET = """
import jax, jax.numpy as jnp
from jax.experimental import multihost_utils
from pixr1_jax.core import distributed
with distributed.join():
    assert (jax.local_device_count(), jax.device_count()) == (2, 2 * jax.process_count())
    print("sum", int(multihost_utils.process_allgather(jnp.int32(10 ** jax.process_index())).sum()))
"""
_FAIL = """
import time, jax, jax.numpy as jnp
from jax.experimental import multihost_utils
from pixr1_jax.core import cli_errors, distributed
def main(argv):
    with distributed.join():
        gather = lambda: multihost_utils.process_allgather(jnp.int32(1)).sum()
        assert gather() == 2
        print("met", flush=True)
        if jax.process_index() == 1:
            time.sleep(0.5)
            raise ValueError("a mistake")
        while True:
            gather()
cli_errors.run(main)
"""


def test_who_is_who():
    variables = {"PIXR1_COORDINATOR": "host:7", "PIXR1_PROCESSES": "4", "PIXR1_PROCESS": "0"}
    assert given_job({}, {}) is None
    assert given_job({}, variables) == Job("host:7", 4, 0)
    assert given_job({"process": 3, "coordinator": None}, variables) == Job("host:7", 4, 3)
    assert given_job({"coordinator": "[::1]:80", "processes": 1, "process": 0}, {}) == Job("[::1]:80", 1, 0)


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        (
            {"PIXR1_PROCESS": "0"},
            r"half given \(process=0\); also give --coordinator \(or PIXR1_COORDINATOR\) and --proc",
        ),
        ({"PIXR1_PROCESSES": "2", "PIXR1_COORDINATOR": "a:1"}, r"also give --process \(or PIXR1_PROCESS\)$"),
        ({"PIXR1_PROCESSES": "two"}, "PIXR1_PROCESSES is 'two'; give a whole number"),
        (
            {"PIXR1_PROCESSES": "2", "PIXR1_COORDINATOR": "a", "PIXR1_PROCESS": "0"},
            "coordinator is 'a'; give HOST:",
        ),
        ({"PIXR1_PROCESSES": "2", "PIXR1_COORDINATOR": "a:1", "PIXR1_PROCESS": "2"}, "process is 2; .* from 0 to 1"),
        ({"PIXR1_PROCESSES": "0", "PIXR1_COORDINATOR": "a:1", "PIXR1_PROCESS": "0"}, "processes is 0; it must be 1"),
    ],
)
def test_half_given_and_wrong_jobs_are_named(variables, text):
    with pytest.raises(DistributedError, match=text):
        given_job({}, variables)


@pytest.mark.parametrize("count", [1, 2])
def test_processes_meet(processes, tmp_path, count):
    with processes.Job(["-c", _MEET], tmp_path, count, processes.environment(2)) as job:
        job.finish()
        assert all(f"sum {(10**count - 1) // 9}\n" in job.log(i) for i in range(count))


def test_a_process_whose_coordinator_does_not_answer_ends_with_one_line(processes, tmp_path):
    variables = processes.environment(1, PIXR1_CONNECT_SECONDS="2")
    who = {"PIXR1_COORDINATOR": f"localhost:{processes.free_port()}", "PIXR1_PROCESSES": "2", "PIXR1_PROCESS": "1"}
    with processes.Job(["-c", _MEET], tmp_path, 1, variables | who) as job:
        assert job.wait() == [1]
        line = job.log(0)
    assert line.startswith("error: process 1 of 2: no coordinator answers at localhost:") and line.count("\n") == 1


def test_a_coordinator_whose_processes_do_not_come_ends_with_one_line(processes, tmp_path):
    variables = processes.environment(1, PIXR1_CONNECT_SECONDS="2")
    who = {"PIXR1_COORDINATOR": f"localhost:{processes.free_port()}", "PIXR1_PROCESSES": "2", "PIXR1_PROCESS": "0"}
    with processes.Job(["-c", _MEET], tmp_path, 1, variables | who) as job:
        assert job.wait() == [1]
        line = job.log(0)
    assert line.startswith("error: process 0 of 2: not all processes met at localhost:") and line.count("\n") == 1


def test_a_taken_port_is_named(processes, tmp_path):
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::", 0))
        taken.listen()
        where = f"localhost:{taken.getsockname()[1]}"
        who = {"PIXR1_COORDINATOR": where, "PIXR1_PROCESSES": "2", "PIXR1_PROCESS": "0"}
        with processes.Job(["-c", _MEET], tmp_path, 1, processes.environment(1) | who) as job:
            assert job.wait() == [1]
            assert f"{where}: process 0 cannot listen on this port (Address already in use); choose" in job.log(0)


def test_a_process_that_fails_leaves_at_once_and_the_others_follow(processes, tmp_path):
    start = time.monotonic()
    with processes.Job(["-c", _FAIL], tmp_path, 2, processes.environment(1)) as job:
        codes = job.wait(120)
        assert codes[1] == 1 and "error: a mistake" in job.log(1) and "Traceback" not in job.log(1), job.said()
        assert codes[0] in (1, -signal.SIGABRT)
        assert "another process of the job is gone" in job.log(0) or "another task died" in job.log(0), job.said()
    assert time.monotonic() - start < 240
