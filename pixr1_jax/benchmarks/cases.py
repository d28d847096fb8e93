"""The programs that are measured: the dense peers, plain XLA, and `attend` with lists that are data.

Each builder returns a function and the shapes of its arguments, and takes only values that JSON knows, since the
compiler runs in another process.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pixr1_jax.attention import api
from pixr1_jax.attention.blocks import BlockLists, Tail

BLOCK = 128
Built = tuple[Callable[..., Any], tuple[Any, ...]]

# Products of one [queries, dim] x [dim, keys] matrix pair that a pass needs, two operations a multiply-add: the
# backward pass recomputes the scores, a tangent of moving queries, keys and values has four products beside the
# forward's two, and two where keys and values stay.
PRODUCTS = {"forward": 2, "backward": 5, "tangent": 6, "tangent_still": 4}


def useful_flops(variant: str, queries: int, keys: float, dim: int) -> float:
    """Operations that a pass over `keys` keys for each query cannot do without, of one head; softmax not counted."""
    return 2.0 * PRODUCTS[variant.removesuffix("_streamed")] * queries * keys * dim


def _built(forward: Callable[..., jax.Array], variant: str, q: Any, k: Any, *rest: Any) -> Built:
    """The pass `variant` of an attention function of (q, k, v, *rest), with the shapes of its arguments.

    The backward pass takes what the forward pass saved, so that its cost is its own.
    """
    inputs = (q, k, k)
    if variant == "forward":
        return forward, (*inputs, *rest)
    if variant == "backward":
        saved = jax.eval_shape(
            lambda *inputs: jax.vjp(lambda q, k, v: forward(q, k, v, *inputs[3:]), *inputs[:3])[1], *inputs, *rest
        )
        return lambda saved, cotangent: saved(cotangent), (saved, q)
    if variant == "tangent":
        function = lambda *all: jax.jvp(lambda q, k, v: forward(q, k, v, *all[6:]), all[:3], all[3:6])
        return function, (*inputs, *inputs, *rest)
    if variant == "tangent_still":
        function = lambda q, direction, *others: jax.jvp(lambda q: forward(q, *others), (q,), (direction,))
        return function, (q, q, k, k, *rest)
    raise ValueError(f"{variant!r} is no pass; use one of {sorted(PRODUCTS)}")


def xla(*, variant: str, queries: int, keys: int, dim: int, heads: int = 1) -> Built:
    """Dense attention as one writes it in JAX, scores in float32, [heads, tokens, dim] in bf16."""

    def forward(q, k, v):
        scores = jnp.einsum("hqd,hkd->hqk", q, k, preferred_element_type=jnp.float32) * dim**-0.5
        return jnp.einsum("hqk,hkd->hqd", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)

    q, k = (jax.ShapeDtypeStruct((heads, tokens, dim), jnp.bfloat16) for tokens in (queries, keys))
    return _built(forward, variant, q, k)


def flash(*, variant: str, queries: int, keys: int, dim: int, block_q: int, block_k: int, heads: int = 1) -> Built:
    """JAX's dense `flash_attention` for TPUs, not causal, the same block sizes in all passes, queries scaled before."""
    from jax.experimental.pallas.ops.tpu import flash_attention as peer

    sizes = peer.BlockSizes(
        block_b=1,
        **dict.fromkeys(("block_q", "block_q_major_dkv", "block_q_dkv", "block_q_dq"), block_q),
        **dict.fromkeys(("block_k_major", "block_k", "block_k_major_dkv", "block_k_dkv"), block_k),
        **dict.fromkeys(("block_k_major_dq", "block_k_dq"), block_k),
    )

    def forward(q, k, v):
        return peer.flash_attention(q, k, v, causal=False, sm_scale=1.0, block_sizes=sizes)

    q, k = (jax.ShapeDtypeStruct((1, heads, tokens, dim), jnp.bfloat16) for tokens in (queries, keys))
    return _built(forward, variant, q, k)


def attend(
    *,
    implementation: str,
    variant: str,
    queries: int,
    keys: int,
    listed: int,
    dim: int,
    heads: int = 2,
    tile: int = 4,
    tail: bool = False,
    bounded: bool = True,
    dtype: str = "bfloat16",
) -> Built:
    """`attend` as a model calls it: lists of each head, counts and valid lengths are data.

    Args:
      implementation: As in `attend`.
      variant: One of `PRODUCTS`.
      queries: Query tokens, whole blocks of `BLOCK`.
      keys: Key tokens.
      listed: Bound on the key blocks of a tile.
      dim: Head dimension.
      heads: Heads.
      tile: Query blocks of a tile.
      tail: Whether other blocks enter as pseudo-tokens, given by their means.
      bounded: Whether the logits have a bound, as under QK-norm.
      dtype: Of queries, keys and values.
    """

    def forward(q, k, v, lists, key_valid, weight):
        pooled = lambda x: x.reshape(1, -1, BLOCK, heads, dim).mean(axis=2)
        return api.attend(
            q,
            k,
            v,
            lists,
            key_valid,
            block=BLOCK,
            scale=dim**-0.5,
            tail=Tail(pooled(k), pooled(v), weight) if tail else None,
            max_logit=api.MAX_LOGIT if bounded else None,
            forward_mode=variant.startswith("tangent"),
            implementation=implementation,
        )

    tiles = -(-queries // (BLOCK * tile))
    lists_of = (1, heads, tiles)
    entries, counts = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((*lists_of, listed), lists_of))
    lists: Any = jax.eval_shape(
        lambda entries, counts: BlockLists(indices=entries, seen=entries, counts=counts, whole=counts, tile=tile),
        entries,
        counts,
    )
    valid = jax.ShapeDtypeStruct((1, keys // BLOCK), jnp.int32)
    weight = jax.ShapeDtypeStruct((1, heads, queries // BLOCK, keys // BLOCK), jnp.float32)
    q, k = (jax.ShapeDtypeStruct((1, tokens, heads, dim), jnp.dtype(dtype)) for tokens in (queries, keys))
    return _built(forward, variant, q, k, lists, valid, weight)
