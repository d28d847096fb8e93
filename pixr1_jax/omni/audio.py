"""Streaming MDCT: the waveform as coefficient frames on the video clock (decision D2).

The modified discrete cosine transform (Princen, Bradley 1987) with a sine window overlaps each hop with
the one before it, so frame k spans samples [(k - 1) hop, (k + 1) hop) and reconstruction is perfect
with one hop of latency. Coefficients are companded, sign(c) |c|^power, so that quiet sound is not lost
in a squared error. There is no vocoder: what the model predicts is inverted directly.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.cache
def basis(hop: int) -> np.ndarray:
    """Windowed orthonormal MDCT basis, float32 [2 * hop, hop]."""
    n = np.arange(2 * hop)[:, None] + 0.5 + hop / 2
    k = np.arange(hop)[None, :] + 0.5
    window = np.sin(np.pi * (np.arange(2 * hop) + 0.5) / (2 * hop))[:, None]
    return (window * np.sqrt(2.0 / hop) * np.cos(np.pi / hop * n * k)).astype(np.float32)


def analyse(waveform: jax.Array, hop: int) -> jax.Array:
    """MDCT of a stretch of sound.

    Args:
      waveform: [..., (frames + 1) * hop, channels]; the first hop is look-back.
      hop: Samples in a hop.

    Returns:
      Coefficients [..., frames, hop, channels].
    """
    *lead, samples, channels = waveform.shape
    hops = waveform.reshape(*lead, samples // hop, hop, channels)
    spans = jnp.concatenate([hops[..., :-1, :, :], hops[..., 1:, :, :]], axis=-2)
    return jnp.einsum("...nc,nk->...kc", spans, basis(hop))


def synthesise(coefficients: jax.Array, overlap: jax.Array, hop: int) -> tuple[jax.Array, jax.Array]:
    """Inverse MDCT of consecutive frames, continued from `overlap`.

    Args:
      coefficients: [..., frames, hop, channels].
      overlap: [..., hop, channels], what the previous call returned; zeros at a start.
      hop: Samples in a hop.

    Returns:
      waveform [..., frames * hop, channels], which ends one hop before the last frame does, and the next overlap.
    """
    spans = jnp.einsum("...kc,nk->...nc", coefficients, basis(hop))
    tails = jnp.concatenate([overlap[..., None, :, :], spans[..., hop:, :]], axis=-3)
    waveform = tails[..., :-1, :, :] + spans[..., :hop, :]
    *lead, frames, _, channels = waveform.shape
    return waveform.reshape(*lead, frames * hop, channels), tails[..., -1, :, :]


def compress(coefficients: jax.Array, scale: float, power: float) -> jax.Array:
    """Companding: sign(c) |scale c|^power."""
    return jnp.sign(coefficients) * jnp.abs(scale * coefficients) ** power


def expand(compressed: jax.Array, scale: float, power: float) -> jax.Array:
    """Inverse of `compress`."""
    return jnp.sign(compressed) * jnp.abs(compressed) ** (1.0 / power) / scale


def to_tokens(waveform: jax.Array, hop: int, tokens: int, scale: float, power: float) -> jax.Array:
    """Audio tokens of chunks: [..., (hops + 1) * hop, channels] in [-1, 1] -> [..., tokens, values]."""
    coefficients = compress(analyse(waveform, hop), scale, power)
    return coefficients.reshape(*coefficients.shape[:-3], tokens, -1)


def from_tokens(
    audio: jax.Array, overlap: jax.Array, hop: int, channels: int, scale: float, power: float
) -> tuple[jax.Array, jax.Array]:
    """Sound of one chunk's audio tokens [..., tokens, values]; returns waveform and overlap as `synthesise` does."""
    coefficients = expand(audio.reshape(*audio.shape[:-2], -1, hop, channels), scale, power)
    return synthesise(coefficients, overlap, hop)
