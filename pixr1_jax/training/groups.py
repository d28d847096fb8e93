"""Norms by group of parameters: which part of the model a gradient comes from, and how far a step moves it."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from pixr1_jax.core.tree import named_leaves

# The first rule one of whose prefixes begins a parameter's path names its group.
GROUPS: dict[str, tuple[str, ...]] = {
    "embeddings": ("video_in/", "audio_in/", "action_in", "text_in", "kind", "memory", "no_action"),
    "look_back": ("look_back/",),
    "modulation": ("cell/", "layers/modulation"),
    "attention": ("layers/qkv", "layers/out", "layers/query_scale", "layers/key_scale"),
    "mlp": ("layers/up", "layers/down"),
    "heads": ("video_out/", "audio_out/"),
}
OTHER = "other"


def group_of(path: str) -> str:
    """The group of a parameter by its path (see `core.tree.named_leaves`), `OTHER` where no rule knows it."""
    for group, prefixes in GROUPS.items():
        if path.startswith(prefixes):
            return group
    return OTHER


def group_norms(gradient: Any, before: Any, after: Any) -> dict[str, jax.Array]:
    """Norms of a step, to be computed inside it: sums over arrays that it reads anyway.

    Args:
        gradient: Structured as the parameters.
        before: Parameters before the step.
        after: Parameters after it.

    Returns:
        float32 scalars: `grad_norm/GROUP`, the norm of the group's gradient before clipping, and
        `update_ratio/GROUP`, the norm of what the step changed over that of the parameters before it (0 where
        these are 0). A refused step's is 0.
    """
    members = collections.defaultdict(list)
    leaves = zip(named_leaves(gradient).items(), jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    for (path, slope), old, new in leaves:
        members[group_of(path)].append((slope, old, new.astype(jnp.float32) - old.astype(jnp.float32)))
    norms = {}
    for group, arrays in members.items():
        slope, size, change = (_norm(each) for each in zip(*arrays, strict=True))
        norms[f"grad_norm/{group}"] = slope
        norms[f"update_ratio/{group}"] = jnp.where(size > 0, change / jnp.where(size > 0, size, 1.0), 0.0)
    return norms


def _norm(arrays: Iterable[jax.Array]) -> jax.Array:
    return jnp.sqrt(sum((jnp.sum(jnp.square(x.astype(jnp.float32))) for x in arrays), jnp.float32(0)))
