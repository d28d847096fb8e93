"""Layers against numpy, and what they declare of themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pixr1_jax.attention.api import MAX_LOGIT
from pixr1_jax.omni import layers


def normalised(x, scale=1.0):
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6) * scale


def random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_rms_norm():
    x, scale = 7 * random(0, 3, 5, 8), random(1, 8)
    np.testing.assert_allclose(layers.rms_norm(jnp.asarray(x)), normalised(x), rtol=1e-5)
    np.testing.assert_allclose(layers.rms_norm(jnp.asarray(x), jnp.asarray(scale)), normalised(x, scale), rtol=1e-5)
    low = layers.rms_norm(jnp.asarray(300 * x, jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(low, np.float32), normalised(x), atol=0.03)
    np.testing.assert_array_equal(layers.rms_norm(jnp.zeros(4)), 0.0)


def test_dense_param_has_the_variance_it_says():
    kernel = layers.dense_param(jax.random.key(0), (400, 300), ("embed", "hidden"), gain=2.0)
    # The normal law is cut at two deviations, which takes 23 % of its variance.
    assert np.std(kernel[...]) == pytest.approx(2 / np.sqrt(400) * np.sqrt(0.774), rel=0.02)
    assert kernel.get_metadata()["axes"] == ("embed", "hidden")


def test_patch_embedding_and_head_are_low_rank_maps():
    embed = layers.PatchEmbed(jax.random.key(0), 20, 3, 8, "patch")
    embed.mean[...] = jnp.asarray(random(0, 20))
    x = random(1, 50, 20)
    down, up = np.asarray(embed.down[...]), np.asarray(embed.up[...])
    out = np.asarray(embed(jnp.asarray(x)))
    np.testing.assert_allclose(out, (x - np.asarray(embed.mean[...])) @ down @ up, atol=1e-4)
    assert np.linalg.matrix_rank(out, tol=1e-3) == 3

    head = layers.PatchHead(jax.random.key(0), 20, 3, 8, "patch")
    head.mean[...] = jnp.asarray(random(2, 20))
    y = jnp.asarray(random(3, 50, 8))
    np.testing.assert_array_equal(head(y), np.broadcast_to(head.mean[...], (50, 20)))  # starts at the mean
    head.down[...] = jnp.asarray(random(4, 8, 3))
    expected = np.asarray(y) @ np.asarray(head.down[...]) @ np.asarray(head.up[...]) + np.asarray(head.mean[...])
    np.testing.assert_allclose(head(y), expected, atol=1e-4)
    assert head(y.astype(jnp.bfloat16)).dtype == jnp.float32


def test_cell_embedding_tells_its_inputs_apart_and_is_smooth():
    embed = layers.CellEmbed(jax.random.key(0), 4, 16)
    still = jnp.zeros(16)
    at = lambda *values, action=still: np.asarray(embed(*(jnp.float32(v) for v in values), action, jnp.float32))
    base = at(0.5, 0.2, 1.5)
    assert base.shape == (96,)
    pressed = embed.actions(jnp.array([0.0, 1, 0, 0]), jnp.array(False))
    for other in (at(0.6, 0.2, 1.5), at(0.5, 0.3, 1.5), at(0.5, 0.2, 2.0), at(0.5, 0.2, 1.5, action=pressed)):
        assert np.abs(other - base).max() > 1e-3
    slope = jax.jvp(lambda t: embed(t, jnp.float32(0.2), jnp.float32(1.5), still, jnp.float32), (0.5,), (1.0,))[1]
    np.testing.assert_allclose((at(0.505, 0.2, 1.5) - at(0.495, 0.2, 1.5)) / 0.01, slope, atol=0.05)
    assert np.abs(slope).max() < 100
    grid = embed(jnp.zeros((2, 5)), jnp.zeros((2, 5)), jnp.ones((2, 5)), jnp.zeros((2, 5, 16)), jnp.bfloat16)
    assert grid.shape == (2, 5, 96) and grid.dtype == jnp.bfloat16


def test_dropped_actions_are_one_vector_whatever_they_are():
    embed = layers.CellEmbed(jax.random.key(0), 4, 16)
    embed.no_action[...] = jnp.asarray(random(0, 16))
    actions = random(1, 3, 4)
    out = embed.actions(jnp.asarray(actions), jnp.array([False, True, True]))
    np.testing.assert_allclose(out[0], actions[0] @ np.asarray(embed.action[...]), atol=1e-5)
    np.testing.assert_array_equal(out[1:], np.broadcast_to(embed.no_action[...], (2, 16)))


def test_queries_and_keys_are_normalised_and_values_are_not():
    layer = layers.Layer(jax.random.key(0), 16, 2, 8, 24)
    layer.query_scale[...], layer.key_scale[...] = jnp.full(8, 1.5), jnp.asarray(random(5, 8))
    x = random(0, 2, 3, 16)
    q, k, v = (np.asarray(y) for y in layer.qkv_heads(jnp.asarray(x), 2))
    raw = [part.reshape(2, 3, 2, 8) for part in np.moveaxis(np.tensordot(x, np.asarray(layer.qkv[...]), 1), 2, 0)]
    np.testing.assert_allclose(q, normalised(raw[0], 1.5), atol=1e-4)
    np.testing.assert_allclose(k, normalised(raw[1], random(5, 8)), atol=1e-4)
    np.testing.assert_allclose(v, raw[2], atol=1e-5)
    huge = layer.qkv_heads(jnp.asarray(1e4 * x), 2)[0]
    np.testing.assert_allclose(np.linalg.norm(huge, axis=-1), 1.5 * np.sqrt(8), rtol=1e-4)  # bounds the logits


def test_mlp_is_swiglu():
    layer = layers.Layer(jax.random.key(0), 16, 2, 8, 24)
    x = random(0, 2, 3, 16)
    gate, value = np.moveaxis(np.tensordot(x, np.asarray(layer.up[...]), 1), 2, 0)
    expected = (gate / (1 + np.exp(-gate)) * value) @ np.asarray(layer.down[...])
    np.testing.assert_allclose(layer.mlp(jnp.asarray(x)), expected, atol=1e-5)


@pytest.mark.parametrize("dim", [8, 256])
def test_no_logit_exceeds_its_bound_whatever_is_learnt(dim):
    """Queries and keys that are all alike, under scales far beyond the cap, reach the bound and do not pass it."""
    layer = layers.Layer(jax.random.key(0), 16, 2, dim, 24)
    x = jnp.asarray(random(0, 1, 6, 16))
    query = layer.qkv[...][:, 0]
    layer.qkv[...] = layer.qkv[...].at[:, 1].set(query)
    within = layer.qkv_heads(x, 2)[:2]
    np.testing.assert_allclose(within[0], normalised(np.asarray(x @ query).reshape(1, 6, 2, dim)), atol=1e-5)
    layer.query_scale[...], layer.key_scale[...] = jnp.full(dim, 50.0), jnp.full(dim, -70.0)
    q, k, _ = layer.qkv_heads(x, 2)
    logits = np.einsum("bqhd,bkhd->bhqk", q, k) * dim**-0.5
    np.testing.assert_allclose(np.abs(logits).max(), MAX_LOGIT, rtol=1e-4)


def test_every_parameter_declares_an_axis_for_each_dimension(tiny):
    config = tiny.config()
    model = tiny.fresh_model(config)
    variables = jax.tree.leaves(model, is_leaf=lambda x: isinstance(x, nnx.Variable))
    assert len(variables) > 20 and all(isinstance(x, nnx.Param) for x in variables)
    stacked = {id(x) for x in jax.tree.leaves(model.layers, is_leaf=lambda x: isinstance(x, nnx.Variable))}
    for variable in variables:
        axes = variable.get_metadata()["axes"]
        own = variable[...].ndim - (id(variable) in stacked)
        assert len([axis for axis in axes if axis != "layers"]) == own, axes
        assert variable[...].dtype == jnp.float32


def test_look_back_reads_the_named_places_and_zero_for_none():
    layer = layers.LookBack(jax.random.key(0), 2, 3, 5)
    low, before, held = random(0, 1, 6, 2), np.full((1, 3, 9), -1, np.int32), random(2, 1, 3, 3)
    before[0, 0, 4], before[0, 2, :2] = 5, (1, 3)
    features, forecast = layer(jnp.asarray(low), jnp.asarray(before), jnp.asarray(held))
    np.testing.assert_array_equal(forecast, np.zeros((1, 3, 2)))  # nothing is forecast until it is learnt
    layer.forecast[...] = jnp.asarray(random(1, 18, 8))
    _, forecast = layer(jnp.asarray(low), jnp.asarray(before), jnp.asarray(held))
    kernel = np.asarray(layer.feature[...]).reshape(9, 2, 5)
    expected = [low[0, 5] @ kernel[4], np.zeros(5), low[0, 1] @ kernel[0] + low[0, 3] @ kernel[1]]
    np.testing.assert_allclose(features[0], expected, atol=1e-5)
    for patch, near in ((0, {4: 5}), (1, {}), (2, {0: 1, 1: 3})):
        expected = np.zeros(2)
        for place, index in near.items():
            plain, *by_action = random(1, 18, 8).reshape(9, 2, 4, 2)[place].transpose(1, 0, 2)
            expected += low[0, index] @ (plain + sum(h * m for h, m in zip(held[0, patch], by_action, strict=True)))
        np.testing.assert_allclose(forecast[0, patch], expected, atol=1e-5)


def test_a_head_starts_from_what_is_known_beforehand():
    head = layers.PatchHead(jax.random.key(0), 20, 3, 8, "patch")
    known = random(0, 4, 3)
    out = head(jnp.asarray(random(1, 4, 8)), jnp.asarray(known))
    np.testing.assert_allclose(out, known @ np.asarray(head.up[...]), atol=1e-5)
