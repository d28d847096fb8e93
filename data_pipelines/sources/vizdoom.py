"""Recordings of a real game with sound: ViZDoom scenarios and Freedoom maps become clips.

The game runs at 35 tics a second. A frame lasts a whole number of tics; its action is held over them, its
picture is the screen after the last one, and its sound is exactly what was heard during them. Nothing is
resized or resampled.

ViZDoom is optional: `pip install 'pixr1-jax[doom]'`, and the system library libopenal1 for sound.
See Wydmuch et al., "ViZDoom Competitions: Playing Doom from Pixels", 2018.
"""

from __future__ import annotations

import dataclasses
import fractions
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipelines.clip import Clip, TextEvent

if TYPE_CHECKING:
    import vizdoom

TICS_PER_SECOND = 35
SAMPLE_RATES = (11025, 22050, 44100)
LICENCE = "ViZDoom scenarios MIT; Freedoom assets BSD-3-Clause"

# One schema for every scenario, so that all of them fit in one dataset; the policy leaves out what a scenario
# is not about.
ACTION_NAMES = (
    "move_forward",
    "move_backward",
    "move_left",
    "move_right",
    "turn_left",
    "turn_right",
    "attack",
    "use",
)

_TURN = ("turn_left", "turn_right", "attack")
_STRAFE = ("move_left", "move_right", "attack")
_COLLECT = ("move_forward", "turn_left", "turn_right")

# The weapon takes this long to rise; before, the attack button does nothing.
_START_TIC = 20
# From the attack button to the bang: 4 tics for the pistol, more for a weapon between two shots.
_ATTACK_DELAY_TICS = 12
_ATTEMPTS = 32
_NO_SOUND = "the sound of {} is all zeros; install the system library libopenal1 (apt-get install libopenal1)"

# The engine creates ./_vizdoom wherever it runs unless its settings file has all of these sections.
_ENGINE_SETTINGS = "".join(f"[{game}.AutoExec]\n" for game in ("Doom", "Heretic", "Hexen", "Strife", "Chex"))


