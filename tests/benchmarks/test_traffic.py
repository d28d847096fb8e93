"""Bytes that a Pallas kernel moves, against counts by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pixr1_jax.benchmarks.traffic import pallas_bytes

Q, K = (jax.ShapeDtypeStruct((tokens, 128), jnp.bfloat16) for tokens in (512, 1024))
BLOCK = 128 * 128 * 2


def call(key_spec, cost_estimate=None):
    """A grid of 4 query blocks by 8 key blocks."""

    def kernel(q_ref, k_ref, out_ref):
        out_ref[...] = q_ref[...]

    query_spec = pl.BlockSpec((128, 128), lambda i, j: (i, 0))
    return pl.pallas_call(
        kernel,
        grid=(4, 8),
        in_specs=[query_spec, key_spec],
        out_specs=query_spec,
        out_shape=Q,
        cost_estimate=cost_estimate,
    )


def test_blocks_that_come_back_are_read_again():
    spec = pl.BlockSpec((128, 128), lambda i, j: (j, 0))
    assert pallas_bytes(call(spec), Q, K) == (4 + 4 * 8 + 4) * BLOCK
    said = pl.CostEstimate(flops=0, transcendentals=0, bytes_accessed=1)
    assert pallas_bytes(call(spec, said), Q, K) == (4 + 4 * 8 + 4) * BLOCK


def test_a_block_that_stays_is_read_once():
    assert pallas_bytes(call(pl.BlockSpec((1024, 128), lambda i, j: (0, 0))), Q, K) == (4 + 8 + 4) * BLOCK


def test_calls_inside_jit_and_vmap_count():
    twice = jax.vmap(jax.jit(call(pl.BlockSpec((1024, 128), lambda i, j: (0, 0)))))
    stacked = [jax.ShapeDtypeStruct((2, *x.shape), x.dtype) for x in (Q, K)]
    assert pallas_bytes(twice, *stacked) == 2 * (4 + 8 + 4) * BLOCK


def test_a_kernel_that_copies_by_itself_must_say_how_much():
    spec = pl.BlockSpec(memory_space=pltpu.MemorySpace.HBM)
    with pytest.raises(ValueError, match="cost_estimate"):
        pallas_bytes(call(spec), Q, K)
    said = pl.CostEstimate(flops=0, transcendentals=0, bytes_accessed=12345)
    assert pallas_bytes(call(spec, said), Q, K) == 12345
