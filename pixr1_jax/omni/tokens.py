"""Content to tokens and back: embedding, conditioning cells, readout (decisions D1-D4, D10).

Every (chunk, modality) of a row is a cell with its own time, target time and guidance; clean context has a
small noise level of its own. Tasks are choices of these numbers. All other tokens share one constant cell.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.row_layout import Role, TokenKind
from pixr1_jax.attention.blocks import Blocks
from pixr1_jax.omni import audio
from pixr1_jax.omni.layers import rms_norm
from pixr1_jax.omni.model import Omni, OmniConfig

VIDEO, AUDIO = 0, 1  # places of the modalities in cell arrays


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Signals:
    """Continuous content of rows, by modality.

    Attributes:
      video: [batch, patches, patch_dim], pixels in [-1, 1].
      audio: [batch, audio tokens, audio_dim], companded MDCT coefficients.
    """

    video: jax.Array
    audio: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cells:
    """Conditioning of every (chunk slot, modality).

    Attributes:
      time: float32 [batch, chunks, 2], noise time of noisy content; 1 is noise.
      target: float32 [batch, chunks, 2], the time that the flow map goes to.
      guidance: float32 [batch, chunks], guidance strength.
      context: float32 [batch, chunks, 2], noise level of clean content.
    """

    time: jax.Array
    target: jax.Array
    guidance: jax.Array
    context: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Layout:
    """What every token of a row is; fields as in `data_pipelines.row_layout.RowBuilder`."""

    kind: jax.Array
    index: jax.Array
    slot: jax.Array
    position: jax.Array
    blocks: Blocks

    @classmethod
    def of(cls, batch: Mapping[str, jax.Array]) -> "Layout":
        """The layout of a packed batch."""
        return cls(batch["kind"], batch["index"], batch["slot"], batch["position"], Blocks.of(batch))

    def __add__(self, other: "Layout") -> "Layout":
        join = lambda a, b: jnp.concatenate([a, b], axis=1)
        return jax.tree.map(join, self, other)

    def reordered(self, order: np.ndarray) -> "Layout":
        """The layout whose block i is block `order[i]` of this one."""
        block = self.kind.shape[1] // self.blocks.count
        where = (order[:, None] * block + np.arange(block)).reshape(-1)
        kind, index, slot, position = (x[:, where] for x in (self.kind, self.index, self.slot, self.position))
        return Layout(kind, index, slot, position, self.blocks[order])

    def part(self, start: int, stop: int | None) -> "Layout":
        """Blocks `start` to `stop` of the row."""
        block = self.kind.shape[1] // self.blocks.count
        where = slice(start * block, None if stop is None else stop * block)
        kind, index, slot, position = (x[:, where] for x in (self.kind, self.index, self.slot, self.position))
        return Layout(kind, index, slot, position, self.blocks[start:stop])


def to_pixels(values: jax.Array) -> jax.Array:
    """uint8 to [-1, 1]."""
    return values.astype(jnp.float32) / 127.5 - 1.0


def to_bytes(pixels: jax.Array) -> jax.Array:
    """[-1, 1] to uint8, rounded."""
    return jnp.round((jnp.clip(pixels, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)


def content(config: OmniConfig, batch: Mapping[str, jax.Array]) -> Signals:
    """Clean content of a packed batch."""
    spec = config.tokens
    video = to_pixels(batch["patches"])
    rows = video.shape[0]
    if not spec.audio_tokens:
        return Signals(video, jnp.zeros((rows, 0, 1)))
    waveform = batch["waveform"].astype(jnp.float32) / 32768.0
    sound = audio.to_tokens(waveform, spec.hop, spec.audio_tokens, config.audio_scale, config.audio_power)
    return Signals(video, sound.reshape(rows, -1, spec.audio_dim))


def look_back(
    model: Omni,
    config: OmniConfig,
    context: Signals,
    batch: Mapping[str, jax.Array],
    drop: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """What the clean surroundings of each patch one chunk earlier, and its chunk's actions, tell of it.

    Args:
      model: Parameters.
      config: Sizes.
      context: Clean content.
      batch: Holds `patch_before`, `patch_slot` and `actions` as packed.
      drop: bool [batch, chunks], chunks whose actions are not told (guidance).

    Returns:
      Features [batch, patches, width] for `embed`, and forecast [batch, patches, video_rank] for `read_out`.
    """
    held = held_by_patch(config, batch) - model.look_back.usual_action[...]
    if drop is not None:
        dropped = jnp.take_along_axis(drop, jnp.maximum(batch["patch_slot"], 0), axis=1)
        held = jnp.where(dropped[..., None], 0.0, held)
    return model.look_back(model.video_in.low_rank(context.video.astype(config.dtype)), batch["patch_before"], held)


def held_by_patch(config: OmniConfig, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Mean action over the chunk of each patch, float32 [batch, patches, action_dim]."""
    spec = config.tokens
    held = batch["actions"].reshape(batch["actions"].shape[0], -1, spec.chunk_frames, spec.action_dim).mean(axis=2)
    return jnp.take_along_axis(held, jnp.maximum(batch["patch_slot"], 0)[..., None], axis=1)