class EpisodeEndedError(ValueError):
    """The game ended (a death, a goal reached) before the clip was long enough."""


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A place to play in.

    Attributes:
        config: name of a configuration bundled with ViZDoom, without its ending.
        caption: text in force from frame 0 on.
        buttons: what the policy presses, of ACTION_NAMES.
        game: the Freedoom file with textures, monsters and sounds.
        level: map to load; None keeps the map of the configuration.
    """

    config: str
    caption: str
    buttons: tuple[str, ...] = ACTION_NAMES
    game: str = "freedoom2.wad"
    level: str | None = None


SCENARIOS: Mapping[str, Scenario] = {
    "basic": Scenario("basic", "doom: shoot the monster at the far wall", _STRAFE),
    "defend_the_center": Scenario("defend_the_center", "doom: defend the center", _TURN),
    "defend_the_line": Scenario("defend_the_line", "doom: defend the line", _TURN),
    "health_gathering": Scenario("health_gathering", "doom: gather health on the acid floor", _COLLECT),
    "take_cover": Scenario("take_cover", "doom: take cover from the fireballs", ("move_left", "move_right")),
    "deathmatch": Scenario("deathmatch", "doom: deathmatch arena"),
}

_FREEDOOM = re.compile(r"freedoom(?:1_(e[1-4]m[1-9])|2_(map(?:0[1-9]|[12]\d|3[0-2])))")


def find_scenario(name: str) -> Scenario:
    """Returns the scenario of that name.

    Args:
        name: one of SCENARIOS, or a Freedoom map: freedoom1_e1m1 to e4m9, freedoom2_map01 to map32.

    Raises:
        ValueError: there is none.
    """
    if name in SCENARIOS:
        return SCENARIOS[name]
    match = _FREEDOOM.fullmatch(name)
    if match is None:
        known = ", ".join(SCENARIOS)
        raise ValueError(f"scenario is {name!r}; use one of {known}, freedoom1_e1m1 or freedoom2_map01")
    config = name.split("_")[0]
    level = match[1] or match[2]
    return Scenario(config, f"doom: {config} {level}", game=f"{config}.wad", level=level)


@dataclasses.dataclass(frozen=True)
class Recording:
    """What to record.

    Attributes:
        scenario: a name that `find_scenario` knows.
        seed: with the scenario and the split it fixes the game and the policy.
        frames: length of the clip. Most players of the small scenarios die within 6 to 15 seconds, so ask for
            50 frames of 4 tics or less there; the Freedoom maps and deathmatch allow more.
        split: the dataset split; the same seed gives another game in another split.
        resolution: a screen size of ViZDoom: RES_160X120 (4:3), RES_200X125 (16:10), RES_256X144 (16:9), ...
        sample_rate: Hz, one of SAMPLE_RATES; the sound is stereo.
        tics_per_frame: 4 gives 8.75 frames a second.

    Raises:
        ValueError: a field is out of range; the message names it.
    """

    scenario: str
    seed: int
    frames: int
    split: str = "train"
    resolution: str = "RES_160X120"
    sample_rate: int = 11025
    tics_per_frame: int = 4

    def __post_init__(self) -> None:
        find_scenario(self.scenario)
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; use 0 or more")
        if self.frames < 1:
            raise ValueError(f"frames is {self.frames}; use 1 or more")
        if not re.fullmatch(r"[\w-]+", self.split):
            raise ValueError(f"split is {self.split!r}; use letters, digits, - and _")
        if not re.fullmatch(r"RES_\d+X\d+", self.resolution):
            raise ValueError(f"resolution is {self.resolution!r}; use a ViZDoom name such as RES_160X120")
        if self.sample_rate not in SAMPLE_RATES:
            raise ValueError(f"sample_rate is {self.sample_rate}; use one of {SAMPLE_RATES}")
        if not 1 <= self.tics_per_frame <= TICS_PER_SECOND:
            raise ValueError(f"tics_per_frame is {self.tics_per_frame}; use 1 to {TICS_PER_SECOND}")

    @property
    def frame_rate(self) -> fractions.Fraction:
        """Frames a second."""
        return fractions.Fraction(TICS_PER_SECOND, self.tics_per_frame)

    @property
    def episode(self) -> str:
        """Unique id of the clip."""
        size = self.resolution.removeprefix("RES_").lower()
        return f"vizdoom/{self.split}/{self.scenario}/{size}/{self.seed:06d}"

    def generator(self, purpose: str, attempt: int = 0) -> np.random.Generator:
        """Returns the random generator for one purpose; the screen and the sound have no part in it."""
        key = zlib.crc32(f"{self.scenario}/{self.split}/{purpose}".encode())
        return np.random.default_rng([self.seed, attempt, key])


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
    return _record(Recording(scenario, seed, frames, split, resolution, sample_rate, tics_per_frame))


def record_many(recordings: Iterable[Recording]) -> Iterator[Clip]:
    """Yields one clip a recording, in order; sizes and scenarios may differ.

    Raises as `record` does, and RuntimeError at the end if not one of the clips had sound.
    """
    heard, last = False, None
    for recording in recordings:
        clip = _record(recording)
        heard, last = heard or bool(clip.audio.any()), recording.episode
        yield clip
    if last is not None and not heard:
        raise RuntimeError(f"{last}: {_NO_SOUND.format('every clip up to this one')}")


def replay(recording: Recording, actions: np.ndarray) -> Clip:
    """Plays given actions in the game of a recording.

    With the actions of a recorded clip it returns that clip again, bit for bit; with others, what would have
    happened instead.

    Args:
        recording: fixes the game, the screen and the sound.
        actions: float32 `[frames, action_dim]` of zeros and ones, columns as in ACTION_NAMES.

    Raises:
        ValueError: the actions have another shape.
        EpisodeEndedError: the game ended before the last frame.
        ImportError: ViZDoom is not installed.
        RuntimeError: the game has no sound because libopenal1 is missing.
    """
    expected = (recording.frames, len(ACTION_NAMES))
    if actions.shape != expected:
        raise ValueError(f"{recording.episode}: actions have shape {list(actions.shape)}; use {list(expected)}")
    video, audio = _play(recording, actions)
    clip = Clip(
        video=video,
        audio=audio,
        actions=actions.astype(np.float32),
        action_names=ACTION_NAMES,
        events=(TextEvent(0, find_scenario(recording.scenario).caption),),
        frame_rate=recording.frame_rate,
        sample_rate=recording.sample_rate,
        source=f"vizdoom:{recording.scenario}",
        licence=LICENCE,
        seed=recording.seed,
        episode=recording.episode,
    )
    _check_sound(clip, recording.tics_per_frame)
    return clip


def sample_actions(recording: Recording, attempt: int = 0) -> np.ndarray:
    """Returns float32 `[frames, action_dim]`: buttons held for random times, independently on each axis.

    Each attempt is another draw of the policy; the game stays the same.
    """
    generator = recording.generator("policy", attempt)
    buttons = find_scenario(recording.scenario).buttons
    actions = np.zeros((recording.frames, len(ACTION_NAMES)), np.float32)
    for axis in _AXES:
        # Drawn for every axis, so that dropping a button from a scenario leaves the others as they were.
        held = _hold(axis, recording, generator)
        for index, name in enumerate(axis.buttons):
            if name in buttons:
                actions[:, ACTION_NAMES.index(name)] = held == index
    return actions


@dataclasses.dataclass(frozen=True)
class _Axis:
    """Buttons that exclude each other, how often each is held, and the range of a hold in tics."""

    buttons: tuple[str, ...]
    shares: tuple[float, ...]
    hold_tics: tuple[int, int]


_AXES = (
    _Axis(("move_forward", "move_backward"), (0.55, 0.12), (12, 50)),
    _Axis(("move_left", "move_right"), (0.3, 0.3), (6, 20)),
    _Axis(("turn_left", "turn_right"), (0.3, 0.3), (4, 16)),
    _Axis(("attack",), (0.4,), (4, 24)),
    _Axis(("use",), (0.1,), (4, 8)),
)


def _hold(axis: _Axis, recording: Recording, generator: np.random.Generator) -> np.ndarray:
    """Returns int `[frames]`: which button of the axis is held, or len(axis.buttons) for none."""
    shares = [*axis.shares, 1 - sum(axis.shares)]
    held = np.empty(recording.frames, int)
    frame = 0
    while frame < recording.frames:
        tics = int(generator.integers(*axis.hold_tics, endpoint=True))
        stop = frame + max(1, round(tics / recording.tics_per_frame))
        held[frame:stop] = generator.choice(len(shares), p=shares)
        frame = stop
    return held


def _record(recording: Recording) -> Clip:
    for attempt in range(_ATTEMPTS):
        try:
            return replay(recording, sample_actions(recording, attempt))
        except EpisodeEndedError:
            continue
    raise EpisodeEndedError(
        f"{recording.episode}: the game ended before frame {recording.frames} in each of {_ATTEMPTS} tries; "
        "use fewer frames"
    )


def _play(recording: Recording, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns video uint8 `[frames, height, width, 3]` and audio int16 `[samples, 2]`."""
    video, audio = [], []
    # A fresh engine for every clip: one that has already played an episode draws the next one differently.
    with tempfile.TemporaryDirectory(prefix="pixr1-vizdoom-") as folder:
        game = _new_game(recording, Path(folder) / "engine.ini")
        try:
            game.init()
            for frame, action in enumerate(actions):
                game.make_action(action.tolist(), recording.tics_per_frame)
                state = game.get_state()
                if state is None:
                    raise EpisodeEndedError(
                        f"{recording.episode}: the game ended in frame {frame} of {recording.frames}"
                    )
                # The engine reuses these buffers in the next step.
                video.append(np.array(state.screen_buffer))
                audio.append(np.array(state.audio_buffer))
        finally:
            game.close()
    return np.stack(video), np.concatenate(audio)


