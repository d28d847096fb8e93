"""Masked errors against sums over single pixels in plain Python."""

import jax.numpy as jnp
import numpy as np
import pytest

from pixr1_jax.objectives import losses
from pixr1_jax.omni.tokens import Signals


@pytest.fixture(scope="module")
def scene(tiny):
    """Pictures that do not fill their patches, and chunk slots that are empty."""
    spec = tiny.token_spec()
    rows = [
        [tiny.window(spec, 2, seed=1, height=7, width=10)],
        [tiny.window(spec, 1, seed=2, height=5, width=4), tiny.window(spec, 1, seed=3)],
    ]
    batch, _ = tiny.batch(spec, rows, spare=1)
    rng = np.random.default_rng(0)
    loss = (rng.random((*batch["chunk_valid"].shape, 2)) < 0.7) & batch["chunk_valid"][..., None]
    assert loss.any() and not loss.all()
    return spec, batch, loss


def test_weights_are_one_inside_the_picture_of_cells_with_loss(scene):
    spec, batch, loss = scene
    weights = losses.token_weights(batch, jnp.asarray(loss), spec.patch, spec.chunk_frames)
    video = np.zeros(batch["patches"].shape, np.float32)
    for row, patch in np.ndindex(*batch["patch_slot"].shape):
        slot = batch["patch_slot"][row, patch]
        if slot < 0 or not loss[row, slot, 0]:
            continue
        cell = np.zeros((spec.chunk_frames, spec.patch, spec.patch, 3), np.float32)
        high, wide = batch["patch_extent"][row, patch]
        cell[:, :high, :wide] = 1
        video[row, patch] = cell.ravel()
    np.testing.assert_array_equal(weights.video, video)
    audio = np.repeat(loss[..., 1], spec.audio_tokens, axis=1)[..., None]
    np.testing.assert_array_equal(weights.audio, audio.astype(np.float32))


def test_the_number_of_weighted_pixels_is_that_of_the_clips(scene):
    spec, batch, _ = scene
    weights = losses.token_weights(
        batch, jnp.asarray(batch["chunk_valid"][..., None].repeat(2, -1)), spec.patch, spec.chunk_frames
    )
    assert weights.video[0].sum() == 2 * 2 * 7 * 10 * 3
    assert weights.video[1].sum() == 2 * (5 * 4 + 8 * 12) * 3


def test_means_and_bins_value_by_value():
    rng = np.random.default_rng(0)
    error = Signals(rng.random((2, 5, 3)).astype(np.float32), rng.random((2, 4, 2)).astype(np.float32))
    weights = Signals((rng.random((2, 5, 3)) < 0.6).astype(np.float32), (rng.random((2, 4, 1)) < 0.6) * 1.0)
    time = Signals(rng.choice([0.0, 0.1, 0.3, 0.5, 0.9, 1.0], (2, 5, 1)), rng.random((2, 4, 1)))
    means = losses.by_modality(error, weights, time, losses.masses(weights, time))
    names = ("video", "audio")
    assert set(means) == {*names, *(f"{name}/t{i}" for name in names for i in range(4))}
    for name in names:
        e, w, t = (np.asarray(getattr(x, name)) for x in (error, weights, time))
        values = {i: [] for i in range(4)}
        for row, token, value in np.ndindex(*e.shape):
            if np.broadcast_to(w, e.shape)[row, token, value]:
                values[min(int(t[row, token, 0] * 4), 3)].append(e[row, token, value])
        np.testing.assert_allclose(means[name], np.mean(sum(values.values(), [])), rtol=1e-5)
        for i in range(4):
            np.testing.assert_allclose(means[f"{name}/t{i}"], np.mean(values[i]) if values[i] else 0.0, rtol=1e-5)


def test_nothing_to_learn_is_a_loss_of_zero():
    error = Signals(jnp.ones((1, 2, 3)), jnp.ones((1, 2, 3)))
    nothing = Signals(jnp.zeros((1, 2, 3)), jnp.zeros((1, 2, 1)))
    time = Signals(jnp.zeros((1, 2, 1)), jnp.zeros((1, 2, 1)))
    means = losses.by_modality(error, nothing, time, losses.masses(nothing, time))
    assert {float(value) for value in means.values()} == {0.0}


def test_a_silent_model_has_no_audio_loss():
    video, silent = jnp.ones((1, 2, 3)), jnp.ones((1, 0, 1))
    weights, time = Signals(video, silent), Signals(video[..., :1], silent)
    means = losses.by_modality(weights, weights, time, losses.masses(weights, time))
    assert set(means) == {"video", *(f"video/t{i}" for i in range(4))}
