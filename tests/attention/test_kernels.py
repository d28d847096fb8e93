"""Attention kernels, interpreted, against the dense float32 reference: outputs, gradients, tangents."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, PartitionSpec

from pixr1_jax.attention import api
from pixr1_jax.attention.blocks import Tail, block_lists
from pixr1_jax.attention.tpu import plan, streamed

BATCH, HEADS, DIM, BLOCK, QUERIES, KEYS, PAST, TILE = 2, 2, 32, 16, 5, 13, 6, 4
SCALE = DIM**-0.5
KERNELS = sorted(api.KERNELS)
FORWARD = {"float32": 2e-6, "bfloat16": 2e-3}
GRADIENT = {"float32": 1e-5, "bfloat16": 5e-3}


def problem(seed, dtype="float32", density=0.6, tail=True, by_head=True, queries=QUERIES, keys=KEYS, dim=DIM):
    """Normalised queries and keys, lists (one empty), valid lengths (some zero) and NaN wherever nothing is valid.

    Returns the inputs that are differentiated, as a dict, and what else `attend` takes.
    """
    rng = np.random.default_rng(seed)

    def array(blocks, normal=True):
        x = rng.standard_normal((BATCH, blocks * BLOCK, HEADS, dim))
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True)) if normal else x

    valid = rng.choice([BLOCK, BLOCK, BLOCK, 5, 0], (BATCH, keys)).astype(np.int32)
    seen = rng.random((BATCH, HEADS if by_head else 1, queries, keys)) < density
    seen[0, 0, 1] = False
    dead = (np.arange(BLOCK) >= valid[..., None]).reshape(BATCH, -1)[..., None, None]
    k, v = (np.where(dead, np.nan, x) for x in (array(keys), array(keys, normal=False)))
    at = PAST * BLOCK
    values = {"q": array(queries), "k": k[:, at:], "v": v[:, at:], "past": (k[:, :at], v[:, :at])}
    weight = np.zeros_like(seen, np.float32)
    if tail:
        pooled = rng.standard_normal((2, BATCH, keys, HEADS, dim))
        values["tail"] = (pooled[0], pooled[1])
        weight = np.where(~seen & (rng.random(seen.shape) < 0.5), valid[:, None, None], 0).astype(np.float32)
        weight[0, 0, 1] = 0
    values = jax.tree.map(lambda x: jnp.asarray(x, dtype), values)
    return values, (jnp.asarray(seen), jnp.asarray(valid), jnp.asarray(weight))


def attend(implementation, values, rest, *, tile=TILE, bounded=True, **options):
    seen, valid, weight = rest
    lists = block_lists(seen, valid, block=BLOCK, tile=tile)
    tail = Tail(*values["tail"], weight) if "tail" in values else None
    return api.attend(
        values["q"],
        values["k"],
        values["v"],
        lists,
        valid,
        block=BLOCK,
        scale=values["q"].shape[-1] ** -0.5,
        past=values["past"],
        tail=tail,
        max_logit=api.MAX_LOGIT if bounded else None,
        implementation=implementation,
        **options,
    )


@functools.partial(jax.jit, static_argnames=("implementation", "tile", "bounded"))
def gradients(implementation, values, rest, weight, *, tile=TILE, bounded=True):
    """Output and gradients of a weighted sum of it."""

    def loss(values):
        out = attend(implementation, values, rest, tile=tile, bounded=bounded)
        return (out.astype(jnp.float32) * weight).sum(), out

    (_, out), gradient = jax.value_and_grad(loss, has_aux=True)(values)
    return out, gradient


@functools.partial(jax.jit, static_argnames=("implementation", "bounded", "forward_mode"))
def tangents(implementation, values, rest, direction, *, bounded=True, forward_mode=True):
    """Output and its derivative along a direction, which may leave out inputs that stand still."""
    still = {name: value for name, value in values.items() if name not in direction}
    run = lambda moving: attend(
        implementation, still | moving, rest, bounded=bounded, forward_mode=forward_mode and implementation in KERNELS
    )
    moving = {name: values[name] for name in direction}
    return jax.jvp(run, (moving,), (direction,))


def exact(values):
    return jax.tree.map(lambda x: x.astype(jnp.float32), values)


def error(mine, true):
    """Relative error in the root mean square, over all arrays together."""
    flat = lambda tree: np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])
    mine, true = flat(mine), flat(true)
    assert np.isfinite(mine).all()
    return np.linalg.norm(mine - true) / max(np.linalg.norm(true), 1e-9)


def assert_close(mine, true, bound):
    """The error of a computation, apart from that of rounding its true result to the dtype it comes in."""
    rounded = jax.tree.map(lambda x, y: y.astype(x.dtype), mine, true)
    assert error(mine, true) <= np.hypot(bound, error(rounded, true))


def draw_like(seed, values, names=None):
    rng = np.random.default_rng(seed)
    draw = lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype)
    return {name: jax.tree.map(draw, value) for name, value in values.items() if names is None or name in names}


variants = pytest.mark.parametrize(
    ("dtype", "bounded"), [("float32", True), ("float32", False), ("bfloat16", True), ("bfloat16", False)]
)


@pytest.mark.parametrize("implementation", KERNELS)
@variants
@settings(deadline=None, max_examples=4)
@given(seed=st.integers(0, 10**6), density=st.sampled_from([0.1, 0.6, 1.0]))
def test_outputs_and_gradients_are_the_references(implementation, dtype, bounded, seed, density):
    values, rest = problem(seed, dtype, density)
    weight = draw_like(seed + 1, values)["q"]
    out, gradient = gradients(implementation, values, rest, weight, bounded=bounded)
    true_out, true_gradient = gradients("reference", exact(values), rest, weight.astype(jnp.float32))
    assert out.dtype == values["q"].dtype
    assert_close(out, true_out, FORWARD[dtype])
    for name in values:
        assert_close(gradient[name], true_gradient[name], GRADIENT[dtype])


@pytest.mark.parametrize("implementation", KERNELS)
@variants
@pytest.mark.parametrize("names", [("q",), ("q", "k", "v", "tail"), ("q", "k", "v", "past", "tail")])
def test_tangents_are_jvps_of_the_reference(implementation, dtype, bounded, names):
    """With keys that stand still, with a past that does, and with everything moving."""
    values, rest = problem(7, dtype)
    direction = draw_like(8, values, names)
    valid = (jnp.arange(BLOCK) < rest[1][..., None]).reshape(BATCH, -1)[..., None, None]
    at = PAST * BLOCK
    # Padding has no direction that anyone could mean.
    for name in direction.keys() & {"k", "v"}:
        direction[name] = jnp.where(valid[:, at:], direction[name], 0)
    if "past" in direction:
        direction["past"] = tuple(jnp.where(valid[:, :at], x, 0) for x in direction["past"])
    out, tangent = tangents(implementation, values, rest, direction, bounded=bounded)
    true_out, true_tangent = tangents("reference", exact(values), rest, exact(direction))
    assert_close(out, true_out, FORWARD[dtype])
    assert_close(tangent, true_tangent, GRADIENT[dtype])


@pytest.mark.parametrize("implementation", KERNELS)
def test_tangents_need_no_flag(implementation):
    values, rest = problem(9, tail=False)
    direction = draw_like(10, values, ("q",))
    _, tangent = tangents(implementation, values, rest, direction, forward_mode=False)
    assert_close(tangent, tangents("reference", values, rest, direction)[1], GRADIENT["float32"])


@pytest.mark.parametrize("implementation", KERNELS)
@pytest.mark.parametrize("tile", [1, 2, 8])
def test_tiles_of_any_size_with_lists_for_all_heads(implementation, tile):
    values, rest = problem(11, by_head=False)
    weight = draw_like(12, values)["q"]
    mine = gradients(implementation, values, rest, weight, tile=tile)
    true = gradients("reference", values, rest, weight)
    assert_close(mine, true, GRADIENT["float32"])


@pytest.mark.parametrize("implementation", KERNELS)
def test_empty_lists_give_zeros_and_no_gradient(implementation):
    values, (seen, valid, weight) = problem(13, tail=False)
    rest = (jnp.zeros_like(seen), valid, weight)
    out, gradient = gradients(implementation, values, rest, jnp.ones_like(values["q"]))
    for x in jax.tree.leaves((out, gradient)):
        np.testing.assert_array_equal(x, 0.0)
    direction = draw_like(14, values, ("q",))
    for x in tangents(implementation, values, rest, direction):
        np.testing.assert_array_equal(x, 0.0)


@pytest.mark.parametrize("implementation", KERNELS)
def test_all_keys_are_dense_attention(implementation):
    """Against a softmax that knows of no blocks."""
    values, (seen, valid, weight) = problem(15, tail=False)
    values = jax.tree.map(jnp.nan_to_num, values)
    rest = (jnp.ones_like(seen), jnp.full_like(valid, BLOCK), weight)
    own = (values["k"], values["v"])
    k, v = (jnp.concatenate([old, new], axis=1) for old, new in zip(values["past"], own, strict=True))
    dense = jax.nn.dot_product_attention(values["q"], k, v, scale=SCALE)
    np.testing.assert_allclose(attend(implementation, values, rest), dense, atol=5e-6)


@pytest.mark.parametrize("implementation", KERNELS)
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_head_dimensions(implementation, dim):
    values, rest = problem(16, "bfloat16", dim=dim)
    weight = draw_like(17, values)["q"]
    mine = gradients(implementation, values, rest, weight)
    true = gradients("reference", exact(values), rest, weight.astype(jnp.float32))
    assert_close(mine, true, GRADIENT["bfloat16"])


@pytest.mark.parametrize("implementation", KERNELS)
def test_unbounded_logits_need_the_running_maximum(implementation):
    values, rest = problem(18)
    values["q"], values["k"] = 60 * values["q"], 2 * values["k"]
    out = attend(implementation, values, rest, bounded=False)
    assert_close(out, attend("reference", values, rest), 1e-4)


@pytest.mark.parametrize("implementation", KERNELS)
def test_under_scan_and_remat_in_a_shard_map(implementation):
    """Heads over four devices, layers scanned and recomputed: gradients as of the reference on one device."""
    values, rest = problem(19, tail=False, by_head=False)
    values = jax.tree.map(lambda x: jnp.tile(x, (1, 1, 2, 1)), values)

    def loss(implementation, values):
        step = jax.checkpoint(lambda q, _: (q + attend(implementation, values | {"q": q}, rest), None))
        out, _ = jax.lax.scan(step, values["q"], None, length=2)
        return jnp.square(out).sum()

    mesh = jax.make_mesh((4,), ("tensor",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    heads = PartitionSpec(None, None, "tensor")

    gradient = jax.grad(functools.partial(loss, implementation))
    sharded = jax.jit(jax.shard_map(gradient, mesh=mesh, in_specs=(heads,), out_specs=heads, check_vma=False))
    true = jax.jit(jax.grad(functools.partial(loss, "reference")))(values)
    assert_close(sharded(values), true, GRADIENT["float32"])


@pytest.mark.parametrize("bounded", [True, False])
def test_windows_of_keys_are_merged(monkeypatch, bounded):
    """With so little vector memory that the keys come in several windows, the last of them not full."""
    monkeypatch.setattr(plan, "RESIDENT_BYTES", 1 << 18)
    values, rest = problem(20)
    weight, direction = draw_like(21, values)["q"], draw_like(22, values, ("q",))
    run = lambda f, *extra: jax.jit(functools.partial(f.__wrapped__, *extra), static_argnames=("bounded",))
    mine = run(gradients, "pallas_tpu")(values, rest, weight, bounded=bounded)
    assert_close(mine, gradients("reference", values, rest, weight), GRADIENT["float32"])
    mine = run(tangents, "pallas_tpu")(values, rest, direction, bounded=bounded)
    assert_close(mine, tangents("reference", values, rest, direction), GRADIENT["float32"])
    made = []
    original = plan.Plan.of
    monkeypatch.setattr(plan.Plan, "of", lambda *a, **k: made.append(original(*a, **k)) or made[-1])
    attend("pallas_tpu", values, rest, bounded=bounded)
    assert made[0].windows > 1 and made[0].windows * made[0].window_blocks > KEYS


@pytest.mark.parametrize("mode", ["on_wait", "eager"])
@pytest.mark.parametrize("bounded", [True, False])
def test_few_blocks_of_many_are_fetched(monkeypatch, mode, bounded):
    """Both orders in which copies may arrive, over memory that starts as NaN."""
    params = pltpu.InterpretParams(dma_execution_mode=mode, uninitialized_memory="nan")
    monkeypatch.setattr(plan, "INTERPRET", params)
    values, (seen, valid, weight) = problem(23, "float32", queries=4, keys=24)
    seen = seen & (jnp.cumsum(seen, axis=-1) <= 2)
    called = []
    original = streamed.call
    monkeypatch.setattr(streamed, "call", lambda *a, **k: called.append(1) or original(*a, **k))
    lists = block_lists(seen, valid, block=BLOCK, tile=TILE, max_keys=2)
    options = {"block": BLOCK, "scale": SCALE, "past": values["past"], "tail": Tail(*values["tail"], weight)}
    run = lambda implementation: api.attend(
        values["q"],
        values["k"],
        values["v"],
        lists,
        valid,
        max_logit=api.MAX_LOGIT if bounded else None,
        implementation=implementation,
        **options,
    )
    assert_close(run("pallas_tpu"), run("reference"), FORWARD["float32"])
    assert called


def test_unserved_sizes_say_what_to_change():
    with pytest.raises(
        ValueError, match=r"'pallas_tpu' needs blocks of a multiple of 16 .* not 8; change tokens.block"
    ):
        api.resolve("pallas_tpu", block=8, tile=1)
    with pytest.raises(ValueError, match="needs tiles of at most 8 blocks, not 16"):
        api.resolve("pallas_tpu", block=32, tile=16)
    with pytest.raises(ValueError, match="needs tiles of a multiple of 128 queries, not 2 blocks of 32"):
        api.resolve("pallas_tpu", block=32, tile=2, platform="tpu")
    resolve = functools.partial(api.resolve, "auto", block=32)
    assert [resolve(tile=4, platform=p) for p in ("tpu", "cuda", "cpu")] == ["pallas_tpu", "pallas_gpu", "gather"]
    assert resolve(tile=2, platform="tpu") == resolve(tile=4) == "gather"