def _new_game(recording: Recording, settings: Path) -> vizdoom.DoomGame:
    """Returns a game that is set up and not started; the engine keeps `settings` and writes it back."""
    vzd = _import_vizdoom()
    scenario = find_scenario(recording.scenario)
    settings.write_text(_ENGINE_SETTINGS)
    game = vzd.DoomGame()
    game.load_config(str(Path(vzd.scenarios_path) / f"{scenario.config}.cfg"))
    # Named explicitly: the engine would prefer a commercial doom2.wad if it found one.
    game.set_doom_game_path(str(Path(vzd.__file__).parent / scenario.game))
    if scenario.level is not None:
        game.set_doom_map(scenario.level)
    game.set_doom_config_path(str(settings))
    game.set_mode(vzd.Mode.PLAYER)
    game.set_window_visible(False)
    game.set_seed(int(recording.generator("game").integers(2**31)))
    game.set_episode_start_time(_START_TIC)
    game.set_episode_timeout(0)
    game.set_available_buttons([vzd.Button.__members__[name.upper()] for name in ACTION_NAMES])
    _set_screen(game, vzd, recording.resolution)
    _set_sound(game, vzd, recording)
    return game


def _set_screen(game: vizdoom.DoomGame, vzd: Any, resolution: str) -> None:
    """Sets every visible option, since the bundled configurations differ in them."""
    sizes = vzd.ScreenResolution.__members__
    if resolution not in sizes:
        raise ValueError(f"resolution is {resolution!r}; use one of {', '.join(sizes)}")
    game.set_screen_resolution(sizes[resolution])
    game.set_screen_format(vzd.ScreenFormat.RGB24)
    game.set_render_hud(False)
    game.set_render_crosshair(False)
    game.set_render_messages(False)
    game.set_render_weapon(True)
    game.set_render_decals(True)
    game.set_render_particles(True)
    game.set_render_screen_flashes(True)
    game.set_automap_buffer_enabled(False)
    game.set_depth_buffer_enabled(False)
    game.set_labels_buffer_enabled(False)


