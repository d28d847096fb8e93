"""A step before there is data or hardware: it is the step that training compiles, and its row is a real one."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipelines import patches
from data_pipelines.packing import pack_row
from pixr1_jax.core.partition import PartitionError
from pixr1_jax.core.tree import named_leaves
from pixr1_jax.training import plan, setup
from pixr1_jax.training.state import TrainState


def experiment(tiny, **changes) -> ConfigDict:
    """The tiny experiment with rows of a given shape: six chunks, a clean one is four blocks and a noisy one three."""
    config = tiny.experiment(**changes)
    row = {"chunks": 8, "patches": 48, "text": 24, "clean_blocks": 12, "noisy_blocks": 18}
    with config.unlocked():
        config.pack.row = ConfigDict(row)
        config.pack.fill, config.pack.picture = False, (tiny.HEIGHT, tiny.WIDTH)
    return config


@pytest.mark.parametrize("window_chunks", [2, 3])
def test_a_full_row_is_what_packing_makes_of_full_windows(tiny, window_chunks):
    config = experiment(tiny, pack__window_chunks=window_chunks)
    spec, row = setup.model_config(config).tokens, setup.fixed_rows(config).row_spec
    grid = patches.grid_shape(tiny.HEIGHT, tiny.WIDTH, spec.patch)
    found = plan.full_row(spec, row, grid, window_chunks)
    segment, chunk = found["block_segment"], found["block_chunk"]
    lengths = [int(chunk[segment == n].max()) + 1 for n in range(segment.max() + 1)]
    windows = [tiny.window(spec, length, seed=n, events=((0, "days"),)) for n, length in enumerate(lengths)]
    packed = pack_row(spec, row, windows)
    assert found.keys() == {name for name in packed if name.startswith("block_")}
    for name, values in found.items():
        np.testing.assert_array_equal(values, packed[name], err_msg=name)
    assert found["block_valid"][-3:].all(), "the noisy half is full"


@pytest.mark.parametrize("stage", ["train", "distill"])
def test_the_planned_step_takes_what_training_gives(tiny, stage):
    config = experiment(tiny, mesh__data=2, mesh__fsdp=4)
    program = plan.training(config, stage, jax.devices()[:8])
    state, teacher, batch = program.arguments
    assert isinstance(state, TrainState) and (teacher is None) == (stage == "train")
    assert program.parameters == sum(leaf.size for leaf in jax.tree.leaves(state.params))
    after, metrics = jax.eval_shape(program.function, *program.arguments)
    shapes = lambda tree: {name: (leaf.shape, leaf.dtype) for name, leaf in named_leaves(tree).items()}
    assert shapes(after) == shapes(state)
    assert metrics["loss"].shape == ()
    # Rows are divided by all eight devices, the model by four; moments are twice the parameters, and counters.
    assert program.parts["batch"] == sum(leaf.size * leaf.dtype.itemsize for leaf in batch.values()) // 8
    whole = sum(leaf.size * 4 for leaf in jax.tree.leaves(state.params))
    assert whole // 4 < program.parts["parameters"] < whole
    assert program.parts["optimizer"] == pytest.approx(2 * program.parts["parameters"], rel=1e-3)
    assert program.parts["teacher"] == (program.parts["parameters"] if stage == "distill" else 0)
    rows, blocks = config.pack.batch_rows, config.pack.row.clean_blocks + config.pack.row.noisy_blocks
    assert program.frames == rows * 6 * config.tokens.chunk_frames
    assert 1 < program.reads[blocks, blocks] < blocks
    assert set(program.reads) == ({(30, 30)} if stage == "train" else {(30, 30), (12, 12), (18, 30)})
    assert program.flops > 0


def test_the_planned_step_is_the_step_of_the_loop(tiny, tmp_path, monkeypatch):
    """Traced with the same shapes: the loop's first call and the plan's give the same program."""
    from pixr1_jax.training import loop

    tiny.write_clips(tmp_path)
    config = experiment(tiny, train__steps=1)
    programs = []
    make = loop.jitted_step

    def watched(*args, **kwargs):
        step = make(*args, **kwargs)

        def call(*inputs):
            programs.append(str(step.trace(*inputs).jaxpr))
            return step(*inputs)

        return call

    monkeypatch.setattr(loop, "jitted_step", watched)
    loop.run(config, "train", tmp_path)
    program = plan.training(config, "train", jax.devices())
    assert programs == [str(program.function.trace(*program.arguments).jaxpr)]


def test_attention_is_that_of_a_tpu(tiny):
    config = tiny.experiment(model__attention__implementation="auto", tokens__block=16, model__attention__tile=8)
    assert plan.for_tpu(config).model.attention.implementation == "pallas_tpu"
    assert config.model.attention.implementation == "auto"
    assert plan.for_tpu(tiny.experiment()).model.attention.implementation == "reference"


def test_rows_and_devices_that_do_not_divide_are_one_line(tiny):
    with pytest.raises(PartitionError, match="pack.batch_rows=8 must be a multiple of|rows"):
        plan.training(experiment(tiny, mesh__data=3), "train", jax.devices()[:3])
    with pytest.raises(PartitionError, match="does not fit 8 devices"):
        plan.training(experiment(tiny, mesh__data=3), "train", jax.devices())
