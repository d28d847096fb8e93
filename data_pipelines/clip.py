"""The clip: one recording (video, sound, actions, text) on one clock, decoded."""

from __future__ import annotations

import dataclasses
import fractions
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines import facts as facts_lib
from data_pipelines.facts import Fact

# FLAC's limits: any rate that fits 16 bits, above that multiples of ten.
_MAX_FREE_SAMPLE_RATE, _MAX_SAMPLE_RATE = 65_535, 655_350


class ClipError(ValueError):
    """A clip, or the bytes of one, breaks the contract of the record; the message names the field."""


@dataclasses.dataclass(frozen=True)
class TextEvent:
    """A text in force from `frame` on, until the next event replaces it."""

    frame: int
    text: str


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """One recording on one clock.

    Attributes:
        video: uint8 RGB `[frames, height, width, 3]`.
        audio: int16 `[samples, channels]`, samples == samples_at(frames); channels 0 to 2, where 0 says that the
            source has no sound.
        actions: finite float32 `[frames, action_dim]`; row f is held during the step that makes frame f.
        action_names: the schema of the actions, one unique name a column.
        events: texts by strictly rising frame; the one at frame 0 is the caption.
        frame_rate: frames a second.
        sample_rate: audio samples a second.
        source: where the clip comes from.
        licence: under which terms.
        seed: what generated the clip (0 where nothing did).
        episode: unique id, such as "playground/train/000017".
        facts: what else is known of each frame, by name; nothing of it is shown to a model.
    """

    video: np.ndarray
    audio: np.ndarray
    actions: np.ndarray
    action_names: tuple[str, ...]
    events: tuple[TextEvent, ...]
    frame_rate: fractions.Fraction
    sample_rate: int
    source: str
    licence: str
    seed: int
    episode: str
    facts: Mapping[str, Fact] = dataclasses.field(default_factory=dict)

    @property
    def frames(self) -> int:
        """Number of video frames."""
        return self.video.shape[0]

    @property
    def channels(self) -> int:
        """Number of audio channels, 0 to 2."""
        return self.audio.shape[1]

    def validate(self) -> None:
        """Raises ClipError, naming the field, if the clip breaks its contract."""
        check_scalars(self)
        _check_arrays(self)
        check_events(self.events, self.frames)
        check_facts(self.facts, self.frames)


def samples_at(frame: int, sample_rate: int, frame_rate: fractions.Fraction) -> int:
    """Returns the audio sample that sounds when a frame starts; the frame may start within that sample."""
    return frame * sample_rate * frame_rate.denominator // frame_rate.numerator


def window_samples(start: int, stop: int, sample_rate: int, frame_rate: fractions.Fraction) -> tuple[int, int]:
    """Returns the first and the end sample of the frames `start` to `stop`: as many as a clip of that length has."""
    first = samples_at(start, sample_rate, frame_rate)
    return first, first + samples_at(stop - start, sample_rate, frame_rate)


def window_events(events: tuple[TextEvent, ...], start: int, stop: int) -> tuple[TextEvent, ...]:
    """Returns the events of the frames `start` to `stop`, on the window's own clock.

    The event in force at `start` moves to frame 0.
    """
    in_force = [event for event in events if event.frame <= start][-1:]
    later = [event for event in events if start < event.frame < stop]
    return tuple(TextEvent(max(0, event.frame - start), event.text) for event in in_force + later)


def cut(clip: Clip, start: int, stop: int) -> Clip:
    """Returns the frames `start` to `stop` of a clip, as views; the text in force moves to frame 0."""
    first, last = window_samples(start, stop, clip.sample_rate, clip.frame_rate)
    return dataclasses.replace(
        clip,
        video=clip.video[start:stop],
        audio=clip.audio[first:last],
        actions=clip.actions[start:stop],
        events=window_events(clip.events, start, stop),
        facts=facts_lib.cut(clip.facts, start, stop),
    )


