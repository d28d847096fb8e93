"""Same numbers on any mesh, the batch whole or in parts, activations kept or made again."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from pixr1_jax.core.partition import MeshShape, Partition, PartitionError, Rules, make_mesh
from pixr1_jax.objectives.flow_map import FlowMap
from pixr1_jax.objectives.pretrain import Pretrain
from pixr1_jax.objectives.tasks import TimeSampling
from pixr1_jax.training.optimizer import make_optimizer
from pixr1_jax.training.state import initial_state, train_step

pytestmark = pytest.mark.usefixtures("quick_compile")

OPTIMIZER = {
    "name": "adamw",
    "learning_rate": 1e-3,
    "warmup_steps": 0,
    "total_steps": 10,
    "schedule": "constant",
    "final_scale": 1.0,
    "b1": 0.9,
    "b2": 0.99,
    "weight_decay": 0.01,
    "clip_norm": 1.0,
}
SAMPLING = TimeSampling(0.5, 1.0, 0.1, 0.3, 0.1, (("joint", 1.0), ("independent", 1.0), ("audio_to_video", 1.0)))
ROWS = 8
MESHES = {  # slice, data, fsdp, context, tensor; how attention reads along context
    "rows": ((1, 2, 4, 1, 1), "ulysses"),
    "heads": ((1, 2, 1, 1, 4), "ulysses"),
    "exchange": ((1, 1, 2, 2, 2), "ulysses"),
    "ring": ((2, 1, 1, 4, 1), "ring"),
}


def mesh(name):
    sizes, context_parallel = MESHES[name]
    return Partition(make_mesh(MeshShape(*sizes)), Rules(), context_parallel)


@pytest.fixture(scope="module")
def setting(tiny):
    """Sizes that every mesh divides, and a batch of rows of two halves of 16 blocks."""
    config = tiny.config(heads=4, video_rank=16, attention=tiny.attention("gather", 2, clean=(1,), noisy=(2,), group=2))
    spec = config.tokens
    rows = [[tiny.window(spec, 4, seed=i, events=((0, "ab"),))] for i in range(ROWS)]
    made, room = tiny.batch(spec, rows, clean_blocks=16, noisy_blocks=16)
    return config, made, room


def objective_of(kind, config, room, partition=None):
    common = {"clean_blocks": room.clean_blocks, "max_keys": room.blocks, "partition": partition}
    if kind == "train":
        return Pretrain(config, SAMPLING, 0.25, 0.3, **common)
    return FlowMap(config, SAMPLING, 0.3, 0.2, 2.0, 1, 0.25, 0.3, 1.0, **common)


def two_steps(tiny, setting, kind, partition, accumulate=1, **changes):
    """Losses, gradient norms and the change of the parameters in two steps."""
    config, batch, room = setting
    config = dataclasses.replace(config, **changes)
    tx = make_optimizer(ConfigDict(OPTIMIZER))
    state = initial_state(tiny.model(config), tx)
    teacher = tiny.model(config, 1) if kind == "distill" else None
    where = None
    if partition is not None:
        where = partition.shardings(state)
        state = jax.device_put(state, where)
        teacher = None if teacher is None else jax.device_put(teacher, partition.shardings(teacher))
        batch = partition.global_batch(batch, ROWS)
    objective = objective_of(kind, config, room, partition)
    step = partial(train_step, objective=objective, tx=tx, seed=0, ema_decay=0.9, accumulate=accumulate)
    step = jax.jit(step, out_shardings=None if where is None else (where, None))
    found = []
    for _ in range(2):
        state, metrics = step(state, teacher, batch)
        found += [float(metrics[name]) for name in ("loss", "grad_norm", "loss/video", "loss/audio", "loss/video/t3")]
    return np.array(found)


@pytest.fixture(scope="module")
def alone(tiny, setting):
    """What one device takes the rows for."""
    return two_steps(tiny, setting, "train", None)


@pytest.mark.parametrize("name", MESHES)
def test_any_mesh_takes_the_steps_that_one_device_takes(tiny, setting, alone, name):
    np.testing.assert_allclose(two_steps(tiny, setting, "train", mesh(name)), alone, rtol=3e-5)


def test_a_batch_in_parts_with_layers_made_again_is_the_whole_batch(tiny, setting, alone):
    found = two_steps(tiny, setting, "train", mesh("heads"), accumulate=2, remat="full")
    np.testing.assert_allclose(found, alone, rtol=3e-5)


@pytest.mark.parametrize("name", ["exchange", "ring"])
def test_distillation_in_parts_takes_the_same_steps_too(tiny, setting, name):
    found = [two_steps(tiny, setting, "distill", *how, layers=1) for how in ((None,), (mesh(name), 2))]
    np.testing.assert_allclose(*found, rtol=2e-4)


@pytest.mark.parametrize("remat", ["dots", "mixed"])
def test_what_is_made_again_is_the_same(tiny, setting, alone, remat):
    np.testing.assert_allclose(two_steps(tiny, setting, "train", None, remat=remat), alone, rtol=1e-5)


def test_parameters_and_moments_are_divided(tiny, setting):
    config, _, _ = setting
    state = initial_state(tiny.model(config), make_optimizer(ConfigDict(OPTIMIZER)))
    place = mesh("exchange")
    state = jax.device_put(state, place.shardings(state))
    layers = [state.params.layers, state.ema.layers, state.opt_state[1][0].mu.layers, state.opt_state[1][0].nu.layers]
    for one in layers:
        assert {shard.data.shape for shard in one.qkv[...].addressable_shards} == {(2, 4, 3, 16)}
        assert {shard.data.shape for shard in one.down[...].addressable_shards} == {(2, 12, 4)}


def test_heads_that_do_not_divide_are_refused(tiny, setting):
    with pytest.raises(PartitionError, match=r"model.heads=2 must be a multiple of 4 \(mesh.tensor\)"):
        two_steps(tiny, setting, "train", mesh("heads"), heads=2)
    with pytest.raises(PartitionError, match="set mesh.context_parallel='ring'"):
        two_steps(tiny, setting, "train", mesh("exchange"), heads=2)
