"""The backbone against a plain loop over layers with a dense mask; the past as a part of the row."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.row_layout import Role
from pixr1_jax.attention.blocks import visible
from pixr1_jax.benchmarks import executed
from pixr1_jax.objectives.pretrain import Pretrain
from pixr1_jax.objectives.tasks import TimeSampling
from pixr1_jax.omni import tokens
from pixr1_jax.omni.model import Omni, Past, backbone
from pixr1_jax.omni.rope import frequencies
from pixr1_jax.omni.tokens import Layout

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def row(tiny):
    config = tiny.config()
    spec = config.tokens
    batch, room = tiny.batch(spec, [[tiny.window(spec, 3, seed=s, events=((0, "a"), (2, "b")))] for s in (1, 2)])
    clean = tokens.content(config, batch)
    layout = Layout.of(batch)
    before = jnp.zeros((*batch["patch_slot"].shape, config.width))
    x = tokens.embed(tiny.model(config), config, layout, batch, {Role.CLEAN: clean, Role.NOISY: clean}, before)
    modulation = jax.random.normal(jax.random.key(0), (*x.shape[:2], 6 * config.width)) * 0.3
    seen = visible(layout.blocks, layout.blocks, config.memory)
    return config, tiny.model(config), layout, room, x, modulation, seen


def norm(x, scale=1.0):
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6) * scale


def turned(x, position, dim):
    angle = (position @ frequencies(dim).astype(np.float64))[:, :, None]
    y = (x[..., : dim // 2] + 1j * x[..., dim // 2 :]) * np.exp(1j * angle)
    return np.concatenate([y.real, y.imag], axis=-1)


def plain_transformer(config, model, x, modulation, position, mask):
    """Layer by layer in float64 numpy; mask bool [batch, query, key]."""
    x, modulation = np.asarray(x, np.float64), np.asarray(modulation, np.float64)
    silu = lambda y: y / (1 + np.exp(-y))
    for i in range(config.layers):
        p = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i], np.float64), model.layers)
        parts = np.split(modulation + p.modulation[...], 6, axis=-1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts
        h = norm(x) * (1 + scale_a) + shift_a
        q, k, v = (y.reshape(*x.shape[:2], config.heads, -1) for y in np.moveaxis(np.tensordot(h, p.qkv[...], 1), 2, 0))
        q, k = norm(q, p.query_scale[...]), norm(k, p.key_scale[...])
        q, k = (turned(y, position, config.head_dim) for y in (q, k))
        scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(config.head_dim)
        scores = np.where(mask[:, None], scores, -np.inf)
        with np.errstate(invalid="ignore"):
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights = np.nan_to_num(weights / weights.sum(-1, keepdims=True))
        mixed = np.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*x.shape[:2], -1)
        x = x + gate_a * (mixed @ p.out[...])
        gate, value = np.moveaxis(np.tensordot(norm(x) * (1 + scale_m) + shift_m, p.up[...], 1), 2, 0)
        x = x + gate_m * ((silu(gate) * value) @ p.down[...])
    return norm(x)


def test_backbone_is_a_plain_transformer_under_the_mask(tiny, row):
    config, model, layout, _, x, modulation, seen_row = row
    block = config.tokens.block
    seen = np.asarray(visible(layout.blocks, layout.blocks, config.memory))
    mask = np.repeat(np.repeat(seen, block, axis=1), block, axis=2)
    mask &= (np.arange(block) < np.asarray(layout.blocks.valid)[..., None]).reshape(len(mask), 1, -1)
    expected = plain_transformer(config, model, x, modulation, np.asarray(layout.position, np.float64), mask)
    for implementation in ("reference", "gather"):
        chosen = dataclasses.replace(config, attention=tiny.attention(implementation))
        out, (key, value) = backbone(model, chosen, x, modulation, layout.position, layout.blocks, seen_row)
        np.testing.assert_allclose(out, expected, atol=2e-4)
        assert key.shape == value.shape == (config.layers, *x.shape[:2], config.heads, config.head_dim)


def test_a_row_over_its_past_is_the_whole_row(row):
    config, model, layout, room, x, modulation, seen_row = row
    whole, (key, value) = backbone(model, config, x, modulation, layout.position, layout.blocks, seen_row)
    at = room.clean_blocks * config.tokens.block
    head, tail = layout.part(0, room.clean_blocks), layout.part(room.clean_blocks, None)
    past = Past(key[:, :, :at], value[:, :, :at], head.position, head.blocks)
    seen = visible(tail.blocks, past.blocks + tail.blocks, config.memory)
    out, (new_key, _) = backbone(model, config, x[:, at:], modulation[:, at:], tail.position, tail.blocks, seen, past)
    np.testing.assert_allclose(out, whole[:, at:], atol=1e-5)
    np.testing.assert_allclose(new_key, key[:, :, at:], atol=1e-5)  # keys are kept without rotation


def test_position_matters_only_by_difference(row):
    config, model, layout, _, x, modulation, seen_row = row
    run = lambda position: backbone(model, config, x, modulation, position, layout.blocks, seen_row)[0]
    base = run(layout.position)
    np.testing.assert_allclose(run(layout.position + jnp.array([31.0, 0, 0])), base, atol=2e-4)
    np.testing.assert_allclose(run(layout.position + jnp.array([0, -5.0, 9.0])), base, atol=2e-4)
    assert np.abs(run(layout.position * 2) - base).max() > 1e-2


def test_bfloat16_is_near_float32(row):
    config, model, layout, _, x, modulation, seen_row = row
    low = dataclasses.replace(config, dtype="bfloat16")
    exact, _ = backbone(model, config, x, modulation, layout.position, layout.blocks, seen_row)
    out, _ = backbone(
        model, low, *(y.astype(jnp.bfloat16) for y in (x, modulation)), layout.position, layout.blocks, seen_row
    )
    assert out.dtype == jnp.bfloat16
    assert np.sqrt(np.mean(np.square(out.astype(jnp.float32) - exact))) < 0.05


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "float16"}, "model.dtype='float16'; use 'float32' or 'bfloat16'"),
        ({"head_dim": 12}, "model.head_dim=12 must be a multiple of 8"),
    ],
)
def test_sizes_that_cannot_be(tiny, fields, message):
    with pytest.raises(ValueError, match=message):
        tiny.config(**fields)


@pytest.mark.parametrize(("remat", "forwards"), [("none", 1), ("dots", 1), ("mixed", 1), ("full", 2)])
def test_what_attention_leaves_is_kept_by_name(tiny, remat, forwards):
    """Only `full` runs the attention kernel of a layer again for its gradient: counted in the traced program."""
    spec = tiny.token_spec(block=16)
    sizes = tiny.config(tokens=spec, attention=tiny.attention("pallas_tpu", tile=8), remat=remat)
    batch, row = tiny.batch(spec, [[tiny.window(spec, 3)]])
    objective = Pretrain(
        sizes, TimeSampling(0.0, 1.0, 0.1, 0.1, 0.0, (("joint", 1.0),)), 0.5, 0.3, row.clean_blocks, row.blocks
    )
    params = jax.eval_shape(lambda: Omni(sizes, jax.random.key(0)))
    gradient = jax.jit(jax.grad(lambda params, batch: objective.loss(params, None, batch, 0, jnp.int32(0))[0]))
    calls = executed.kernels(gradient.trace(params, batch).jaxpr)
    outputs = [len(call.outvars) for call in calls]
    assert outputs.count(2) == forwards and outputs.count(3) == 1, "(output, denominator) and (dq, dk, dv)"