def _set_sound(game: vizdoom.DoomGame, vzd: Any, recording: Recording) -> None:
    game.set_sound_enabled(True)
    game.set_audio_buffer_enabled(True)
    game.set_audio_sampling_rate(vzd.SamplingRate.__members__[f"SR_{recording.sample_rate}"])
    # As many tics as a frame lasts, so that the buffers of successive frames join without gap or overlap.
    game.set_audio_buffer_size(recording.tics_per_frame)
    # Environmental effects trip an assertion in OpenAL Soft 1.19, which takes the process down.
    game.add_game_args("+snd_efx 0")


def _check_sound(clip: Clip, tics_per_frame: int) -> None:
    """Raises RuntimeError for a clip with shots and no sound: without OpenAL the game runs on, mute."""
    delay = -(-_ATTACK_DELAY_TICS // tics_per_frame)
    attacks = clip.actions[: max(0, clip.frames - delay), ACTION_NAMES.index("attack")]
    if attacks.any() and not clip.audio.any():
        raise RuntimeError(f"{clip.episode}: {_NO_SOUND.format('a clip with shots')}")


def _import_vizdoom() -> Any:
    try:
        import vizdoom
    except ImportError as error:
        raise ImportError(
            "recording Doom needs ViZDoom: pip install 'pixr1-jax[doom]' and the system library libopenal1"
        ) from error
    return vizdoom
