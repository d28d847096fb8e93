"""Dreaming on from a recording: the stream is shown the start of a clip, then goes on under its actions."""

from __future__ import annotations

import dataclasses
import fractions
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.clip import Clip, TextEvent, cut
from data_pipelines.index import ClipInfo
from data_pipelines.row_layout import TokenSpec
from data_pipelines.windows import place_actions, read_window


def misfit(manifest: Mapping[str, Any], clip: Clip | ClipInfo) -> str:
    """Returns what of a clip an artifact cannot take, such as "height 120, the artifact has 32"; "" if it fits.

    Actions fit that are among the artifact's, and sound of any rate, see `fitted`; none matters to an artifact without.
    """
    height, width = clip.video.shape[1:3] if isinstance(clip, Clip) else (clip.height, clip.width)
    wanted = {
        "height": (height, manifest["height"]),
        "width": (width, manifest["width"]),
        "frame_rate": (clip.frame_rate, fractions.Fraction(manifest["frame_rate"])),
    }
    if not set(clip.action_names) <= set(manifest["action_names"]):
        wanted["action_names"] = (", ".join(clip.action_names), ", ".join(manifest["action_names"]))
    if manifest["channels"] and not clip.channels:
        wanted["channels"] = (0, manifest["channels"])
    return "; ".join(f"{name} {found}, the artifact has {own}" for name, (found, own) in wanted.items() if found != own)


def fitted(manifest: Mapping[str, Any], clip: Clip) -> Clip:
    """Returns the whole chunks of a clip as an artifact takes them, converted as in training.

    Actions are in the columns of the artifact's, zero where the clip has none; sound has its rate and channels.

    Args:
        manifest: of the artifact.
        clip: a clip that it can take, see `misfit`.
    """
    names, size = tuple(manifest["action_names"]), manifest["chunk_frames"]
    if not manifest["channels"] or not manifest["chunk_samples"]:
        actions = place_actions(clip.actions, clip.action_names, names, len(names))
        return dataclasses.replace(clip, actions=actions, action_names=names)
    spec = TokenSpec(
        patch=1,
        chunk_frames=size,
        block=1,
        hop=manifest["hop"],
        hops=manifest["chunk_samples"] // manifest["hop"],
        audio_tokens=1,
        channels=manifest["channels"],
        action_dim=len(names),
        text_bytes=0,
    )
    window = read_window(
        lambda start, stop: cut(clip, start, stop),
        clip,
        spec,
        names,
        first_chunk=0,
        chunks=clip.frames // size,
        sample_id=0,
    )
    return dataclasses.replace(window.clip, action_names=names, sample_rate=manifest["sample_rate"])


