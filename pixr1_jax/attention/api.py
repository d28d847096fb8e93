"""One entry to attention: `attend` chooses the implementation."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pixr1_jax.attention import gather, gpu, kernels, reference, tpu
from pixr1_jax.attention.blocks import BlockLists, Tail
from pixr1_jax.attention.select import Budget

KERNELS = {"pallas_gpu": gpu.BACKEND, "pallas_tpu": tpu.BACKEND}
PLAIN = {"reference": reference.attend, "gather": gather.attend}
IMPLEMENTATIONS = ("auto", *sorted(PLAIN), *sorted(KERNELS))
# Exponentials of logits within this bound need no shift in float32: sums over a million keys stay finite and exact.
# The model keeps it, whatever is learnt (see `omni.layers.Layer`).
MAX_LOGIT = 40.0


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """How a model attends.

    Attributes:
      implementation: One of `IMPLEMENTATIONS`.
      tile: Query blocks that share a list.
      budget: How many blocks are read in full; None reads all that are seen.
    """

    implementation: str
    tile: int
    budget: Budget | None

    def __post_init__(self):
        _check(self.implementation)
        if not 1 <= self.tile <= 31:  # the bits of an int32
            raise ValueError(f"attention.tile={self.tile}; use 1 to 31")


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lists: BlockLists,
    key_valid: jax.Array,
    *,
    block: int,
    scale: float,
    past: tuple[jax.Array, jax.Array] | None = None,
    tail: Tail | None = None,
    max_logit: float | None = None,
    forward_mode: bool = False,
    implementation: str = "auto",
) -> jax.Array:
    """Softmax attention in which each query block reads the key blocks that its list names.

    Args:
      q: [batch, query_tokens, heads, dim].
      k: [batch, key_tokens, heads, dim].
      v: [batch, key_tokens, heads, dim].
      lists: Key blocks of each tile of query blocks, indexing the blocks of `past` and then of `k`.
      key_valid: int32 [batch, key_blocks], tokens at the start of each key block that may be read, `past` included.
      block: Tokens in a block.
      scale: Factor on the scores.
      past: Optional keys and values that come before `k` and `v`, such as a cache. Given apart, since they often have
        no tangent, which makes forward-mode differentiation cheaper.
      tail: Optional key blocks that are read as one pseudo-token each; its weights have no derivative.
      max_logit: A bound on the absolute scores, `scale * q . k`, that holds whatever the data (QK-norm), or None.
        Kernels need no running maximum where it is at most `MAX_LOGIT`.
      forward_mode: Whether a derivative, if any, is forward-mode only (`jax.jvp`): output and tangent then come from
        one pass of a kernel. Otherwise both modes work, and reverse mode is the fast one.
      implementation: One of `IMPLEMENTATIONS`; "auto" takes the kernels of the default device where they serve the
        shapes, and `gather` elsewhere.

    Returns:
      [batch, query_tokens, heads, dim] in the dtype of `q`; zeros for a query block whose list names no valid token.

    Raises:
      ValueError: Unknown implementation, or one that does not serve this device or these shapes.
    """
    chex.assert_rank([q, k], 4)
    chex.assert_equal_shape([k, v])
    key_tokens = k.shape[1] + (0 if past is None else past[0].shape[1])
    tiles = lists.counts.shape[2]
    query_blocks = q.shape[1] // block
    if q.shape[1] % block or -(-query_blocks // lists.tile) != tiles or key_tokens != key_valid.shape[1] * block:
        raise ValueError(
            f"attend: {q.shape[1]} queries and {key_tokens} keys do not match {tiles} tiles of {lists.tile} query "
            f"blocks and {key_valid.shape[1]} key blocks of {block}"
        )
    implementation = resolve(implementation, block=block, tile=lists.tile)
    numbers = {"block": block, "scale": scale}
    if implementation in KERNELS:
        return kernels.attend(
            KERNELS[implementation],
            q,
            k,
            v,
            lists,
            key_valid,
            past,
            tail,
            max_logit=kernel_bound(max_logit),
            forward_mode=forward_mode,
            **numbers,
        )
    if past is not None:
        k, v = (jnp.concatenate([old, new], axis=1) for old, new in zip(past, (k, v), strict=True))
    out, _ = PLAIN[implementation](q, k, v, lists, key_valid, tail, **numbers)
    return checkpoint_name(out, kernels.SAVED)


def kernel_bound(max_logit: float | None) -> float | None:
    """A bound on the absolute scores that spares kernels the running maximum; None where there is no such bound."""
    return max_logit if max_logit is not None and max_logit <= MAX_LOGIT else None


def resolve(implementation: str, *, block: int, tile: int, platform: str | None = None) -> str:
    """The implementation that a request means.

    Args:
      implementation: One of `IMPLEMENTATIONS`.
      block: Tokens in a block.
      tile: Query blocks of a tile.
      platform: "cpu", "cuda" or "tpu", what the program is for; None for the default device.

    Raises:
      ValueError: It is unknown, or does not serve these sizes; the message says what does.
    """
    _check(implementation)
    platform = platform or {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    own = {"tpu": "pallas_tpu", "cuda": "pallas_gpu"}.get(platform)
    if implementation == "auto":
        return own if own is not None and not KERNELS[own].unserved(block, tile, True) else "gather"
    if implementation in KERNELS and (reason := KERNELS[implementation].unserved(block, tile, implementation == own)):
        raise ValueError(f"attention implementation {implementation!r} {reason}, or use 'gather'")
    return implementation


def _check(implementation: str) -> None:
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"attention implementation {implementation!r} is unknown; use one of {IMPLEMENTATIONS}")