def check_scalars(clip: Any) -> None:
    """Raises ClipError if a field of a clip, or of a record, that is no array is wrong."""
    for field in ("source", "licence", "episode"):
        _check_text(field, getattr(clip, field))
    if not clip.episode:
        raise ClipError("episode is empty; give every clip a unique id")
    if not isinstance(clip.frame_rate, fractions.Fraction) or clip.frame_rate <= 0:
        raise ClipError(f"frame_rate is {clip.frame_rate!r}; use a positive fractions.Fraction")
    rate = clip.sample_rate
    in_range = type(rate) is int and 0 < rate <= _MAX_SAMPLE_RATE
    if not in_range or (rate > _MAX_FREE_SAMPLE_RATE and rate % 10):
        raise ClipError(
            f"sample_rate is {rate!r}; use an int from 1 to {_MAX_SAMPLE_RATE} (a multiple of 10 above "
            f"{_MAX_FREE_SAMPLE_RATE})"
        )
    if type(clip.seed) is not int or not -(2**63) <= clip.seed < 2**63:
        raise ClipError(f"seed is {clip.seed!r}; use an int of 64 bits")
    names = clip.action_names
    if not isinstance(names, tuple) or len(set(names)) != len(names):
        raise ClipError(f"action_names is {names!r}; use a tuple of unique names")
    for name in names:
        _check_text("action_names", name)


def _check_arrays(clip: Clip) -> None:
    _check_array("video", clip.video, np.uint8, 4)
    _check_array("audio", clip.audio, np.int16, 2)
    _check_array("actions", clip.actions, np.float32, 2)
    if 0 in clip.video.shape or clip.video.shape[3] != 3:
        raise ClipError(f"video has shape {clip.video.shape}; use [frames, height, width, 3], none of them 0")
    expected = samples_at(clip.frames, clip.sample_rate, clip.frame_rate)
    if clip.audio.shape[0] != expected:
        found = f"{clip.audio.shape[0]} samples for {clip.frames} frames"
        raise ClipError(f"audio has {found}; use exactly {expected}")
    if clip.channels > 2:
        raise ClipError(f"audio has {clip.channels} channels; use 0, 1 or 2")
    if clip.actions.shape != (clip.frames, len(clip.action_names)):
        raise ClipError(
            f"actions has shape {clip.actions.shape}; use ({clip.frames}, {len(clip.action_names)}), "
            "a row a frame and a column a name"
        )
    if not np.isfinite(clip.actions).all():
        raise ClipError("actions has values that are not finite; replace them")


def _check_array(field: str, value: Any, dtype: type, dimensions: int) -> None:
    if not isinstance(value, np.ndarray) or value.dtype != dtype or value.ndim != dimensions:
        found = f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
        raise ClipError(f"{field} is {found}; use a {np.dtype(dtype).name} array of {dimensions} dimensions")


def check_events(events: tuple[TextEvent, ...], frames: int) -> None:
    """Raises ClipError unless the events rise within the clip's frames."""
    if not isinstance(events, tuple) or not all(isinstance(event, TextEvent) for event in events):
        raise ClipError("events is not a tuple of TextEvent; use one")
    previous = -1
    for event in events:
        if type(event.frame) is not int or not previous < event.frame < frames:
            raise ClipError(f"events has frame {event.frame!r} after {previous}; use rising ints below {frames}")
        _check_text("events", event.text)
        previous = event.frame


def check_facts(facts: Mapping[str, Fact], frames: int) -> None:
    """Raises ClipError unless every fact has a row for each of the clip's frames."""
    for name, fact in facts.items():
        if not isinstance(fact, Fact):
            raise ClipError(f"facts: {name!r} is {type(fact).__name__}; use a Fact")
        for text in (name, *fact.columns, *fact.objects):
            _check_text("facts", text)
        if problem := fact.problem(frames):
            raise ClipError(f"facts: {name!r} {problem}")


def _check_text(field: str, value: Any) -> None:
    try:
        if not isinstance(value, str):
            raise ClipError(f"{field} holds {value!r}; use a string")
        value.encode()
    except UnicodeEncodeError as error:
        raise ClipError(f"{field} holds text that is not valid Unicode; remove lone surrogates") from error


def one_line(error: BaseException) -> str:
    """Returns an error's type and message on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
