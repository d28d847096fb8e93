"""Flow matching: the loss of a constant model worked out in numpy, its gradient's reach, and that it falls."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pixr1_jax.objectives import pretrain, tasks
from pixr1_jax.objectives.pretrain import Pretrain
from pixr1_jax.objectives.tasks import TimeSampling
from pixr1_jax.omni import tokens

pytestmark = pytest.mark.usefixtures("quick_compile")

ALL_TASKS = tuple((name, 1.0) for name in sorted(tasks.TASKS))


def sampling(**changes):
    return TimeSampling(
        **({"mean": 0.5, "deviation": 1.0, "pure_noise": 0.2, "drop": 0.3, "drift": 0.0, "tasks": ALL_TASKS} | changes)
    )


@pytest.fixture(scope="module")
def scene(tiny):
    """Odd sizes, so that padding pixels exist; an empty chunk slot in each row."""
    config = tiny.config(layers=1)
    spec = config.tokens
    rows = [[tiny.window(spec, 3, seed=s, height=7, width=11, events=((0, "a"),))] for s in range(3)]
    batch, room = tiny.batch(spec, rows, spare=1)
    return config, batch, room, rows


def objective(config, room, **changes):
    return Pretrain(config, sampling(**changes), 0.25, 0.3, room.clean_blocks, room.blocks)


def test_the_loss_of_a_constant_model(tiny, scene):
    """A fresh model predicts 0: the loss is the mean of (x / max(t, floor))^2 over real pixels of noisy cells."""
    config, batch, room, rows = scene
    spec = config.tokens
    task = objective(config, room)
    model = tiny.fresh_model(config)
    run = jax.jit(lambda step: task.loss(model, None, batch, 0, step))
    loss, metrics = run(jnp.int32(4))
    draw = tasks.draw(task.sampling, config.max_context_time, 0, jnp.int32(4), batch)
    squares, sound = [], []
    clean = tokens.content(config, batch)
    for row, (window,) in enumerate(rows):
        for chunk in range(3):
            t_video, t_audio = (float(max(t, 0.25)) for t in draw.time[row, chunk])
            pixels = window.clip.video[2 * chunk : 2 * chunk + 2] / 127.5 - 1
            if draw.loss[row, chunk, 0]:
                squares.append(np.square(pixels / t_video).ravel())
            if draw.loss[row, chunk, 1]:
                here = slice(chunk * spec.audio_tokens, (chunk + 1) * spec.audio_tokens)
                sound.append(np.square(np.asarray(clean.audio[row, here]) / t_audio).ravel())
    video, audio = np.concatenate(squares).mean(), np.concatenate(sound).mean()
    np.testing.assert_allclose(metrics["loss/video"], video, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss/audio"], audio, rtol=1e-4)
    np.testing.assert_allclose(loss, video + 0.3 * audio, rtol=1e-4)


def test_what_has_no_sound_has_no_part_in_the_audio_loss(tiny, scene):
    config, _, _, _ = scene
    spec = config.tokens
    heard = [tiny.window(spec, 2, seed=1)]
    rows = [heard, [tiny.window(spec, 3, seed=2, silent=True)], [tiny.window(spec, 1, seed=3, silent=True)]]
    batch, room = tiny.batch(spec, rows, spare=1)
    alone, _ = tiny.batch(spec, [heard])
    model, task = tiny.model(config), objective(config, room)
    run = jax.jit(jax.value_and_grad(lambda model, batch: task.loss(model, None, batch, 0, jnp.int32(3)), has_aux=True))
    (loss, metrics), gradient = run(model, batch)
    # The waveform of a chunk without sound is nothing that the model could see.
    loud = np.where(batch["chunk_audio"][..., None, None], batch["waveform"], 9000).astype(np.int16)
    assert (loud != batch["waveform"]).any()
    (same, _), same_gradient = run(model, batch | {"waveform": loud})
    assert loss == same and tiny.largest_difference(gradient, same_gradient) == 0
    _, by_itself = objective(config, tiny.row_spec(spec, [heard])).loss(model, None, alone, 0, jnp.int32(3))
    np.testing.assert_allclose(metrics["loss/audio"], by_itself["loss/audio"], rtol=1e-4)
    assert metrics["loss/video"] != by_itself["loss/video"]


def test_a_row_without_any_window_costs_nothing(tiny, scene):
    """As bad records leave it."""
    config, _, _, _ = scene
    spec = config.tokens
    rows = [[tiny.window(spec, 2, seed=1)], []]
    batch, room = tiny.batch(spec, rows)
    model, task = tiny.model(config), objective(config, room)
    run = jax.jit(jax.value_and_grad(lambda model, batch: task.loss(model, None, batch, 0, jnp.int32(3)), has_aux=True))
    (loss, _), gradient = run(model, batch)
    (expected, _), _ = run(model, {name: value[:1] for name, value in batch.items()})
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_a_scene_is_the_path_at_the_drawn_times(scene):
    config, batch, _, _ = scene
    scene_ = pretrain.noised(config, sampling(), batch, 0, jnp.int32(2))
    real = batch["patch_slot"] >= 0
    t = np.asarray(scene_.draw.time)[..., 0]
    t = np.take_along_axis(t, np.maximum(batch["patch_slot"], 0), axis=1)[..., None]
    clean, noise, noisy = (np.asarray(x.video) for x in (scene_.clean, scene_.noise, scene_.noisy))
    np.testing.assert_allclose(noisy[real], ((1 - t) * clean + t * noise)[real], atol=1e-5)
    # Context is lightly noised, by noise of its own.
    level = np.take_along_axis(np.asarray(scene_.draw.context)[..., 0], np.maximum(batch["patch_slot"], 0), axis=1)
    grain = (np.asarray(scene_.context.video) - (1 - level[..., None]) * clean) / np.maximum(level[..., None], 1e-6)
    sure = real & (level > 0.01)
    assert abs(np.corrcoef(grain[sure].ravel(), noise[sure].ravel())[0, 1]) < 0.05
    assert grain[sure].std() == pytest.approx(1, abs=0.05)


def test_drift_is_one_change_of_contrast_and_colour_a_sample(scene):
    config, batch, _, _ = scene
    steady, drifting = (
        np.asarray(pretrain.noised(config, sampling(drift=drift), batch, 0, jnp.int32(2)).context.video)
        for drift in (0.0, 0.2)
    )
    changes = []
    for row in range(len(steady)):
        real = batch["patch_slot"][row] >= 0
        before, after = (x[row][real].reshape(-1, 3) for x in (steady, drifting))
        slopes, shifts = zip(*(np.polyfit(before[:, c], after[:, c], 1) for c in range(3)), strict=True)
        np.testing.assert_allclose(slopes, slopes[0], rtol=1e-3)
        np.testing.assert_allclose(after, slopes[0] * before + shifts, atol=1e-3)
        changes.append((np.log(slopes[0]), *shifts))
    assert len(np.unique(np.round(changes, 4))) == 4 * len(changes)
    assert 0.05 < np.std(changes) < 0.5


def test_padding_carries_no_loss(tiny, scene):
    """Whatever stands in pixels outside the picture and in empty slots, the loss stays."""
    config, batch, room, _ = scene
    task = objective(config, room, drop=0.0)
    run = jax.jit(lambda batch: task.loss(tiny.fresh_model(config), None, batch, 0, jnp.int32(1))[0])
    inside = np.zeros((*batch["patches"].shape[:2], 2, 4, 4, 3), bool)
    for row, patch in np.ndindex(*batch["patch_slot"].shape):
        if batch["patch_slot"][row, patch] >= 0:
            high, wide = batch["patch_extent"][row, patch]
            inside[row, patch, :, :high, :wide] = True
    garbage = np.random.default_rng(0).integers(0, 256, batch["patches"].shape).astype(np.uint8)
    patches = np.where(inside.reshape(batch["patches"].shape), batch["patches"], garbage)
    assert (patches != batch["patches"]).any()
    np.testing.assert_array_equal(run(batch | {"patches": patches}), run(batch))


def test_every_parameter_has_a_gradient_and_the_loss_falls(tiny, scene):
    config, batch, room, _ = scene
    task = objective(config, room)
    tx = optax.adam(3e-3)

    def update(model, opt_state, step):
        grad = jax.value_and_grad(lambda m: task.loss(m, None, batch, 0, step)[0])
        value, gradient = grad(model)
        updates, opt_state = tx.update(gradient, opt_state)
        return optax.apply_updates(model, updates), opt_state, value, gradient

    update = jax.jit(update)
    model = tiny.model(config)
    opt_state, values = tx.init(model), []
    for i in range(30):
        model, opt_state, value, gradient = update(model, opt_state, jnp.int32(i % 3))
        values.append(float(value))
        if i == 0:
            sizes = [float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient)]
            assert np.isfinite(sizes).all() and min(sizes) > 0
    assert np.mean(values[-3:]) < 0.7 * np.mean(values[:3])
