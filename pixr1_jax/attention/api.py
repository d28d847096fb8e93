"""One entry to attention: `attend` chooses the implementation."""

import chex
import jax

from pixr1_jax.attention import gather, reference
from pixr1_jax.attention.blocks import BlockLists

IMPLEMENTATIONS = {"reference": reference.attend, "gather": gather.attend}


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lists: BlockLists,
    key_valid: jax.Array,
    *,
    block: int,
    scale: float,
    implementation: str = "gather",
) -> jax.Array:
    """Softmax attention in which each query block reads the key blocks that its list names.

    Args:
      q: [batch, query_tokens, heads, dim].
      k: [batch, key_tokens, heads, dim].
      v: [batch, key_tokens, heads, dim].
      lists: Key blocks of each query block, [batch, query_tokens / block, max_keys].
      key_valid: int32 [batch, key_tokens / block], tokens at the start of each key block that may be read.
      block: Tokens in a block.
      scale: Factor on the scores.
      implementation: One of `IMPLEMENTATIONS`.

    Returns:
      [batch, query_tokens, heads, dim] in the dtype of `q`; zeros for a query block whose list names no valid token.

    Raises:
      ValueError: Unknown implementation, or lengths that are not whole blocks.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"attention implementation {implementation!r} is unknown; use one of {sorted(IMPLEMENTATIONS)}"
        )
    chex.assert_rank([q, k], 4)
    chex.assert_equal_shape([k, v])
    if q.shape[1] != lists.counts.shape[1] * block or k.shape[1] != key_valid.shape[1] * block:
        raise ValueError(
            f"attend: {q.shape[1]} queries and {k.shape[1]} keys do not match {lists.counts.shape[1]} query and "
            f"{key_valid.shape[1]} key blocks of {block}"
        )
    return IMPLEMENTATIONS[implementation](q, k, v, lists, key_valid, block=block, scale=scale)
