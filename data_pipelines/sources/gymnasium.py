"""Recordings of any Gymnasium environment that renders `rgb_array` frames.

Frame f is the picture after the step that took action f, at the environment's own size and rate. There is no
sound. An environment is made anew for every clip.

Gymnasium is optional: `pip install 'pixr1-jax[games]'`, and the packages of the environments.
See Towers et al., "Gymnasium: A Standard Interface for Reinforcement Learning Environments", 2024.
"""

from __future__ import annotations

import dataclasses
import fractions
import functools
import importlib
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.clip import Clip, TextEvent, one_line, samples_at
from data_pipelines.record import Record
from data_pipelines.source import Item, Rejected
from data_pipelines.sources import generated
from data_pipelines.sources.gymnasium_actions import sample_actions, space_names

# (observation, info, rng) -> action of the environment's action space.
Policy = Callable[[Any, dict[str, Any], np.random.Generator], Any]

# (environment, frame, observation, info) -> float32 [action_dim].
_Player = Callable[[Any, int, Any, dict[str, Any]], np.ndarray]

# A clip without sound has a sample clock all the same.
_SAMPLE_RATE = 16_000
_ATTEMPTS = 8
_MAX_DENOMINATOR = 1001
_INSTALL = "pip install 'pixr1-jax[games]'"
_TERMS = "see the terms of the environment's package"


class EpisodeEndedError(ValueError):
    """The episode ended before the clip was long enough."""


@dataclasses.dataclass(frozen=True)
class Environment:
    """An environment and how it is played.

    Attributes:
        id: as `gymnasium.make` takes it; a module that registers it goes in front: "minigrid:MiniGrid-Empty-8x8-v0".
        kwargs: further arguments of `gymnasium.make`.
        policy: "random" draws from the action space and holds each draw for a random time; "module:function" is
            called as `function(observation, info, rng)` for every action.
        hold_seconds: shortest and longest hold of the random policy, in seconds of the environment's clock.
        frame_rate: frames a second; None takes `render_fps` of the environment's metadata.
        caption: text in force from frame 0 on; None takes the environment's `mission`, where it has one, whenever it
            changes.
        licence: terms of the pictures.

    Raises:
        ValueError: a field is out of range; the message names it.
    """

    id: str
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    policy: str = "random"
    hold_seconds: tuple[float, float] = (0.1, 0.8)
    frame_rate: float | None = None
    caption: str | None = None
    licence: str = _TERMS

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("id is empty; name an environment such as 'CartPole-v1'")
        if "render_mode" in self.kwargs:
            raise ValueError("kwargs has render_mode; leave it out, it is always 'rgb_array'")
        if self.policy != "random" and not re.fullmatch(r"[\w.]+:\w+", self.policy):
            raise ValueError(f"policy is {self.policy!r}; use 'random' or 'module:function'")
        if not 0 <= self.hold_seconds[0] <= self.hold_seconds[1]:
            raise ValueError(f"hold_seconds is {self.hold_seconds}; use a shortest and a longest time")
        if self.frame_rate is not None and not 0 < self.frame_rate < np.inf:
            raise ValueError(f"frame_rate is {self.frame_rate}; use a positive number or None")

    @property
    def name(self) -> str:
        """The id without the module in front."""
        return self.id.rpartition(":")[2]

    def generator(self, seed: int, purpose: str, attempt: int = 0) -> np.random.Generator:
        """Returns the random generator for one purpose of one clip."""
        return np.random.default_rng([seed, attempt, zlib.crc32(f"{self.name}/{purpose}".encode())])


