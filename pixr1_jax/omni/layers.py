"""Parameters and layers of the transformer: each declares its shapes and logical axes once (D14)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pixr1_jax.attention.api import MAX_LOGIT

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
    """Continuous content to tokens through a low-rank bottleneck (JiT, arXiv 2511.13720).

    `axis` names the values of a token: "patch" or "sound".
    """

    def __init__(self, key: jax.Array, dim: int, rank: int, width: int, axis: str):
        down, up = jax.random.split(key)
        self.mean = zeros_param((dim,), (axis,))
        self.down = dense_param(down, (dim, rank), (axis, "rank"))
        self.up = dense_param(up, (rank, width), ("rank", "embed"))

    def low_rank(self, x: jax.Array) -> jax.Array:
        """[..., dim] -> [..., rank]."""
        return dot(x - self.mean[...].astype(x.dtype), self.down)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., dim] -> [..., width]."""
        return dot(self.low_rank(x), self.up)


class PatchHead(nnx.Module):
    """Tokens to clean content, the mirror of `PatchEmbed`; starts at the data's mean."""

    def __init__(self, key: jax.Array, dim: int, rank: int, width: int, axis: str):
        self.down = zeros_param((width, rank), ("embed", "rank"))
        self.up = dense_param(key, (rank, dim), ("rank", axis))
        self.mean = zeros_param((dim,), (axis,))

    def __call__(self, x: jax.Array, forecast: jax.Array | None = None) -> jax.Array:
        """[..., width], and optionally what is known beforehand [..., rank] -> [..., dim], float32."""
        low = dot(x, self.down)
        low = low if forecast is None else low + forecast
        return (dot(low, self.up) + self.mean[...].astype(x.dtype)).astype(jnp.float32)


