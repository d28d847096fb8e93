"""The optimizer against AdamW written out in numpy, and the update that refuses non-finite numbers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from pixr1_jax.training import optimizer


def make_config(**changes: Any) -> ConfigDict:
    config = dict(
        name="adamw",
        learning_rate=1e-2,
        warmup_steps=4,
        total_steps=20,
        schedule="cosine",
        final_scale=0.1,
        b1=0.9,
        b2=0.95,
        weight_decay=0.1,
        clip_norm=1.0,
    )
    return ConfigDict({**config, **changes})


class Layer(nnx.Module):
    def __init__(self, key):
        self.kernel = nnx.Param(jax.random.normal(key, (3, 4)), axes=("embed", "mlp"))
        self.bias = nnx.Param(jnp.ones(4), axes=("mlp",))


class Stack(nnx.Module):
    """Two stacked layers, one of them with the stacking axis in its metadata, and a single one."""

    def __init__(self, key):
        self.blocks = jax.vmap(Layer)(jax.random.split(key, 2))
        self.scale = nnx.Param(jnp.ones((2, 4)), axes=("layers", "mlp"))
        self.stacked = nnx.Param(jnp.ones((2, 3, 4)), axes=("layers", "embed", "mlp"))
        self.head = Layer(key)


@pytest.fixture
def model():
    return Stack(jax.random.key(0))


def random_grads(model, seed, scale=1.0):
    leaves, structure = jax.tree.flatten(model)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(
        structure, [jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves]
    )


def named(tree):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def test_decay_touches_matrices_of_one_layer_only(model):
    assert named(optimizer.decay_mask(model)) == {
        ".blocks.bias.value": False,
        ".blocks.kernel.value": True,
        ".head.bias.value": False,
        ".head.kernel.value": True,
        ".scale.value": False,
        ".stacked.value": True,
    }
    plain = {"matrix": jnp.ones((2, 2)), "vector": jnp.ones(2)}
    assert optimizer.decay_mask(plain) == {"matrix": True, "vector": False}


@pytest.mark.parametrize("clip_norm", [0.5, float("inf")])
def test_three_steps_are_adamw(model, clip_norm):
    config = make_config(clip_norm=clip_norm)
    tx = optimizer.make_optimizer(config)
    opt_state = tx.init(model)
    schedule = optimizer.learning_rate(config)
    decays = named(optimizer.decay_mask(model))
    wanted: dict[str, Any] = {name: np.float64(leaf) for name, leaf in named(model).items()}
    first = {name: np.zeros_like(leaf) for name, leaf in wanted.items()}
    second = {name: np.zeros_like(leaf) for name, leaf in wanted.items()}
    params = model
    for step in range(3):
        grads = random_grads(model, step)
        params, opt_state, finite, norm = jax.jit(
            lambda g, s, p: optimizer.guarded_update(tx, g, s, p, loss=jnp.float32(1.0))
        )(grads, opt_state, params)
        assert finite
        gradient = {name: np.float64(leaf) for name, leaf in named(grads).items()}
        length = np.sqrt(sum((leaf**2).sum() for leaf in gradient.values()))
        np.testing.assert_allclose(norm, length, rtol=1e-6)
        for name, leaf in gradient.items():
            clipped = leaf * min(1.0, clip_norm / length)
            first[name] = 0.9 * first[name] + 0.1 * clipped
            second[name] = 0.95 * second[name] + 0.05 * clipped**2
            direction = first[name] / (1 - 0.9 ** (step + 1))
            direction = direction / (np.sqrt(second[name] / (1 - 0.95 ** (step + 1))) + 1e-8)
            decay = 0.1 * wanted[name] if decays[name] else 0.0
            wanted[name] = wanted[name] - float(schedule(step)) * (direction + decay)
    for name, leaf in named(params).items():
        np.testing.assert_allclose(leaf, wanted[name], rtol=2e-5, atol=1e-6, err_msg=name)


def test_muon_turns_the_gradient_of_each_layer_into_a_rotation(model):
    """Singular vectors stay, singular values become one, up to the five iterations; everything else is AdamW's."""
    config = make_config(name="muon", clip_norm=float("inf"), warmup_steps=0, schedule="constant")
    grads = random_grads(model, 0)
    step = lambda config: optimizer.make_optimizer(config).update(
        grads, optimizer.make_optimizer(config).init(model), model
    )[0]
    found, adam = step(config), step(make_config(clip_norm=float("inf"), warmup_steps=0, schedule="constant"))
    for layer in range(2):
        weight = np.float64(model.blocks.kernel[...][layer])
        move = np.float64(found.blocks.kernel[...][layer]) / -1e-2 - 0.1 * weight
        left, _, right = np.linalg.svd(np.float64(grads.blocks.kernel[...][layer]), full_matrices=False)
        turned = left.T @ move @ right.T
        # The root mean square of a rotation of 3 x 4 is 1 / sqrt(4); it is scaled to 0.2.
        assert np.all(np.abs(np.diag(turned) / (0.2 * np.sqrt(4)) - 1) < 0.35)
        np.testing.assert_allclose(turned - np.diag(np.diag(turned)), 0, atol=1e-3)
    others = [name for name in named(found) if name not in (".blocks.kernel.value", ".stacked.value")]
    assert len(others) == 4
    for name in others:
        np.testing.assert_allclose(named(found)[name], named(adam)[name], atol=1e-6)


