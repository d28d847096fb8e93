"""One step of training: what it moves, and what a step that is not finite leaves alone."""

import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from pixr1_jax.objectives.pretrain import Pretrain
from pixr1_jax.objectives.tasks import TimeSampling
from pixr1_jax.training.optimizer import make_optimizer
from pixr1_jax.training.state import initial_state, train_step

pytestmark = pytest.mark.usefixtures("quick_compile")

OPTIMIZER = {
    "name": "adamw",
    "learning_rate": 0.1,
    "warmup_steps": 0,
    "total_steps": 10,
    "schedule": "constant",
    "final_scale": 1.0,
    "b1": 0.9,
    "b2": 0.99,
    "weight_decay": 0.0,
    "clip_norm": 1e9,
}


def make(loss, params, **rest):
    """A jitted step over a plain dict of arrays, and the first state."""
    tx = make_optimizer(ConfigDict(OPTIMIZER))
    fields = {"objective": types.SimpleNamespace(loss=loss), "seed": 7, "ema_decay": 0.5, "accumulate": 1} | rest
    step = jax.jit(partial(train_step, tx=tx, **fields))
    return step, initial_state(params, tx)


def quadratic(params, teacher, batch, seed, step):
    return jnp.sum(jnp.square(params["w"] - batch["x"])), {"seed": seed, "step": step, "teacher": teacher["t"]}


def test_a_step_is_the_gradients_and_the_average_follows():
    step, state = make(quadratic, {"w": jnp.array([1.0, 2.0])})
    teacher, batch = {"t": jnp.float32(3.0)}, {"x": jnp.zeros(2)}
    state, metrics = step(state, teacher, batch)
    # Adam's first step is the sign of the gradient.
    np.testing.assert_allclose(state.params["w"], [0.9, 1.9], atol=1e-5)
    # The average's decay warms up: min(0.5, 1 / 10) at the first step.
    np.testing.assert_allclose(state.ema["w"], 0.1 * np.array([1, 2]) + 0.9 * np.array([0.9, 1.9]), atol=1e-5)
    assert {name: float(value) for name, value in metrics.items()} == {
        "loss": 5.0,
        "grad_norm": pytest.approx(np.sqrt(20)),
        "grad_norm/other": pytest.approx(np.sqrt(20)),
        "update_ratio/other": pytest.approx(np.sqrt(0.02 / 5), rel=1e-4),
        "skipped": 0,
        "skipped_in_a_row": 0,
        "seed": 7,
        "step": 0,
        "teacher": 3,
    }
    assert int(state.step) == 1
    _, metrics = step(state, teacher, batch)
    assert float(metrics["step"]) == 1


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_poisoned_batch_changes_the_counters_only(poison):
    step, state = make(quadratic, {"w": jnp.array([1.0, 2.0])})
    teacher = {"t": jnp.float32(0)}
    good, bad = {"x": jnp.zeros(2)}, {"x": jnp.array([0.0, poison])}
    state, _ = step(state, teacher, good)
    before = jax.tree.map(np.asarray, (state.params, state.ema, state.opt_state))
    for count in (1, 2):
        state, metrics = step(state, teacher, bad)
        assert (int(metrics["skipped"]), int(metrics["skipped_in_a_row"])) == (count, count)
        assert not np.isfinite(float(metrics["loss"]))
    for a, b in zip(*map(jax.tree.leaves, (before, (state.params, state.ema, state.opt_state))), strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(state.step) == 3
    state, metrics = step(state, teacher, good)
    assert (int(metrics["skipped"]), int(metrics["skipped_in_a_row"])) == (2, 0)


def test_a_gradient_that_is_not_finite_is_refused_too():
    def cliff(params, teacher, batch, seed, step):
        return jnp.sqrt(jnp.sum(params["w"])), {}  # 0, of infinite slope

    step, state = make(cliff, {"w": jnp.zeros(2)})
    state, metrics = step(state, None, {"x": jnp.zeros(2)})
    assert float(metrics["loss"]) == 0 and int(metrics["skipped"]) == 1
    np.testing.assert_array_equal(state.params["w"], 0)


def test_a_poisoned_packed_batch_is_skipped(tiny):
    config = tiny.config(layers=1)
    spec = config.tokens
    batch, room = tiny.batch(spec, [[tiny.window(spec, 2)]])
    sampling = TimeSampling(1.0, 1.0, 0.1, 0.1, 0.1, (("joint", 1.0),))
    objective = Pretrain(config, sampling, 0.25, 0.3, room.clean_blocks, room.blocks)
    step, state = make(objective.loss, tiny.model(config))
    bad = batch | {"actions": np.full_like(batch["actions"], np.nan)}
    after, metrics = step(state, None, bad)
    assert int(metrics["skipped"]) == 1
    assert tiny.largest_difference(after.params, state.params) == 0
    after, metrics = step(after, None, batch)
    assert int(metrics["skipped_in_a_row"]) == 0 and tiny.largest_difference(after.params, state.params) > 0


def test_the_first_average_is_a_copy_of_the_parameters():
    _, state = make(quadratic, {"w": jnp.ones(2)})
    np.testing.assert_array_equal(state.ema["w"], 1.0)
    assert state.ema["w"] is not state.params["w"]  # the step donates both