def check_sampling(manifest: Mapping[str, Any], steps: int, seed: int) -> None:
    """Raises ValueError if an artifact has no such number of denoising steps, or takes no such seed."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}; use 0 to 2**32 - 1")
    if steps not in manifest["steps"]:
        known = ", ".join(map(str, manifest["steps"]))
        raise ValueError(f"steps is {steps}; the artifact has {known}")


def prompts_by_chunk(events: tuple[TextEvent, ...], chunk_frames: int) -> dict[int, str]:
    """Returns {chunk: text}: each event at the chunk that holds its frame, as in training."""
    return {event.frame // chunk_frames: event.text for event in events}


def observe(stream: Any, manifest: Mapping[str, Any], clip: Clip, chunks: int) -> np.ndarray:
    """Shows a new stream the first chunks of a clip, with its texts.

    Args:
        stream: just started.
        manifest: of its artifact.
        clip: a clip that fits it.
        chunks: how many.

    Returns:
        The sound that comes out, one hop late, float32 `[chunks * chunk_samples, channels]`.
    """
    size, samples, hop = manifest["chunk_frames"], manifest["chunk_samples"], manifest["hop"]
    channels = manifest["channels"]
    prompts = prompts_by_chunk(clip.events, size)
    # Before its first sample a clip is taken to be silent.
    audio = np.concatenate([np.zeros((hop, channels), np.int16), clip.audio[:, :channels]])
    heard = [np.zeros((0, channels), np.float32)]
    for chunk in range(chunks):
        if chunk in prompts:
            stream.prompt(prompts[chunk])
        frames = slice(chunk * size, (chunk + 1) * size)
        sound = audio[chunk * samples : (chunk + 1) * samples + hop]
        heard.append(np.asarray(stream.observe(clip.video[frames], sound, clip.actions[frames])))
    return np.concatenate(heard)


def dream(
    artifact: Any,
    clip: Clip,
    *,
    context_chunks: int,
    frames: int,
    actions: np.ndarray | None = None,
    steps: int,
    guidance: float,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Lets the stream go on from the start of a clip, under the clip's texts and actions.

    Args:
        artifact: an engine.runner.Artifact.
        clip: a clip that fits it, of at least the context and the frames to dream.
        context_chunks: chunks shown first.
        frames: number of frames to dream, whole chunks.
        actions: what is held instead during the dreamed frames, float32 `[frames, actions]`.
        steps: denoising steps a chunk.
        guidance: guidance strength.
        seed: of the stream.

    Returns:
        The dreamed frames, uint8 `[frames, height, width, 3]`, and the sound from the same instant on, float32
        `[samples, channels]`. The sound ends one hop before the frames do: that hop is not out yet.

    Raises:
        ValueError: the clip does not fit or is too short, or an argument is out of range.
    """
    manifest = artifact.manifest
    check_window(manifest, clip, context_chunks, frames)
    check_sampling(manifest, steps, seed)
    size = manifest["chunk_frames"]
    first = context_chunks * size
    held = clip.actions[first : first + frames] if actions is None else actions
    if held.shape != (frames, len(clip.action_names)):
        raise ValueError(
            f"actions has shape {list(held.shape)}; use [{frames}, {len(clip.action_names)}], a row a frame"
        )
    stream = artifact.start(seed)
    observe(stream, manifest, clip, context_chunks)
    prompts = prompts_by_chunk(clip.events, size)
    pictures, heard = [], []
    for chunk in range(frames // size):
        if context_chunks + chunk in prompts:
            stream.prompt(prompts[context_chunks + chunk])
        made = stream.step(held[chunk * size : (chunk + 1) * size], steps=steps, guidance=guidance)
        pictures.append(np.asarray(made[0]))
        heard.append(np.asarray(made[1]))
    # Each piece of sound is one hop late, so the first hop of the first belongs to the context.
    return np.concatenate(pictures), np.concatenate(heard)[manifest["hop"] :]


def true_sound(manifest: Mapping[str, Any], clip: Clip, *, context_chunks: int, frames: int) -> np.ndarray:
    """Returns the recorded sound over the same samples as that of `dream`, float32 `[samples, channels]`."""
    samples = manifest["chunk_samples"]
    first = context_chunks * samples
    last = first + frames // manifest["chunk_frames"] * samples - manifest["hop"]
    return clip.audio[first:last, : manifest["channels"]].astype(np.float32) / 2**15


def check_window(manifest: Mapping[str, Any], clip: Clip | ClipInfo, context_chunks: int, frames: int) -> None:
    """Raises ValueError if a clip does not fit an artifact, or has no such context and frames."""
    problem = misfit(manifest, clip)
    if problem:
        raise ValueError(f"{clip.episode} does not fit the artifact: {problem}")
    size = manifest["chunk_frames"]
    if context_chunks < 1:
        raise ValueError(f"context_chunks is {context_chunks}; show at least 1")
    if frames < 1 or frames % size:
        raise ValueError(f"frames is {frames}; use whole chunks, a multiple of {size}")
    needed = context_chunks * size + frames
    if clip.frames < needed:
        raise ValueError(
            f"{clip.episode} has {clip.frames} frames, context_chunks and frames ask for {needed}; ask for less"
        )
