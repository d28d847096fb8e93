"""Which steps are traced, and that a trace is written."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from pixr1_jax.core.config import ConfigError
from pixr1_jax.training.profile import Profiler, Steps


@pytest.mark.parametrize("text", ["", "3", "3:", ":3", "5:4", "0:2", "a:b", "1:2:3", "-1:2", "1.5:2"])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(ConfigError, match=r"--profile=.* is no range of steps; give START:END"):
        Steps.parse(text)


@pytest.mark.parametrize(
    ("done", "last", "left"), [(20, 40, "21:40"), (0, 22, "1:22"), (22, 40, "23:40"), (40, 40, "none")]
)
def test_steps_that_will_not_come_are_refused(tmp_path, done, last, left):
    with pytest.raises(ConfigError, match=f"--profile=20:24: the steps still to be taken are {left}$"):
        Profiler(tmp_path, Steps.parse("20:24"), done=done, last=last)


@pytest.mark.parametrize(("last", "traced"), [(6, "3:4"), (4, "3:4"), (3, "3:3")])
def test_a_trace_of_these_steps_is_written(tmp_path, last, traced):
    start, end = map(int, traced.split(":"))
    profiler = Profiler(tmp_path, Steps.parse(traced), done=0, last=last)
    compute = jax.jit(lambda x: jnp.sin(x) @ x)
    value = jnp.ones((8, 8))
    for step in range(1, last + 1):
        profiler.before(step, value)
        with jax.profiler.TraceAnnotation(f"this_is_step_{step}"):
            value = compute(value)
    profiler.stop(value)
    (trace,) = tmp_path.glob("profile/plugins/profile/*/*.trace.json.gz")
    with gzip.open(trace, "rt") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    found = {step for step in range(1, last + 1) if f"this_is_step_{step}" in names}
    assert found == set(range(start, end + 1))
    assert list(tmp_path.glob("profile/plugins/profile/*/*.xplane.pb"))


def test_nothing_is_traced_unasked(tmp_path):
    profiler = Profiler(tmp_path, None, done=0, last=3)
    for step in (1, 2, 3):
        profiler.before(step, None)
    profiler.stop(None)
    assert not list(tmp_path.iterdir())
