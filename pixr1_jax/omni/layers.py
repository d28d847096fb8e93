"""Parameters and layers of the transformer: each declares its shapes and logical axes once (D14)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

nnx.set_graph_mode(False)
nnx.set_graph_updates(False)


def dense_param(key: jax.Array, shape: Sequence[int], axes: tuple[str | None, ...], gain: float = 1.0) -> nnx.Param:
    """A float32 matrix with variance `gain^2 / fan_in`, fan_in the first dimension."""
    scale = gain / np.sqrt(shape[0])
    return nnx.Param(scale * jax.random.truncated_normal(key, -2.0, 2.0, tuple(shape)), axes=axes)


def zeros_param(shape: Sequence[int], axes: tuple[str | None, ...]) -> nnx.Param:
    """A float32 parameter that starts at zero."""
    return nnx.Param(jnp.zeros(tuple(shape)), axes=axes)


def dot(x: jax.Array, kernel: nnx.Param) -> jax.Array:
    """X @ kernel in the dtype of `x`."""
    return x @ kernel[...].astype(x.dtype)


def rms_norm(x: jax.Array, scale: jax.Array | None = None) -> jax.Array:
    """Root-mean-square normalisation of the last axis, statistics in float32."""
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + 1e-6)
    return (x32 if scale is None else x32 * scale).astype(x.dtype)


class PatchEmbed(nnx.Module):
    """Continuous content to tokens through a low-rank bottleneck (JiT, arXiv 2511.13720)."""

    def __init__(self, key: jax.Array, dim: int, rank: int, width: int):
        down, up = jax.random.split(key)
        self.mean = zeros_param((dim,), ("patch",))
        self.down = dense_param(down, (dim, rank), ("patch", "rank"))
        self.up = dense_param(up, (rank, width), ("rank", "embed"))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., dim] -> [..., width]."""
        return dot(dot(x - self.mean[...].astype(x.dtype), self.down), self.up)


class PatchHead(nnx.Module):
    """Tokens to clean content, the mirror of `PatchEmbed`; starts at the data's mean."""

    def __init__(self, key: jax.Array, dim: int, rank: int, width: int):
        self.down = zeros_param((width, rank), ("embed", "rank"))
        self.up = dense_param(key, (rank, dim), ("rank", "patch"))
        self.mean = zeros_param((dim,), ("patch",))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., width] -> [..., dim], float32."""
        return (dot(dot(x, self.down), self.up) + self.mean[...].astype(x.dtype)).astype(jnp.float32)


class TimeEmbed(nnx.Module):
    """Embeds (time, target time, guidance) of a cell as the shared modulation of all layers (PixArt's adaLN-single)."""

    FREQUENCIES = 16

    def __init__(self, key: jax.Array, width: int):
        first, second, out = jax.random.split(key, 3)
        self.first = dense_param(first, (3 * 2 * self.FREQUENCIES, width), (None, "embed"))
        self.second = dense_param(second, (width, width), ("embed", "hidden"))
        self.out = dense_param(out, (width, 6 * width), ("embed", "hidden"), gain=0.1)

    def __call__(self, time: jax.Array, target: jax.Array, guidance: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """[..., cells] each -> [..., cells, 6 * width]."""
        # Frequencies stay low: the time derivative of the network is part of the flow-map target.
        rates = jnp.asarray(np.geomspace(0.5, 16.0, self.FREQUENCIES), jnp.float32)
        values = jnp.stack([time, time - target, jnp.log(guidance)], axis=-1)[..., None] * rates
        features = jnp.concatenate([jnp.cos(values), jnp.sin(values)], axis=-1)
        x = features.reshape(*time.shape, -1).astype(dtype)
        x = jax.nn.silu(dot(x, self.first))
        return dot(jax.nn.silu(dot(x, self.second)), self.out)


class Layer(nnx.Module):
    """One transformer layer: attention and SwiGLU, both modulated by the token's cell."""

    def __init__(self, key: jax.Array, width: int, heads: int, head_dim: int, hidden: int):
        qkv, out, up, down = jax.random.split(key, 4)
        inner = heads * head_dim
        self.qkv = dense_param(qkv, (width, 3 * inner), ("embed", "heads"))
        self.out = dense_param(out, (inner, width), ("heads", "embed"))
        self.up = dense_param(up, (width, 2 * hidden), ("embed", "hidden"))
        self.down = dense_param(down, (hidden, width), ("hidden", "embed"))
        self.query_scale = nnx.Param(jnp.ones(head_dim), axes=(None,))
        self.key_scale = nnx.Param(jnp.ones(head_dim), axes=(None,))
        # Shift, scale and gate of both branches; gates start open so that a scanned stack learns from step one.
        gates = jnp.zeros((6, width)).at[jnp.array([2, 5])].set(1.0)
        self.modulation = nnx.Param(gates.reshape(-1), axes=("embed",))

    def qkv_heads(self, x: jax.Array, heads: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Normalised queries and keys, and values: [batch, length, heads, head_dim] each, keys without rotation."""
        q, k, v = (y.reshape(*x.shape[:2], heads, -1) for y in jnp.split(dot(x, self.qkv), 3, axis=-1))
        return rms_norm(q, self.query_scale[...]), rms_norm(k, self.key_scale[...]), v

    def mlp(self, x: jax.Array) -> jax.Array:
        """SwiGLU."""
        gate, value = jnp.split(dot(x, self.up), 2, axis=-1)
        return dot(jax.nn.silu(gate) * value, self.down)
