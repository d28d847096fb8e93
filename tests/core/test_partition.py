"""Meshes, rules and shardings: what they say of arrays, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from pixr1_jax.core.partition import MeshShape, Partition, PartitionError, Rules, make_mesh


def shape(**sizes):
    return MeshShape(**({"slice": 1, "data": 1, "fsdp": 1, "context": 1, "tensor": 1} | sizes))


def partition(rules=None, **sizes):
    return Partition(make_mesh(shape(**sizes)), rules or Rules(), "ulysses")


def abstract(axes, *dims, dtype=jnp.float32):
    return {"w": nnx.Param(jax.ShapeDtypeStruct(dims, dtype), axes=axes)}


def test_the_axis_of_minus_one_takes_the_devices_that_are_left():
    assert shape(data=-1, tensor=2).resolve(8).sizes == (1, 4, 1, 1, 2)
    assert shape(slice=2, fsdp=-1, context=2).resolve(256, slices=2).sizes == (2, 1, 64, 2, 1)
    assert dict(make_mesh(shape(fsdp=-1, context=2)).shape) == {
        "slice": 1,
        "data": 1,
        "fsdp": 4,
        "context": 2,
        "tensor": 1,
    }


@pytest.mark.parametrize(
    ("sizes", "devices", "slices", "message"),
    [
        ({"data": 3}, 8, 1, "data=3.*does not fit 8 devices"),
        ({"data": -1, "tensor": 3}, 8, 1, "does not fit 8 devices"),
        ({"data": -1}, 512, 2, "slice=1 must be a multiple of the 2 slices"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(sizes, devices, slices, message):
    with pytest.raises(PartitionError, match=message):
        shape(**sizes).resolve(devices, slices)


@pytest.mark.parametrize(("sizes", "message"), [({"fsdp": 0}, "fsdp=0"), ({"data": -1, "fsdp": -1}, "several axes")])
def test_a_mesh_that_makes_no_sense_is_refused(sizes, message):
    with pytest.raises(PartitionError, match=message):
        shape(**sizes)


def test_slices_are_apart_and_their_devices_together():
    grid = make_mesh(shape(slice=2, fsdp=-1)).devices
    assert [device.id for device in grid[0].ravel()] == [0, 1, 2, 3]


def test_parameters_lie_as_their_axes_say():
    place = partition(fsdp=2, context=2, tensor=2)
    tree = {
        "matrix": nnx.Param(jax.ShapeDtypeStruct((8, 3, 6), jnp.float32), axes=("embed", None, "heads")),
        "stacked": nnx.Param(jax.ShapeDtypeStruct((5, 6, 8), jnp.float32), axes=("heads", "embed")),
        "bias": nnx.Param(jax.ShapeDtypeStruct((7,), jnp.float32), axes=(None,)),
        "count": jax.ShapeDtypeStruct((), jnp.int32),
    }
    found = place.shardings(tree)
    leaf = lambda name: jax.tree.leaves(found[name])[0].spec
    assert leaf("matrix") == P(("fsdp", "context"), None, "tensor")
    assert leaf("stacked") == P(None, "tensor", ("fsdp", "context"))
    assert leaf("bias") == P(None) and leaf("count") == P()
    value = jax.device_put(jnp.arange(8 * 3 * 6.0).reshape(8, 3, 6), jax.tree.leaves(found["matrix"])[0])
    assert {shard.data.shape for shard in value.addressable_shards} == {(2, 3, 3)}


@pytest.mark.parametrize(
    ("tree", "sizes", "message"),
    [
        (abstract(("embed", "haeds"), 8, 8), {"fsdp": 8}, r"w: its axis 'haeds' has no rule; the rules know batch"),
        (abstract(("embed", "patch"), 8, 8), {"fsdp": 8}, r"w: its axes 'embed' and 'patch' both lie along 'fsdp'"),
        (abstract(("embed",), 12), {"fsdp": 8}, r"w \[12\]: its axis 'embed' of 12 does not divide into 8"),
        (abstract((None, "rank"), 4096, 8192), {"fsdp": 8}, r"w \[4096, 8192\]: 128 MiB would lie whole on every"),
        ({"w": jax.ShapeDtypeStruct((4096, 8192), jnp.float32)}, {"tensor": 8}, "128 MiB would lie whole"),
    ],
)
def test_a_sharding_that_cannot_be_is_refused(tree, sizes, message):
    with pytest.raises(PartitionError, match=message):
        partition(**sizes).shardings(tree)


def test_large_arrays_lie_whole_where_only_rows_are_divided():
    place = partition(data=8)
    assert jax.tree.leaves(place.shardings(abstract((None, "rank"), 4096, 8192)))[0].is_fully_replicated


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"fsdp": 2, "context": 2, "tensor": 2}, {"data": 8}])
def test_matrices_are_gathered_once_and_their_gradients_lie_as_they_do(sizes):
    place = partition(**sizes)
    matrix = nnx.Param(jax.random.normal(jax.random.key(0), (16, 3, 8)), axes=("embed", None, "heads"))
    module = {"matrix": matrix, "bias": nnx.Param(jnp.arange(8.0), axes=(None,))}
    x = jax.random.normal(jax.random.key(1), (8, 4, 16))

    def loss(module, x, gather=lambda module: module):
        module = gather(module)
        return jnp.sum(jnp.sin(jnp.einsum("bld,dch->blch", x, module["matrix"][...]) + module["bias"][...]))

    gathered = lambda module, x: loss(module, x, lambda module: place.gathered(module, jnp.float32))
    args = jax.device_put((module, x), (place.shardings(module), place.sharding("batch", "length")))
    found = jax.jit(lambda module: place.gathered(module, jnp.bfloat16))(args[0])
    assert found["matrix"][...].dtype == jnp.bfloat16 and found["bias"][...].dtype == jnp.float32
    divided = "tensor" if place.size("heads") > 1 else None
    assert found["matrix"][...].sharding.is_equivalent_to(jax.NamedSharding(place.mesh, P(None, None, divided)), 3)
    gradient = jax.jit(jax.grad(gathered))(*args)
    assert gradient["matrix"][...].sharding.is_equivalent_to(place.sharding("embed", None, "heads"), 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), gradient, jax.grad(loss)(module, x))
    tangent = jax.jit(lambda module, x: jax.jvp(gathered, (module, x), (module, x))[1])(*args)
    np.testing.assert_allclose(tangent, jax.jvp(loss, (module, x), (module, x))[1], rtol=1e-4)


def test_rules_name_axes_of_the_mesh():
    with pytest.raises(PartitionError, match=r"rules.embed names the mesh axis 'model'"):
        Rules(embed=("model",))
    with pytest.raises(PartitionError, match="context_parallel='rings'"):
        Partition(make_mesh(shape(data=8)), Rules(), "rings")


@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 2, "fsdp": 2, "context": 2}, {"fsdp": 4, "tensor": 2}])
def test_a_global_batch_is_its_rows(sizes):
    place = partition(**sizes)
    rows = {"x": np.arange(8 * 3).reshape(8, 3), "y": np.arange(8.0)}
    assert place.own_rows(8) == tuple(range(8))
    batch = place.global_batch(rows, 8)
    for name, value in rows.items():
        np.testing.assert_array_equal(batch[name], value)
        parts = {shard.data.shape[0] for shard in batch[name].addressable_shards}
        assert parts == {8 // place.size("batch")}


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(
        PartitionError, match=r"pack.batch_rows=6 must be a multiple of 8, the mesh's slice x data x fsdp"
    ):
        partition(data=4, fsdp=2).own_rows(6)
