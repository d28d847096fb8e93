"""Recording playground rollouts as clips."""

import fractions
import itertools
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from data_pipelines.clip import Clip, TextEvent
from data_pipelines.facts import Fact
from data_pipelines.sources.playground.policies import POLICIES
from data_pipelines.sources.playground.rollout import Observation, rollout_batch
from data_pipelines.sources.playground.weather import event_codes
from data_pipelines.sources.playground.world import ACTION_NAMES, World, object_names

SOURCE = "playground"
LICENCE = "CC0-1.0"


def record(world: World, seed: int, policy: str, frames: int, *, split: str) -> Clip:
    """Records one clip: see `record_many`."""
    return next(record_many(world, [seed], policy, frames, split=split, batch=1))


def record_many(
    world: World, seeds: Iterable[int], policy: str, frames: int, *, split: str, batch: int = 32
) -> Iterator[Clip]:
    """Records one clip a seed, in order.

    The seed alone decides the world and, with the policy's name, what is played in it: splits must not share
    seeds.

    Args:
        world: the configuration.
        seeds: each in 0 .. 2**31 - 1.
        policy: a key of POLICIES.
        frames: length of each clip.
        split: name of the split, part of the episode's name.
        batch: rollouts run at once.

    Raises:
        ValueError: the policy is unknown, or a number is out of range.
    """
    if policy not in POLICIES:
        raise ValueError(f"playground does not know the policy {policy!r}; use one of {', '.join(POLICIES)}")
    if frames < 1 or batch < 1:
        raise ValueError(f"playground needs at least 1 frame and a batch of 1, got {frames=} {batch=}")
    return record_batches(world, ((split, seed) for seed in seeds), policy, frames, batch)


def record_batches(
    world: World, seeds: Iterable[tuple[str, int]], policy: str, frames: int, batch: int
) -> Iterator[Clip]:
    """Records one clip a split and seed, in order; see `record_many`, which checks its arguments at once."""
    remaining = iter(seeds)
    while group := list(itertools.islice(remaining, batch)):
        plays = [_play(world, seed, policy, frames) for _, seed in group]
        # A short last group is filled up, so that one compiled program serves all.
        filled = [*range(len(group)), *[0] * (batch - len(group))]
        _, observed = rollout_batch(
            world,
            np.array([group[i][1] for i in filled], np.int32),
            np.stack([plays[i][0] for i in filled]),
            np.stack([event_codes(world, plays[i][1], frames) for i in filled]),
        )
        observed = jax.device_get(observed)
        video, audio = observed.frame, observed.audio
        for i, ((split, seed), (actions, events)) in enumerate(zip(group, plays, strict=True)):
            yield Clip(
                video=video[i].copy(),
                audio=np.round(audio[i].reshape(-1, 2) * 32767).astype(np.int16),
                actions=actions,
                action_names=ACTION_NAMES,
                events=events,
                frame_rate=fractions.Fraction(world.frame_rate),
                sample_rate=world.sample_rate,
                source=SOURCE,
                licence=LICENCE,
                seed=seed,
                episode=episode(split, seed),
                facts=_facts(world, jax.tree.map(lambda x, i=i: x[i], observed)),
            )


def episode(split: str, seed: int) -> str:
    """Returns the unique id of a clip."""
    return f"{SOURCE}/{split}/{seed:06d}"


def _facts(world: World, observed: Observation) -> dict[str, Fact]:
    """What is true of each frame of a rollout: where everything is in the world and in the picture."""
    names, bodies = object_names(world), observed.bodies
    moving = np.concatenate([bodies.position, bodies.velocity], axis=-1).astype(np.float32)
    boxes = np.where(observed.visible[..., None], observed.boxes, np.nan).astype(np.float32)
    # A contact is heard from its sample on; the strongest of a frame stands for it.
    contacts = np.asarray(observed.onset_strength).max(axis=1).astype(np.float32)[..., None]
    return {
        "bodies": Fact(moving, ("x", "y", "velocity_x", "velocity_y"), names[: 1 + world.balls]),
        "boxes": Fact(boxes, ("left", "top", "right", "bottom"), names),
        "contacts": Fact(contacts, ("strength",), names[: 1 + world.balls]),
        "camera": Fact(np.asarray(observed.camera, np.float32)[:, None], ("x",)),
    }


def _play(world: World, seed: int, policy: str, frames: int) -> tuple[np.ndarray, tuple[TextEvent, ...]]:
    if not 0 <= seed < 2**31:
        raise ValueError(f"playground seed {seed} is out of range; use 0 to 2**31 - 1")
    rng = np.random.default_rng([seed, *policy.encode()])
    return POLICIES[policy](world, rng, frames)
