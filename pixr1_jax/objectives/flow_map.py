"""Flow-map distillation: temporal trajectory folding to 1-4 steps (decision D10).

The student's average velocity u(z, t, s) over [s, t] obeys u = v - (t - s) du/dt (MeanFlow, arXiv 2505.13447). As
in improved MeanFlow (arXiv 2512.02012) the loss is taken on V = u + (t - s) sg(du/dt) against the guided velocity of
the frozen teacher, du/dt by `jax.jvp` along the teacher's velocity. s = 0 alone would be consistency training.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from pixr1_jax.core.partition import Partition
from pixr1_jax.core.rng import Purpose
from pixr1_jax.objectives import flow, guidance, tasks
from pixr1_jax.objectives.predict import Batch, denoise, encode_context, predict
from pixr1_jax.objectives.pretrain import combine, masses, noised
from pixr1_jax.omni.model import Omni, OmniConfig
from pixr1_jax.omni.tokens import Cells, Signals


@dataclasses.dataclass(frozen=True)
class FlowMap:
    """Distils a flow-matching teacher into a flow map.

    Attributes:
      model: Sizes, shared with the teacher.
      sampling: How times and tasks are drawn; nothing is dropped from the student.
      to_clean: Share of chunks whose target time is 0.
      to_same: Share of chunks whose target time is the time itself; the rest is uniform below it.
      max_guidance: Largest guidance strength that the student learns.
      tangent_warmup: Steps over which the tangent term is blended in.
      time_floor: The error in velocity is weighted by (t / max(t, time_floor))^2.
      audio_weight: Weight of the audio loss beside video's 1.
      softening: Squared error of a token beyond which its share in the loss grows no more; a tangent that runs away
        then costs a step little.
      clean_blocks: Blocks of the clean half of a row.
      max_keys: Static bound on key blocks that a query block reads in full. The teacher went through the budget's ramp,
        so the student starts at its end.
      partition: Where activations lie; None leaves it to the compiler.
    """

    model: OmniConfig
    sampling: tasks.TimeSampling
    to_clean: float
    to_same: float
    max_guidance: float
    tangent_warmup: int
    time_floor: float
    audio_weight: float
    softening: float
    clean_blocks: int
    max_keys: int
    partition: Partition | None = None

    def masses(self, batch: Batch, seed: int, step: jax.Array) -> dict[str, jax.Array]:
        """What the loss of a batch that is taken in parts divides by; see `Pretrain.loss`."""
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
        """Loss and metrics of a packed batch, as `Pretrain.loss`; `teacher` are frozen parameters."""
        assert teacher is not None, "distillation needs a teacher"
        config, spec = self.model, self.model.tokens
        scene = noised(config, self.sampling, batch, seed, step)
        time, nothing = scene.draw.time, jnp.zeros_like(scene.draw.drop)
        strength = guidance.sample_strength(seed, step, batch, self.max_guidance)
        target = time * self._target_share(seed, step, batch)
        split = {"clean_blocks": self.clean_blocks, "max_keys": self.max_keys, "partition": self.partition}

        # The teacher's guided velocity.
        plain = Cells(time, time, jnp.ones_like(strength), scene.draw.context)
        past = encode_context(teacher, config, batch, scene.context, plain, **split)
        with_condition = denoise(teacher, config, batch, past, scene.context, scene.noisy, plain, nothing, **split)
        without = denoise(teacher, config, batch, past, scene.context, scene.noisy, plain, ~nothing, **split)
        weight = flow.per_token(batch, jnp.stack([strength, strength], -1), spec.audio_tokens)
        guided = jax.tree.map(guidance.guide, with_condition, without, weight)
        speed = jax.tree.map(flow.velocity, scene.noisy, guided, scene.time)
        speed = jax.lax.stop_gradient(speed)

        # du/dt of the student along the teacher's velocity; only noisy cells move, the context stands still.
        frozen = jax.lax.stop_gradient(params)
        past = encode_context(frozen, config, batch, scene.context, plain, **split)

        def average_velocity(noisy, time):
            cells = Cells(time, target, strength, scene.draw.context)
            clean = denoise(frozen, config, batch, past, scene.context, noisy, cells, nothing, **split)
            return jax.tree.map(flow.velocity, noisy, clean, flow.per_token(batch, time, spec.audio_tokens))

        # A modality that its task keeps clean is at time 0 and stays there.
        moving = (time > 0).astype(time.dtype)
        motion = jax.tree.map(jnp.multiply, speed, flow.per_token(batch, moving, spec.audio_tokens))
        _, tangent = jax.jvp(average_velocity, (scene.noisy, time), (motion, moving))
        tangent = jax.lax.stop_gradient(tangent)

        cells = Cells(time, target, strength, scene.draw.context)
        clean = predict(params, config, batch, scene.context, scene.noisy, cells, nothing, **split)
        blend = jnp.minimum(1.0, (step + 1) / self.tangent_warmup)
        span = flow.per_token(batch, time - target, spec.audio_tokens)

        def squared(noisy, clean, tangent, speed, time, span):
            compound = flow.velocity(noisy, clean, time) + blend * span * tangent
            return jnp.square((compound - speed) * time / jnp.maximum(time, self.time_floor))

        error = jax.tree.map(squared, scene.noisy, clean, tangent, speed, scene.time, span)
        error = jax.tree.map(self._soften, error)
        loss, metrics = combine(self, batch, scene, error, whole)
        power = Signals(jnp.square(tangent.video), jnp.square(tangent.audio))
        metrics["tangent_power"] = combine(self, batch, scene, power, whole)[1]["loss/video"]
        return loss, metrics

    def _soften(self, error: jax.Array) -> jax.Array:
        """Divides the squared errors of each token by 1 + their detached mean / softening."""
        mean = jax.lax.stop_gradient(error.mean(axis=-1, keepdims=True))
        return error / (1.0 + mean / self.softening)

    def _target_share(self, seed: int, step: jax.Array, batch: Batch) -> jax.Array:
        """Target time as a share of the time, [batch, chunks, 1]."""
        u = flow.uniform(seed, Purpose.TARGET_TIME, step, batch, 2)
        which, share = u[..., :1], u[..., 1:]
        share = jnp.where(which < self.to_clean, 0.0, share)
        return jnp.where(which > 1.0 - self.to_same, 1.0, share)
