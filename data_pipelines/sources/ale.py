"""Recordings of Atari 2600 games with sound, through the Arcade Learning Environment.

The console runs at 60 frames a second. A frame of a clip lasts a whole number of them; its action is held over
them, its picture is the screen after the last one, and its sound is exactly what was heard during them, mono at
30720 Hz. Nothing is resized or resampled: most games are 210 lines high, some 214 to 250, all 160 pixels wide.

ALE is optional: `pip install 'pixr1-jax[games]'`. The package has the games in it; who may use or pass on those is
unresolved (its own code is GPL-2.0-only), so record for local use, and publish recipes, not frames.
See Bellemare et al., "The Arcade Learning Environment", 2013; Machado et al., "Revisiting the Arcade Learning
Environment", 2018.
"""

from __future__ import annotations

import dataclasses
import fractions
import functools
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from data_pipelines.clip import Clip, TextEvent, one_line
from data_pipelines.record import Record
from data_pipelines.source import Item, Rejected
from data_pipelines.sources import generated

CONSOLE_FRAMES_PER_SECOND = 60
SAMPLES_PER_CONSOLE_FRAME = 512
SAMPLE_RATE = CONSOLE_FRAMES_PER_SECOND * SAMPLES_PER_CONSOLE_FRAME
LICENCE = "terms of Atari games unresolved: for local use, do not pass on; ale-py GPL-2.0-only"

# The joystick: one schema for every game. Each of the 18 actions of ALE is named by what it presses.
ACTION_NAMES = ("up", "down", "left", "right", "fire")

# These are for two players; loading one may abort the process.
TWO_PLAYER_GAMES = ("combat", "joust", "maze_craze", "warlords")

_SILENCE = 128
_ATTEMPTS = 8
# Shortest and longest hold in frames of the console.
_HOLD = (4, 40)
# A game that hums from the first frame on, and for how many frames to listen.
_PROBE = ("freeway", 30)


class EpisodeEndedError(ValueError):
    """The game was over before the clip was long enough."""


