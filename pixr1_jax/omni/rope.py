"""Rotary positions in time and space.

Head dimensions are divided among the axes (chunk time, patch row, patch column). Keys are cached without
rotation and rotated when they are read, so a stream may place an old key at any distance it likes.
"""

import jax
import jax.numpy as jnp
import numpy as np

_BASES = (100.0, 100.0, 100.0)  # longest wavelength of each axis, in chunks and patches, over 2 pi
_SHARES = (2, 3, 3)  # eighths of the rotary pairs given to time, rows, columns


def frequencies(head_dim: int) -> np.ndarray:
    """Angular frequencies of each rotary pair, by axis: float32 [3, head_dim / 2], zero where another axis rules."""
    pairs = head_dim // 2
    counts = [pairs * share // 8 for share in _SHARES]
    counts[0] += pairs - sum(counts)
    table = np.zeros((3, pairs), np.float32)
    first = 0
    for axis, (count, base) in enumerate(zip(counts, _BASES, strict=True)):
        table[axis, first : first + count] = base ** -(np.arange(count) / max(count, 1))
        first += count
    return table


def angles(position: jax.Array, head_dim: int) -> jax.Array:
    """Rotation angles of positions [..., 3], float32 [..., head_dim / 2]."""
    return position.astype(jnp.float32) @ jnp.asarray(frequencies(head_dim))


def rotate(x: jax.Array, angle: jax.Array) -> jax.Array:
    """Rotates pairs (i, i + dim / 2) of `x` [batch, length, heads, dim] by `angle` [batch, length, dim / 2]."""
    cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
