"""The game itself: how the engine is set up, stepped and checked."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipelines.facts import Fact
from data_pipelines.sources.vizdoom import captions
from data_pipelines.sources.vizdoom.scenarios import ACTION_NAMES
from data_pipelines.sources.vizdoom.settings import Recording
from data_pipelines.sources.vizdoom.truth import Truth

if TYPE_CHECKING:
    import vizdoom

LICENCE = "ViZDoom scenarios MIT; Freedoom assets BSD-3-Clause"
NO_SOUND = "the sound of {} is all zeros; install the system library libopenal1 (apt-get install libopenal1)"

# The weapon takes this long to rise; before, the attack button does nothing.
_START_TIC = 20
# A shot and its bang, with room to spare.
_PROBE_FRAMES = 12

# The engine creates ./_vizdoom wherever it runs unless its settings file has all of these sections.
_ENGINE_SETTINGS = "".join(f"[{game}.AutoExec]\n" for game in ("Doom", "Heretic", "Hexen", "Strife", "Chex"))


class EpisodeEndedError(ValueError):
    """The game ended (a death, a goal reached) before the clip was long enough."""


@dataclasses.dataclass(frozen=True)
class View:
    """What the player knows before a frame.

    Attributes:
        depth: uint8 `[height, width]`, larger is farther; None unless the recording's policy explores.
        position: float64 `[2]` on the map, in units of the map; the player is 32 wide.
    """

    depth: np.ndarray | None
    position: np.ndarray


# Gives the row of actions for a frame, and may look at the view before it.
Player = Callable[[int, Callable[[], View]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Played:
    """What came of a game.

    Attributes:
        video: uint8 `[frames, height, width, 3]`.
        audio: int16 `[samples, 2]`.
        actions: float32 `[frames, action_dim]`.
        texts: the state at each frame in words; empty unless the recording's captions tell the state.
        facts: see `Truth.facts`.
    """

    video: np.ndarray
    audio: np.ndarray
    actions: np.ndarray
    texts: list[str]
    facts: dict[str, Fact]


def play(recording: Recording, player: Player) -> Played:
    """Plays a recording from its first frame to its last, or to the end of the game where that is long enough.

    Args:
        recording: fixes the game, the screen and the sound.
        player: who plays.

    Raises:
        EpisodeEndedError: the game ended too early.
        ImportError: ViZDoom is not installed.
    """
    video, audio, actions, texts, truth = [], [], [], [], Truth()
    # A fresh engine for every clip: one that has already played an episode draws the next one differently.
    with tempfile.TemporaryDirectory(prefix="pixr1-vizdoom-") as folder:
        game = _new_game(recording, Path(folder) / "engine.ini")
        try:
            game.init()
            for frame in range(recording.frames):
                actions.append(player(frame, functools.partial(_view, game)))
                game.make_action(actions[frame].tolist(), recording.tics_per_frame)
                state = game.get_state()
                if state is None and frame >= recording.least_frames:
                    del actions[frame:]
                    break
                if state is None:
                    raise EpisodeEndedError(
                        f"{recording.episode}: the game ended in frame {frame} of {recording.frames}"
                    )
                # The engine reuses these buffers in the next step.
                video.append(np.array(state.screen_buffer))
                audio.append(np.array(state.audio_buffer))
                truth.add(game, state)
                if recording.captions == "state":
                    texts.append(captions.describe(recording.scene.caption, game, state))
        finally:
            game.close()
    held = np.stack(actions).astype(np.float32)
    return Played(np.stack(video), np.concatenate(audio), held, texts, truth.facts())


@functools.cache
def check_sound() -> None:
    """Raises RuntimeError unless a shot is heard: without OpenAL the game runs on, mute."""
    shoot = np.zeros(len(ACTION_NAMES), np.float32)
    shoot[ACTION_NAMES.index("attack")] = 1
    played = play(Recording("defend_the_center", seed=0, frames=_PROBE_FRAMES), lambda *_: shoot)
    if not played.audio.any():
        raise RuntimeError(NO_SOUND.format("a clip with shots"))


def _view(game: vizdoom.DoomGame) -> View:
    state = game.get_state()
    variables = _import_vizdoom().GameVariable
    position = [game.get_game_variable(one) for one in (variables.POSITION_X, variables.POSITION_Y)]
    return View(None if state is None else state.depth_buffer, np.array(position))


def _new_game(recording: Recording, settings: Path) -> vizdoom.DoomGame:
    """Returns a game that is set up and not started; the engine keeps `settings` and writes it back."""
    vzd = _import_vizdoom()
    scenario = recording.scene
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
    game.add_game_args(scenario.arguments)
    _set_screen(game, vzd, recording.resolution)
    game.set_depth_buffer_enabled(recording.policy == "explore")
    game.set_labels_buffer_enabled(True)
    _set_sound(game, vzd, recording)
    return game


def _set_screen(game: vizdoom.DoomGame, vzd: Any, resolution: str) -> None:
    """Sets every visible option, since the bundled configurations differ in them."""
    game.set_screen_resolution(vzd.ScreenResolution.__members__[resolution])
    game.set_screen_format(vzd.ScreenFormat.RGB24)
    game.set_render_hud(False)
    game.set_render_crosshair(False)
    game.set_render_messages(False)
    game.set_render_weapon(True)
    game.set_render_decals(True)
    game.set_render_particles(True)
    game.set_render_screen_flashes(True)
    game.set_automap_buffer_enabled(False)


def _set_sound(game: vizdoom.DoomGame, vzd: Any, recording: Recording) -> None:
    game.set_sound_enabled(True)
    game.set_audio_buffer_enabled(True)
    game.set_audio_sampling_rate(vzd.SamplingRate.__members__[f"SR_{recording.sample_rate}"])
    # As many tics as a frame lasts, so that the buffers of successive frames join without gap or overlap.
    game.set_audio_buffer_size(recording.tics_per_frame)
    # Environmental effects trip an assertion in OpenAL Soft 1.19, which takes the process down.
    game.add_game_args("+snd_efx 0")


def _import_vizdoom() -> Any:
    try:
        import vizdoom
    except ImportError as error:
        raise ImportError(
            "recording Doom needs ViZDoom: pip install 'pixr1-jax[doom]' and the system library libopenal1"
        ) from error
    return vizdoom
