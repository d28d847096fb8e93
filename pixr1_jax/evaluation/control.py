"""Control gain: how much nearer a dream comes to the recording when it is given the actions of the recording.

A clip is dreamed twice with the same context, texts, seed and steps: under its own actions, and under those of
another clip of the same data over the same frames ("shuffled": over all clips the very same actions are played, only
not where they belong). The gain is PSNR under the first minus PSNR under the second, in dB. A stream that ignores its
actions has a gain of 0 exactly, however good its pictures are. This follows the delta-PSNR of Genie (Bruce et al.
2024), with recorded actions of another clip in place of uniformly random ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from pixr1_jax.evaluation import bootstrap, fidelity

SHORT = 8  # frames after the context at which the gain is also reported alone


def donor(index: int, count: int) -> int:
    """Returns the clip whose actions stand in for those of clip `index`: the next one, the first for the last.

    Raises:
        ValueError: there is no other clip.
    """
    if count < 2:
        raise ValueError(f"control gain needs 2 clips or more, not {count}; raise --clips or add test clips")
    return (index + 1) % count


def gain(true: np.ndarray, shuffled: np.ndarray, changed: np.ndarray, *, seed: int) -> dict[str, Any]:
    """Sums up the control gain.

    Args:
        true: PSNR under the clip's own actions, dB `[clips, frames]`.
        shuffled: PSNR under another clip's actions, dB `[clips, frames]`.
        changed: share of frames whose actions differ between the two, `[clips]`.
        seed: of the bootstrap.

    Returns:
        JSON-able: `over_horizons` (the mean of fidelity.HORIZONS) and `at_8`, each an estimate over clips in dB;
        `at_horizons` the same by horizon; `changed` the mean share; `per_clip` the arrays.

    Raises:
        ValueError: the shapes differ, or there are fewer than 8 frames.
    """
    if true.shape != shuffled.shape or true.ndim != 2 or true.shape[1] < SHORT:
        raise ValueError(
            f"PSNR of shapes {list(true.shape)} and {list(shuffled.shape)} gives no control gain; use two "
            f"[clips, frames] of at least {SHORT} frames"
        )
    difference = true - shuffled
    wanted = fidelity.horizons(true.shape[1])
    return {
        "over_horizons": _estimate(fidelity.at_horizons(difference, wanted).mean(axis=1), seed),
        f"at_{SHORT}": _estimate(difference[:, SHORT - 1], seed),
        "at_horizons": {str(h): _estimate(difference[:, h - 1], seed) for h in wanted},
        "changed": float(np.mean(changed)),
        "per_clip": {"gain": difference.tolist(), "changed": np.asarray(changed).tolist()},
    }


def changed_share(own: np.ndarray, others: np.ndarray) -> float:
    """Returns the share of frames at which two `[frames, actions]` differ."""
    return float((own != others).any(axis=1).mean()) if own.shape[1] else 0.0


def _estimate(values: Sequence[float] | np.ndarray, seed: int) -> dict[str, Any]:
    return dataclasses.asdict(bootstrap.mean(np.asarray(values), seed=seed))
