"""The streaming step: state and inputs to frames, sound and the next state (decisions D7, D8, D17).

One call makes one chunk. Its first pass runs over [previous chunk clean ; this chunk noisy] against the cache,
so the same pass writes the previous chunk to the cache and takes the first denoising step: a one-step
student costs one pass a chunk. Everything a stream is lives in a flat dict of arrays.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines import patches, row_layout
from data_pipelines.row_layout import BlockKind, Role
from pixr1_jax.attention.blocks import visible
from pixr1_jax.core import rng
from pixr1_jax.objectives import flow
from pixr1_jax.omni import audio, memory, tokens
from pixr1_jax.omni.model import Omni, OmniConfig, backbone
from pixr1_jax.omni.tokens import Cells, Layout, Signals

State = dict[str, jax.Array]
CLEAN_SLOT, NOISY_SLOT = 0, 1


@dataclasses.dataclass(frozen=True)
class Stream:
    """What a stream of one picture size is: the functions of this module are its methods.

    Attributes:
      config: Sizes of the model.
      height: Picture height in pixels.
      width: Picture width in pixels.
    """

    config: OmniConfig
    height: int
    width: int

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patch grid."""
        return patches.grid_shape(self.height, self.width, self.config.tokens.patch)

    @property
    def cache(self) -> memory.CacheLayout:
        """Places of the cache."""
        return memory.CacheLayout(self.config.tokens, self.config.memory, self.grid)

    @property
    def max_keys(self) -> int | None:
        """The most key blocks that a block reads in full, where there is a budget."""
        budget, cache = self.config.attention.budget, self.cache
        if budget is None:
            return None
        places = {"chunk": cache.chunk_blocks, "head": cache.head_blocks, "text": cache.text_blocks}
        return budget.always(self.config.memory, **places) + budget.most

    def start(self, seed: jax.Array) -> State:
        """The state of a stream that has made nothing yet; the same seed and inputs give the same stream."""
        spec, count = self.config.tokens, self.grid[0] * self.grid[1]
        return memory.empty(self.config, self.cache) | {
            "chunk": jnp.zeros((), jnp.int32),
            "seed": seed.astype(jnp.uint32),
            "earlier_video": jnp.zeros((count, spec.patch_dim)),
            "pending_video": jnp.zeros((count, spec.patch_dim)),
            "pending_audio": jnp.zeros((spec.audio_tokens, spec.audio_dim)),
            "pending_actions": jnp.zeros((spec.chunk_frames, spec.action_dim)),
            "overlap": jnp.zeros((spec.hop, spec.channels)),
        }

    def prompt(self, model: Omni, state: State, text: jax.Array, length: jax.Array) -> State:
        """Puts a text in force from the next chunk on.

        Args:
          model: Parameters.
          state: The stream.
          text: uint8 [text_bytes], UTF-8.
          length: int32, bytes used; 0 leaves no text in force.
        """
        layout = _layout(self.cache.text_arrays())
        valid = jnp.clip(
            length - self.config.tokens.block * jnp.arange(layout.blocks.count), 0, self.config.tokens.block
        )
        blocks = dataclasses.replace(layout.blocks, valid=valid[None].astype(jnp.int32))
        layout = dataclasses.replace(layout, blocks=blocks)
        batch = {"text": text[None], "actions": jnp.zeros((1, 0, self.config.tokens.action_dim))}
        x = tokens.embed(model, self.config, layout, batch, {}, jnp.zeros((1, 0, self.config.width)))
        seen = visible(blocks, blocks, self.config.memory)
        cells = self._cells(jnp.zeros(()), jnp.zeros(()), jnp.ones(()))
        nothing = jnp.zeros((1, 2 * self.config.tokens.chunk_frames, self.config.tokens.action_dim))
        modulation = tokens.modulation(model, self.config, layout, cells, nothing)
        _, (key, value) = backbone(model, self.config, x, modulation, layout.position, blocks, seen)
        return memory.write_text(self.cache, state, key[:, 0], value[:, 0], length, state["chunk"])

    def observe(
        self, model: Omni, state: State, frames: jax.Array, sound: jax.Array, actions: jax.Array
    ) -> tuple[State, jax.Array]:
        """Continues the stream with a chunk of the real world instead of a dreamt one.

        Args:
          model: Parameters.
          state: The stream.
          frames: uint8 [chunk_frames, height, width, 3].
          sound: int16 [hop + chunk_samples, channels], one hop of look-back first.
          actions: float32 [chunk_frames, action_dim], held during these frames.

        Returns:
          The next state, and the sound that is now complete, float32 [chunk_samples, channels], or no samples where
          the model has no sound.
        """
        spec = self.config.tokens
        video = tokens.to_pixels(patches.patchify(frames, spec.chunk_frames, spec.patch)[0])
        heard = jnp.zeros((0, 1))
        if spec.audio_tokens:
            waveform = sound.astype(jnp.float32) / 32768.0
            heard = audio.to_tokens(
                waveform, spec.hop, spec.audio_tokens, self.config.audio_scale, self.config.audio_power
            )
        state = self._flush(model, state)
        return self._emit(state, Signals(video, heard), actions)

    def step(
        self, model: Omni, state: State, actions: jax.Array, guidance: jax.Array, *, steps: int
    ) -> tuple[State, jax.Array, jax.Array]:
        """Makes the next chunk.

        Args:
          model: Parameters.
          state: The stream.
          actions: float32 [chunk_frames, action_dim], held during this chunk.
          guidance: float32, guidance strength, 1 for none.
          steps: Denoising steps, static.

        Returns:
          The next state, frames uint8 [chunk_frames, height, width, 3], and sound float32 [chunk_samples, channels],
          which ends one hop before the frames do.
        """
        times = np.linspace(1.0, 0.0, steps + 1).tolist()
        noisy = self._noise(state)
        state, clean = self._first_pass(model, state, noisy, actions, guidance, times[0], times[1])
        for before, time, target in zip(times, times[1:-1], times[2:], strict=False):
            noisy = Signals(
                flow.advance(noisy.video, clean.video, before, time),
                flow.advance(noisy.audio, clean.audio, before, time),
            )
            clean = self._denoise(model, state, noisy, actions, guidance, time, target)
        clean = Signals(jnp.clip(clean.video, -1.0, 1.0), clean.audio)
        state, sound = self._emit(state, clean, actions)
        frames = patches.unpatchify(
            clean.video[None], self.height, self.width, self.config.tokens.chunk_frames, self.config.tokens.patch
        )
        return state, tokens.to_bytes(frames), sound

    def _noise(self, state: State) -> Signals:
        key = jax.random.fold_in(jax.random.key(state["seed"]), int(rng.Purpose.STREAM))
        video, sound = jax.random.split(jax.random.fold_in(key, state["chunk"]))
        return Signals(
            jax.random.normal(video, state["pending_video"].shape),
            jax.random.normal(sound, state["pending_audio"].shape),
        )

    def _emit(self, state: State, clean: Signals, actions: jax.Array) -> tuple[State, jax.Array]:
        """Makes `clean` the pending chunk and completes the sound that its first half overlaps."""
        spec = self.config.tokens
        sound, overlap = jnp.zeros((0, spec.channels)), state["overlap"]
        if spec.audio_tokens:
            sound, overlap = audio.from_tokens(
                clean.audio, overlap, spec.hop, spec.channels, self.config.audio_scale, self.config.audio_power
            )
        state = state | {
            "chunk": state["chunk"] + 1,
            "earlier_video": state["pending_video"],
            "pending_video": clean.video,
            "pending_audio": clean.audio,
            "pending_actions": actions,
            "overlap": overlap,
        }
        return state, jnp.clip(sound, -1.0, 1.0)

    def _cells(self, time: jax.Array, target: jax.Array, guidance: jax.Array) -> Cells:
        """Cells of the two slots; context is told the served noise level."""
        full = lambda value: jnp.broadcast_to(jnp.asarray(value, jnp.float32), (1, 2, 2))
        strength = jnp.broadcast_to(jnp.asarray(guidance, jnp.float32), (1, 2))
        return Cells(full(time), full(target), strength, full(self.config.context_time))

    def _rows(self, state: State) -> tuple[Layout, Layout]:
        """Layouts of the previous chunk (clean) and this one (noisy), placed relative to this one."""
        spec, cache = self.config.tokens, self.cache
        count = self.grid[0] * self.grid[1]
        clean = _layout(cache.chunk_arrays())
        builder = row_layout.RowBuilder(spec, cache.chunk_blocks - 1)
        place = {"segment": 0, "chunk": 0, "slot": NOISY_SLOT, "role": Role.NOISY}
        builder.add(row_layout.head_run(spec, NOISY_SLOT, 0), **place, kind=BlockKind.HEAD)
        builder.add(row_layout.picture_run(count, 0, self.grid), **place, kind=BlockKind.PATCH)
        noisy = _layout(builder.arrays)
        before, here = state["chunk"] - 1, state["chunk"]
        return _placed(clean, before, -1.0), _placed(noisy, here, 0.0)

    def _batch(self, state: State, actions: jax.Array) -> dict[str, jax.Array]:
        both = jnp.concatenate([state["pending_actions"], actions])
        return {"actions": both[None], "text": jnp.zeros((1, 0), jnp.uint8)}

    def _signals(self, state: State, noisy: Signals) -> Mapping[Role, Signals]:
        """Content tables of both slots; each role reads its own slot only."""
        pending = Signals(state["pending_video"], state["pending_audio"])
        blank = jax.tree.map(jnp.zeros_like, noisy)
        join = lambda a, b: jnp.concatenate([a, b])[None]
        return {
            Role.CLEAN: jax.tree.map(join, pending, blank),
            Role.NOISY: jax.tree.map(join, blank, noisy),
        }

    def _first_pass(self, model, state, noisy, actions, guidance, time, target):
        """Denoises once and writes the previous chunk to the cache."""
        clean_row, noisy_row = self._rows(state)
        row = clean_row + noisy_row
        features, forecast, key, value = self._forward(
            model, state, row, self._signals(state, noisy), actions, self._cells(time, target, guidance)
        )
        clean = self._read(model, features, forecast, clean_row.kind.shape[1])
        length = clean_row.kind.shape[1]
        cache = memory.write_chunk(self.cache, state, key[:, 0, :length], value[:, 0, :length], state["chunk"] - 1)
        return cache, clean

    def _denoise(self, model, state, noisy, actions, guidance, time, target):
        """Denoises once more against the cache, which holds the previous chunk by now."""
        _, row = self._rows(state)
        signals = {Role.NOISY: self._signals(state, noisy)[Role.NOISY]}
        features, forecast, _, _ = self._forward(
            model, state, row, signals, actions, self._cells(time, target, guidance)
        )
        return self._read(model, features, forecast, 0)

    def _flush(self, model: Omni, state: State) -> State:
        """Writes the pending chunk to the cache without making another."""
        row, _ = self._rows(state)
        blank = Signals(jnp.zeros_like(state["pending_video"]), jnp.zeros_like(state["pending_audio"]))
        signals = {Role.CLEAN: self._signals(state, blank)[Role.CLEAN]}
        cells = self._cells(jnp.ones(()), jnp.zeros(()), jnp.ones(()))
        actions = jnp.zeros_like(state["pending_actions"])
        _, _, key, value = self._forward(model, state, row, signals, actions, cells)
        return memory.write_chunk(self.cache, state, key[:, 0], value[:, 0], state["chunk"] - 1)

    def _forward(self, model, state, row: Layout, signals, actions, cells: Cells):
        config = self.config
        past = memory.past(self.cache, state, state["chunk"])
        seen = visible(row.blocks, past.blocks + row.blocks, config.memory)
        context, places = self._look_back(state)
        batch = self._batch(state, actions) | places
        looks, forecast = tokens.look_back(model, config, context, batch)
        x = tokens.embed(model, config, row, batch, signals, looks)
        modulation = tokens.modulation(model, config, row, cells, batch["actions"])
        features, (key, value) = backbone(
            model, config, x, modulation, row.position, row.blocks, seen, past, max_keys=self.max_keys
        )
        return features, forecast, key, value

    def _look_back(self, state: State) -> tuple[Signals, dict[str, jax.Array]]:
        """What the patches of both slots look back at: the chunk before each, where there is one."""
        near = patches.neighbourhood(*self.grid)
        before = np.concatenate([near, np.where(near >= 0, near + len(near), -1)])
        slot = jnp.repeat(jnp.array([CLEAN_SLOT, NOISY_SLOT]), len(near))
        known = (state["chunk"] - 2 + slot >= 0)[:, None]
        video = jnp.concatenate([state["earlier_video"], state["pending_video"]])[None]
        places = {"patch_before": jnp.where(known, before, -1)[None], "patch_slot": slot[None]}
        return Signals(video, jnp.zeros((1, 0, 1))), places

    def _read(self, model: Omni, features: jax.Array, forecast: jax.Array, offset: int) -> Signals:
        """Predicted content of the noisy chunk, whose tokens begin at `offset`."""
        spec = self.config.tokens
        audio_at = offset + spec.chunk_frames + jnp.arange(spec.audio_tokens)
        count = self.grid[0] * self.grid[1]
        video_at = offset + self.cache.head_blocks * spec.block + jnp.arange(count)
        read = tokens.read_out(model, self.config, features, forecast[:, count:], video_at[None], audio_at[None])
        return jax.tree.map(lambda x: x[0], read)


def _layout(arrays: Mapping[str, np.ndarray]) -> Layout:
    return Layout.of({name: jnp.asarray(value)[None] for name, value in arrays.items()})


def _placed(layout: Layout, chunk: jax.Array, time: float) -> Layout:
    """Moves a layout made at chunk 0 to `chunk`, shown to rotary positions as `time`; a chunk below 0 is absent."""
    blocks = layout.blocks
    present = (blocks.valid > 0) & (chunk >= 0)
    blocks = dataclasses.replace(
        blocks,
        chunk=jnp.broadcast_to(chunk, blocks.chunk.shape),
        segment=jnp.where(present, 0, -1),
        valid=jnp.where(present, blocks.valid, 0),
    )
    return dataclasses.replace(layout, position=layout.position.at[..., 0].add(time), blocks=blocks)
