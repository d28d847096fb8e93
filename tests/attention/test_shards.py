"""Key blocks spread over devices, against lists of Python numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixr1_jax.attention.blocks import Tail, block_lists
from pixr1_jax.attention.reference import block_mask
from pixr1_jax.attention.shards import Shards

SIZES = [(1, 2, 3), (2, 0, 3), (3, 2, 1), (4, 1, 2)]


def held(size, past, own):
    """The key blocks of each shard, in its order."""
    old = [[s * past + i for i in range(past)] for s in range(size)]
    return [old[s] + [size * past + s * own + i for i in range(own)] for s in range(size)]


@pytest.mark.parametrize("sizes", SIZES)
def test_blocks_are_where_they_are_found(sizes):
    shards, blocks = Shards(*sizes), held(*sizes)
    numbers = jnp.arange(shards.size * shards.blocks)
    owner, place = shards.find(numbers)
    assert [blocks[s][p] for s, p in zip(owner, place, strict=True)] == numbers.tolist()
    whole = jnp.zeros_like(numbers)[None]
    for shard, mine in enumerate(blocks):
        part = shards.take(numbers[None], jnp.int32(shard), axis=1)
        assert part.tolist() == [mine]
        whole = shards.put(whole, part, jnp.int32(shard), axis=1)
    assert whole.tolist() == [numbers.tolist()]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("max_keys", [None, 2])
def test_parts_read_together_what_the_whole_reads(sizes, max_keys):
    shards, blocks = Shards(*sizes), held(*sizes)
    batch, heads, queries, tile, block = 2, 2, 5, 2, 4
    keys = shards.size * shards.blocks
    rng = np.random.default_rng(keys)
    valid = jnp.asarray(rng.choice([block, block, 3], (batch, keys)).astype(np.int32))
    seen = rng.random((batch, heads, queries, keys)) < 0.4
    seen[0, 0] = True  # so that some entries need no mask
    seen[..., blocks[-1]] &= shards.size == 1  # and one shard is read by nobody
    lists = block_lists(jnp.asarray(seen), valid, block=block, tile=tile, max_keys=max_keys)
    tail = Tail(*jnp.asarray(rng.random((2, batch, heads, keys, 8))), jnp.asarray(rng.random(seen.shape)))
    mask = np.asarray(block_mask(lists, queries, keys))
    needless = np.arange(lists.indices.shape[-1]) < np.asarray(lists.whole)[..., None]
    part = jax.jit(shards.part)
    for shard, mine in enumerate(blocks):
        of, of_valid, of_tail = part(lists, valid, tail, jnp.int32(shard))
        assert of.indices.shape[-1] == min(shards.blocks, lists.indices.shape[-1])
        np.testing.assert_array_equal(of_valid, valid[:, np.array(mine)])
        np.testing.assert_array_equal(block_mask(of, queries, shards.blocks), mask[..., mine])
        here = needless & np.isin(lists.indices, mine)
        np.testing.assert_array_equal(of.whole, here.sum(-1))
        for at in np.ndindex(here.shape[:3]):
            first = np.asarray(of.indices)[at][: here[at].sum()]
            assert [mine[i] for i in first] == np.asarray(lists.indices)[at][here[at]].tolist()
        np.testing.assert_array_equal(of_tail.key, tail.key[:, :, np.array(mine)])
        np.testing.assert_array_equal(of_tail.weight, tail.weight[..., np.array(mine)])
        assert bool(shards.is_read(lists, None, jnp.int32(shard))) == mask[..., mine].any()
        assert shards.is_read(lists, tail, jnp.int32(shard))
