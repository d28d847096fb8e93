"""What the data tells before training: principal components for the embeddings, a linear forecast (decision D1)."""

import jax
import numpy as np

from pixr1_jax.omni.layers import PatchEmbed, PatchHead, surroundings
from pixr1_jax.omni.model import Omni

_LARGEST_SYSTEM = 10_000  # unknowns of the forecast for each value: seconds and a gigabyte


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


def initialise_forecast(model: Omni, video: np.ndarray, before: np.ndarray, held: np.ndarray, noise: float) -> Omni:
    """Sets the look-back of `model` to the best bilinear forecast of patches from surroundings and actions.

    Where the system is too large to solve (a wide bottleneck, many actions), or no patch has surroundings, the forecast
    stays zero, to be learnt; so does the part of actions that the data never change.

    Args:
      model: A model whose video embeddings are initialised.
      video: Clean patches, [rows, patches, patch_dim].
      before: int32 [rows, patches, 9], as packed; patches with nothing before them are left out.
      held: Mean action over each patch's chunk, [rows, patches, actions].
      noise: Standard deviation of the noise that the surroundings are going to have.
    """
    known = before[..., 4] >= 0
    if not known.any():  # images alone
        return model
    usual = held[known].mean(axis=0)
    changing = np.flatnonzero(held[known].std(axis=0) > 0)
    if model.look_back.forecast.shape[0] * (1 + len(changing)) > _LARGEST_SYSTEM:
        return model
    model = jax.tree.map(lambda x: x, model)
    look = model.look_back
    low = (video - np.asarray(model.video_in.mean[...])) @ np.asarray(model.video_in.down[...])
    near = np.asarray(surroundings(jax.numpy.asarray(low), jax.numpy.asarray(before)))
    near = near[known]
    weights = np.concatenate([np.ones((len(near), 1), np.float32), (held[known] - usual)[:, changing]], axis=1)
    x = (weights[:, :, None] * near[:, None, :]).reshape(len(near), -1).astype(np.float32)
    y = low[known] / np.linalg.norm(np.asarray(model.video_out.up[...]), axis=1)
    # Least squares with noise added to the surroundings is ridge regression, each part by its weight's power.
    power = np.repeat((weights**2).mean(axis=0), near.shape[1])
    gram = (x.T @ x).astype(np.float64) + np.diag(len(x) * max(noise, 1e-2) ** 2 * np.maximum(power, 1e-2))
    solution = np.linalg.solve(gram, (x.T @ y.astype(np.float32)).astype(np.float64))
    forecast = np.zeros((1 + len(usual), near.shape[1], y.shape[1]))
    forecast[np.concatenate([[0], 1 + changing])] = solution.reshape(-1, near.shape[1], y.shape[1])
    forecast = forecast.transpose(1, 0, 2).reshape(near.shape[1], -1)
    look.forecast[...] = jax.numpy.asarray(forecast, look.forecast.dtype)
    look.usual_action[...] = jax.numpy.asarray(usual, look.usual_action.dtype)
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
