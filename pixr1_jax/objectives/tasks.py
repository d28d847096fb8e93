"""Every task is a noise schedule: which (chunk, modality) cells are clean, noisy, and carry loss (decision D4).

A sample without sound has one task whatever is drawn: its video is noisy and carries loss.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from pixr1_jax.core.rng import Purpose
from pixr1_jax.objectives import flow

# For each task and modality (video, audio): 1 takes the chunk's first time, 2 an independent one, 0 stays clean.
TASKS = {
    "joint": (1, 1),
    "independent": (1, 2),
    "video_to_audio": (0, 1),
    "audio_to_video": (1, 0),
}


@dataclasses.dataclass(frozen=True)
class TimeSampling:
    """How noise times are drawn.

    Attributes:
      mean: Of the logit-normal law of times; above 0 leans towards noise.
      deviation: Of the logit-normal law.
      pure_noise: Share of chunks at exactly t = 1, where every sampler begins.
      drop: Share of samples trained without text and actions, for guidance.
      drift: Standard deviation of the changes of contrast (its logarithm) and colour that the context of a sample has.
      tasks: Weight of each task of `TASKS`, as (name, weight) pairs.
      tables: Further such weights, for the samples that name them: table i is `tables[i - 1]`, table 0 `tasks`.
    """

    mean: float
    deviation: float
    pure_noise: float
    drop: float
    drift: float
    tasks: tuple[tuple[str, float], ...]
    tables: tuple[tuple[tuple[str, float], ...], ...] = ()

    def __post_init__(self):
        for table in (self.tasks, *self.tables):
            unknown = [name for name, _ in table if name not in TASKS]
            if unknown or not table:
                raise ValueError(f"objective.tasks names {unknown}; known tasks are {sorted(TASKS)}")
            weights = [weight for _, weight in table]
            if min(weights) < 0 or not 0 < sum(weights) < np.inf:
                raise ValueError(f"objective.tasks has weights {dict(table)}; use none below 0, and one above")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draw:
    """What a step draws for its cells.

    Attributes:
      time: float32 [batch, chunks, 2], 0 where a task keeps a modality clean.
      loss: bool [batch, chunks, 2].
      drop: bool [batch, chunks].
      context: float32 [batch, chunks, 2], noise level of the clean context.
    """

    time: jax.Array
    loss: jax.Array
    drop: jax.Array
    context: jax.Array


def draw(
    sampling: TimeSampling, max_context_time: float, seed: int, step: jax.Array, batch: Mapping[str, jax.Array]
) -> Draw:
    """Draws tasks, times and context levels, keyed by sample and chunk."""
    names = sorted(TASKS)
    weights = np.array([[dict(table).get(name, 0.0) for name in names] for table in (sampling.tasks, *sampling.tables)])
    edges = jnp.asarray(np.cumsum(weights, axis=1) / weights.sum(axis=1, keepdims=True), jnp.float32)[:, :-1]
    u = flow.uniform_by_sample(seed, Purpose.TASK, step, batch)
    task = (edges[batch["chunk_table"]] < u[..., None]).sum(axis=-1)
    rule = jnp.asarray([TASKS[name] for name in names])[task]  # [batch, chunks, 2]
    has_sound = batch["chunk_audio"][..., None]
    rule = jnp.where(has_sound, rule, jnp.asarray((1, 0)))

    u = flow.uniform(seed, Purpose.TIME, step, batch, 3)
    logit = sampling.mean + sampling.deviation * jax.scipy.special.ndtri(jnp.clip(u[..., :2], 1e-6, 1 - 1e-6))
    times = jnp.where(u[..., 2:] < sampling.pure_noise, 1.0, jax.nn.sigmoid(logit))
    time = jnp.where(rule == 2, times[..., 1:], times[..., :1]) * (rule > 0)
    level = max_context_time * flow.uniform(seed, Purpose.CONTEXT_LEVEL, step, batch, 1)
    return Draw(
        time=time,
        loss=(rule > 0) & batch["chunk_valid"][..., None],
        drop=flow.uniform_by_sample(seed, Purpose.DROP, step, batch) < sampling.drop,
        context=jnp.broadcast_to(level, time.shape),
    )
