"""From a clip of any clock, channels and action schema to a window as a run's tokens have it."""

import dataclasses
import fractions
import math
from collections.abc import Callable, Iterable

import numpy as np

from data_pipelines import sound
from data_pipelines.clip import Clip, cut, samples_at
from data_pipelines.index import ClipInfo
from data_pipelines.packing import Window
from data_pipelines.row_layout import TokenSpec

Read = Callable[[int, int], Clip]  # first and end frame -> those frames of a clip


class ActionError(ValueError):
    """A clip has an action that the schema of the run lacks; the message names it."""


def action_schema(infos: Iterable[ClipInfo]) -> tuple[str, ...]:
    """The names of all actions of the clips, in the order in which they are first seen."""
    schemas = dict.fromkeys(info.action_names for info in infos)
    return tuple(dict.fromkeys(name for names in schemas for name in names))


def chunks_of(info: ClipInfo | Clip, spec: TokenSpec) -> int:
    """Whole chunks of a clip; 1 for an image, which is held for a chunk."""
    return 1 if is_image(info, spec) else info.frames // spec.chunk_frames


def is_image(info: ClipInfo | Clip, spec: TokenSpec) -> bool:
    """Whether a clip is a single frame, less than a chunk."""
    return info.frames == 1 < spec.chunk_frames


def has_sound(info: ClipInfo | Clip, spec: TokenSpec) -> bool:
    """Whether the windows of a clip have audio tokens."""
    return spec.audio_tokens > 0 and info.channels > 0 and not is_image(info, spec)


def read_window(
    read: Read,
    info: ClipInfo | Clip,
    spec: TokenSpec,
    actions: tuple[str, ...],
    *,
    first_chunk: int,
    chunks: int,
    sample_id: int,
) -> Window:
    """Reads a window of a clip and converts what differs from the run.

    An image is held for its chunk, with no sound, action or fact. Sound is resampled and mixed to `spec.chunk_samples`
    a chunk and `spec.channels` where the clip's differ, and untouched where they do not. Actions take their columns of
    the run's schema; columns that the clip lacks are zero.

    Args:
      read: Reads frames of the clip.
      info: The clip, or its row of the index.
      spec: The tokens.
      actions: The run's schema.
      first_chunk: Chunk of the clip at which the window starts.
      chunks: Chunks of the window.
      sample_id: See `Window`.

    Raises:
      ClipError, ShardError: The clip cannot be read.
    """
    start, stop = first_chunk * spec.chunk_frames, (first_chunk + chunks) * spec.chunk_frames
    lead_in = np.zeros((spec.hop, spec.channels), np.int16)
    if is_image(info, spec):
        clip = _held(read(0, 1), spec)
    elif not has_sound(info, spec):
        clip = read(start, stop)
        clip = dataclasses.replace(clip, audio=clip.audio[:, :0])
    else:
        before, after = _context(info, spec)
        before, after = min(start, before), min(info.frames - stop, after)
        clip = read(start - before, stop + after)
        heard = _sound(clip, info, spec, start - before, first_chunk, chunks)
        if first_chunk:
            lead_in = heard[: spec.hop]
        clip = dataclasses.replace(cut(clip, before, before + stop - start), audio=heard[spec.hop :])
    placed = place_actions(clip.actions, clip.action_names, actions, spec.action_dim)
    return Window(dataclasses.replace(clip, actions=placed), lead_in, sample_id, first_chunk)


def place_actions(values: np.ndarray, names: tuple[str, ...], schema: tuple[str, ...], dim: int) -> np.ndarray:
    """Puts actions [frames, names] into the columns of a schema: float32 [frames, dim], zero where nothing is known.

    Raises:
      ActionError: The schema lacks a name.
    """
    if names == schema and len(names) == dim:
        return values
    missing = [name for name in names if name not in schema]
    if missing:
        raise ActionError(f"actions {', '.join(missing)} are not among those of the run ({', '.join(schema)})")
    placed = np.zeros((len(values), dim), np.float32)
    placed[:, [schema.index(name) for name in names]] = values
    return placed


def _held(clip: Clip, spec: TokenSpec) -> Clip:
    frames = spec.chunk_frames
    return dataclasses.replace(
        clip,
        video=np.repeat(clip.video[:1], frames, axis=0),
        audio=np.zeros((samples_at(frames, clip.sample_rate, clip.frame_rate), 0), np.int16),
        actions=np.zeros((frames, len(clip.action_names)), np.float32),
        facts={},
    )


def _per_chunk(info: ClipInfo | Clip, spec: TokenSpec) -> fractions.Fraction:
    """Samples of the clip that sound during a chunk."""
    return info.sample_rate * spec.chunk_frames / info.frame_rate


def _context(info: ClipInfo | Clip, spec: TokenSpec) -> tuple[int, int]:
    """Frames before and after a window whose sound goes into it: a chunk for its last hop, and what a filter needs."""
    ratio = spec.chunk_samples / _per_chunk(info, spec)
    if ratio == 1:
        return spec.chunk_frames, 0
    around = math.ceil(sound.margin(ratio) * info.frame_rate / info.sample_rate) + 1
    return spec.chunk_frames + around, around


def _sound(
    clip: Clip, info: ClipInfo | Clip, spec: TokenSpec, first_frame: int, first_chunk: int, chunks: int
) -> np.ndarray:
    """The window's sound after one hop of look-back, int16 [hop + samples, channels].

    Args:
      clip: What was read of the clip, from `first_frame` on; before its beginning there is silence.
      info: The whole clip.
      spec: The tokens.
      first_frame: First frame of `clip`.
      first_chunk: Chunk at which the window starts.
      chunks: Chunks of the window.
    """
    per_chunk, hop = _per_chunk(info, spec), spec.hop
    ratio = spec.chunk_samples / per_chunk
    read_from = samples_at(first_frame, info.sample_rate, info.frame_rate)
    if ratio != 1:
        # Chunk by chunk, so that a chunk sounds the same in whichever window it is.
        mixed = sound.mix(clip.audio, spec.channels)
        places = [number * per_chunk - read_from for number in range(first_chunk - 1, first_chunk + chunks)]
        heard = [sound.resample(mixed, place, ratio, spec.chunk_samples) for place in places]
        return sound.to_int16(np.concatenate([heard[0][-hop:], *heard[1:]]))
    count = hop + chunks * spec.chunk_samples
    first = int(first_chunk * per_chunk) - hop - read_from
    heard = clip.audio[max(first, 0) : first + count]
    heard = np.concatenate([np.zeros((count - len(heard), heard.shape[1]), np.int16), heard])
    return heard if clip.channels == spec.channels else sound.to_int16(sound.mix(heard, spec.channels))
