"""Rotary positions against complex numbers, and the properties they are for."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixr1_jax.omni import rope

DIM, LENGTH = 16, 6


def tensors(seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, LENGTH, 3, DIM)).astype(np.float32)
    return x, rng.uniform(-8, 8, (2, LENGTH, 3)).astype(np.float32)


def turn(x, position):
    return np.asarray(rope.rotate(jnp.asarray(x), rope.angles(jnp.asarray(position), x.shape[-1])))


@pytest.mark.parametrize("dim", [8, 16, 40, 64, 128])
def test_every_pair_belongs_to_one_axis_and_the_axes_share_as_told(dim):
    table = rope.frequencies(dim)
    assert table.shape == (3, dim // 2)
    np.testing.assert_array_equal((table > 0).sum(axis=0), 1)
    rows, columns = (table[1] > 0).sum(), (table[2] > 0).sum()
    assert rows == columns == dim // 2 * 3 // 8
    for axis in table:
        used = axis[axis > 0]
        assert used[0] == 1 and (np.diff(used) < 0).all() and used[-1] > 0.01


def test_rotation_is_multiplication_of_complex_numbers():
    x, position = tensors(0)
    angle = position @ rope.frequencies(DIM)
    turned = (x[..., : DIM // 2] + 1j * x[..., DIM // 2 :]) * np.exp(1j * angle)[:, :, None]
    expected = np.concatenate([turned.real, turned.imag], axis=-1)
    np.testing.assert_allclose(turn(x, position), expected, atol=2e-5)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.tuples(*[st.integers(-20, 20)] * 3))
def test_scores_depend_on_differences_of_position_only(seed, shift):
    (q, position), (k, _) = tensors(seed), tensors(seed + 1)
    scores = lambda offset: np.einsum(
        "bqhd,bkhd->bhqk", turn(q, position + offset), turn(k, position[:, ::-1] + offset)
    )
    np.testing.assert_allclose(scores(np.array(shift, np.float32)), scores(np.zeros(3, np.float32)), atol=1e-4)


def test_norms_are_kept_and_zero_is_the_identity():
    x, position = tensors(2)
    np.testing.assert_allclose(np.linalg.norm(turn(x, position), axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(turn(x, np.zeros_like(position)), x)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_axis_turns_its_own_dimensions_only(axis):
    x, _ = tensors(3)
    position = np.zeros((2, LENGTH, 3), np.float32)
    position[..., axis] = 1.7
    moved = np.abs(turn(x, position) - x).max(axis=(0, 1, 2)) > 1e-6
    np.testing.assert_array_equal(moved, np.tile(rope.frequencies(DIM)[axis] > 0, 2))


def test_dtype_is_kept():
    x, position = tensors(4)
    out = rope.rotate(jnp.asarray(x, jnp.bfloat16), rope.angles(jnp.asarray(position), DIM))
    assert out.dtype == jnp.bfloat16
