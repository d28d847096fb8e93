"""Principal components against the singular value decomposition; embeddings that start from them."""

import numpy as np
import pytest

from pixr1_jax.omni import principal


def low_rank(count, dim, rank, seed=0):
    rng = np.random.default_rng(seed)
    scales = np.linspace(3, 1, rank)
    return (rng.standard_normal((count, rank)) * scales @ rng.standard_normal((rank, dim)) + 0.7).astype(np.float32)


@pytest.mark.parametrize(("count", "dim"), [(60, 9), (8, 30), (12, 12)])
def test_components_are_those_of_the_svd(count, dim):
    samples = np.random.default_rng(1).standard_normal((count, dim)).astype(np.float32) * np.linspace(1, 4, dim)
    mean, directions, deviation = principal.components(samples, 4)
    np.testing.assert_allclose(mean, samples.mean(0), atol=1e-5)
    _, singular, rows = np.linalg.svd(samples.astype(np.float64) - samples.mean(0, dtype=np.float64))
    np.testing.assert_allclose(deviation, singular[:4] / np.sqrt(count), rtol=1e-4)
    np.testing.assert_allclose(np.abs(np.sum(directions * rows[:4].T, axis=0)), 1.0, atol=1e-5)
    np.testing.assert_allclose(directions.T @ directions, np.eye(4), atol=1e-6)


def test_rank_beyond_the_data():
    with pytest.raises(ValueError, match="rank 7 exceeds the 5 samples of 20 values.*lower it"):
        principal.components(np.zeros((5, 20), np.float32), 7)


def test_constant_data_gives_finite_components():
    assert all(np.isfinite(x).all() for x in principal.components(np.ones((10, 6), np.float32), 3))


def test_initialised_embeddings_fit_the_data(tiny):
    config = tiny.config()
    model = tiny.fresh_model(config)
    before = np.asarray(model.video_in.down[...])
    video, audio = low_rank(300, config.tokens.patch_dim, 12), low_rank(200, config.tokens.audio_dim, 10, seed=1)
    fitted = principal.initialise(model, video, audio)
    np.testing.assert_array_equal(model.video_in.down[...], before)  # the given model is left alone

    for embed, head, data in ((fitted.video_in, fitted.video_out, video), (fitted.audio_in, fitted.audio_out, audio)):
        mean, down, up = (np.asarray(x[...], np.float64) for x in (embed.mean, embed.down, head.up))
        np.testing.assert_allclose(mean, data.mean(0), atol=1e-4)
        np.testing.assert_allclose(head.mean[...], mean, atol=1e-6)
        np.testing.assert_allclose(down.T @ down, np.eye(down.shape[1]), atol=1e-5)  # noise keeps its variance
        # Components of unit variance, decoded by the head, are the data.
        unit = (data - mean) @ down / ((data - mean) @ down).std(0)
        np.testing.assert_allclose(unit @ up + mean, data, atol=2e-3)


def test_without_audio_only_the_video_embedding_is_set(tiny):
    config = tiny.config()
    model = tiny.fresh_model(config)
    fitted = principal.initialise(model, low_rank(300, config.tokens.patch_dim, 12), None)
    np.testing.assert_array_equal(fitted.audio_in.down[...], model.audio_in.down[...])
    assert np.abs(np.asarray(fitted.video_in.mean[...])).max() > 0.1


def test_the_forecast_is_the_best_bilinear_one(tiny):
    """Patches that are a function of the one before them, another one for each action."""
    config = tiny.config()
    rng = np.random.default_rng(0)
    rank, count = config.video_rank, 200
    rotation = lambda n: np.linalg.qr(rng.standard_normal((n, n)))[0]
    basis, still, moved = rotation(config.tokens.patch_dim)[:, :rank], rotation(rank), rotation(rank)
    first = rng.standard_normal((4, count, rank)) * np.linspace(2, 1, rank)
    held = np.zeros((4, 2 * count, config.tokens.action_dim), np.float32)
    held[..., 0] = rng.integers(0, 2, held.shape[:2])
    second = np.where(held[:, count:, :1] > 0, first @ moved, first @ still)
    video = (np.concatenate([first, second], axis=1) @ basis.T).astype(np.float32)
    before = np.full((4, 2 * count, 9), -1, np.int32)
    before[:, count:, 4] = np.arange(count)
    model = principal.initialise(tiny.fresh_model(config), video.reshape(-1, video.shape[-1]), None)

    def answer(fitted):
        """The head is still closed, so it answers its forecast."""
        low = (video - np.asarray(fitted.video_in.mean[...])) @ np.asarray(fitted.video_in.down[...])
        _, forecast = fitted.look_back(low, before, held - np.asarray(fitted.look_back.usual_action[...]))
        return np.asarray(fitted.video_out(np.zeros((4, 2 * count, config.width), np.float32), forecast))

    error = lambda fitted: np.square(answer(fitted) - video)[:, count:].mean() / video.var()
    fitted = principal.initialise_forecast(model, video, before, held, 0.0)
    assert not np.asarray(model.look_back.forecast[...]).any()  # the given model is left alone
    assert error(fitted) < 0.02 < error(model)
    # The noise that the surroundings will have makes it careful.
    careful = principal.initialise_forecast(model, video, before, held, 1.0)
    norm = lambda m: np.linalg.norm(np.asarray(m.look_back.forecast[...]))
    assert 0.1 * norm(fitted) < norm(careful) < 0.95 * norm(fitted)
