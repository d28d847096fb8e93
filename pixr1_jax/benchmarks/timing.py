"""Times attention on the device that is there, against the fastest dense attention that JAX has for it."""

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pixr1_jax.attention import api
from pixr1_jax.attention.blocks import block_lists
from pixr1_jax.attention.reference import token_mask
from pixr1_jax.benchmarks.cases import BLOCK, PRODUCTS
from pixr1_jax.benchmarks.estimates import DENSITIES, STREAMING, TRAINING, Shape

CPU_SHAPE = Shape("small", 512, 4096, ("forward", "backward"))
_PEER = {"tpu": "splash", "gpu": "cudnn"}
_TILE = {"tpu": 4}  # query blocks that a kernel reads together
Attention = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def shapes(platform: str) -> Sequence[Shape]:
    """The shapes that a platform is timed at."""
    return (CPU_SHAPE,) if platform == "cpu" else (STREAMING, TRAINING)


def block_masks(shape: Shape, densities: Sequence[float], seed: int = 0) -> Iterator[tuple[str, float, np.ndarray]]:
    """Yields name, density and bool [query_blocks, key_blocks] of each mask.

    "dense" reads everything, "causal" what is not after a block when the queries are the last of the keys, "sparse"
    a random set of the same size for every four query blocks, the same whoever reads it.
    """
    queries, keys = shape.queries // BLOCK, shape.keys // BLOCK
    rng = np.random.default_rng(seed)
    for density in densities:
        listed = max(1, round(keys * density))
        order = np.argsort(np.repeat(rng.random((-(-queries // 4), keys)), 4, axis=0)[:queries], axis=1)
        mask = np.zeros((queries, keys), bool)
        np.put_along_axis(mask, order[:, :listed], True, axis=1)
        yield ("dense" if density == 1 else "sparse"), density, mask
    causal = np.arange(keys) <= np.arange(queries)[:, None] + keys - queries
    yield "causal", float(causal.mean()), causal


def rows(
    platform: str,
    *,
    heads: int,
    dims: Sequence[int] = (128, 256),
    densities: Sequence[float] = DENSITIES,
    where: Sequence[Shape] | None = None,
    repeats: int = 10,
) -> Iterator[dict[str, Any]]:
    """Times every implementation that this platform has, over masks, passes and head dimensions.

    Args:
      platform: "tpu", "gpu" or "cpu".
      heads: Attention heads of one call.
      dims: Head dimensions.
      densities: Of the static masks.
      where: Shapes; None takes the platform's.
      repeats: Timed calls; the median counts.

    Yields:
      One row for each: its key, with "us", "us_low" and "us_high" (quartiles) of one call, or "error".
    """
    names = [name for name in api.IMPLEMENTATIONS if _runs_on(name, platform)]
    peers = [_PEER[platform]] if platform in _PEER else []
    for shape, dim in itertools.product(where or shapes(platform), dims):
        for mask_name, density, mask in block_masks(shape, densities):
            base = {"shape": shape.name, "queries": shape.queries, "keys": shape.keys, "dim": dim, "heads": heads}
            base |= {"mask": mask_name, "density": density, "tail": False}
            for name, variant in itertools.product((*names, *peers), ("forward", "backward", "tangent")):
                if name in peers and variant == "tangent":
                    continue  # neither peer can be differentiated forwards
                row = {**base, "kernel": name, "variant": variant}
                try:
                    ours = functools.partial(_ours, name, mask, dim, _TILE.get(platform, 1), variant)
                    attention = _peer(name, mask) if name in peers else ours()
                    yield {**row, **_time(attention, variant, shape, dim, heads, repeats)}
                except Exception as error:  # a peer that refuses a shape must not cost the others their figures
                    yield {**row, "error": f"{type(error).__name__}: {str(error).strip()[:300]}"}


def _runs_on(implementation: str, platform: str) -> bool:
    return implementation in api.PLAIN or implementation.endswith(platform)


def _ours(implementation: str, mask: np.ndarray, dim: int, tile: int, variant: str) -> Attention:
    valid = jnp.full((1, mask.shape[1]), BLOCK, jnp.int32)
    lists = block_lists(jnp.asarray(mask)[None], valid, block=BLOCK, tile=tile)
    # What no list names is cut off, so that a bound on the lists does not cost what is not read.
    bound = int(lists.counts.max())
    lists = jax.tree.map(lambda x: x[..., :bound] if x.ndim == 4 else x, lists)

    def attend(q, k, v):
        # Queries and keys are normal, so that their logits stay far within the bound.
        options: dict[str, Any] = {"block": BLOCK, "scale": dim**-0.5, "max_logit": api.MAX_LOGIT}
        options |= {"forward_mode": variant == "tangent", "implementation": implementation}
        return api.attend(q, k, v, lists, valid, **options)

    return attend


def _peer(name: str, mask: np.ndarray) -> Attention:
    """Dense attention of JAX under a static mask, on [batch, tokens, heads, dim]."""
    whole = jnp.full((1, mask.shape[1]), BLOCK, jnp.int32)
    tokens = np.asarray(token_mask(jnp.asarray(mask)[None, None], whole, BLOCK)[0, 0])
    if name == "cudnn":
        if mask.all():
            return lambda q, k, v: jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
        dense = jnp.asarray(tokens)[None, None]
        return lambda q, k, v: jax.nn.dot_product_attention(q, k, v, mask=dense, implementation="cudnn")
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    def attend(q, k, v):
        one = splash_attention_mask.FullMask(tokens.shape) if mask.all() else splash_attention_mask.NumpyMask(tokens)
        kernel = splash_attention_kernel.make_splash_mha_single_device(
            splash_attention_mask.MultiHeadMask([one] * q.shape[2])
        )
        by_head = lambda x: jnp.moveaxis(x, 2, 1)
        return by_head(jax.vmap(kernel)(by_head(q * q.shape[-1] ** -0.5), by_head(k), by_head(v)))

    return attend


def _time(attention: Attention, variant: str, shape: Shape, dim: int, heads: int, repeats: int) -> dict[str, Any]:
    assert variant in PRODUCTS
    keys = jax.random.split(jax.random.key(0), 6)
    draw = lambda key, tokens: jax.random.normal(key, (1, tokens, heads, dim), jnp.bfloat16)
    inputs = tuple(draw(key, n) for key, n in zip(keys[:3], (shape.queries, shape.keys, shape.keys), strict=True))
    moves = tuple(draw(key, x.shape[1]) for key, x in zip(keys[3:], inputs, strict=True))
    if variant == "forward":
        call, arguments = jax.jit(attention), inputs
    elif variant == "backward":
        # Alone, from what the forward pass saved.
        _, pull = jax.jit(lambda *inputs: jax.vjp(attention, *inputs))(*inputs)
        call, arguments = jax.jit(lambda pull, cotangent: pull(cotangent)), (pull, moves[0])
    else:
        call, arguments = jax.jit(lambda inputs, moves: jax.jvp(attention, inputs, moves)), (inputs, moves)
    jax.block_until_ready(call(*arguments))  # compiles
    jax.block_until_ready(call(*arguments))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call(*arguments))
        times.append(1e6 * (time.perf_counter() - start))
    low, median, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return {"us": round(median, 1), "us_low": round(low, 1), "us_high": round(high, 1), "repeats": repeats}