@dataclasses.dataclass(frozen=True)
class AleSource:
    """A `Source` of one clip a seed; the seeds of a split take the games in turn.

    Actions are drawn from the game's action set and held for random times; none is repeated by chance ("sticky
    actions"). A clip stops where the game is over.

    Attributes:
        games: such as "pong" and "ms_pacman"; `all_games` has all.
        seeds: of each split; with the game and the lengths below, a seed fixes the clip.
        frames: longest clip.
        min_frames: shortest clip; where a game is over earlier, another draw of the actions is tried.
        frame_skip: frames of the console that a frame of the clip lasts; 4 gives 15 frames a second.
        warm_up: at most so many frames are played at random before the clip, so that clips do not all begin alike.
        action_set: "minimal" has the actions that matter in the game, "full" all 18.

    Raises:
        ValueError: a field is out of range; the message names it. `items` and `record` raise it where ale-py or a game
            is missing.
    """

    games: tuple[str, ...]
    seeds: generated.Seeds
    frames: int
    min_frames: int
    frame_skip: int = 4
    warm_up: int = 120
    action_set: Literal["minimal", "full"] = "minimal"

    def __post_init__(self) -> None:
        if not self.games:
            raise ValueError("games is empty; name at least one")
        if len(set(self.games)) != len(self.games):
            raise ValueError(f"games is {self.games}; name each once")
        refused = [game for game in self.games if game in TWO_PLAYER_GAMES]
        if refused:
            raise ValueError(f"games has {refused[0]!r}, which needs two players; leave it out")
        generated.check_seeds(self.seeds)
        generated.check_at_least(1, frames=self.frames, min_frames=self.min_frames)
        generated.check_at_least(0, warm_up=self.warm_up)
        if self.min_frames > self.frames:
            raise ValueError(f"min_frames is {self.min_frames}; use at most frames, which is {self.frames}")
        if not 1 <= self.frame_skip <= CONSOLE_FRAMES_PER_SECOND:
            raise ValueError(f"frame_skip is {self.frame_skip}; use 1 to {CONSOLE_FRAMES_PER_SECOND}")
        if self.action_set not in ("minimal", "full"):
            raise ValueError(f"action_set is {self.action_set!r}; use 'minimal' or 'full'")

    @property
    def batch(self) -> int:
        """See `Source`."""
        return 1

    @property
    def frame_rate(self) -> fractions.Fraction:
        """Frames a second."""
        return fractions.Fraction(CONSOLE_FRAMES_PER_SECOND, self.frame_skip)

    def items(self) -> Sequence[Item]:
        """See `Source`."""
        known = all_games()
        missing = [game for game in self.games if game not in known]
        if missing:
            raise ValueError(f"games has {missing[0]!r}; use one of {', '.join(known)}")
        return [
            Item(split, f"ale/{split}/{game}/{seed:06d}", (game, seed))
            for split, seed, game in generated.deal(self.seeds, self.games)
        ]

    def record(self, items: Sequence[Item]) -> Iterator[tuple[Item, Clip | Record | Rejected]]:
        """See `Source`; raises RuntimeError where the console has no sound."""
        check_sound()
        for item in items:
            game, seed = item.what
            try:
                result = self._clip(game, seed, item.name)
            except Exception as error:  # The emulator is code of others, and raises what it likes.
                result = Rejected(item.name, one_line(error))
            yield item, result

    def replay(self, game: str, seed: int, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Plays given actions in the game of a clip, from where that clip begins.

        Args:
            game: of the clip.
            seed: of the clip.
            actions: float32 `[frames, 5]` of zeros and ones, columns as in ACTION_NAMES.

        Returns:
            Video uint8 `[frames, height, width, 3]` and audio int16 `[samples, 1]`, fewer frames where the game is over
            earlier.

        Raises:
            ValueError: the actions have another shape, or press what no joystick can.
        """
        if actions.ndim != 2 or actions.shape[1] != len(ACTION_NAMES):
            raise ValueError(f"actions have shape {list(actions.shape)}; use [frames, {len(ACTION_NAMES)}]")
        console = _Console(game, seed)
        warm_up = generator(game, seed, "warm_up")
        for pressed in self._sample(console, warm_up, int(warm_up.integers(self.warm_up, endpoint=True))):
            console.play(pressed, self.frame_skip)
            if console.is_over():
                console.restart()
        video, audio = [], []
        for pressed in actions:
            sound = console.play(pressed, self.frame_skip)
            if console.is_over():
                break
            video.append(console.screen())
            audio.append(sound)
        if not video:
            raise EpisodeEndedError("the game was over in the first frame")
        return np.stack(video), np.concatenate(audio)[:, None]

    def _clip(self, game: str, seed: int, episode: str) -> Clip:
        longest = 0
        for attempt in range(_ATTEMPTS):
            actions = self._sample(_Console(game, seed), generator(game, seed, "policy", attempt), self.frames)
            video, audio = self.replay(game, seed, actions)
            if len(video) >= self.min_frames:
                return self._as_clip(game, seed, video, audio, actions, episode)
            longest = max(longest, len(video))
        raise EpisodeEndedError(
            f"the game was over within {longest} frames in each of {_ATTEMPTS} tries and min_frames is "
            f"{self.min_frames}; use less"
        )

    def _as_clip(
        self, game: str, seed: int, video: np.ndarray, audio: np.ndarray, actions: np.ndarray, episode: str
    ) -> Clip:
        clip = Clip(
            video=video,
            audio=audio,
            actions=actions[: len(video)],
            action_names=ACTION_NAMES,
            events=(TextEvent(0, f"atari: {game.replace('_', ' ')}"),),
            frame_rate=self.frame_rate,
            sample_rate=SAMPLE_RATE,
            source=f"ale:{game}",
            licence=LICENCE,
            seed=seed,
            episode=episode,
        )
        clip.validate()
        return clip

    def _sample(self, console: _Console, rng: np.random.Generator, frames: int) -> np.ndarray:
        """Returns float32 `[frames, 5]`: actions of the game held for random times."""
        choices = console.presses(self.action_set)
        rows = np.zeros((frames, len(ACTION_NAMES)), np.float32)
        for part in generated.holds(rng, frames, _HOLD, self.frame_skip):
            rows[part] = choices[rng.integers(len(choices))]
        return rows


def all_games() -> tuple[str, ...]:
    """Returns the games for one player.

    Raises:
        ValueError: ale-py is missing.
    """
    return tuple(game for game in sorted(_import_ale().roms.get_all_rom_ids()) if game not in TWO_PLAYER_GAMES)


def generator(game: str, seed: int, purpose: str, attempt: int = 0) -> np.random.Generator:
    """Returns the random generator for one purpose of one clip."""
    return np.random.default_rng([seed, attempt, zlib.crc32(f"{game}/{purpose}".encode())])


@functools.cache
def check_sound() -> None:
    """Raises RuntimeError unless a game that always hums is heard; a single clip may well be silent."""
    game, frames = _PROBE
    console = _Console(game, seed=0)
    if not console.play(np.zeros(len(ACTION_NAMES)), frames).any():
        raise RuntimeError(
            f"the sound of {game} is all zeros; install a release of ale-py that has sound, 0.12 or later"
        )


class _Console:
    """A game that has just begun."""

    def __init__(self, game: str, seed: int) -> None:
        ale_py = _import_ale()
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._ale = ale_py.ALEInterface()
        self._ale.setInt("random_seed", int(generator(game, seed, "console").integers(2**31)))
        self._ale.setFloat("repeat_action_probability", 0.0)
        self._ale.setBool("sound_obs", True)
        path = ale_py.roms.get_rom_path(game)
        if path is None:
            raise ValueError(f"game is {game!r}; use one of {', '.join(all_games())}")
        self._ale.loadROM(path)
        self._action_of = {_presses(action.name): action for action in self._ale.getLegalActionSet()}
        self.restart()

    def restart(self) -> None:
        """Begins the game anew."""
        self._ale.reset_game()

    def presses(self, action_set: str) -> list[tuple[int, ...]]:
        """Returns what each action of the game presses, as rows of ACTION_NAMES."""
        actions = self._ale.getMinimalActionSet() if action_set == "minimal" else self._ale.getLegalActionSet()
        return [_presses(action.name) for action in actions]

    def play(self, pressed: np.ndarray, console_frames: int) -> np.ndarray:
        """Holds some buttons for some frames; returns what is heard, int16 `[console_frames * 512]`."""
        action = self._action_of.get(tuple(int(value > 0.5) for value in pressed))
        if action is None:
            raise ValueError(f"actions press {pressed.tolist()}, columns {ACTION_NAMES}; a joystick has no opposites")
        heard = []
        for _ in range(console_frames):
            self._ale.act(action)
            heard.append(self._ale.getAudio().astype(np.int16) - _SILENCE)
        return np.concatenate(heard) * np.int16(256)

    def screen(self) -> np.ndarray:
        """Returns uint8 `[height, width, 3]`."""
        return self._ale.getScreenRGB().copy()

    def is_over(self) -> bool:
        """Whether the game is over."""
        return self._ale.game_over()


def _presses(name: str) -> tuple[int, ...]:
    """Returns which of ACTION_NAMES an action such as UPRIGHTFIRE presses."""
    return tuple(int(button.upper() in name) for button in ACTION_NAMES)


def _import_ale() -> Any:
    try:
        import ale_py
        import ale_py.roms
    except ImportError as error:
        raise ValueError("recording Atari needs ale-py: pip install 'pixr1-jax[games]'") from error
    return ale_py
