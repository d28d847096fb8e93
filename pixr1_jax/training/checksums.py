"""Checksums of arrays, one number a leaf: computed where the array is, the same on any mesh.

Storage compresses without a checksum of its own, so a damaged file can read back as other numbers. The sum
is of the array's bits as whole numbers, each times an odd weight by its place, modulo 2**32: it does not
depend on the order of addition, so not on sharding either; one changed word always changes it, and words that
change places do but for one case in 2**31.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pixr1_jax.core import tree as tree_lib

_GOLDEN = 0x9E3779B9  # 2**32 over the golden ratio: neighbours get unrelated weights


def checksums(tree: Any) -> dict[str, int]:
    """Returns the checksum of every leaf by its path.

    Args:
        tree: Arrays, of one or of several processes; every process must call it on the same tree.
    """
    sums = {name: _checksum(leaf) for name, leaf in tree_lib.named_leaves(tree).items()}
    return {name: int(value) for name, value in jax.device_get(sums).items()}


@jax.jit
def _checksum(leaf: jax.Array) -> jax.Array:
    bits = _bits(leaf)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        place = place * np.uint32(size % 2**32) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    return jnp.sum(bits * (place * np.uint32(_GOLDEN) | 1), dtype=jnp.uint32)


def _bits(leaf: jax.Array) -> jax.Array:
    """The bits of an array as uint32, one word an element, two for elements of 8 bytes."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    word = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(leaf, word).astype(jnp.uint32)
