"""How fast a run is: rates per chip, MFU, the share of waiting for data, and the memory of the devices."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data_pipelines.loader import Plan
from data_pipelines.windows import is_image
from pixr1_jax.core.chips import peak_flops

_ROWS = 64  # rows of the plan that the length of an average row is taken from


@dataclasses.dataclass(frozen=True)
class Work:
    """What one step works through on average, summed over all devices.

    Attributes:
        frames: Video frames.
        video_seconds: How long they last in their clips; images last no time.
        tokens: Tokens that are computed, padding included.
    """

    frames: float
    video_seconds: float
    tokens: float


def work_of(plan: Plan, batch_rows: int) -> Work:
    """The work of a batch, from the first rows of a plan.

    Args:
        plan: The pack plan.
        batch_rows: Rows in a batch.
    """
    frames = seconds = 0.0
    for index in range(_ROWS):
        for ref in plan.row(index):
            image = is_image(ref.info, plan.spec)
            frames += plan.spec.chunk_frames if image else ref.frames
            seconds += 0.0 if image else float(ref.frames / ref.info.frame_rate)
    scale = batch_rows / _ROWS
    return Work(frames * scale, seconds * scale, plan.row_spec.blocks * plan.spec.block * batch_rows)


class Throughput:
    """Turns steps and the time they took into rates."""

    def __init__(self, work: Work, devices: Sequence[Any], *, clock: Callable[[], float] = time.perf_counter):
        """Starts with no step counted.

        Args:
            work: What a step works through.
            devices: All devices of the run (`jax.devices()`), of one kind.
            clock: Returns seconds, monotonic.
        """
        self._work, self._devices, self._clock = work, devices, clock
        self._peak = peak_flops(devices[0].device_kind)
        self._last: float | None = None
        self._durations: list[float] = []
        self._steps = 0

    def step(self, *, compiled: bool) -> None:
        """Counts a step, at the same place in each of them, where the one before has ended on the device.

        Args:
            compiled: Whether it was compiled, and its duration therefore is that of no step.
        """
        now = self._clock()
        if self._last is not None and not compiled:
            self._durations.append(now - self._last)
        self._last = now
        self._steps += 1

    def read(self, spent: Mapping[str, float], flops: float) -> dict[str, float]:
        """Returns the rates since the last read.

        Args:
            spent: Seconds since then by kind, from `Goodput.write`. Compilation is left out; rates count all else.
            flops: Operations of one step over all devices (`flops.StepFlops`).

        Returns:
            `perf/step_seconds` (median), `perf/data_wait` (share of the time), `perf/tokens_per_second` (all chips),
            `perf/frames_per_second_per_chip`, `perf/video_seconds_per_second_per_chip`, `perf/tflops_per_chip`
            and, where the peak of the device is known, `perf/mfu`. Nothing where no step or no time was counted.
        """
        seconds = sum(spent.values()) - spent.get("compile", 0.0)
        steps, durations = self._steps, self._durations
        self._steps, self._durations = 0, []
        if not steps or seconds <= 0:
            return {}
        a_second = steps / seconds
        per_chip = a_second / len(self._devices)
        rates = {
            "perf/data_wait": spent.get("data_wait", 0.0) / seconds,
            "perf/tokens_per_second": self._work.tokens * a_second,
            "perf/frames_per_second_per_chip": self._work.frames * per_chip,
            "perf/video_seconds_per_second_per_chip": self._work.video_seconds * per_chip,
            "perf/tflops_per_chip": flops * per_chip / 1e12,
        }
        if durations:
            rates["perf/step_seconds"] = statistics.median(durations)
        if self._peak is not None:
            rates["perf/mfu"] = flops * per_chip / self._peak
        return rates


def device_memory(devices: Sequence[Any]) -> dict[str, float]:
    """Memory of the fullest of some local devices, in GiB.

    Returns:
        `memory/in_use_gib`, `memory/peak_gib` and `memory/limit_gib`, those that the devices tell; a CPU tells none.
    """
    names = {"bytes_in_use": "in_use", "peak_bytes_in_use": "peak", "bytes_limit": "limit"}
    told = [device.memory_stats() or {} for device in devices]
    found = {}
    for field, name in names.items():
        values = [stats[field] for stats in told if field in stats]
        if values:
            found[f"memory/{name}_gib"] = max(values) / 2**30
    return found
