"""Guidance rectification: the guided field becomes a target, so that serving needs no second pass.

Classifier-free guidance (Ho, Salimans 2022) at strength w moves the prediction from the unconditional to the
conditional one and beyond; the strength is an input of the student.
"""

import jax
import jax.numpy as jnp

from pixr1_jax.core.rng import Purpose
from pixr1_jax.objectives import flow
from pixr1_jax.objectives.predict import Batch


def guide(conditional: jax.Array, unconditional: jax.Array, strength: jax.Array) -> jax.Array:
    """Unconditional + w (conditional - unconditional); w = 1 is the conditional prediction."""
    return unconditional + strength * (conditional - unconditional)


def sample_strength(seed: int, step: jax.Array, batch: Batch, largest: float) -> jax.Array:
    """Strength of each chunk, the same within a sample, float32 [batch, chunks].

    Half of the samples have strength 1, where a stream spends its time unless told otherwise; the others are
    log-uniform in [1, largest].
    """
    u = flow.uniform_by_sample(seed, Purpose.GUIDANCE, step, batch)
    return jnp.exp(jnp.maximum(2.0 * u - 1.0, 0.0) * jnp.log(largest))
