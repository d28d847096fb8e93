"""Tiny configs, models and packed batches, reached by tests through the fixture `tiny`."""

import dataclasses
import fractions
import functools
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from data_pipelines import build, packing, row_layout
from data_pipelines.clip import Clip, TextEvent
from data_pipelines.packing import Window
from data_pipelines.row_layout import RowSpec, TokenSpec
from pixr1_jax.attention.api import AttentionConfig
from pixr1_jax.attention.blocks import MemoryPolicy
from pixr1_jax.attention.select import Budget
from pixr1_jax.omni.model import Omni, OmniConfig

HEIGHT, WIDTH = 8, 12


def token_spec(**changes) -> TokenSpec:
    """A chunk of an 8 x 12 picture is one head block, one memory block and two picture blocks."""
    fields = {
        "patch": 4,
        "chunk_frames": 2,
        "block": 4,
        "hop": 5,
        "hops": 4,
        "audio_tokens": 2,
        "channels": 2,
        "action_dim": 2,
        "text_bytes": 6,
    }
    return TokenSpec(**(fields | changes))


def policy(**changes) -> MemoryPolicy:
    return MemoryPolicy(**({"window": 2, "sinks": 1, "bank": 8, "horizon": 12} | changes))


def attention(implementation: str = "reference", tile: int = 1, **budget) -> AttentionConfig:
    """Dense, or with the fields of a budget that are named; the others leave it at reading nothing by choice."""
    fields = {"clean": (0,), "noisy": (0,), "early": (), "group": 1, "ramp_steps": 0}
    return AttentionConfig(implementation, tile, Budget(**(fields | budget)) if budget else None)


def config(tokens: TokenSpec | None = None, memory: MemoryPolicy | None = None, **changes) -> OmniConfig:
    fields = {
        "width": 16,
        "layers": 2,
        "heads": 2,
        "head_dim": 8,
        "hidden": 24,
        "video_rank": 12,
        "audio_rank": 10,
        "audio_scale": 4.0,
        "audio_power": 0.5,
        "context_time": 0.03,
        "max_context_time": 0.1,
        "dtype": "float32",
        "attention": attention(),
        "remat": "none",
    }
    return OmniConfig(tokens=tokens or token_spec(), memory=memory or policy(), **(fields | changes))


@functools.cache
def fresh_model(config: OmniConfig, seed: int = 0) -> Omni:
    """As training starts it: the outputs are constant. Shared between tests, which must not change it."""
    return jax.jit(lambda key: Omni(config, key))(jax.random.key(seed))


@functools.cache
def model(config: OmniConfig, seed: int = 0) -> Omni:
    """Random in every parameter, so that nothing is zero and everything that is read matters."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        scale = leaf.shape[-2] ** -0.5 if leaf.ndim > 1 else 0.3
        return jnp.asarray(scale * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree.map(draw, jax.eval_shape(lambda: Omni(config, jax.random.key(0))))


def clip(
    spec: TokenSpec, frames: int, *, height=HEIGHT, width=WIDTH, events=((0, "day"),), seed=0, silent=False
) -> Clip:
    rng = np.random.default_rng(seed)
    samples = frames * spec.chunk_samples // spec.chunk_frames
    return Clip(
        video=rng.integers(0, 256, (frames, height, width, 3), np.uint8),
        audio=rng.integers(-9000, 9000, (samples, 0 if silent else spec.channels)).astype(np.int16),
        actions=rng.standard_normal((frames, spec.action_dim)).astype(np.float32),
        action_names=tuple(f"axis{i}" for i in range(spec.action_dim)),
        events=tuple(TextEvent(frame, text) for frame, text in events),
        frame_rate=fractions.Fraction(10),
        sample_rate=10 * spec.chunk_samples // spec.chunk_frames,
        source="test",
        licence="CC0-1.0",
        seed=seed,
        episode=f"test/{seed:06d}",
    )


def window(spec: TokenSpec, chunks: int, *, seed=0, first_chunk=0, **rest) -> Window:
    lead_in = np.random.default_rng(seed + 99).integers(-9000, 9000, (spec.hop, spec.channels)).astype(np.int16)
    return Window(
        clip(spec, chunks * spec.chunk_frames, seed=seed, **rest),
        lead_in,
        sample_id=1000 + seed,
        first_chunk=first_chunk,
    )


def row_spec(spec: TokenSpec, rows: list[list[Window]], spare: int = 0) -> RowSpec:
    """Capacities that hold any of the rows, and `spare` more of everything."""
    costs = []
    for windows in rows:
        total = row_layout.Cost(0, 0, 0, 0, 0)
        for one in windows:
            frames, height, width, _ = one.clip.video.shape
            chunks = frames // spec.chunk_frames
            texts = [len(text) for _, _, text in packing.text_spans(one.clip, spec.chunk_frames, chunks)]
            total = total + row_layout.window_cost(spec, height, width, chunks, texts, sound=one.sound)
        costs.append(dataclasses.astuple(total))
    return RowSpec(*(max(column) + spare for column in zip(*costs, strict=True)))


def batch(
    spec: TokenSpec, rows: list[list[Window]], spare: int = 0, **capacities: int
) -> tuple[dict[str, np.ndarray], RowSpec]:
    """A packed batch and the capacities of its rows, some of them as given."""
    room = dataclasses.replace(row_spec(spec, rows, spare), **capacities)
    packed = [packing.pack_row(spec, room, windows) for windows in rows]
    return {name: np.stack([row[name] for row in packed]) for name in packed[0]}, room


def largest_difference(a, b) -> float:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in pairs)


# Fields of configs/quickstart.py that make it a run of seconds on the clips of `write_clips`.
EXPERIMENT = {
    "pack.batch_rows": 8,
    "tokens.patch": 4,
    "tokens.block": 4,
    "tokens.hop": 5,
    "tokens.hops": 4,
    "tokens.audio_tokens": 2,
    "tokens.action_dim": 2,
    "tokens.text_bytes": 6,
    "memory.window": 2,
    "memory.bank": 4,
    "memory.horizon": 8,
    "model.width": 16,
    "model.layers": 1,
    "model.head_dim": 8,
    "model.hidden": 24,
    "model.video_rank": 12,
    "model.audio_rank": 10,
    "pack.window_chunks": 3,
    "train.log_every": 1,
    "distill.log_every": 1,
}


def experiment(**changes) -> ConfigDict:
    """configs/quickstart.py:smoke at its tiniest; changes as `train__steps=4`."""
    path = pathlib.Path(__file__).resolve().parents[1] / "configs" / "quickstart.py"
    made = runpy.run_path(str(path))["get_config"]("smoke")
    made.update_from_flattened_dict(EXPERIMENT | {name.replace("__", "."): value for name, value in changes.items()})
    return made


def write_clips(workdir: pathlib.Path, clips: int = 12) -> None:
    """The dataset of a work directory."""
    spec = token_spec()
    made = [clip(spec, 12, events=((0, "day"), (6, "night")), seed=seed) for seed in range(clips + 1)]
    build.write_dataset(workdir / "shards", {"train": made[1:], "test": made[:1]}, shards={"train": 1, "test": 1})
