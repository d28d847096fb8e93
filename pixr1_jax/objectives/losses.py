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


def by_modality(error: Signals, weights: Signals, time: Signals) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Means of squared errors.

    Args:
      error: Squared errors, already weighted by time.
      weights: As `token_weights`.
      time: Noise time of each token, [batch, tokens, 1].

    Returns:
      Mean by modality, and the mean by modality and time bin under `video/t0` (least noise) and so on.
    """
    means, bins = {}, {}
    for name, e, w, t in (
        ("video", error.video, weights.video, time.video),
        ("audio", error.audio, weights.audio, time.audio),
    ):
        if not e.shape[1]:
            continue
        w = jnp.broadcast_to(w, e.shape)
        total, mass = (e * w).sum(axis=-1), w.sum(axis=-1)
        means[name] = total.sum() / jnp.maximum(mass.sum(), 1.0)
        which = jnp.clip((t[..., 0] * TIME_BINS).astype(jnp.int32), 0, TIME_BINS - 1)
        for i in range(TIME_BINS):
            here = which == i
            bins[f"{name}/t{i}"] = (total * here).sum() / jnp.maximum((mass * here).sum(), 1.0)
    return means, bins
