"""When a run saves, and which of its checkpoints stay."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

# With several processes the first one's clock decides, which costs a collective: it is asked at these steps only.
_CLOCK_STEPS = 10


@dataclasses.dataclass(frozen=True)
class CheckpointPolicy:
    """The section `STAGE.checkpoint` of a config. A stop by signal and the last step are always saved.

    Attributes:
        every_steps: A save is due at each positive multiple of this step.
        keep: How many of the newest checkpoints stay.
        every_seconds: A save is due also when the last one is this long ago; 0 for never. With several
            processes it may come up to 10 steps later.
        keep_every: Checkpoints at multiples of this step stay for good; 0 for none.
        keep_best: How many of the best checkpoints by `metric` stay; 0 for none.
        metric: A name in `metrics.jsonl`, such as "train/loss". What counts is its mean since the save before.
        best: Whether the lowest or the highest values are best.
    """

    every_steps: int
    keep: int
    every_seconds: float = 0.0
    keep_every: int = 0
    keep_best: int = 0
    metric: str = "train/loss"
    best: Literal["lowest", "highest"] = "lowest"

    def __post_init__(self):
        for name, least in (("every_steps", 1), ("keep", 1), ("every_seconds", 0), ("keep_every", 0), ("keep_best", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {least} or more")
        if self.keep_every % self.every_steps:
            raise ValueError(f"keep_every={self.keep_every} must be a multiple of every_steps={self.every_steps}")

    def kept(self) -> Any:
        """What Orbax is to keep."""
        policies = ocp.training.preservation_policies
        keep: list[Any] = [policies.LatestN(self.keep)]
        if self.keep_every:
            keep.append(policies.EveryNSteps(self.keep_every))
        if self.keep_best:
            keep.append(
                policies.BestN(
                    get_metric_fn=lambda metrics: cast(float, metrics[self.metric]),
                    reverse=self.best == "lowest",  # Orbax keeps the last of an ascending order, or of a descending one
                    n=self.keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        return policies.AnyPreservationPolicy(keep)


class SaveClock:
    """Says when a save is due, alike on all processes."""

    def __init__(self, policy: CheckpointPolicy, clock: Callable[[], float] = time.monotonic):
        """Starts the time of `every_seconds`.

        Args:
            policy: When.
            clock: Returns seconds, monotonic.
        """
        self._policy, self._clock, self._last = policy, clock, clock()

    def due(self, step: int) -> bool:
        """Whether a save is due at this step; every process calls it at every step."""
        if step > 0 and step % self._policy.every_steps == 0:
            return True
        if not self._policy.every_seconds or step == 0:
            return False
        late = self._clock() - self._last >= self._policy.every_seconds
        if jax.process_count() == 1:
            return late
        if step % _CLOCK_STEPS:
            return False
        return bool(multihost_utils.broadcast_one_to_all(np.asarray(late)))

    def saved(self) -> None:
        """A save has begun: the time runs anew."""
        self._last = self._clock()


class MetricMean:
    """The mean of the policy's metric since the last save."""

    def __init__(self, policy: CheckpointPolicy):
        """Nothing noted yet."""
        self._name = policy.metric if policy.keep_best else None
        self._values: list[float] = []

    def note(self, metrics: Mapping[str, float]) -> None:
        """Takes the metric out of what was logged; values that are not finite do not count.

        Raises:
            ValueError: If it is not there; the message names what is.
        """
        if self._name is None:
            return
        if self._name not in metrics:
            raise ValueError(f"checkpoint.metric: {self._name!r} is not logged; there are {', '.join(sorted(metrics))}")
        if math.isfinite(metrics[self._name]):
            self._values.append(metrics[self._name])

    def take(self) -> dict[str, float] | None:
        """The mean by name, and begins anew; None if nothing was noted."""
        values, self._values = self._values, []
        return {str(self._name): sum(values) / len(values)} if values else None
