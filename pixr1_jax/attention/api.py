"""One entry to attention: `attend` chooses the implementation."""

import dataclasses

import chex
import jax
import jax.numpy as jnp

from pixr1_jax.attention import gather, reference
from pixr1_jax.attention.blocks import BlockLists, Tail
from pixr1_jax.attention.select import Budget

IMPLEMENTATIONS = {"reference": reference.attend, "gather": gather.attend}
MAX_LOGIT = 40.0  # no scaled score exceeds it, whatever is learned (see `omni.layers.Layer`)


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
    implementation: str = "gather",
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
      tail: Optional key blocks that are read as one pseudo-token each.
      implementation: One of `IMPLEMENTATIONS`.

    Returns:
      [batch, query_tokens, heads, dim] in the dtype of `q`; zeros for a query block whose list names no valid token.

    Raises:
      ValueError: Unknown implementation, or lengths that are not whole blocks.
    """
    _check(implementation)
    chex.assert_rank([q, k], 4)
    chex.assert_equal_shape([k, v])
    if past is not None:
        k, v = (jnp.concatenate([old, new], axis=1) for old, new in zip(past, (k, v), strict=True))
    tiles = lists.counts.shape[2]
    query_blocks = q.shape[1] // block
    if q.shape[1] % block or -(-query_blocks // lists.tile) != tiles or k.shape[1] != key_valid.shape[1] * block:
        raise ValueError(
            f"attend: {q.shape[1]} queries and {k.shape[1]} keys do not match {tiles} tiles of {lists.tile} query "
            f"blocks and {key_valid.shape[1]} key blocks of {block}"
        )
    return IMPLEMENTATIONS[implementation](q, k, v, lists, key_valid, tail, block=block, scale=scale)


def _check(implementation: str) -> None:
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"attention implementation {implementation!r} is unknown; use one of {sorted(IMPLEMENTATIONS)}"
        )
