"""The step of a run as a program that can be compiled before there is data or hardware: shapes, places, parts.

Everything is made by the functions that `loop.run` makes it with, from the config and a mesh of devices that need not
exist. It wants rows of a fixed shape (`pack.row`).
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from data_pipelines import patches, row_layout
from data_pipelines.packing import pack_row
from data_pipelines.row_layout import BlockKind, Role, RowBuilder, RowSpec, TokenSpec
from pixr1_jax.attention import api
from pixr1_jax.omni.model import Omni
from pixr1_jax.training import setup
from pixr1_jax.training.flops import PASSES, Part, StepFlops, block_reads
from pixr1_jax.training.optimizer import make_optimizer
from pixr1_jax.training.state import initial_state, jitted_step

RAMPED = 2**30  # a step after every ramp


@dataclasses.dataclass(frozen=True)
class Program:
    """A program to compile.

    Attributes:
      function: A jitted function.
      arguments: Its arguments, shapes with shardings.
      mesh: The devices.
      parts: What lies in the memory of a device while it runs, bytes by name; temporaries excepted.
      parameters: Parameters of the model.
      flops: Useful operations of a call, over all devices.
      reads: Mean key blocks that a query block reads, by the query and key blocks of a pass.
      frames: Frames that a call makes or trains on.
    """

    function: Any
    arguments: tuple[Any, ...]
    mesh: jax.sharding.Mesh
    parts: dict[str, int]
    parameters: int
    flops: float
    reads: dict[tuple[int, int], float]
    frames: int


def for_tpu(config: ConfigDict) -> ConfigDict:
    """The config with the attention that it means on a TPU, whatever this host is."""
    config = ConfigDict(config.to_dict())
    attention = config.model.attention
    attention.implementation = api.resolve(
        attention.implementation, block=config.tokens.block, tile=attention.tile, platform="tpu"
    )
    return config


def training(config: ConfigDict, stage: str, devices: Sequence[Any]) -> Program:
    """The step of a stage ("train" or "distill") on a mesh of devices.

    Raises:
      ConfigError: The config fixes no rows.
      PartitionError: The mesh does not fit the devices or the model.
    """
    section, rows = config[stage], setup.fixed_rows(config)
    partition = setup.partition(config, devices)
    sizes, batch_rows = setup.model_config(config), config.pack.batch_rows
    spec = sizes.tokens
    partition.own_rows(batch_rows)  # an error where they do not divide
    objective = setup.objective(config, stage, rows, partition)
    tx = make_optimizer(section.optimizer)
    template = jax.eval_shape(lambda: Omni(sizes, jax.random.key(0)))
    state = partition.abstract(jax.eval_shape(lambda params: initial_state(params, tx), template))
    teacher = partition.abstract(template) if stage == "distill" else None
    by_row = partition.sharding("batch")
    batch = {
        name: jax.ShapeDtypeStruct((batch_rows, *value.shape), value.dtype, sharding=by_row)
        for name, value in pack_row(spec, rows.row_spec, []).items()
    }
    numbers = {"seed": config.seed, "ema_decay": section.ema_decay, "accumulate": section.accumulate}
    update = jitted_step(objective, tx, state, **numbers)
    blocks = full_row(spec, rows.row_spec, patches.grid_shape(*rows.picture, spec.patch), config.pack.window_chunks)
    one = {name: jnp.asarray(value)[None] for name, value in blocks.items()}
    noisy = blocks["block_role"] == Role.NOISY
    chunks = np.unique(
        np.stack([blocks["block_segment"], blocks["block_chunk"]])[:, noisy & (blocks["block_valid"] > 0)], axis=1
    )
    count = rows.row_spec.blocks
    at: dict[Part, tuple[int, int]] = {
        "row": (count, count),
        "clean": (rows.row_spec.clean_blocks, rows.row_spec.clean_blocks),
        "noisy": (rows.row_spec.noisy_blocks, count),
    }
    reads = {}
    parts: set[Part] = {each.part for each in PASSES[type(objective)]}
    for part in parts:
        pairs = sum(map(float, block_reads(sizes, one, rows.row_spec.clean_blocks, part)))
        reads[at[part]] = pairs / (sizes.layers * at[part][0])
    return Program(
        function=update,
        arguments=(state, teacher, batch),
        mesh=partition.mesh,
        parts={
            "parameters": device_bytes(state.params),
            "average": device_bytes(state.ema),
            "optimizer": device_bytes(state.opt_state),
            "teacher": device_bytes(teacher),
            "batch": device_bytes(batch),
        },
        parameters=sum(leaf.size for leaf in jax.tree.leaves(template)),
        flops=batch_rows * StepFlops(objective, rows.row_spec, 1)(one, RAMPED),
        reads=reads,
        frames=batch_rows * chunks.shape[1] * spec.chunk_frames,
    )


def full_row(spec: TokenSpec, row: RowSpec, grid: tuple[int, int], window_chunks: int) -> dict[str, np.ndarray]:
    """The `block_*` arrays of a row that holds as many windows of one picture size as fit, with one text block each.

    Args:
      spec: How content becomes tokens.
      row: Capacities.
      grid: Rows and columns of patches.
      window_chunks: Chunks of a window; the last window has as many as there is room for.
    """
    clean, noisy = RowBuilder(spec, row.clean_blocks), RowBuilder(spec, row.noisy_blocks)
    head, picture = row_layout.head_run(spec, 0, 0), row_layout.picture_run(0, 0, grid)
    words = row_layout.text_run(0, min(spec.block, spec.text_bytes), 0)
    of_chunk = spec.blocks_for(spec.head_tokens) + spec.blocks_for(math.prod(grid))
    for segment in itertools.count():
        room = (row.noisy_blocks - noisy.next_block) // of_chunk
        room = min(room, (row.clean_blocks - clean.next_block - 1) // (of_chunk + 1) + 1, window_chunks)
        if room < 1 or clean.next_block == row.clean_blocks:
            break
        for chunk in range(room):
            place = {"segment": segment, "chunk": chunk, "slot": 0}
            if not chunk:
                clean.add(words, **place, role=Role.CLEAN, kind=BlockKind.TEXT)
            if chunk < room - 1:
                clean.add(head, **place, role=Role.CLEAN, kind=BlockKind.HEAD)
                clean.add(row_layout.memory_run(spec, chunk), **place, role=Role.CLEAN, kind=BlockKind.MEMORY)
                clean.add(picture, **place, role=Role.CLEAN, kind=BlockKind.PATCH)
            noisy.add(head, **place, role=Role.NOISY, kind=BlockKind.HEAD)
            noisy.add(picture, **place, role=Role.NOISY, kind=BlockKind.PATCH)
    names = [name for name in clean.arrays if name.startswith("block_")]
    return {name: np.concatenate([clean.arrays[name], noisy.arrays[name]]) for name in names}


def device_bytes(tree: Any) -> int:
    """Bytes that abstract arrays take on each device."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
