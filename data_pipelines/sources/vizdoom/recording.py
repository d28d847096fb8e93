"""Recording and replaying clips of Doom."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from data_pipelines.clip import Clip, TextEvent
from data_pipelines.sources.vizdoom import captions, game
from data_pipelines.sources.vizdoom.game import LICENCE, NO_SOUND, EpisodeEndedError, Player
from data_pipelines.sources.vizdoom.policies import make_player
from data_pipelines.sources.vizdoom.scenarios import ACTION_NAMES
from data_pipelines.sources.vizdoom.settings import Recording

# From the attack button to the bang: 4 tics for the pistol, more for a weapon between two shots.
_ATTACK_DELAY_TICS = 12
_ATTEMPTS = 32


def record(
    scenario: str,
    *,
    seed: int,
    frames: int,
    split: str = "train",
    resolution: str = "RES_160X120",
    sample_rate: int = 11025,
    tics_per_frame: int = 4,
) -> Clip:
    """Records one clip of the seeded policy, all of it within one episode of the game; see `Recording`.

    Raises:
        ValueError: an argument is out of range.
        EpisodeEndedError: every one of several policies ended the game too early; ask for fewer frames.
        ImportError: ViZDoom is not installed.
        RuntimeError: the game has no sound because libopenal1 is missing.
    """
    return record_one(Recording(scenario, seed, frames, split, resolution, sample_rate, tics_per_frame))


def record_many(recordings: Iterable[Recording]) -> Iterator[Clip]:
    """Yields one clip a recording, in order; sizes and scenarios may differ.

    Raises as `record` does, and RuntimeError at the end if not one of the clips had sound.
    """
    heard, last = False, None
    for recording in recordings:
        clip = record_one(recording)
        heard, last = heard or bool(clip.audio.any()), recording.episode
        yield clip
    if last is not None and not heard:
        raise RuntimeError(f"{last}: {NO_SOUND.format('every clip up to this one')}")


def replay(recording: Recording, actions: np.ndarray) -> Clip:
    """Plays given actions in the game of a recording.

    With the actions of a recorded clip it returns that clip again, bit for bit; with others, what would have
    happened instead.

    Args:
        recording: fixes the game, the screen and the sound.
        actions: float32 `[frames, action_dim]` of zeros and ones, columns as in ACTION_NAMES; as many frames as the
            recording has, or as its `min_frames` allows.

    Raises:
        ValueError: the actions have another shape.
        EpisodeEndedError: the game ended before the last frame.
        ImportError: ViZDoom is not installed.
        RuntimeError: the game has no sound because libopenal1 is missing.
    """
    if actions.shape[1:] != (len(ACTION_NAMES),) or not recording.least_frames <= len(actions) <= recording.frames:
        expected = [recording.frames, len(ACTION_NAMES)]
        raise ValueError(f"{recording.episode}: actions have shape {list(actions.shape)}; use {expected}")
    exact = dataclasses.replace(recording, frames=len(actions), min_frames=None)
    return _play(exact, lambda frame, _: actions[frame])


def record_one(recording: Recording) -> Clip:
    """Records the clip of a recording; raises as `record` does."""
    for attempt in range(_ATTEMPTS):
        try:
            return _play(recording, make_player(recording, attempt))
        except EpisodeEndedError:
            continue
    raise EpisodeEndedError(
        f"{recording.episode}: the game ended before frame {recording.least_frames} in each of {_ATTEMPTS} tries; "
        "use fewer frames"
    )


def _play(recording: Recording, player: Player) -> Clip:
    played = game.play(recording, player)
    caption = (TextEvent(0, recording.scene.caption),)
    clip = Clip(
        video=played.video,
        audio=played.audio,
        actions=played.actions,
        action_names=ACTION_NAMES,
        events=captions.events(played.texts, recording) if recording.captions == "state" else caption,
        frame_rate=recording.frame_rate,
        sample_rate=recording.sample_rate,
        source=f"vizdoom:{recording.scenario}",
        licence=LICENCE,
        seed=recording.seed,
        episode=recording.episode,
        facts=played.facts,
    )
    _check_sound(clip, recording.tics_per_frame)
    return clip


def _check_sound(clip: Clip, tics_per_frame: int) -> None:
    """Raises RuntimeError for a clip with shots and no sound: without OpenAL the game runs on, mute."""
    delay = -(-_ATTACK_DELAY_TICS // tics_per_frame)
    attacks = clip.actions[: max(0, clip.frames - delay), ACTION_NAMES.index("attack")]
    if attacks.any() and not clip.audio.any():
        raise RuntimeError(f"{clip.episode}: {NO_SOUND.format('a clip with shots')}")