@dataclasses.dataclass(frozen=True)
class GymnasiumSource:
    """A `Source` of one clip a seed; the seeds of a split take the environments in turn.

    Where environments differ in their actions, every clip has the columns of all of them, and zeros in those that
    its own lacks; actions of one name share a column. A clip stops where its episode ends.

    Attributes:
        environments: what to play.
        seeds: of each split; with the environment a seed fixes the clip, as far as the environment obeys it.
        frames: longest clip.
        min_frames: shortest clip; where an episode ends earlier, another draw of the policy is tried.

    Raises:
        ValueError: a field is out of range; the message names it. `items` and `record` raise it for an environment
            or a package that is not there.
    """

    environments: tuple[Environment, ...]
    seeds: generated.Seeds
    frames: int
    min_frames: int

    def __post_init__(self) -> None:
        if not self.environments:
            raise ValueError("environments is empty; name at least one")
        names = [environment.name for environment in self.environments]
        if len(set(names)) != len(names):
            raise ValueError(f"environments names {names}; name each once")
        generated.check_seeds(self.seeds)
        generated.check_at_least(1, frames=self.frames, min_frames=self.min_frames)
        if self.min_frames > self.frames:
            raise ValueError(f"min_frames is {self.min_frames}; use at most frames, which is {self.frames}")

    @property
    def batch(self) -> int:
        """See `Source`."""
        return 1

    @functools.cached_property
    def action_names(self) -> tuple[str, ...]:
        """The schema that all clips share.

        Raises:
            ValueError: an environment cannot be made, or its actions or its clock cannot be recorded.
        """
        return tuple(dict.fromkeys(name for one in self.environments for name in action_names(one)))

    def items(self) -> Sequence[Item]:
        """See `Source`."""
        for environment in self.environments:
            _check_registered(environment)
        return [
            Item(split, f"gymnasium/{split}/{one.name}/{seed:06d}", (one, seed))
            for split, seed, one in generated.deal(self.seeds, self.environments)
        ]

    def record(self, items: Sequence[Item]) -> Iterator[tuple[Item, Clip | Record | Rejected]]:
        """See `Source`."""
        names = self.action_names
        policies = {one.id: _load_policy(one) for one in self.environments}
        for item in items:
            environment, seed = item.what
            try:
                result = self._clip(environment, seed, policies[environment.id], names, item.name)
            except Exception as error:  # An environment is code of others, and raises what it likes.
                if _is_missing_package(error):
                    raise ValueError(f"environment {environment.id!r} lacks a package: {error}") from error
                result = Rejected(item.name, one_line(error))
            yield item, result

    def _clip(
        self, environment: Environment, seed: int, policy: Policy | None, names: Sequence[str], episode: str
    ) -> Clip:
        longest = 0
        for attempt in range(_ATTEMPTS):
            rng = environment.generator(seed, "policy", attempt)
            player = _random_player(environment, rng, self.frames) if policy is None else _player(policy, rng)
            played = _play(environment, seed, self.frames, player)
            if len(played.video) >= self.min_frames:
                return _as_clip(environment, seed, played, names, episode)
            longest = max(longest, len(played.video))
        raise EpisodeEndedError(
            f"the episode ended within {longest} frames in each of {_ATTEMPTS} tries and min_frames is "
            f"{self.min_frames}; use less"
        )


def replay(environment: Environment, seed: int, actions: np.ndarray) -> np.ndarray:
    """Plays given actions in the environment of a clip.

    Args:
        environment: what to play.
        seed: of the clip.
        actions: float32 `[frames, action_dim]`, columns as in `action_names(environment)`.

    Returns:
        uint8 `[frames, height, width, 3]`, fewer frames where the episode ends earlier.

    Raises:
        ValueError: the environment or a package is missing, or the actions have another shape.
    """
    width = len(action_names(environment))
    if actions.ndim != 2 or actions.shape[1] != width:
        raise ValueError(f"actions have shape {list(actions.shape)}; use [frames, {width}]")
    return np.stack(_play(environment, seed, len(actions), lambda env, frame, *_: actions[frame]).video)


def action_names(environment: Environment) -> tuple[str, ...]:
    """Returns the columns of an environment's actions, those of `gymnasium.spaces.utils.flatten`.

    A Discrete action is one button each, named as the environment names it, and a MultiDiscrete one a set of
    buttons an entry; MultiBinary and Box are an axis an entry, in their own units. Parts of a Dict or Tuple have
    their key in front.

    Raises:
        ValueError: the environment cannot be made, or has actions or a clock that cannot be recorded.
    """
    env = _make(environment)
    try:
        _frame_rate(environment, env)
        return _names(environment, env)
    finally:
        env.close()


def _random_player(environment: Environment, rng: np.random.Generator, frames: int) -> _Player:
    rows: list[np.ndarray] = []

    def act(env: Any, frame: int, *_: Any) -> np.ndarray:
        if not rows:
            rate = _frame_rate(environment, env)
            shortest, longest = (max(1, round(seconds * rate)) for seconds in environment.hold_seconds)
            rows.extend(sample_actions(env.action_space, rng, frames, (shortest, longest)))
        return rows[frame]

    return act


def _player(policy: Policy, rng: np.random.Generator) -> _Player:
    from gymnasium.spaces import utils

    def act(env: Any, frame: int, observation: Any, info: dict[str, Any]) -> np.ndarray:
        action = policy(observation, info, rng)
        if not env.action_space.contains(action):
            raise ValueError(f"policy gave {action!r} in frame {frame}; use an action of {env.action_space}")
        return np.asarray(utils.flatten(env.action_space, action), np.float32)

    return act


@dataclasses.dataclass(frozen=True)
class _Played:
    """An episode, or the beginning of one."""

    video: list[np.ndarray]
    actions: list[np.ndarray]
    events: tuple[TextEvent, ...]
    names: tuple[str, ...]
    frame_rate: fractions.Fraction


