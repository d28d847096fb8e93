"""Embeddings start from the data's principal components (decision D1)."""

import jax
import numpy as np

from pixr1_jax.omni.layers import PatchEmbed, PatchHead
from pixr1_jax.omni.model import Omni


def components(samples: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean [dim], leading directions [dim, rank] and their standard deviations [rank] of samples [count, dim].

    Raises:
      ValueError: Fewer samples or dimensions than `rank`.
    """
    count, dim = samples.shape
    if rank > min(count, dim):
        raise ValueError(f"rank {rank} exceeds the {count} samples of {dim} values it is to be fitted to; lower it")
    mean = samples.mean(axis=0, dtype=np.float64)
    centred = (samples - mean).astype(np.float64)
    if dim <= count:
        variance, directions = np.linalg.eigh(centred.T @ centred / count)
        variance, directions = variance[::-1][:rank], directions[:, ::-1][:, :rank]
    else:
        _, singular, transposed = np.linalg.svd(centred, full_matrices=False)
        variance, directions = singular[:rank] ** 2 / count, transposed[:rank].T
    return mean, directions, np.sqrt(np.maximum(variance, 1e-12))


def initialise(model: Omni, video: np.ndarray, audio: np.ndarray | None) -> Omni:
    """Sets the embeddings of `model` from clean content: video [count, patch_dim], audio [count, audio_dim] or None."""
    model = jax.tree.map(lambda x: x, model)
    _fit(model.video_in, model.video_out, video)
    if audio is not None:
        _fit(model.audio_in, model.audio_out, audio)
    return model


def _fit(embed: PatchEmbed, head: PatchHead, samples: np.ndarray) -> None:
    mean, directions, deviation = components(samples, embed.down.shape[1])
    # The input stays orthonormal, so noise keeps its unit variance in every direction; the output is scaled,
    # so that each predicted component has unit variance and all are learned at one rate.
    put = lambda like, value: jax.numpy.asarray(value, like.dtype)
    embed.mean[...] = put(embed.mean, mean)
    embed.down[...] = put(embed.down, directions)
    head.mean[...] = put(head.mean, mean)
    head.up[...] = put(head.up, (directions * deviation).T)
