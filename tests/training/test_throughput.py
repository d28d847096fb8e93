"""Rates against sums done by hand."""

import dataclasses
import fractions
import types

import jax
import pytest

from data_pipelines.plan import WindowRef
from pixr1_jax.training.throughput import Throughput, Work, device_memory, work_of

WORK = Work(frames=24.0, video_seconds=2.0, tokens=1000.0)


def device(kind="TPU v6 lite", **stats):
    return types.SimpleNamespace(device_kind=kind, memory_stats=lambda: stats or None)


def test_rates_are_per_chip_and_leave_compilation_out():
    now = [0.0]
    speed = Throughput(WORK, [device(), device()], clock=lambda: now[0])
    assert speed.read({"step": 1.0}, 1e15) == {}
    for number, seconds in enumerate((30.0, 0.5, 0.5, 0.5, 2.5)):
        now[0] += seconds
        speed.step(compiled=number == 0)
    spent = {"compile": 30.0, "data_wait": 1.0, "step": 3.5, "save": 0.5}
    rates = speed.read(spent, 459e12)
    assert rates == pytest.approx(
        {
            "perf/step_seconds": 0.5,
            "perf/data_wait": 0.2,
            "perf/tokens_per_second": 1000.0,
            "perf/frames_per_second_per_chip": 12.0,
            "perf/video_seconds_per_second_per_chip": 1.0,
            "perf/tflops_per_chip": 229.5,
            "perf/mfu": 0.25,  # 229.5 of 918
        }
    )
    assert speed.read(spent, 459e12) == {}


def test_a_device_without_a_known_peak_has_no_mfu():
    speed = Throughput(WORK, [device("cpu")])
    speed.step(compiled=True)
    rates = speed.read({"step": 1.0}, 1e9)
    assert "perf/mfu" not in rates and "perf/step_seconds" not in rates and rates["perf/tflops_per_chip"] == 1e-3


def test_the_work_of_a_batch_counts_each_clips_own_clock(tiny):
    spec = tiny.token_spec()

    @dataclasses.dataclass
    class Info:
        frames: int
        frame_rate: fractions.Fraction

    film, image = Info(60, fractions.Fraction(30)), Info(1, fractions.Fraction(1, 4))
    fast = WindowRef(film, 0, 6, 0)  # pyright: ignore[reportArgumentType]
    still = WindowRef(image, 0, 1, 0)  # pyright: ignore[reportArgumentType]
    rows = [[fast, fast], [fast, still]]
    row_spec = types.SimpleNamespace(blocks=10)
    plan = types.SimpleNamespace(spec=spec, row_spec=row_spec, row=lambda index: rows[index % 2])
    work = work_of(plan, batch_rows=4)
    # On average a row has 1.5 films of 6 frames in 0.2 s, and half an image, held for a chunk of 2 frames.
    assert work.frames == pytest.approx(4 * (1.5 * 6 + 0.5 * 2))
    assert work.video_seconds == pytest.approx(4 * 1.5 * 0.2)
    assert work.tokens == 4 * 10 * spec.block


def test_memory_is_that_of_the_fullest_device():
    devices = [device(bytes_in_use=2**30, peak_bytes_in_use=3 * 2**30), device(bytes_in_use=2**31)]
    assert device_memory(devices) == {"memory/in_use_gib": 2.0, "memory/peak_gib": 3.0}
    assert device_memory(jax.devices("cpu")) == {}