def _play(environment: Environment, seed: int, frames: int, player: _Player) -> _Played:
    """Plays until the episode ends, at most `frames` steps."""
    from gymnasium.spaces import utils

    env = _make(environment)
    try:
        observation, info = env.reset(seed=int(environment.generator(seed, "environment").integers(2**31)))
        video, actions, events = [], [], []
        for frame in range(frames):
            actions.append(player(env, frame, observation, info))
            # The environment gets what is stored, rounded to float32 as it is.
            observation, _, terminated, truncated, info = env.step(utils.unflatten(env.action_space, actions[frame]))
            video.append(_picture(env))
            text = _caption(environment, env)
            if text is not None and (not events or events[-1].text != text):
                events.append(TextEvent(frame, text))
            if terminated or truncated:
                break
        return _Played(video, actions, tuple(events), _names(environment, env), _frame_rate(environment, env))
    finally:
        env.close()


def _as_clip(environment: Environment, seed: int, played: _Played, names: Sequence[str], episode: str) -> Clip:
    frames = len(played.video)
    actions = np.zeros((frames, len(names)), np.float32)
    actions[:, [names.index(name) for name in played.names]] = np.stack(played.actions)
    clip = Clip(
        video=np.stack(played.video),
        audio=np.zeros((samples_at(frames, _SAMPLE_RATE, played.frame_rate), 0), np.int16),
        actions=actions,
        action_names=tuple(names),
        events=played.events,
        frame_rate=played.frame_rate,
        sample_rate=_SAMPLE_RATE,
        source=f"gymnasium:{environment.name}",
        licence=environment.licence,
        seed=seed,
        episode=episode,
    )
    clip.validate()
    return clip


def _picture(env: Any) -> np.ndarray:
    picture = env.render()
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        found = f"{picture.dtype}{list(picture.shape)}" if isinstance(picture, np.ndarray) else type(picture).__name__
        raise ValueError(f"render() gave {found}; wrap the environment so that it gives uint8 [height, width, 3]")
    # Some environments draw into one buffer for ever.
    return picture.copy()


def _caption(environment: Environment, env: Any) -> str | None:
    if environment.caption is not None:
        return environment.caption
    mission = getattr(env.unwrapped, "mission", None)
    return mission if isinstance(mission, str) else None


def _names(environment: Environment, env: Any) -> tuple[str, ...]:
    space = env.action_space
    names = tuple(space_names(space, meanings=_meanings(env.unwrapped, getattr(space, "n", None))))
    if len(set(names)) != len(names):
        raise ValueError(f"environment {environment.id!r} has actions of one name: {', '.join(names)}; rename them")
    return names


def _meanings(env: Any, count: int | None) -> list[str] | None:
    """Returns what an environment calls its actions, where it says so of each."""
    if hasattr(env, "get_action_meanings"):
        names = list(env.get_action_meanings())
    else:
        # MiniGrid and others have an enumeration.
        names = list(getattr(getattr(env, "actions", None), "__members__", ()))
    return [re.sub(r"\s+", "_", str(name).lower()) for name in names] if len(names) == count else None


def _frame_rate(environment: Environment, env: Any) -> fractions.Fraction:
    rate = environment.frame_rate or env.metadata.get("render_fps")
    if not rate:
        raise ValueError(f"environment {environment.id!r} does not say its render_fps; give its frame_rate")
    return fractions.Fraction(rate).limit_denominator(_MAX_DENOMINATOR)


def _make(environment: Environment) -> Any:
    """Returns the environment, not yet reset."""
    _check_registered(environment)
    import gymnasium

    try:
        return gymnasium.make(
            environment.name, render_mode="rgb_array", disable_env_checker=True, **dict(environment.kwargs)
        )
    except Exception as error:
        if _is_missing_package(error):
            raise ValueError(f"environment {environment.id!r} lacks a package: {error}") from error
        raise ValueError(
            f"environment {environment.id!r} cannot be made with kwargs {dict(environment.kwargs)}: {one_line(error)}"
        ) from error


def _check_registered(environment: Environment) -> None:
    """Raises ValueError unless the packages of an environment are there and know its id."""
    module, _, name = environment.id.rpartition(":")
    try:
        import gymnasium
    except ImportError as error:
        raise ValueError(f"environment {environment.id!r} needs Gymnasium: {_INSTALL}") from error
    try:
        if module:
            importlib.import_module(module)
        gymnasium.spec(name)
    except ImportError as error:
        raise ValueError(
            f"environment {environment.id!r} needs the package of {module}: {error}; pip install it"
        ) from error
    except gymnasium.error.Error as error:
        raise ValueError(
            f"environment {environment.id!r} is unknown: {error} Install its package and name the module in front, as "
            "in 'minigrid:MiniGrid-Empty-8x8-v0'"
        ) from error


def _is_missing_package(error: Exception) -> bool:
    """Whether a package is missing: many environments import theirs only to draw the first picture."""
    import gymnasium

    return isinstance(error, ImportError | gymnasium.error.DependencyNotInstalled)


def _load_policy(environment: Environment) -> Policy | None:
    """Returns the function that `policy` names, None for the random one."""
    if environment.policy == "random":
        return None
    module, _, name = environment.policy.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"policy {environment.policy!r} is not there: {error}; use 'module:function'") from error
