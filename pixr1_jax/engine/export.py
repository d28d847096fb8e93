"""Exports the streaming step: one program per platform and thing to do, weights beside them (decision D17)."""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from pixr1_jax.attention import api
from pixr1_jax.core import tree
from pixr1_jax.engine import runner
from pixr1_jax.engine.step import Stream
from pixr1_jax.omni.model import Omni

# JAX promises that later versions run its TPU kernels, not those for GPUs: an artifact with them wants the jax of its
# manifest.
_KERNEL_CALLS = [jax.export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")]


def export(
    stream: Stream,
    model: Omni,
    directory: str | os.PathLike[str],
    *,
    steps: Sequence[int],
    platforms: Sequence[str],
    facts: Mapping[str, Any],
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Writes an artifact directory; it replaces an existing one only when it is complete.

    Args:
      stream: What to export.
      model: Weights.
      directory: Where to.
      steps: Numbers of denoising steps, one program each.
      platforms: Of "cpu", "cuda", "tpu"; none of them need be present here. Attention that is "auto" takes each one's
        own kernels.
      facts: Further entries of the manifest (frame_rate, sample_rate, action_names, ...).
      progress: Called with the name of each program once it is written.

    Returns:
      The manifest.
    """
    target = pathlib.Path(directory)
    target.parent.mkdir(parents=True, exist_ok=True)
    building = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        weights = {name: np.asarray(value) for name, value in tree.named_leaves(model).items()}
        np.savez(building / "weights.npz", allow_pickle=False, **weights)
        files: dict[str, dict[str, str]] = {}
        for platform in platforms:
            files[platform] = {}
            for name, function, arguments in programs(for_platform(stream, platform), model, steps):
                exported = jax.export.export(jax.jit(function), platforms=[platform], disabled_checks=_KERNEL_CALLS)(
                    *arguments
                )
                file = f"{name}.{platform}.jaxexp"
                (building / file).write_bytes(exported.serialize())
                files[platform][name] = file
                progress(file)
        spec = stream.config.tokens
        manifest = {
            "format": runner.FORMAT,
            "height": stream.height,
            "width": stream.width,
            "chunk_frames": spec.chunk_frames,
            "chunk_samples": spec.chunk_samples if spec.audio_tokens else 0,
            "hop": spec.hop if spec.audio_tokens else 0,
            "channels": spec.channels,
            "text_bytes": spec.text_bytes,
            "steps": sorted(steps),
            "programs": files,
            "weights": "weights.npz",
            "weights_sha256": hashlib.sha256((building / "weights.npz").read_bytes()).hexdigest(),
            "parameters": int(sum(value.size for value in weights.values())),
            "jax": jax.__version__,
            **facts,
        }
        shutil.copy(runner.__file__, building / "runner.py")
        (building / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        os.chmod(building, 0o755)
        _replace(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return manifest


def _replace(building: pathlib.Path, target: pathlib.Path) -> None:
    """Moves a finished directory into place; the old one is set aside until then."""
    if not target.exists():
        building.rename(target)
        return
    aside = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    target.rename(aside / "artifact")
    building.rename(target)
    shutil.rmtree(aside)


def for_platform(stream: Stream, platform: str) -> Stream:
    """The stream with the attention that its config means on a platform ("cpu", "cuda", "tpu")."""
    config, attention = stream.config, stream.config.attention
    sizes = {"block": config.tokens.block, "tile": attention.tile, "platform": platform}
    attention = dataclasses.replace(attention, implementation=api.resolve(attention.implementation, **sizes))
    return dataclasses.replace(stream, config=dataclasses.replace(config, attention=attention))


def programs(stream: Stream, model: Omni, steps: Sequence[int]) -> Iterator[tuple[str, Callable, tuple[Any, ...]]]:
    """Yields name, function and shapes of the arguments of each program; state and weights are flat dicts of arrays.

    Args:
      stream: What the programs do.
      model: Weights, or their shapes.
      steps: Numbers of denoising steps, one program `step{number}` each.
    """
    spec = stream.config.tokens
    leaves = tree.named_leaves(model)
    structure = jax.tree.structure(model)
    weights = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in leaves.items()}
    rebuild = lambda flat: jax.tree.unflatten(structure, [flat[name] for name in leaves])
    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    state = jax.eval_shape(stream.start, seed)
    array = jax.ShapeDtypeStruct
    actions = array((spec.chunk_frames, spec.action_dim), jnp.float32)
    frames = array((spec.chunk_frames, stream.height, stream.width, 3), jnp.uint8)
    samples = spec.hop + spec.chunk_samples if spec.audio_tokens else 0
    sound = array((samples, spec.channels), jnp.int16)
    text, number = array((spec.text_bytes,), jnp.uint8), array((), jnp.int32)

    def prompt(weights, state, text, length):
        return stream.prompt(rebuild(weights), state, text, length)

    def observe(weights, state, frames, sound, actions):
        return stream.observe(rebuild(weights), state, frames, sound, actions)

    def step(count):
        def run(weights, state, actions, guidance):
            return stream.step(rebuild(weights), state, actions, guidance, steps=count)

        return run

    yield "start", stream.start, (seed,)
    yield "prompt", prompt, (weights, state, text, number)
    yield "observe", observe, (weights, state, frames, sound, actions)
    for count in steps:
        yield f"step{count}", step(count), (weights, state, actions, array((), jnp.float32))