class LookBack(nnx.Module):
    """What a patch's surroundings looked like one chunk earlier: a causal 3 x 3 convolution over clean patches.

    Most motion is local. It serves as a feature of the token, and as a forecast of the patch that the head starts
    from: linear in the surroundings, and bilinear in them and the actions. Attention could learn both, a small model
    far more slowly (docs/decisions.md).
    """

    def __init__(self, key: jax.Array, rank: int, actions: int, width: int):
        self.feature = dense_param(key, (9 * rank, width), ("rank", "embed"))
        self.forecast = zeros_param((9 * rank, (1 + actions) * rank), ("near", "rank"))
        self.usual_action = zeros_param((actions,), (None,))

    def __call__(self, low: jax.Array, before: jax.Array, held: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Gathers and mixes.

        Args:
          low: Clean patches in their low-rank form, [batch, patches, rank].
          before: int32 [batch, patches, 9], places of the surroundings, -1 for none.
          held: [batch, patches, actions], what is held more than usual in each patch's chunk.

        Returns:
          Features [batch, patches, width] and forecast [batch, patches, rank].
        """
        near = surroundings(low, before)
        parts = dot(near, self.forecast).reshape(*held.shape[:2], 1 + held.shape[2], -1)
        forecast = parts[..., 0, :] + jnp.einsum("bpa,bpar->bpr", held.astype(low.dtype), parts[..., 1:, :])
        return dot(near, self.feature), forecast


def surroundings(low: jax.Array, before: jax.Array) -> jax.Array:
    """Low-rank patches [batch, patches, rank] around each patch, [batch, patches, 9 * rank], zeros for none."""
    near = jax.vmap(lambda x, where: x[where])(low, jnp.maximum(before, 0))
    return jnp.where(before[..., None] >= 0, near, 0).reshape(*before.shape[:2], -1)


class CellEmbed(nnx.Module):
    """Embeds times, guidance and actions of a cell as the shared modulation of all layers (PixArt's adaLN-single)."""

    FREQUENCIES = 16

    def __init__(self, key: jax.Array, action_values: int, width: int):
        first, second, out, action = jax.random.split(key, 4)
        self.action = dense_param(action, (action_values, width), (None, "embed"))
        self.no_action = zeros_param((width,), ("embed",))
        self.first = dense_param(first, (3 * 2 * self.FREQUENCIES, width), (None, "embed"))
        self.second = dense_param(second, (width, width), ("embed", "hidden"))
        self.out = dense_param(out, (width, 6 * width), ("embed", "hidden"), gain=0.1)

    def actions(self, actions: jax.Array, drop: jax.Array) -> jax.Array:
        """What is held in a chunk, [..., action_values] -> [..., width]; where `drop`, that nothing is known of it."""
        return jnp.where(drop[..., None], self.no_action[...], dot(actions, self.action))

    def __call__(
        self, time: jax.Array, target: jax.Array, guidance: jax.Array, action: jax.Array, dtype: jnp.dtype
    ) -> jax.Array:
        """Modulation of cells.

        Args:
          time: [..., cells]; `target` and `guidance` likewise.
          target: See `time`.
          guidance: See `time`.
          action: [..., cells, width], from `actions`.
          dtype: Compute dtype.

        Returns:
          [..., cells, 6 * width].
        """
        # Frequencies stay low: the time derivative of the network is part of the flow-map target.
        rates = jnp.asarray(np.geomspace(0.5, 6.0, self.FREQUENCIES), jnp.float32)
        values = jnp.stack([time, time - target, jnp.log(guidance)], axis=-1)[..., None] * rates
        features = jnp.concatenate([jnp.cos(values), jnp.sin(values)], axis=-1)
        x = features.reshape(*time.shape, -1).astype(dtype)
        x = jax.nn.silu(dot(x, self.first) + action.astype(dtype))
        return dot(jax.nn.silu(dot(x, self.second)), self.out)


class Layer(nnx.Module):
    """One transformer layer: attention and SwiGLU, both modulated by the token's cell."""

    def __init__(self, key: jax.Array, width: int, heads: int, head_dim: int, hidden: int):
        qkv, out, up, down = jax.random.split(key, 4)
        inner = heads * head_dim
        # Query, key and value, and gate and value, stand along an axis of their own: the last one is divided by heads.
        self.qkv = dense_param(qkv, (width, 3, inner), ("embed", None, "heads"))
        self.out = dense_param(out, (inner, width), ("heads", "embed"))
        self.up = dense_param(up, (width, 2, hidden), ("embed", None, "hidden"))
        self.down = dense_param(down, (hidden, width), ("hidden", "embed"))
        self.query_scale = nnx.Param(jnp.ones(head_dim), axes=(None,))
        self.key_scale = nnx.Param(jnp.ones(head_dim), axes=(None,))
        # Shift, scale and gate of both branches; gates start open so that a scanned stack learns from step one.
        gates = jnp.zeros((6, width)).at[jnp.array([2, 5])].set(1.0)
        self.modulation = nnx.Param(gates.reshape(-1), axes=(None,))

    def qkv_heads(self, x: jax.Array, heads: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Normalised queries and keys, and values: [batch, length, heads, head_dim] each, keys without rotation.

        The scales are capped so that no scaled score exceeds `MAX_LOGIT`: kernels need no running maximum then.
        """
        together = jnp.einsum("bld,dci->blci", x, self.qkv[...].astype(x.dtype))
        q, k, v = (together[:, :, i].reshape(*x.shape[:2], heads, -1) for i in range(3))
        most = np.sqrt(MAX_LOGIT / np.sqrt(q.shape[-1]))
        cap = lambda scale: jnp.clip(scale[...], -most, most)
        return rms_norm(q, cap(self.query_scale)), rms_norm(k, cap(self.key_scale)), v

    def mlp(self, x: jax.Array) -> jax.Array:
        """SwiGLU."""
        both = jnp.einsum("bld,dch->blch", x, self.up[...].astype(x.dtype))
        return dot(jax.nn.silu(both[:, :, 0]) * both[:, :, 1], self.down)