def embed(
    model: Omni,
    config: OmniConfig,
    layout: Layout,
    batch: Mapping[str, jax.Array],
    signals: Mapping[Role, Signals],
    features: jax.Array,
    drop: jax.Array | None = None,
) -> jax.Array:
    """Embeds the tokens of a layout.

    Args:
      model: Parameters.
      config: Sizes.
      layout: Tokens [batch, length].
      batch: Holds `actions` and `text` as packed.
      signals: Content of each role that the layout mentions.
      features: What `look_back` gives for the patches, [batch, patches, width].
      drop: Optional bool [batch, chunks]: chunks whose noisy tokens carry no action (guidance).

    Returns:
      [batch, length, width] in the compute dtype.
    """
    dtype = jnp.dtype(config.dtype)
    rows, width = layout.kind.shape[0], config.width
    single = jnp.broadcast_to(model.no_action[...], (rows, 1, width))
    tables = {
        "pad": jnp.zeros((rows, 1, width)),
        "no_action": single,
        TokenKind.TEXT: model.text_in[...][batch["text"].astype(jnp.int32)],
        TokenKind.ACTION: batch["actions"].astype(jnp.float32) @ model.action_in[...],
        TokenKind.MEMORY: jnp.broadcast_to(model.memory[...], (rows, *model.memory.shape)),
    }
    for role, signal in signals.items():
        tables[TokenKind.VIDEO, role] = model.video_in(signal.video.astype(dtype)) + features
        tables[TokenKind.AUDIO, role] = model.audio_in(signal.audio.astype(dtype))
    table = jnp.concatenate([x.astype(dtype) for x in tables.values()], axis=1)
    offsets, first = {}, 0
    for name, rows_of_table in tables.items():
        offsets[name], first = first, first + rows_of_table.shape[1]

    role = jnp.repeat(layout.blocks.role, config.tokens.block, axis=-1)
    source = jnp.zeros_like(layout.index)
    for name, offset in offsets.items():
        if isinstance(name, str):
            continue
        kind, of_role = name if isinstance(name, tuple) else (name, None)
        here = layout.kind == kind if of_role is None else (layout.kind == kind) & (role == of_role)
        source = jnp.where(here, offset + layout.index, source)
    if drop is not None:
        dropped = jnp.take_along_axis(drop, layout.slot, axis=1) & (role == Role.NOISY)
        source = jnp.where(dropped & (layout.kind == TokenKind.ACTION), offsets["no_action"], source)
    kinds = jax.nn.one_hot(layout.kind, len(TokenKind), dtype=dtype) @ model.kind[...].astype(dtype)
    return jnp.take_along_axis(table, source[..., None], axis=1) + kinds


def modulation(
    model: Omni,
    config: OmniConfig,
    layout: Layout,
    cells: Cells,
    actions: jax.Array,
    drop: jax.Array | None = None,
) -> jax.Array:
    """Modulation of each token by its cell.

    Args:
      model: Parameters.
      config: Sizes.
      layout: Tokens [batch, length].
      cells: Conditioning of the row's chunks.
      actions: float32 [batch, chunks * chunk_frames, action_dim]. A chunk's own actions modulate its cells besides
        being tokens, as in most interactive models (docs/decisions.md).
      drop: As in `embed`.

    Returns:
      [batch, length, 6 * width].
    """
    dtype = jnp.dtype(config.dtype)
    rows, chunks, _ = cells.time.shape

    def flat(clean, noisy):  # [batch, chunks, 2, ...] each -> [batch, 4 * chunks, ...], ordered role, modality, slot
        both = jnp.moveaxis(jnp.stack([clean, noisy], axis=1), 3, 2)
        return both.reshape(rows, 4 * chunks, *clean.shape[3:])

    held = actions.reshape(rows, chunks, -1)
    known = jnp.zeros((rows, chunks), bool)
    by_role = [model.cell.actions(held, known), model.cell.actions(held, known if drop is None else drop)]
    action = flat(*(jnp.broadcast_to(x[:, :, None], (rows, chunks, 2, config.width)) for x in by_role))
    guidance = jnp.broadcast_to(cells.guidance[..., None], cells.time.shape)
    zero, one = jnp.zeros((rows, 1)), jnp.ones((rows, 1))
    by_cell = model.cell(
        jnp.concatenate([zero, flat(cells.context, cells.time)], axis=1),
        jnp.concatenate([zero, flat(cells.context, cells.target)], axis=1),
        jnp.concatenate([one, flat(jnp.ones_like(guidance), guidance)], axis=1),
        jnp.concatenate([jnp.zeros((rows, 1, config.width)), action], axis=1),
        dtype,
    )
    role = jnp.repeat(layout.blocks.role, config.tokens.block, axis=-1)
    is_audio = layout.kind == TokenKind.AUDIO
    cell = 1 + (role * 2 + is_audio) * chunks + layout.slot
    cell = jnp.where(is_audio | (layout.kind == TokenKind.VIDEO), cell, 0)
    # A product with one-hot rows: its transpose is a product too, where a gather's is a scatter.
    return jax.nn.one_hot(cell, by_cell.shape[1], dtype=dtype) @ by_cell


def read_out(
    model: Omni,
    config: OmniConfig,
    features: jax.Array,
    forecast: jax.Array,
    video_at: jax.Array,
    audio_at: jax.Array,
) -> Signals:
    """Predicted clean content.

    Args:
      model: Parameters.
      config: Sizes.
      features: Output of `backbone`, [batch, length, width].
      forecast: What `look_back` gives for the patches, [batch, patches, video_rank].
      video_at: int32 [batch, patches], the place of each patch's token in `features`.
      audio_at: int32 [batch, audio tokens].

    Returns:
      Signals in float32.
    """
    at = lambda where: rms_norm(jnp.take_along_axis(features, where[..., None], axis=1))
    video = model.video_out(at(video_at), forecast)
    if not config.tokens.audio_tokens:
        return Signals(video, jnp.zeros((*audio_at.shape, 1)))
    return Signals(video, model.audio_out(at(audio_at)))
