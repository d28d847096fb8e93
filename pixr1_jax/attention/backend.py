"""What kernels for one kind of device offer: the contract between them and `pixr1_jax.attention.kernels`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Backend:
    """Kernels for one kind of device.

    Arrays are head-major, [batch, heads, tokens or blocks, dim], queries are whole tiles, and all take the numbers
    `block`, `scale` and `max_logit` by name (`max_logit` None where the logits have no bound). Keys and values beyond
    `key_valid` may hold anything and must not matter.

    Attributes:
      forward: (q, k, v, lists, key_valid, tail) -> output like q, and the logarithm of the softmax's denominator,
        float32 [batch, heads, query_tokens], -inf where nothing is read.
      backward: (q, k, v, lists, key_valid, tail, out, lse, d_out) -> gradients of q, k, v, and of the tail's keys and
        values (None without a tail).
      tangent: (q, k, v, dq, dk, dv, lists, key_valid, tail, d_tail, still) -> output and its derivative along the
        direction, in one pass; `still` key blocks at the front have none.
      unserved: (block, tile, compiled) -> why these sizes are not served and what to change, or an empty string;
        some are served only where the kernel is interpreted.
    """

    forward: Callable
    backward: Callable
    tangent: Callable
    unserved: Callable[[int, int, bool], str]


def on_device(platform: str, run: Callable[..., Any], *arrays: Any) -> Any:
    """Calls `run(*arrays, interpret=False)` for a platform ("tpu", "cuda"), and `interpret=True` for any other.

    Which one it is shows only when the program is lowered: kernels are also compiled for devices that are not here.
    """
    compiled = lambda *arrays: run(*arrays, interpret=False)
    if jax.default_backend() == {"cuda": "gpu"}.get(platform, platform):
        return compiled(*arrays)
    interpreted = lambda *arrays: run(*arrays, interpret=True)
    return jax.lax.platform_dependent(*arrays, default=interpreted, **{platform: compiled})
