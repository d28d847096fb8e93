"""The path between data and noise, and the randomness that training draws on it (decisions D1, D11).

z_t = (1 - t) x + t e; t = 1 is noise. The network predicts clean data; velocity is derived from it.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from pixr1_jax.core import rng
from pixr1_jax.core.rng import Purpose
from pixr1_jax.omni.tokens import Signals

MIN_TIME = 0.05


def interpolate(clean: jax.Array, noise: jax.Array, time: jax.Array) -> jax.Array:
    """Point of the path at `time` (broadcast over the last axis)."""
    return (1.0 - time) * clean + time * noise


def velocity(noisy: jax.Array, clean: jax.Array, time: jax.Array) -> jax.Array:
    """Velocity dz/dt of the straight path through `noisy` that ends at `clean`."""
    return (noisy - clean) / jnp.maximum(time, MIN_TIME)


def advance(noisy: jax.Array, clean: jax.Array, time: jax.Array, target: jax.Array) -> jax.Array:
    """Moves from `time` to `target` along the predicted average velocity; target 0 gives `clean`."""
    return clean + (noisy - clean) * (target / jnp.maximum(time, MIN_TIME))


def per_token(batch: Mapping[str, jax.Array], values: jax.Array, audio_tokens: int) -> Signals:
    """Spreads values of cells [batch, chunks, 2] to tokens: Signals of [batch, tokens, 1]."""
    video = jnp.take_along_axis(values[..., 0], jnp.maximum(batch["patch_slot"], 0), axis=1)
    return Signals(video[..., None], jnp.repeat(values[..., 1], audio_tokens, axis=1)[..., None])


def noise_like(
    clean: Signals, batch: Mapping[str, jax.Array], seed: int, step: jax.Array, purposes: tuple[Purpose, Purpose]
) -> Signals:
    """Standard normal noise, keyed by sample, chunk and place in the chunk, never by place in the batch."""

    def draw(purpose, slot, number, dim):
        keys = rng.chunk_keys(seed, purpose, step, batch["chunk_sample"], batch["chunk_number"])
        token = jax.vmap(jax.vmap(lambda key, n: jax.random.normal(jax.random.fold_in(key, n), (dim,))))
        return token(jax.vmap(lambda row, where: row[where])(keys, slot), number)

    rows, chunks = batch["chunk_sample"].shape
    each = clean.audio.shape[1] // chunks
    slot = jnp.broadcast_to(jnp.repeat(jnp.arange(chunks), each), (rows, chunks * each))
    number = jnp.broadcast_to(jnp.tile(jnp.arange(each), chunks), slot.shape)
    video = draw(purposes[0], jnp.maximum(batch["patch_slot"], 0), batch["patch_number"], clean.video.shape[-1])
    audio = draw(purposes[1], slot, number, clean.audio.shape[-1]) if each else clean.audio
    return Signals(video, audio)


def uniform(seed: int, purpose: Purpose, step: jax.Array, batch: Mapping[str, jax.Array], count: int) -> jax.Array:
    """Uniform numbers of each chunk, [batch, chunks, count]."""
    keys = rng.chunk_keys(seed, purpose, step, batch["chunk_sample"], batch["chunk_number"])
    return jax.vmap(jax.vmap(lambda key: jax.random.uniform(key, (count,))))(keys)


def uniform_by_sample(seed: int, purpose: Purpose, step: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    """One uniform number a sample, the same at all of its chunks: [batch, chunks]."""
    keys = rng.chunk_keys(seed, purpose, step, batch["chunk_sample"], jnp.zeros_like(batch["chunk_number"]))
    return jax.vmap(jax.vmap(jax.random.uniform))(keys)
