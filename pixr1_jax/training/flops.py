"""Floating-point operations of a training step, counted from the model: the numerator of MFU.

    forward = 2 * sum over matrices (parameters * tokens that the matrix multiplies)
            + 4 * heads * head_dim * (queries * keys read), summed over layers

Tokens are those that a row computes, padding included; keys read are those of the blocks that each query block sees in
this batch, every block counted whole. A gradient costs two forwards more. The tangent of `jax.jvp` costs one more of
every matrix; of attention one more for keys of the past, which stand still, and two more for keys of the row. What is
computed twice for lack of memory (remat) does not count, nor do lookups, norms, and the data's own transforms.

MFU = operations of a step / (seconds of a step * devices * peak of a device), as PaLM has it (arXiv 2204.02311).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from data_pipelines.row_layout import RowSpec
from pixr1_jax.attention import select
from pixr1_jax.attention.blocks import Blocks, visible
from pixr1_jax.core.tree import named_leaves
from pixr1_jax.objectives.flow_map import FlowMap
from pixr1_jax.objectives.pretrain import Pretrain
from pixr1_jax.omni.model import Omni, OmniConfig

Part = Literal["row", "clean", "noisy"]
LOOKUPS = ("text_in", "kind", "memory")  # tables that are read and not multiplied


@dataclasses.dataclass(frozen=True)
class Pass:
    """Passes of the network over a part of each row.

    Attributes:
      part: "row" is [clean ; noisy] at once, "clean" the context, "noisy" the other half given the context.
      matrices: What it costs in forward passes of the matrices; `own` and `past` likewise of attention to keys of the
        part and to keys of the context.
    """

    part: Part
    matrices: int
    own: int
    past: int


PASSES: Mapping[type, tuple[Pass, ...]] = {
    Pretrain: (Pass("row", 3, 3, 3),),
    FlowMap: (
        Pass("clean", 1, 1, 1),  # the teacher's context
        Pass("noisy", 2, 2, 2),  # the teacher with and without condition
        Pass("clean", 1, 1, 1),  # the student's context
        Pass("noisy", 2, 3, 2),  # the student and its tangent
        Pass("row", 3, 3, 3),  # the student and its gradient
    ),
}


def matrix_rows(config: OmniConfig, row: RowSpec, part: Part) -> dict[str, int]:
    """How many vectors of a row each matrix multiplies in one forward pass, by the path of its parameter.

    Args:
      config: Sizes.
      row: Capacities of a row.
      part: See `Pass`.
    """
    spec = config.tokens
    length = spec.block * {"row": row.blocks, "clean": row.clean_blocks, "noisy": row.noisy_blocks}[part]
    embedded = 2 if part == "row" else 1
    patches, sounds = row.patches, row.chunks * spec.audio_tokens
    read = 0 if part == "clean" else 1
    cells = 1 + 4 * row.chunks
    return {
        # The look-back takes the context in its low-rank form, which the noisy half alone does not embed.
        "video_in/down": patches * (1 if part == "clean" else 2),
        "video_in/up": patches * embedded,
        "audio_in/down": sounds * embedded,
        "audio_in/up": sounds * embedded,
        "look_back/feature": patches,
        "look_back/forecast": patches * read,
        "action_in": row.chunks * spec.chunk_frames,
        "cell/action": row.chunks,
        "cell/first": cells,
        "cell/second": cells,
        "cell/out": cells,
        **{f"layers/{name}": length for name in ("qkv", "out", "up", "down")},
        "video_out/down": patches * read,
        "video_out/up": patches * read,
        "audio_out/down": sounds * read,
        "audio_out/up": sounds * read,
    }


def matrix_flops(config: OmniConfig, row: RowSpec, part: Part) -> float:
    """Operations of all matrices in one forward pass over one row."""
    leaves = named_leaves(jax.eval_shape(lambda: Omni(config, jax.random.key(0))))
    return float(sum(2 * leaves[path].size * rows for path, rows in matrix_rows(config, row, part).items()))


def attention_flops(config: OmniConfig, reads: float) -> float:
    """Operations of one forward pass of attention that reads `reads` pairs of blocks, summed over layers."""
    return 4.0 * config.heads * config.head_dim * config.tokens.block**2 * reads


def block_reads(
    config: OmniConfig, batch: Mapping[str, jax.Array], clean_blocks: int, part: Part, ramp: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """How many pairs of blocks attention reads in a batch, summed over rows and layers.

    Args:
      config: Sizes.
      batch: A packed batch; its `block_*` arrays are used.
      clean_blocks: Blocks of the clean half of a row.
      part: See `Pass`; `own` blocks are those of the part.
      ramp: How far the budget of attention is in force; None for fully.

    Returns:
      float32 pairs of a query block and an own key block, and of a query block and a block of the past. A block that
      the budget leaves out counts as its one pseudo-token, `1 / block`.
    """
    blocks = Blocks.of(batch)
    start, stop = {"row": (0, None), "clean": (0, clean_blocks), "noisy": (clean_blocks, None)}[part]
    query, key = blocks[start:stop], blocks[:stop]
    seen, past_blocks = visible(query, key, config.memory), start
    total = lambda x: jnp.sum(x, dtype=jnp.float32)
    budget = config.attention.budget
    if budget is None:
        past, own = seen[..., :past_blocks], seen[..., past_blocks:]
        return config.layers * total(own), config.layers * total(past)
    options = select.candidates(query, key, seen, config.memory, budget, layers=config.layers, ramp=ramp)
    free = options.free.sum(-1)
    chosen = jnp.minimum(options.keep, free)  # [layers, batch, query blocks]
    share = chosen / jnp.maximum(free, 1)
    share = share + (1 - share) / config.tokens.block
    # Which blocks are chosen depends on the scores: own and past ones are taken to be in proportion.
    pairs = lambda where: (
        config.layers * total(options.always[..., where]) + total(share * options.free[..., where].sum(-1))
    )
    return pairs(slice(past_blocks, None)), pairs(slice(past_blocks))


class StepFlops:
    """Counts the operations of a training step, over all devices."""

    def __init__(self, objective: Pretrain | FlowMap, row: RowSpec, batch_rows: int):
        """Counts the matrices, which are the same in every step.

        Args:
          objective: What is trained.
          row: Capacities of a row.
          batch_rows: Rows in a batch.
        """
        config, passes = objective.model, PASSES[type(objective)]
        self._matrices = batch_rows * sum(each.matrices * matrix_flops(config, row, each.part) for each in passes)
        self._pair = attention_flops(config, 1.0)
        budget = config.attention.budget

        def reads(blocks: Mapping[str, jax.Array], step: jax.Array) -> jax.Array:
            ramp = budget.ramp(step) if budget is not None and isinstance(objective, Pretrain) else None
            total = jnp.float32(0)
            for each in passes:
                own, past = block_reads(config, blocks, row.clean_blocks, each.part, ramp)
                total += each.own * own + each.past * past
            return total

        self._reads = jax.jit(reads)

    def __call__(self, batch: Mapping[str, jax.Array], step: int) -> float:
        """Operations of a step on a batch; every process of a job calls it alike.

        Args:
          batch: The packed global batch.
          step: Steps taken before.
        """
        blocks = {name: value for name, value in batch.items() if name.startswith("block_")}
        return float(self._matrices + self._pair * float(self._reads(blocks, jnp.int32(step))))
