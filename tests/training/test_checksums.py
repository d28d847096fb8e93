"""Checksums: those of plain numpy, on any mesh, and changed by what a damaged file may change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pixr1_jax.training.checksums import checksums


def oracle(array):
    """The sum over little-endian words in C order, in Python's whole numbers."""
    word = {1: np.uint8, 2: np.uint16}.get(array.dtype.itemsize, np.uint32)
    words = np.ascontiguousarray(array).reshape(-1).view(word).tolist()
    return sum(value * (place * 0x9E3779B9 % 2**32 | 1) for place, value in enumerate(words)) % 2**32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool", "float16"])
@pytest.mark.parametrize("shape", [(), (7,), (3, 4, 5)])
def test_they_are_those_of_numpy(dtype, shape):
    array = (100 * np.random.default_rng(0).standard_normal(shape)).astype(jnp.dtype(dtype))
    assert checksums({"a": {"b": jnp.asarray(array)}}) == {"a/b": oracle(np.asarray(array))}


def test_keys_have_one_too():
    assert checksums({"key": jax.random.key(7)}) == {"key": oracle(np.asarray(jax.random.key_data(jax.random.key(7))))}


@pytest.mark.parametrize("shape", [(8, 1), (2, 4), (1, 2)])
def test_they_do_not_depend_on_the_mesh(shape):
    array = jnp.asarray(np.random.default_rng(0).standard_normal((16, 8)), jnp.float32)
    devices = jax.devices()[: shape[0] * shape[1]]
    mesh = jax.make_mesh(shape, ("data", "tensor"), (AxisType.Auto,) * 2, devices=devices)
    placed = jax.device_put(array, NamedSharding(mesh, P("data", "tensor")))
    assert checksums({"a": placed}) == checksums({"a": array})


def test_bits_places_and_lost_parts_count():
    array = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    lost, swapped, rolled, negated = (array.copy() for _ in range(4))
    lost[4:] = 0
    swapped[[0, 5]] = swapped[[5, 0]]
    rolled = np.roll(rolled, 1)
    negated[0, 0] = 0.0
    zero = negated.copy()
    zero[0, 0] = -0.0
    sums = [
        checksums({"a": jnp.asarray(x)})["a"] for x in (array, lost, swapped, rolled, array.T.copy(), negated, zero)
    ]
    assert len(set(sums)) == len(sums)
