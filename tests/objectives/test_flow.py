"""The straight path between data and noise, and draws that are keyed by sample, chunk and purpose."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixr1_jax.core.rng import Purpose
from pixr1_jax.objectives import flow
from pixr1_jax.omni import tokens

NUMBERS = st.floats(-3, 3, width=32)
TIMES = st.floats(0.0625, 1, width=32)
PURPOSES = (Purpose.VIDEO_NOISE, Purpose.AUDIO_NOISE)


@settings(deadline=None, max_examples=50)
@given(NUMBERS, NUMBERS, TIMES, st.floats(0, 1, width=32))
def test_the_path_its_velocity_and_its_points(clean, noise, time, share):
    x, e, t = (jnp.float32(value) for value in (clean, noise, time))
    z = flow.interpolate(x, e, t)
    np.testing.assert_allclose(z, (1 - time) * clean + time * noise, atol=1e-5)
    np.testing.assert_allclose(flow.velocity(z, x, t), noise - clean, atol=2e-4)
    s = t * jnp.float32(share)
    np.testing.assert_allclose(flow.advance(z, x, t, s), flow.interpolate(x, e, s), atol=1e-5)
    # A step is the average velocity times the time that it takes.
    np.testing.assert_allclose(flow.advance(z, x, t, s), z - (t - s) * flow.velocity(z, x, t), atol=1e-4)


def test_velocity_is_bounded_near_clean_data():
    assert float(flow.velocity(jnp.float32(1.0), jnp.float32(0.0), jnp.float32(0.0))) == pytest.approx(20.0)


@pytest.fixture(scope="module")
def scene(tiny):
    config = tiny.config()
    spec = config.tokens
    rows = [
        [tiny.window(spec, 3, seed=1), tiny.window(spec, 2, seed=2, height=7, width=5, first_chunk=4)],
        [tiny.window(spec, 2, seed=3)],
    ]
    batch, _ = tiny.batch(spec, rows, spare=1)
    return config, batch, tokens.content(config, batch)


def test_values_of_cells_reach_their_tokens(scene):
    config, batch, _ = scene
    rows, chunks = batch["chunk_sample"].shape
    cells = np.arange(rows * chunks * 2, dtype=np.float32).reshape(rows, chunks, 2)
    spread = flow.per_token(batch, jnp.asarray(cells), config.tokens.audio_tokens)
    for row in range(rows):
        for patch, slot in enumerate(batch["patch_slot"][row]):
            if slot >= 0:
                assert spread.video[row, patch, 0] == cells[row, slot, 0]
        for token in range(chunks * config.tokens.audio_tokens):
            assert spread.audio[row, token, 0] == cells[row, token // config.tokens.audio_tokens, 1]


def test_noise_is_standard_normal_and_nowhere_the_same(scene):
    config, batch, clean = scene
    noise = flow.noise_like(clean, batch, 0, jnp.int32(3), PURPOSES)
    video = np.asarray(noise.video)[batch["patch_slot"] >= 0]
    sound = np.asarray(noise.audio)[np.repeat(batch["chunk_valid"], config.tokens.audio_tokens, axis=1)]
    for values in (video, sound):
        assert abs(values.mean()) < 5 / np.sqrt(values.size)
        assert abs(values.std() - 1) < 5 / np.sqrt(values.size)
        assert len(np.unique(values)) > 0.99 * values.size  # all tokens differ


def test_noise_differs_by_seed_step_and_purpose(scene):
    _, batch, clean = scene
    draw = lambda seed=0, step=3, purposes=PURPOSES: np.asarray(
        flow.noise_like(clean, batch, seed, jnp.int32(step), purposes).video
    )[batch["patch_slot"] >= 0]
    base = draw()
    np.testing.assert_array_equal(draw(), base)
    for other in (draw(seed=1), draw(step=4), draw(purposes=(Purpose.VIDEO_CONTEXT, Purpose.AUDIO_CONTEXT))):
        assert abs(np.corrcoef(base.ravel(), other.ravel())[0, 1]) < 0.1


def test_uniform_numbers_of_chunks_and_of_samples(scene):
    _, batch, _ = scene
    u = np.asarray(flow.uniform(0, Purpose.TIME, jnp.int32(0), batch, 2))
    valid = batch["chunk_valid"]
    assert u.shape == (*valid.shape, 2) and len(np.unique(u[valid])) == 2 * valid.sum()
    assert (u >= 0).all() and (u < 1).all()
    by_sample = np.asarray(flow.uniform_by_sample(0, Purpose.TASK, jnp.int32(0), batch))
    values = {int(sample): set(by_sample[batch["chunk_sample"] == sample].tolist()) for sample in (1001, 1002, 1003)}
    assert all(len(found) == 1 for found in values.values())
    assert len(set.union(*values.values())) == 3


def test_a_silent_model_draws_no_sound(tiny):
    spec = tiny.token_spec(audio_tokens=0)
    batch, _ = tiny.batch(spec, [[tiny.window(spec, 2)]])
    clean = tokens.content(tiny.config(spec), batch)
    noise = flow.noise_like(clean, batch, 0, jnp.int32(0), PURPOSES)
    assert noise.audio.shape == clean.audio.shape and noise.audio.size == 0
