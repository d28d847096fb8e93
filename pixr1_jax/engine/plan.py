"""The exported streaming step as a program that can be compiled before there is a checkpoint or hardware."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from pixr1_jax.engine.export import programs
from pixr1_jax.engine.step import Stream
from pixr1_jax.omni.model import Omni
from pixr1_jax.training import setup
from pixr1_jax.training.plan import Program, device_bytes


def streaming(config: ConfigDict, device: Any) -> Program:
    """The step of `config.stream.steps` denoising steps at `config.export.size`, on one device.

    Useful operations are left to the caller's count of what is executed: nothing is computed twice.
    """
    sizes = setup.model_config(config)
    stream = Stream(sizes, *config.export.size)
    template = jax.eval_shape(lambda: Omni(sizes, jax.random.key(0)))
    count, tile = config.stream.steps, sizes.attention.tile
    found = {name: (function, arguments) for name, function, arguments in programs(stream, template, (count,))}
    function, arguments = found[f"step{count}"]
    mesh = Mesh(np.array([device]), ("device",), axis_types=(AxisType.Auto,))
    here = NamedSharding(mesh, PartitionSpec())
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here)
    weights, state, *inputs = jax.tree.map(place, arguments)
    # A stream that has been running reads all that it keeps, or what its budget lets it.
    own = 2 * stream.cache.chunk_blocks - 1
    keys = stream.cache.blocks + own
    return Program(
        function=jax.jit(function),
        arguments=(weights, state, *inputs),
        mesh=mesh,
        parts={"parameters": device_bytes(weights), "cache and state": device_bytes(state)},
        parameters=sum(leaf.size for leaf in jax.tree.leaves(template)),
        flops=0.0,
        reads={(-(-own // tile) * tile, keys): float(min(keys, stream.max_keys or keys))},
        frames=sizes.tokens.chunk_frames,
    )
