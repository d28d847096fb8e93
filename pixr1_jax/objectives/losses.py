"""Masked squared errors by modality, and their split by noise time for the metrics."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from pixr1_jax.objectives import flow
from pixr1_jax.omni.tokens import Signals

TIME_BINS = 4


def token_weights(batch: Mapping[str, jax.Array], loss: jax.Array, patch: int, chunk_frames: int) -> Signals:
    """Weights of every value in the loss: 0 for empty places, padding pixels, silent chunks and cells without loss.

    Returns:
      Signals: video [batch, patches, patch_dim], audio [batch, audio tokens, 1].
    """
    extent = batch["patch_extent"].astype(jnp.int32)
    inside = jnp.arange(patch) < extent[..., None]  # [batch, patches, 2, patch]
    pixel = inside[..., 0, :, None] & inside[..., 1, None, :]
    pixel = jnp.broadcast_to(pixel[..., None, :, :, None], (*pixel.shape[:2], chunk_frames, patch, patch, 3))
    each = batch["audio_at"].shape[1] // loss.shape[1]
    cell = flow.per_token(batch, loss.astype(jnp.float32), each)
    present = (batch["patch_slot"] >= 0)[..., None]
    heard = jnp.repeat(batch["chunk_audio"], each, axis=1)[..., None]
    return Signals(pixel.reshape(*pixel.shape[:2], -1) * cell.video * present, cell.audio * heard)


def masses(weights: Signals, time: Signals) -> dict[str, jax.Array]:
    """Total weight of tokens by modality, and by modality and time bin under `video/t0` (least noise) and so on.

    A batch that is taken in parts is divided by the masses of the whole, so that its parts add up to its loss.

    Args:
      weights: As `token_weights`.
      time: Noise time of each token, [batch, tokens, 1].
    """
    return _by_bin(weights, time)


def by_modality(
    error: Signals, weights: Signals, time: Signals, whole: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """Means of squared errors, named as in `masses`.

    Args:
      error: Squared errors, already weighted by time.
      weights: As `token_weights`.
      time: Noise time of each token, [batch, tokens, 1].
      whole: The masses that are divided by; those of a larger batch give this batch's share of its means.
    """
    sums = _by_bin(jax.tree.map(jnp.multiply, error, weights), time)
    return {name: value / jnp.where(whole[name] > 0, whole[name], 1.0) for name, value in sums.items()}


def _by_bin(values: Signals, time: Signals) -> dict[str, jax.Array]:
    """Sums over tokens of the means over a token's values: by modality, and by modality and time bin."""
    found = {}
    for name in ("video", "audio"):
        value, t = getattr(values, name).mean(axis=-1), getattr(time, name)[..., 0]
        if not value.shape[1]:
            continue
        which = jnp.clip((t * TIME_BINS).astype(jnp.int32), 0, TIME_BINS - 1)
        found[name] = value.sum()
        found |= {f"{name}/t{i}": (value * (which == i)).sum() for i in range(TIME_BINS)}
    return found
