"""Flow-map distillation: cases with a known answer, and the whole loss with finite differences for tangents."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pixr1_jax.attention import api
from pixr1_jax.core import tree
from pixr1_jax.objectives import flow, guidance, losses, tasks
from pixr1_jax.objectives.flow_map import FlowMap
from pixr1_jax.objectives.predict import predict
from pixr1_jax.objectives.pretrain import noised
from pixr1_jax.objectives.tasks import TimeSampling
from pixr1_jax.omni.tokens import Cells, Signals

pytestmark = pytest.mark.usefixtures("quick_compile")

ALL_TASKS = tuple((name, 1.0) for name in sorted(tasks.TASKS))
SEED = 0


@pytest.fixture(scope="module")
def scene(tiny):
    config = tiny.config(layers=1)
    spec = config.tokens
    rows = [[tiny.window(spec, 3, seed=s, events=((0, "a"), (2, "b")))] for s in range(4)]
    batch, room = tiny.batch(spec, rows)
    return config, batch, room


def flow_map(
    config, room, *, to_clean=0.3, to_same=0.2, max_guidance=2.0, tangent_warmup=1, softening=math.inf, **changes
):
    # Times stay above the floor of the velocity, 0.05.
    fields = {"mean": 1.0, "deviation": 0.7, "pure_noise": 0.2, "drop": 0.0, "drift": 0.0, "tasks": (("joint", 1.0),)}
    sampling = TimeSampling(**(fields | changes))
    return FlowMap(
        config,
        sampling,
        to_clean,
        to_same,
        max_guidance,
        tangent_warmup,
        time_floor=0.25,
        audio_weight=0.3,
        softening=softening,
        clean_blocks=room.clean_blocks,
        max_keys=room.blocks,
    )


@functools.cache
def compiled(task):
    return jax.jit(lambda a, b, batch, step: task.loss(a, b, batch, SEED, step))


def run(task, student, teacher, batch, step=0):
    return compiled(task)(student, teacher, batch, jnp.int32(step))


def constant(tiny, config, value):
    """A model that always answers `value`."""
    model = jax.tree.map(lambda x: x, tiny.fresh_model(config))
    for head in (model.video_out, model.audio_out):
        head.mean[...] = jnp.full(head.mean.shape, value)
    return model


def times(task, batch, step=0):
    """Times and target times of the noisy cells, [batch, chunks]."""
    time = np.asarray(tasks.draw(task.sampling, task.model.max_context_time, SEED, jnp.int32(step), batch).time)
    share = np.asarray(task._target_share(SEED, jnp.int32(step), batch))
    return time[..., 0], (time * share)[..., 0]


def test_the_loss_is_zero_at_the_true_flow_map(tiny, scene):
    """All paths of a teacher that always answers c go straight to c; the student that answers c is its flow map."""
    config, batch, room = scene
    model = constant(tiny, config, 0.3)
    loss, metrics = run(flow_map(config, room), model, model, batch)
    assert float(loss) < 1e-8
    assert float(metrics["tangent_power"]) < 1e-6


@pytest.mark.parametrize("warmup", [1, 4])
def test_a_constant_student_of_another_constant(tiny, scene, warmup):
    """By hand: u = (z - c') / t, du/dt = (c' - c) / t^2, so V - v = (c - c') / t (1 - blend (t - s) / t)."""
    config, batch, room = scene
    task = flow_map(config, room, tangent_warmup=warmup)
    _, metrics = run(task, constant(tiny, config, 0.5), constant(tiny, config, -0.2), batch)
    time, target = times(task, batch)
    assert {(target == 0).any(), (target == time).any(), ((target > 0) & (target < time)).any()} == {True}
    error = 0.7 * (1 - (time - target) / time / warmup) / np.maximum(time, 0.25)
    np.testing.assert_allclose(metrics["loss/video"], np.mean(np.square(error)), rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(metrics["loss/audio"], np.mean(np.square(error)), rtol=1e-3, atol=1e-7)


def test_softening_bounds_what_a_token_costs(tiny, scene):
    """A token whose squared errors are all e costs e / (1 + e / softening)."""
    config, batch, room = scene
    models = constant(tiny, config, 0.5), constant(tiny, config, -0.2)
    _, metrics = run(flow_map(config, room, to_clean=0.0, to_same=1.0, softening=0.02), *models, batch)
    task = flow_map(config, room, to_clean=0.0, to_same=1.0)
    error = np.square(0.7 / np.maximum(times(task, batch)[0], 0.25))
    np.testing.assert_allclose(metrics["loss/video"], np.mean(error / (1 + error / 0.02)), rtol=1e-3)


def test_target_times_have_their_shares(tiny, scene):
    config, _, room = scene
    rows = np.repeat(np.arange(3000, dtype=np.uint32)[:, None], 2, axis=1)
    batch = {"chunk_sample": rows, "chunk_number": np.tile(np.arange(2, dtype=np.int32), (3000, 1))}
    share = np.asarray(flow_map(config, room)._target_share(0, jnp.int32(0), batch))
    assert np.mean(share == 0) == pytest.approx(0.3, abs=0.03)
    assert np.mean(share == 1) == pytest.approx(0.2, abs=0.03)
    between = share[(share > 0) & (share < 1)]
    assert np.quantile(between, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.04)


def test_the_loss_is_that_of_finite_differences(tiny, scene):
    """The same loss from whole-row passes: two for guidance, two for a central difference along the teacher's path."""
    config, batch, room = scene
    task = flow_map(config, room, tasks=ALL_TASKS)
    student, teacher = tiny.model(config, 1), tiny.model(config, 2)
    loss, metrics = run(task, student, teacher, batch, step=5)

    step = jnp.int32(5)
    scene_ = noised(config, task.sampling, batch, SEED, step)
    time, context = scene_.draw.time, scene_.draw.context
    strength = guidance.sample_strength(SEED, step, batch, task.max_guidance)
    target = time * task._target_share(SEED, step, batch)
    spread = lambda cells: flow.per_token(batch, cells, config.tokens.audio_tokens)

    @jax.jit
    def net(model, noisy, time, target, strength, drop):
        cells = Cells(time, target, strength, context)
        return predict(
            model,
            config,
            batch,
            scene_.context,
            noisy,
            cells,
            jnp.full(strength.shape, drop),
            clean_blocks=room.clean_blocks,
            max_keys=room.blocks,
        )

    def each(function, *signals):
        return Signals(
            *(function(*(np.asarray(x, np.float64) for x in parts)) for parts in zip(*map(_pair, signals), strict=True))
        )

    ones = jnp.ones_like(strength)
    with_text, without = (net(teacher, scene_.noisy, time, time, ones, drop) for drop in (False, True))
    weight = spread(jnp.stack([strength, strength], -1))
    speed = each(
        lambda z, c, u, w, t: np.where(t > 0, (z - (u + w * (c - u))) / np.maximum(t, 0.05), 0.0),
        scene_.noisy,
        with_text,
        without,
        weight,
        scene_.time,
    )

    def average_velocity(shift):
        """u at a point `shift` later on the path; cells that a task keeps clean stand still."""
        noisy = each(lambda z, v: (z + shift * v).astype(np.float32), scene_.noisy, speed)
        moved = jnp.where(time > 0, time + shift, 0.0)
        clean = net(student, noisy, moved, target, strength, False)
        return each(lambda z, x, t: (z - x) / np.maximum(t, 0.05), noisy, clean, spread(moved))

    eps = 4e-3
    tangent = each(lambda a, b: (a - b) / (2 * eps), average_velocity(eps), average_velocity(-eps))
    error = each(
        lambda u, du, v, t, span: np.square((u + span * du - v) * t / np.maximum(t, 0.25)),
        average_velocity(0.0),
        tangent,
        speed,
        scene_.time,
        spread(time - target),
    )
    weights = losses.token_weights(batch, scene_.draw.loss, config.tokens.patch, config.tokens.chunk_frames)
    mean = lambda e, w: (e * w).sum() / np.broadcast_to(w, e.shape).sum()
    video, audio = (mean(e, np.asarray(w)) for e, w in zip(_pair(error), _pair(weights), strict=True))
    np.testing.assert_allclose(metrics["loss/video"], video, rtol=5e-3)
    np.testing.assert_allclose(metrics["loss/audio"], audio, rtol=5e-3)
    np.testing.assert_allclose(loss, video + 0.3 * audio, rtol=5e-3)


def _pair(signals):
    return signals.video, signals.audio


def test_a_clean_modality_does_not_move(tiny, scene):
    """Video to audio: what the teacher would make of the video has no say in the audio's tangent."""
    config, batch, room = scene
    task = flow_map(config, room, tasks=(("video_to_audio", 1.0),))
    student, teacher = tiny.model(config, 1), tiny.model(config, 2)
    other = jax.tree.map(lambda x: x, teacher)
    other.video_out.mean[...] += 1.0
    for a, b in zip(*(run(task, student, t, batch)[1].items() for t in (teacher, other)), strict=True):
        if a[0].startswith("loss"):
            np.testing.assert_array_equal(a[1], b[1], err_msg=a[0])


def test_the_student_hears_of_the_guidance_strength(tiny, scene):
    """With a largest strength of 1 there is no guidance, and the unconditional pass has no say."""
    config, batch, room = scene
    student, teacher = tiny.model(config, 1), tiny.model(config, 2)
    other = jax.tree.map(lambda x: x, teacher)
    other.no_action[...] += 1.0
    loss = lambda teacher, largest: float(run(flow_map(config, room, max_guidance=largest), student, teacher, batch)[0])
    assert loss(teacher, 1.0) == loss(other, 1.0)
    assert loss(teacher, 2.0) != loss(other, 2.0)


def test_the_gradient_is_the_students_alone_and_the_loss_falls(tiny, scene):
    config, batch, room = scene
    task = flow_map(config, room, tasks=ALL_TASKS)
    teacher = tiny.model(config, 2)
    tx = optax.adam(3e-3)

    def update(student, teacher, opt_state, step):
        grad = jax.value_and_grad(lambda a, b: task.loss(a, b, batch, SEED, step)[0], argnums=(0, 1))
        value, (gradient, to_teacher) = grad(student, teacher)
        updates, opt_state = tx.update(gradient, opt_state)
        return optax.apply_updates(student, updates), opt_state, value, gradient, to_teacher

    update = jax.jit(update)
    student, values = tiny.model(config, 1), []
    opt_state = tx.init(student)
    for i in range(30):
        student, opt_state, value, gradient, to_teacher = update(student, teacher, opt_state, jnp.int32(1 + i % 3))
        values.append(float(value))
        if i == 0:
            assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
            still = sorted(name for name, g in tree.named_leaves(gradient).items() if not np.asarray(g).any())
            assert still == ["cell/no_action", "no_action"]  # the student is always told its actions
            assert not any(np.asarray(g).any() for g in jax.tree.leaves(to_teacher))
    assert np.mean(values[-3:]) < 0.7 * np.mean(values[:3])


def test_fields_are_plain_data(scene):
    config, _, room = scene
    task = flow_map(config, room)
    assert dataclasses.replace(task) == task and hash(task) == hash(dataclasses.replace(task))


def test_tangents_and_gradients_pass_a_budget(tiny, scene):
    """A budget of all blocks changes nothing; under a small one all that is differentiated is finite, and differs."""
    config, batch, room = scene
    student, teacher = tiny.model(config, 1), tiny.model(config, 0)
    found = {}
    for keep in (None, 1, 99):
        attention = tiny.attention() if keep is None else tiny.attention("gather", 2, clean=(keep,), noisy=(keep,))
        task = flow_map(dataclasses.replace(config, attention=attention), room)
        step = jax.jit(jax.value_and_grad(lambda x, task=task: task.loss(x, teacher, batch, SEED, jnp.int32(0))[0]))
        loss, gradient = step(student)
        found[keep] = float(loss), float(optax.tree.norm(gradient))
    np.testing.assert_allclose(found[99], found[None], rtol=1e-4)
    assert np.isfinite(found[1]).all() and abs(found[1][0] / found[None][0] - 1) > 1e-5


@pytest.mark.parametrize("implementation", sorted(api.KERNELS))
def test_kernels_distil_as_the_reference_does(tiny, implementation):
    """Forward, backward, and tangent over a past that stands still, through the whole loss."""
    spec = tiny.token_spec(block=16)
    batch, room = tiny.batch(spec, [[tiny.window(spec, 3, events=((0, "a"), (2, "b")))]])
    found = []
    for name in ("reference", implementation):
        config = tiny.config(spec, layers=1, attention=tiny.attention(name, 2, clean=(1,), noisy=(1,)))
        task = flow_map(config, room)
        student, teacher = tiny.model(config, 1), tiny.model(config, 0)
        step = jax.jit(jax.value_and_grad(lambda *a, task=task: task.loss(*a, batch, SEED, jnp.int32(0))[0]))
        found.append(step(student, teacher))
    (loss, gradient), (true_loss, true_gradient) = found[1], found[0]
    np.testing.assert_allclose(loss, true_loss, rtol=1e-4)
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, gradient, true_gradient))
    assert difference < 1e-3 * optax.tree.norm(true_gradient)


def test_distillation_takes_windows_without_sound(tiny):
    config = tiny.config(layers=1)
    rows = [[tiny.window(config.tokens, 2, seed=1)], [tiny.window(config.tokens, 2, seed=2, silent=True)]]
    batch, room = tiny.batch(config.tokens, rows)
    task, model = flow_map(config, room, tasks=ALL_TASKS), tiny.model(config)
    loss, metrics = compiled(task)(model, model, batch, jnp.int32(1))
    loud = np.where(batch["chunk_audio"][..., None, None], batch["waveform"], 9000).astype(np.int16)
    same, _ = compiled(task)(model, model, batch | {"waveform": loud}, jnp.int32(1))
    assert loss == same and all(np.isfinite(value) for value in metrics.values())
