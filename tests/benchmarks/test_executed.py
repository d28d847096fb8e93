"""Operations executed, against counts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from pixr1_jax.attention.blocks import block_lists
from pixr1_jax.attention.tpu import BACKEND
from pixr1_jax.benchmarks.executed import executed_flops

X, W = jax.ShapeDtypeStruct((8, 16), jnp.float32), jax.ShapeDtypeStruct((5, 16, 16), jnp.float32)
LAYER = 2 * 8 * 16 * 16


def stack(x, ws, remat=False):
    step = lambda x, w: (jnp.tanh(x @ w), None)
    return jax.lax.scan(jax.checkpoint(step) if remat else step, x, ws)[0].sum()


def count(function, *arguments, reads=None):
    return executed_flops(jax.jit(function).trace(*arguments).jaxpr, reads or {}, 16)


def test_a_scan_counts_as_often_as_it_runs():
    assert count(stack, X, W) == 5 * LAYER


def test_a_gradient_costs_two_more_and_recomputation_is_counted():
    both = jax.grad(stack, argnums=(0, 1))
    assert count(both, X, W) == 3 * 5 * LAYER
    again = jax.grad(lambda x, ws: stack(x, ws, remat=True), argnums=(0, 1))
    assert count(again, X, W) == 4 * 5 * LAYER


def test_every_device_of_a_mesh_counts():
    mesh = Mesh(np.array(jax.devices()[:4]), ("x",))
    product = lambda x, w: x @ w
    half = jax.shard_map(
        product, mesh=mesh, in_specs=(PartitionSpec("x"), PartitionSpec()), out_specs=PartitionSpec("x")
    )
    one = jax.ShapeDtypeStruct((16, 16), jnp.float32)
    assert count(half, X, one) == LAYER


def test_of_branches_the_dearest_counts():
    either = lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x)
    assert count(either, X, jax.ShapeDtypeStruct((16, 16), jnp.float32)) == LAYER


@pytest.mark.parametrize(("reads", "mean"), [({(8, 8): 3.0}, 3.0), ({(16, 16): 3.0}, 1.5)])
def test_kernels_count_the_blocks_that_are_read(reads, mean):
    batch, heads, blocks, block, dim = 2, 3, 8, 16, 128
    tokens = blocks * block
    seen, valid = jnp.ones((batch, blocks, blocks), bool), jnp.full((batch, blocks), block)
    lists = block_lists(seen, valid, block=block, tile=8)
    q = jax.ShapeDtypeStruct((batch, heads, tokens, dim), jnp.float32)
    numbers = {"block": block, "scale": 1.0, "max_logit": 40.0}
    forward = lambda q, k, v: BACKEND.forward(q, k, v, lists, valid, None, **numbers)
    pair = 2 * batch * heads * tokens * mean * block * dim
    assert count(forward, q, q, q, reads=reads) == pytest.approx(2 * pair)
    out = jax.ShapeDtypeStruct(q.shape, q.dtype)
    lse = jax.ShapeDtypeStruct(q.shape[:3], jnp.float32)
    backward = lambda q, k, v, out, lse, d: BACKEND.backward(q, k, v, lists, valid, None, out, lse, d, **numbers)
    assert count(backward, q, q, q, out, lse, out, reads=reads) == pytest.approx(5 * pair)
