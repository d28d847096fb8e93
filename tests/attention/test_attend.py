"""Attention over block lists: `reference` against numpy, `gather` against both; values, gradients, tangents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixr1_jax.attention import api, gather
from pixr1_jax.attention.blocks import Tail, block_lists

IMPLEMENTATIONS = sorted(api.PLAIN)
BATCH, HEADS, DIM, BLOCK, QUERIES, KEYS = 2, 2, 8, 4, 3, 5
TILES = [1, 2, 4]  # query blocks that share a list
SCALE = DIM**-0.5


def problem(seed: int, density: float = 0.6):
    """Random tensors, lists (one of them empty) and valid lengths (some zero, those never listed)."""
    rng = np.random.default_rng(seed)
    array = lambda blocks: rng.standard_normal((BATCH, blocks * BLOCK, HEADS, DIM)).astype(np.float32)
    valid = rng.integers(0, BLOCK + 1, (BATCH, KEYS)).astype(np.int32)
    seen = (rng.random((BATCH, QUERIES, KEYS)) < density) & (valid > 0)[:, None]
    seen[0, 1] = False
    return array(QUERIES), array(KEYS), array(KEYS), seen, valid


def numpy_attention(q, k, v, seen, valid):
    """One query, one head at a time, in float64."""
    out = np.zeros(q.shape, np.float64)
    for b in range(q.shape[0]):
        for i in range(q.shape[1]):
            keys = [
                j for j in range(k.shape[1]) if seen[b, i // BLOCK, j // BLOCK] and j % BLOCK < valid[b, j // BLOCK]
            ]
            for h in range(q.shape[2]):
                if keys:
                    scores = np.array([SCALE * q[b, i, h].astype(np.float64) @ k[b, j, h] for j in keys])
                    weights = np.exp(scores - scores.max())
                    out[b, i, h] = (weights / weights.sum()) @ v[b, keys, h]
    return out


def attend(implementation, q, k, v, seen, valid, tile=2, **rest):
    lists = block_lists(jnp.asarray(seen), jnp.asarray(valid), block=BLOCK, tile=tile)
    options = {"block": BLOCK, "scale": SCALE, "implementation": implementation}
    return api.attend(q, k, v, lists, jnp.asarray(valid), **options, **rest)


def dense_float64(q, k, v, mask):
    """Plain softmax attention under a token mask, in jnp so that it can be differentiated in float64."""
    scores = jnp.where(mask[:, None], SCALE * jnp.einsum("bqhd,bkhd->bhqk", q, k), -jnp.inf)
    any_key = mask.any(-1)[:, None, :, None]
    weights = jnp.where(any_key, jax.nn.softmax(jnp.where(any_key, scores, 0.0), axis=-1), 0.0)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def token_mask(seen, valid):
    mask = np.zeros((BATCH, QUERIES * BLOCK, KEYS * BLOCK), bool)
    for b, i, j in np.ndindex(*mask.shape):
        mask[b, i, j] = seen[b, i // BLOCK, j // BLOCK] and j % BLOCK < valid[b, j // BLOCK]
    return mask


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 10**6), density=st.sampled_from([0.2, 0.6, 1.0]), tile=st.sampled_from(TILES))
def test_outputs_are_numpys(implementation, seed, density, tile):
    q, k, v, seen, valid = problem(seed, density)
    out = attend(implementation, q, k, v, seen, valid, tile)
    np.testing.assert_allclose(out, numpy_attention(q, k, v, seen, valid), atol=2e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_and_tangents_are_those_of_dense_softmax_in_float64(implementation, seed):
    q, k, v, seen, valid = problem(seed)
    rng = np.random.default_rng(seed + 50)
    moves = [rng.standard_normal(x.shape).astype(np.float32) for x in (q, k, v)]
    weight = rng.standard_normal(q.shape).astype(np.float32)
    with jax.enable_x64(True):
        exact = lambda q, k, v: dense_float64(q, k, v, token_mask(seen, valid))
        doubles = [jnp.asarray(x, jnp.float64) for x in (q, k, v)]
        _, tangent = jax.jvp(exact, doubles, [jnp.asarray(x, jnp.float64) for x in moves])
        gradient = jax.grad(lambda *a: (exact(*a) * weight).sum(), argnums=(0, 1, 2))(*doubles)
        tangent, gradient = np.asarray(tangent), [np.asarray(x) for x in gradient]

    def ours(q, k, v):
        return attend(implementation, q, k, v, seen, valid)

    _, our_tangent = jax.jvp(ours, (q, k, v), tuple(moves))
    np.testing.assert_allclose(our_tangent, tangent, atol=5e-6)
    our_gradient = jax.grad(lambda *a: (ours(*a) * weight).sum(), argnums=(0, 1, 2))(q, k, v)
    for mine, theirs in zip(our_gradient, gradient, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=5e-6)


def test_second_order_of_gather_is_that_of_reference():
    """A tangent inside a gradient, as flow-map training could use it."""
    q, k, v, seen, valid = problem(3)
    move = np.random.default_rng(4).standard_normal(q.shape).astype(np.float32)

    def loss(implementation):
        def tangent(q):
            return jax.jvp(lambda q: attend(implementation, q, k, v, seen, valid), (q,), (move,))[1]

        return jax.grad(lambda q: jnp.square(tangent(q)).sum())(q)

    np.testing.assert_allclose(loss("gather"), loss("reference"), atol=2e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_an_empty_list_gives_zeros_and_no_gradient(implementation):
    q, k, v, _, _ = problem(0)
    seen = np.zeros((BATCH, QUERIES, KEYS), bool)
    valid = np.full((BATCH, KEYS), BLOCK, np.int32)
    run = lambda q, k, v: attend(implementation, q, k, v, seen, valid)
    np.testing.assert_array_equal(run(q, k, v), 0.0)
    for gradient in jax.grad(lambda *a: run(*a).sum() + jnp.square(run(*a)).sum(), argnums=(0, 1, 2))(q, k, v):
        np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_listed_blocks_without_valid_tokens_are_as_good_as_none(implementation):
    q, k, v, _, _ = problem(0)
    seen = np.zeros((BATCH, QUERIES, KEYS), bool)
    seen[:, 0, 1], seen[:, 1, :2] = True, True
    valid = np.full((BATCH, KEYS), BLOCK, np.int32)
    valid[:, 1] = 0
    out = attend(implementation, q, k, v, seen, valid)
    np.testing.assert_allclose(out, numpy_attention(q, k, v, seen, valid), atol=2e-6)
    np.testing.assert_array_equal(out[:, :BLOCK], 0.0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nan_in_padding_and_unlisted_blocks_does_not_leak(implementation):
    q, k, v, seen, valid = problem(5)
    dead = np.arange(BLOCK) >= valid[..., None]
    dead = dead.reshape(BATCH, -1)
    bad_k, bad_v = k.copy(), v.copy()
    bad_k[dead], bad_v[dead] = np.nan, np.nan
    weight = np.random.default_rng(6).standard_normal(q.shape).astype(np.float32)
    loss = lambda *a: (attend(implementation, *a, seen, valid) * weight).sum()
    clean, poisoned = (jax.value_and_grad(loss, argnums=(0, 1, 2))(q, *kv) for kv in ((k, v), (bad_k, bad_v)))
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(poisoned), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.isfinite(a).all()
    for gradient in poisoned[1][1:]:
        np.testing.assert_array_equal(np.asarray(gradient)[dead], 0.0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_large_scores_do_not_overflow(implementation):
    q, k, v, seen, valid = problem(7)
    out = attend(implementation, 60 * q, 60 * k, v, seen, valid)
    np.testing.assert_allclose(out, numpy_attention(60 * q, 60 * k, v, seen, valid), atol=2e-3)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bfloat16_is_near_and_keeps_its_dtype(implementation):
    q, k, v, seen, valid = problem(8)
    low = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    out = attend(implementation, *low, seen, valid)
    assert out.dtype == jnp.bfloat16
    exact = numpy_attention(*(np.asarray(x, np.float32) for x in low), seen, valid)
    np.testing.assert_allclose(np.asarray(out, np.float32), exact, atol=0.03)


@pytest.mark.parametrize("budget", [1, 2 * 2 * 4 * 5 * 4])
def test_gather_in_groups_is_gather_at_once(monkeypatch, budget):
    q, k, v, seen, valid = problem(9)
    loss = lambda *a: jnp.square(attend("gather", *a, seen, valid)).sum()
    whole = jax.value_and_grad(loss, argnums=(0, 1, 2))(q, k, v)
    monkeypatch.setattr(gather, "_GROUP_SCORES", budget)
    grouped = jax.value_and_grad(loss, argnums=(0, 1, 2))(q, k, v)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(grouped), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("tile", TILES)
def test_each_head_may_have_its_own_list_and_a_past(implementation, tile):
    q, k, v, seen, valid = problem(11)
    rng = np.random.default_rng(12)
    by_head = np.stack([seen, rng.random(seen.shape) < 0.5], axis=1) & (valid > 0)[:, None, None]
    at = 2 * BLOCK
    past, own = (k[:, :at], v[:, :at]), (k[:, at:], v[:, at:])
    out = attend(implementation, q, *own, by_head, valid, tile, past=past)
    for h in range(HEADS):
        one = (x[:, :, h : h + 1] for x in (q, k, v))
        np.testing.assert_allclose(out[:, :, h : h + 1], numpy_attention(*one, by_head[:, h], valid), atol=2e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("tile", TILES)
def test_a_pseudo_token_counts_as_its_weight_of_equal_tokens(implementation, tile):
    """Blocks whose tokens are all alike: reading them or their tail is the same."""
    q, k, v, seen, _ = problem(13)
    valid = np.full((BATCH, KEYS), BLOCK, np.int32)
    rng = np.random.default_rng(14)
    pooled = [rng.standard_normal((BATCH, KEYS, HEADS, DIM)).astype(np.float32) for _ in range(2)]
    k, v = (np.repeat(x, BLOCK, axis=1) for x in pooled)
    listed = seen & (rng.random(seen.shape) < 0.5)
    rest = (seen & ~listed)[:, None]
    tail = Tail(*(jnp.asarray(x) for x in pooled), jnp.where(rest, float(BLOCK), 0.0))
    out = attend(implementation, q, k, v, listed, valid, tile, tail=tail)
    np.testing.assert_allclose(out, numpy_attention(q, k, v, seen, valid), atol=3e-6)


def test_the_bound_on_keys_cuts_the_list():
    """Entries beyond the count are not read, whatever they name."""
    q, k, v, _, _ = problem(10)
    valid = np.full((BATCH, KEYS), BLOCK, np.int32)
    listed = np.zeros((BATCH, QUERIES, KEYS), bool)
    listed[..., [2, 4]] = True
    lists = block_lists(jnp.asarray(listed), jnp.asarray(valid), block=BLOCK, max_keys=1)
    assert lists.indices.shape == (BATCH, 1, QUERIES, 1)
    seen = np.zeros((BATCH, QUERIES, KEYS), bool)
    seen[..., 2] = True
    for implementation in IMPLEMENTATIONS:
        out = api.attend(q, k, v, lists, jnp.asarray(valid), block=BLOCK, scale=SCALE, implementation=implementation)
        np.testing.assert_allclose(out, numpy_attention(q, k, v, seen, valid), atol=2e-6)


def test_errors_say_what_to_use():
    q, k, v, seen, valid = problem(0)
    with pytest.raises(
        ValueError, match=r"implementation 'flash' is unknown; use one of \(.auto., .gather., .reference."
    ):
        attend("flash", q, k, v, seen, valid)
    with pytest.raises(
        ValueError, match="4 queries and 20 keys do not match 2 tiles of 2 query blocks and 5 key blocks of 4"
    ):
        attend("gather", q[:, :4], k, v, seen, valid)
    with pytest.raises(ValueError, match="12 queries and 16 keys do not match"):
        attend("gather", q, k[:, :16], v[:, :16], seen, valid)
