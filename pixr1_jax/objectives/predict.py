"""The network on training rows: the whole teacher-forced row at once, or its noisy half over a given context (D7)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.row_layout import Role
from pixr1_jax.attention.blocks import visible
from pixr1_jax.core.partition import Partition
from pixr1_jax.omni import tokens
from pixr1_jax.omni.model import Omni, OmniConfig, Past, backbone
from pixr1_jax.omni.tokens import Cells, Layout, Signals

Batch = Mapping[str, jax.Array]


def predict(
    model: Omni,
    config: OmniConfig,
    batch: Batch,
    context: Signals,
    noisy: Signals,
    cells: Cells,
    drop: jax.Array,
    *,
    clean_blocks: int,
    max_keys: int,
    partition: Partition | None = None,
    ramp: jax.Array | None = None,
) -> Signals:
    """Clean content predicted for the noisy half, from one pass over [clean ; noisy].

    Args:
      model: Parameters.
      config: Sizes.
      batch: A packed batch.
      context: Content of the clean half, lightly noised.
      noisy: Content of the noisy half at `cells.time`.
      cells: Conditioning.
      drop: bool [batch, chunks], chunks predicted without text and actions.
      clean_blocks: Blocks of the clean half of a row.
      max_keys: Static bound on key blocks that a query block reads in full.
      partition: Where activations lie.
      ramp: How far the budget of attention is in force; None for fully.
    """
    layout, block = Layout.of(batch), config.tokens.block
    parts = 1 if partition is None else partition.size("length")
    order = block_order(clean_blocks, layout.blocks.count, parts)
    if parts > 1:
        layout = layout.reordered(order)
    looks, forecast = tokens.look_back(model, config, context, batch, drop)
    x = tokens.embed(model, config, layout, batch, {Role.CLEAN: context, Role.NOISY: noisy}, looks, drop)
    seen = visible(layout.blocks, layout.blocks, config.memory, _hide_text(layout, config, drop))
    features, _ = backbone(
        model,
        config,
        x,
        tokens.modulation(model, config, layout, cells, batch["actions"], drop),
        layout.position,
        layout.blocks,
        seen,
        max_keys=max_keys,
        partition=partition,
        order=order if parts > 1 else None,
        ramp=ramp,
    )
    place = np.argsort(order)
    at = lambda where: jnp.asarray(place)[where // block] * block + where % block
    return tokens.read_out(model, config, features, forecast, at(batch["video_at"]), at(batch["audio_at"]))


def block_order(clean_blocks: int, blocks: int, parts: int) -> np.ndarray:
    """Where the blocks of a row go that is divided among devices: part i is the i-th of each half.

    So a clean chunk and its noisy twin lie on one device, and all devices have equal shares of both.

    Args:
      clean_blocks: Blocks of the clean half.
      blocks: Blocks of the row.
      parts: Devices along the sequence.

    Returns:
      int [blocks], the block of the packed row that stands at each place.

    Raises:
      ValueError: A half does not divide.
    """
    halves = np.arange(clean_blocks), np.arange(clean_blocks, blocks)
    if clean_blocks % parts or blocks % parts:
        raise ValueError(
            f"mesh.context={parts} does not divide the {len(halves[0])} clean and {len(halves[1])} noisy blocks of a "
            "row; change pack.row_blocks and pack.clean_blocks, or the mesh"
        )
    return np.concatenate([half.reshape(parts, -1) for half in halves], axis=1).reshape(-1)


def encode_context(
    model: Omni,
    config: OmniConfig,
    batch: Batch,
    context: Signals,
    cells: Cells,
    *,
    clean_blocks: int,
    max_keys: int,
    partition: Partition | None = None,
) -> Past:
    """Keys and values of the clean half of a row."""
    layout = Layout.of(batch).part(0, clean_blocks)
    seen = visible(layout.blocks, layout.blocks, config.memory)
    looks, _ = tokens.look_back(model, config, context, batch)
    x = tokens.embed(model, config, layout, batch, {Role.CLEAN: context}, looks)
    modulation = tokens.modulation(model, config, layout, cells, batch["actions"])
    place = {"max_keys": max_keys, "partition": partition}
    _, (key, value) = backbone(model, config, x, modulation, layout.position, layout.blocks, seen, **place)
    return Past(key, value, layout.position, layout.blocks)


def denoise(
    model: Omni,
    config: OmniConfig,
    batch: Batch,
    past: Past,
    context: Signals,
    noisy: Signals,
    cells: Cells,
    drop: jax.Array,
    *,
    clean_blocks: int,
    max_keys: int,
    partition: Partition | None = None,
) -> Signals:
    """As `predict`, the clean half given by `encode_context`.

    Its derivatives are forward-mode (`jax.jvp`), in one pass; gradients are taken through `predict`.
    """
    layout = Layout.of(batch).part(clean_blocks, None)
    looks, forecast = tokens.look_back(model, config, context, batch, drop)
    x = tokens.embed(model, config, layout, batch, {Role.NOISY: noisy}, looks, drop)
    seen = visible(layout.blocks, past.blocks + layout.blocks, config.memory, _hide_text(layout, config, drop))
    modulation = tokens.modulation(model, config, layout, cells, batch["actions"], drop)
    features, _ = backbone(
        model,
        config,
        x,
        modulation,
        layout.position,
        layout.blocks,
        seen,
        past,
        max_keys=max_keys,
        partition=partition,
        forward_mode=True,
    )
    offset = clean_blocks * config.tokens.block
    at = lambda where: jnp.maximum(where - offset, 0)
    return tokens.read_out(model, config, features, forecast, at(batch["video_at"]), at(batch["audio_at"]))


def _hide_text(layout: Layout, config: OmniConfig, drop: jax.Array) -> jax.Array:
    """Which blocks see no text: the noisy blocks of dropped chunks."""
    slot = layout.slot[:, :: config.tokens.block]
    return jnp.take_along_axis(drop, slot, axis=1) & (layout.blocks.role == Role.NOISY)