def test_state_is_float32_for_bfloat16_parameters(model):
    tx = optimizer.make_optimizer(make_config())
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model)
    opt_state = tx.init(half)
    params, opt_state, _, _ = optimizer.guarded_update(tx, half, opt_state, half, loss=jnp.float32(0))
    floats = [leaf.dtype for leaf in jax.tree.leaves(opt_state) if leaf.ndim]
    assert set(floats) == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("bad", ["loss_nan", "loss_inf", "gradient_nan", "gradient_inf", "gradient_overflow"])
def test_a_refused_step_changes_no_bit(model, bad):
    tx = optimizer.make_optimizer(make_config())
    update = jax.jit(lambda g, s, p, loss: optimizer.guarded_update(tx, g, s, p, loss=loss))
    params, opt_state, _, _ = update(random_grads(model, 0), tx.init(model), model, jnp.float32(1))
    grads = random_grads(model, 1)
    loss = {"loss_nan": jnp.nan, "loss_inf": jnp.inf}.get(bad, 1.0)
    value = {"gradient_nan": jnp.nan, "gradient_inf": -jnp.inf, "gradient_overflow": 1e30}.get(bad)
    if value is not None:
        grads.head.kernel.set_value(grads.head.kernel.get_value().at[1, 2].set(value))
    new_params, new_state, finite, _ = update(grads, opt_state, params, jnp.float32(loss))
    assert not finite
    assert jax.tree.structure(new_params) == jax.tree.structure(params)
    for old, new in zip(jax.tree.leaves((params, opt_state)), jax.tree.leaves((new_params, new_state)), strict=True):
        assert old.dtype == new.dtype
        assert np.asarray(old).tobytes() == np.asarray(new).tobytes()
    # The next good step is what it would have been without the bad one.
    after = update(random_grads(model, 2), new_state, new_params, jnp.float32(1))
    direct = update(random_grads(model, 2), opt_state, params, jnp.float32(1))
    for left, right in zip(jax.tree.leaves(after), jax.tree.leaves(direct), strict=True):
        np.testing.assert_array_equal(left, right)


def test_cosine_schedule_values():
    schedule = optimizer.learning_rate(make_config())
    values = [float(schedule(step)) for step in (0, 1, 3, 4, 12, 20, 1000)]
    np.testing.assert_allclose(values, [0.0025, 0.005, 0.01, 0.01, 0.0055, 0.001, 0.001], rtol=1e-6)


def test_constant_schedule_values():
    schedule = optimizer.learning_rate(make_config(schedule="constant", warmup_steps=0))
    np.testing.assert_allclose([float(schedule(step)) for step in (0, 7, 500)], [0.01] * 3, rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(warmup=st.integers(0, 30), length=st.integers(1, 100), final=st.floats(0, 1))
def test_cosine_agrees_with_optax_after_the_warmup(warmup, length, final):
    config = make_config(warmup_steps=warmup, total_steps=warmup + length, final_scale=final)
    oracle = optax.cosine_decay_schedule(1e-2, length, alpha=final)
    counts = warmup + np.array([0, length // 3, length // 2, length - 1, length, length + 5])
    np.testing.assert_allclose(optimizer.learning_rate(config)(counts), oracle(counts - warmup), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"total_steps": 4}, "total_steps"),
        ({"schedule": "linear"}, "schedule"),
        ({"final_scale": 1.5}, "final_scale"),
        ({"b1": 1.0}, "b1"),
        ({"b2": -0.1}, "b2"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"momentum": 0.9}, "momentum"),
    ],
)
def test_bad_fields_are_named(changes, field):
    with pytest.raises(ValueError, match=rf"^optimizer.*{field}"):
        optimizer.make_optimizer(make_config(**changes))


def test_a_missing_field_is_named():
    config = make_config()
    del config.b2
    with pytest.raises(ValueError, match="missing fields \\['b2'\\]"):
        optimizer.learning_rate(config)


def test_ema_warms_up_and_keeps_its_dtype(model):
    ema = jax.tree.map(jnp.zeros_like, model)
    average, oracle = ema, 0.0
    for step in range(200):
        average = optimizer.ema_update(average, model, 0.9, step)
        decay = min(0.9, (1 + step) / (10 + step))
        oracle = decay * oracle + (1 - decay) * 1.0
        if step in (0, 1, 50, 199):
            np.testing.assert_allclose(average.head.bias.get_value(), oracle, rtol=1e-5)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), ema)
    assert optimizer.ema_update(half, model, 0.9, 0).head.bias.get_value().dtype == jnp.bfloat16
