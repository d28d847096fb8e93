"""Randomness keyed by what it is for, never by where it runs (design decision D11).

Every draw of training is a function of (seed, purpose, step, sample id, chunk). So the same sample meets the
same noise on any number of devices, in any row of a batch, and after a restart.
"""

import enum

import jax


class Purpose(enum.IntEnum):
    """What a random number is drawn for; the values are part of every checkpoint's meaning."""

    INIT = 0
    TASK = 1
    TIME = 2
    VIDEO_NOISE = 3
    AUDIO_NOISE = 4
    VIDEO_CONTEXT = 5
    AUDIO_CONTEXT = 6
    CONTEXT_LEVEL = 7
    DROP = 8
    GUIDANCE = 9
    TARGET_TIME = 10
    STREAM = 11
    CONTEXT_DRIFT = 12


def purpose_key(seed: int | jax.Array, purpose: Purpose) -> jax.Array:
    """The root key of one purpose under `seed`."""
    return jax.random.fold_in(jax.random.key(seed), int(purpose))


def chunk_keys(
    seed: int | jax.Array, purpose: Purpose, step: jax.Array, sample: jax.Array, chunk: jax.Array
) -> jax.Array:
    """One key for each (sample, chunk).

    Args:
      seed: Run seed.
      purpose: What the draw is for.
      step: Training step, scalar int32.
      sample: uint32 [...] sample ids.
      chunk: int32 [...] chunk numbers within the clip.

    Returns:
      Keys of the shape of `sample`.
    """
    root = jax.random.fold_in(purpose_key(seed, purpose), step)

    def key(sample, chunk):
        return jax.random.fold_in(jax.random.fold_in(root, sample), chunk)

    for _ in range(sample.ndim):
        key = jax.vmap(key)
    return key(sample, chunk)
