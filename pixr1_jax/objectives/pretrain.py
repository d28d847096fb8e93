"""Teacher-forced flow matching with clean-data prediction (decisions D7, D10)."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from pixr1_jax.core import rng
from pixr1_jax.core.partition import Partition
from pixr1_jax.core.rng import Purpose
from pixr1_jax.objectives import flow, losses, tasks
from pixr1_jax.objectives.predict import Batch, predict
from pixr1_jax.omni import tokens
from pixr1_jax.omni.model import Omni, OmniConfig
from pixr1_jax.omni.tokens import Cells, Signals


@dataclasses.dataclass(frozen=True)
class Pretrain:
    """Flow matching: the target time is the time itself, guidance is 1.

    Attributes:
      model: Sizes.
      sampling: How times and tasks are drawn.
      time_floor: The weight of an error is 1 / max(t, time_floor)^2.
      audio_weight: Weight of the audio loss beside video's 1.
      clean_blocks: Blocks of the clean half of a row.
      max_keys: Static bound on key blocks that a query block reads in full.
      partition: Where activations lie; None leaves it to the compiler.
    """

    model: OmniConfig
    sampling: tasks.TimeSampling
    time_floor: float
    audio_weight: float
    clean_blocks: int
    max_keys: int
    partition: Partition | None = None

    def masses(self, batch: Batch, seed: int, step: jax.Array) -> dict[str, jax.Array]:
        """What the loss of a batch that is taken in parts divides by; see `loss`."""
        return masses(self, batch, seed, step)

    def loss(
        self,
        params: Omni,
        teacher: Omni | None,
        batch: Batch,
        seed: int,
        step: jax.Array,
        whole: Mapping[str, jax.Array] | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Loss and metrics of a packed batch; there is no teacher.

        Args:
          params: Parameters.
          teacher: None.
          batch: The batch, or a part of one.
          seed: Run seed.
          step: Training step.
          whole: The `masses` of the batch that this is a part of; None where it is whole. The losses and the metrics of
            all parts add up to those of the whole.
        """
        del teacher
        scene = noised(self.model, self.sampling, batch, seed, step)
        cells = Cells(scene.draw.time, scene.draw.time, jnp.ones_like(scene.draw.time[..., 0]), scene.draw.context)
        budget = self.model.attention.budget
        predicted = predict(
            params,
            self.model,
            batch,
            scene.context,
            scene.noisy,
            cells,
            scene.draw.drop,
            clean_blocks=self.clean_blocks,
            max_keys=self.max_keys,
            partition=self.partition,
            ramp=None if budget is None else budget.ramp(step),
        )
        error = jax.tree.map(
            lambda p, x, t: jnp.square((p - x) / jnp.maximum(t, self.time_floor)), predicted, scene.clean, scene.time
        )
        return combine(self, batch, scene, error, whole)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scene:
    """A batch with its noise: what every objective starts from.

    Attributes:
      clean: Content.
      noise: Noise at time 1.
      noisy: Content of the noisy half.
      context: Content of the clean half, at its context level.
      time: Noise time of every token, Signals of [batch, tokens, 1].
      draw: Tasks and times of the cells.
    """

    clean: Signals
    noise: Signals
    noisy: Signals
    context: Signals
    time: Signals
    draw: tasks.Draw


def noised(config: OmniConfig, sampling: tasks.TimeSampling, batch: Batch, seed: int, step: jax.Array) -> Scene:
    """Draws tasks, times and noise for a batch."""
    spec = config.tokens
    clean = tokens.content(config, batch)
    draw = tasks.draw(sampling, config.max_context_time, seed, step, batch)
    noise = flow.noise_like(clean, batch, seed, step, (Purpose.VIDEO_NOISE, Purpose.AUDIO_NOISE))
    time = flow.per_token(batch, draw.time, spec.audio_tokens)
    noisy = jax.tree.map(flow.interpolate, clean, noise, time)
    context = clean
    if config.max_context_time > 0:
        level = flow.per_token(batch, draw.context, spec.audio_tokens)
        grain = flow.noise_like(clean, batch, seed, step, (Purpose.VIDEO_CONTEXT, Purpose.AUDIO_CONTEXT))
        context = jax.tree.map(flow.interpolate, clean, grain, level)
    if sampling.drift > 0:
        context = dataclasses.replace(context, video=drifted(context.video, batch, seed, step, sampling.drift))
    return Scene(clean, noise, noisy, context, time, draw)


def drifted(video: jax.Array, batch: Batch, seed: int, step: jax.Array, level: float) -> jax.Array:
    """Changes contrast and colour of the context, the same throughout a sample.

    A stream that reads its own output drifts in just this way, and white noise does not teach a model to come back: it
    hardly touches the broad components in which drift lives.

    Args:
      video: [batch, patches, patch_dim].
      batch: The packed batch.
      seed: Run seed.
      step: Training step.
      level: Standard deviation of the logarithm of contrast and of the shift of each colour.
    """
    keys = rng.chunk_keys(
        seed, Purpose.CONTEXT_DRIFT, step, batch["chunk_sample"], jnp.zeros_like(batch["chunk_number"])
    )
    normal = jax.vmap(jax.vmap(lambda key: jax.random.normal(key, (4,))))(keys)  # [batch, chunks, 4]
    slot = jnp.maximum(batch["patch_slot"], 0)[..., None]
    by_patch = level * jnp.take_along_axis(normal, slot, axis=1)
    shift = jnp.tile(by_patch[..., 1:], (1, 1, video.shape[-1] // 3))
    return video * jnp.exp(by_patch[..., :1]) + shift


def masses(objective, batch: Batch, seed: int, step: jax.Array) -> dict[str, jax.Array]:
    """What the loss of a batch divides by (see `losses.masses`), without running the network."""
    spec = objective.model.tokens
    draw = tasks.draw(objective.sampling, objective.model.max_context_time, seed, step, batch)
    weights = losses.token_weights(batch, draw.loss, spec.patch, spec.chunk_frames)
    return losses.masses(weights, flow.per_token(batch, draw.time, spec.audio_tokens))


def combine(
    objective, batch: Batch, scene: Scene, error: Signals, whole: Mapping[str, jax.Array] | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Total loss of weighted squared errors and the metrics every objective reports."""
    spec = objective.model.tokens
    weights = losses.token_weights(batch, scene.draw.loss, spec.patch, spec.chunk_frames)
    whole = losses.masses(weights, scene.time) if whole is None else whole
    means = losses.by_modality(error, weights, scene.time, whole)
    total = means["video"] + objective.audio_weight * means.get("audio", 0.0)
    return total, {f"loss/{name}": value for name, value in means.items()}
