"""Omni: the transformer over a row of tokens, with or without a past (decisions D6-D8, D10, D14)."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipelines.row_layout import TokenSpec
from pixr1_jax.attention import api, kernels, select, sharded
from pixr1_jax.attention.api import AttentionConfig
from pixr1_jax.attention.blocks import BlockLists, Blocks, MemoryPolicy, Tail, block_lists
from pixr1_jax.attention.select import Candidates
from pixr1_jax.core.partition import Partition
from pixr1_jax.omni import layers as nn
from pixr1_jax.omni import rope

_policies = jax.checkpoint_policies
_attended = _policies.save_only_these_names(kernels.SAVED)
_products = _policies.save_from_both_policies(_policies.dots_with_no_batch_dims_saveable, _attended)
# What a layer keeps for the backward pass; what it does not keep is computed again, at the price in the comment.
REMAT: Mapping[str, Callable[[Callable], Callable]] = {
    "none": lambda step: step,
    "dots": partial(jax.checkpoint, policy=_products),  # what is elementwise
    "mixed": partial(jax.checkpoint, policy=_attended),  # all but attention
    "full": jax.checkpoint,  # the whole layer
}


@dataclasses.dataclass(frozen=True)
class OmniConfig:
    """Sizes of the model; everything static that training and serving must share.

    Attributes:
      tokens: How content becomes tokens.
      memory: What a chunk sees of its past.
      width: Model width; `layers` layers of `heads` heads of `head_dim`, feed-forward width `hidden`.
      video_rank: Bottleneck of the video embedding; `audio_rank` of the audio embedding.
      audio_scale: Factor on MDCT coefficients before companding by `audio_power`.
      context_time: Noise level that served context is told to have; training draws up to `max_context_time`.
      dtype: Compute dtype, "float32" or "bfloat16"; parameters, norms and losses are float32.
      attention: How it attends.
      remat: What the forward pass keeps for the backward pass, one of `REMAT`.
    """

    tokens: TokenSpec
    memory: MemoryPolicy
    width: int
    layers: int
    heads: int
    head_dim: int
    hidden: int
    video_rank: int
    audio_rank: int
    audio_scale: float
    audio_power: float
    context_time: float
    max_context_time: float
    dtype: str
    attention: AttentionConfig
    remat: str

    def __post_init__(self):
        if self.remat not in REMAT:
            raise ValueError(f"model.remat={self.remat!r}; use one of {', '.join(REMAT)}")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"model.dtype={self.dtype!r}; use 'float32' or 'bfloat16'")
        if self.head_dim % 8:
            raise ValueError(f"model.head_dim={self.head_dim} must be a multiple of 8 (rotary axes)")
        if self.attention.budget is not None:
            self.attention.budget.check(self.layers, self.tokens.block)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Past:
    """Keys and values that a row may read besides its own: a streaming cache.

    Attributes:
      key: [layers, batch, tokens, heads, head_dim], normalised, not rotated.
      value: As `key`.
      position: float32 [batch, tokens, 3], where the keys are placed for this read.
      blocks: Metadata [batch, tokens / block].
      pooled: Mean keys and values of each block, float32 [layers, batch, tokens / block, heads, head_dim], the keys as
        placed for this read; None has them computed where they are needed.
    """

    key: jax.Array
    value: jax.Array
    position: jax.Array
    blocks: Blocks
    pooled: tuple[jax.Array, jax.Array] | None = None


class Omni(nnx.Module):
    """Parameters of the model; the forward pass is `backbone` and the functions of `omni.tokens`."""

    def __init__(self, config: OmniConfig, key: jax.Array):
        keys = jax.random.split(key, 9)
        spec, width = config.tokens, config.width
        self.video_in = nn.PatchEmbed(keys[0], spec.patch_dim, config.video_rank, width, "patch")
        self.video_out = nn.PatchHead(keys[1], spec.patch_dim, config.video_rank, width, "patch")
        self.audio_in = nn.PatchEmbed(keys[2], spec.audio_dim, config.audio_rank, width, "sound")
        self.audio_out = nn.PatchHead(keys[3], spec.audio_dim, config.audio_rank, width, "sound")
        self.action_in = nn.dense_param(keys[4], (spec.action_dim, width), (None, "embed"))
        small = 0.02 * jax.random.normal(keys[5], (256 + 6 + spec.block + 1, width))
        self.text_in = nnx.Param(small[:256], axes=(None, "embed"))
        self.kind = nnx.Param(small[256:262], axes=(None, "embed"))
        self.memory = nnx.Param(small[262:-1], axes=(None, "embed"))
        self.no_action = nnx.Param(small[-1], axes=("embed",))
        self.cell = nn.CellEmbed(keys[6], spec.chunk_frames * spec.action_dim, width)
        self.look_back = nn.LookBack(keys[8], config.video_rank, spec.action_dim, width)
        self.layers = jax.vmap(lambda k: nn.Layer(k, width, config.heads, config.head_dim, config.hidden))(
            jax.random.split(keys[7], config.layers)
        )


def backbone(
    model: Omni,
    config: OmniConfig,
    x: jax.Array,
    modulation: jax.Array,
    position: jax.Array,
    blocks: Blocks,
    seen: jax.Array,
    past: Past | None = None,
    *,
    max_keys: int | None = None,
    partition: Partition | None = None,
    order: np.ndarray | None = None,
    ramp: jax.Array | None = None,
    forward_mode: bool = False,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Runs the layers over a row.

    Args:
      model: Parameters.
      config: Sizes.
      x: Embedded tokens [batch, length, width].
      modulation: [batch, length, 6 * width], from `model.cell` by each token's cell.
      position: float32 [batch, length, 3].
      blocks: The row's blocks [batch, length / block].
      seen: bool [batch, blocks, key blocks], which of `past.blocks + blocks` each of the row's blocks sees.
      past: Optional cache whose blocks come before the row's.
      max_keys: Static bound on the key blocks that one block reads in full.
      partition: Where activations lie: rows and tokens divided, the width whole; None leaves it to the compiler.
      order: Which block of the packed row stands at each place of this row, which has no past then; None where it is
        as packed. What is chosen goes by the packed row, so that it does not depend on the mesh.
      ramp: How far the budget of attention is in force, 0 to 1; None for fully.
      forward_mode: Whether derivatives, if any, are forward-mode only, which attention then does in one pass.

    Returns:
      Normalised features [batch, length, width], and the row's (keys, values), each
      [layers, batch, length, heads, head_dim], keys not rotated.
    """
    block, attention = config.tokens.block, config.attention
    lay = (lambda x, *axes: x) if partition is None else partition.constrain
    by_token = lambda x: lay(x, "batch", "length", None)
    x, shared = by_token(x), jnp.split(by_token(modulation), 6, axis=-1)
    own_angles = rope.angles(position, config.head_dim)
    key_blocks = blocks if past is None else past.blocks + blocks
    key_valid = key_blocks.valid
    sizes = {"block": block, "tile": attention.tile, "max_keys": max_keys}
    choose: Callable[..., tuple[BlockLists, Tail | None]]
    if attention.budget is None:
        keep, everything = None, block_lists(seen, key_valid, **sizes)
        choose = lambda *_: (everything, None)
    else:
        settings = (config.memory, attention.budget)
        if order is None:
            options = select.candidates(blocks, key_blocks, seen, *settings, layers=config.layers, ramp=ramp)
        else:
            back = np.argsort(order)
            packed, relation = blocks[back], seen[:, back][:, :, back]
            options = select.candidates(packed, packed, relation, *settings, layers=config.layers, ramp=ramp)
            options = options.reordered(order)
        keep, choose = options.keep, partial(_choose, options, blocks, past, sizes)

    def layer_step(x, inputs):
        layer, old, means, keep = inputs
        layer = layer if partition is None else partition.gathered(layer, x.dtype)
        own = jnp.split(layer.modulation[...].astype(x.dtype), 6)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = map(jnp.add, shared, own)
        q, k, v = layer.qkv_heads(nn.rms_norm(x) * (1 + scale_a) + shift_a, config.heads)
        placed_q, placed_k = rope.rotate(q, own_angles), rope.rotate(k, own_angles)
        if past is not None:  # cached keys as this row reads them
            old = rope.rotate(old[0], rope.angles(past.position, config.head_dim)), old[1]
        lists, tail = choose(placed_q, placed_k, v, old, means, keep)
        mixed = sharded.attend(
            partition,
            placed_q,
            placed_k,
            v,
            lists,
            key_valid,
            block=block,
            scale=config.head_dim**-0.5,
            past=old,
            tail=tail,
            max_logit=api.MAX_LOGIT,
            forward_mode=forward_mode,
            implementation=attention.implementation,
        )
        x = x + gate_a * nn.dot(mixed.reshape(*x.shape[:2], -1), layer.out)
        x = x + gate_m * layer.mlp(nn.rms_norm(x) * (1 + scale_m) + shift_m)
        return by_token(x), (k, v)

    old, means = (None, None) if past is None else ((past.key, past.value), past.pooled)
    x, fresh = jax.lax.scan(REMAT[config.remat](layer_step), x, (model.layers, old, means, keep))
    return nn.rms_norm(x), fresh


def _choose(options: Candidates, blocks: Blocks, past: Past | None, sizes, q, k, v, old, means, keep):
    """Lists and tail of one layer.

    Args:
      options: What may be chosen.
      blocks: The row's blocks.
      past: What comes before the row.
      sizes: Keyword arguments of `select.select`.
      q: Queries as attention reads them; `k` and `v` likewise.
      k: See `q`.
      v: See `q`.
      old: The layer's keys and values of the past, as attention reads them.
      means: Their means by block, or None where they are not known.
      keep: How many blocks are chosen in this layer.
    """
    block = sizes["block"]
    key, value = (select.pool(x, blocks.valid, block) for x in (k, v))
    if past is not None:
        if means is None:
            means = tuple(select.pool(x, past.blocks.valid, block) for x in old)
        key, value = jnp.concatenate([means[0], key], axis=1), jnp.concatenate([means[1], value], axis=1)
    return select.select(q, key, value, options, keep, **sizes)
