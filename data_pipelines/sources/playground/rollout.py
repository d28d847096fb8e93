"""Running a playground: one frame, many frames, many worlds; pixels and sound with the truth beside them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.sources.playground import physics, scene, sound
from data_pipelines.sources.playground.render import render
from data_pipelines.sources.playground.weather import advance_weather
from data_pipelines.sources.playground.world import Bodies, State, World, camera_x, reset


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Observation:
    """What one frame shows and sounds like, and the truth about it. Rollouts stack a frame axis in front."""

    frame: jax.Array  # [height, width, 3] uint8 RGB
    audio: jax.Array  # [samples_per_frame, 2] float32 in -1..1, left and right
    visible: jax.Array  # [objects] bool, in the order of object_names
    boxes: jax.Array  # [objects, 4] left, top, right, bottom in pixels, clipped; 0 if not visible
    onset_strength: jax.Array  # [substeps, 1 + balls] amplitude of contacts that are heard, else 0
    onset_sample: jax.Array  # [substeps] int32 samples since reset at which contacts of a substep begin
    camera: jax.Array  # [] centre of the view, units
    bodies: Bodies  # at the end of the frame, as shown


@dataclasses.dataclass(frozen=True)
class Onset:
    """One contact that is heard."""

    sample: int  # samples since reset
    body: int  # 0 the agent, 1 + i ball i
    strength: float  # amplitude


@functools.partial(jax.jit, static_argnames="world")
def step(world: World, state: State, action: jax.Array, event_code: jax.Array) -> tuple[State, Observation]:
    """Runs one frame.

    Args:
        world: the configuration.
        state: the state before.
        action: [3] in the order of ACTION_NAMES; above 0.5 the button is held during the frame.
        event_code: [] the text in force, from `event_codes`.
    """
    held = jnp.asarray(action) > 0.5

    def move(bodies: Bodies, _: None) -> tuple[Bodies, tuple[jax.Array, jax.Array]]:
        bodies, impact = physics.substep(world.length, state.layout, bodies, held)
        return bodies, (impact, bodies.position[:, 0])

    bodies, (impact, x) = jax.lax.scan(move, state.bodies, length=world.substeps)
    weather = advance_weather(state.weather, jnp.asarray(event_code), 1 / world.frame_rate, state.substep == 0)
    substep = state.substep + world.substeps

    cameras = camera_x(world, x[:, 0])
    strength = sound.contact_strength(world, impact, x, cameras)
    strikes = strength[..., None] * sound.pan(world, x, cameras)
    resonators, audio = sound.synthesise(world, state.layout.pitch, state.resonators, strikes)

    camera = camera_x(world, bodies.position[0, 0])
    shapes, owner = scene.draw(world, state.layout, bodies)
    picture = render(world, state.layout, shapes, owner, camera, weather, substep)
    after = State(layout=state.layout, bodies=bodies, weather=weather, resonators=resonators, substep=substep)
    first_sample = state.substep // world.substeps * world.samples_per_frame
    return after, Observation(
        frame=picture.frame,
        audio=audio,
        visible=picture.visible,
        boxes=picture.boxes,
        onset_strength=strength,
        onset_sample=first_sample + jnp.asarray(sound.substep_samples(world)[:-1], jnp.int32),
        camera=camera,
        bodies=bodies,
    )


@functools.partial(jax.jit, static_argnames="world")
def advance(world: World, state: State, actions: jax.Array, event_codes: jax.Array) -> tuple[State, Observation]:
    """Runs on from a state: actions [frames, 3], event_codes [frames]. Observations gain a frame axis."""

    def run(state: State, inputs: tuple[jax.Array, jax.Array]) -> tuple[State, Observation]:
        return step(world, state, *inputs)

    return jax.lax.scan(run, state, (jnp.asarray(actions), jnp.asarray(event_codes)))


@functools.partial(jax.jit, static_argnames="world")
def rollout(
    world: World, seed: int | jax.Array, actions: jax.Array, event_codes: jax.Array
) -> tuple[State, Observation]:
    """Runs from reset: seed [], actions [frames, 3], event_codes [frames]; a pure function of them."""
    return advance(world, reset(world, seed), actions, event_codes)


@functools.partial(jax.jit, static_argnames="world")
def rollout_batch(
    world: World, seeds: jax.Array, actions: jax.Array, event_codes: jax.Array
) -> tuple[State, Observation]:
    """Many rollouts at once: seeds [batch], actions [batch, frames, 3], event_codes [batch, frames]."""
    return jax.vmap(functools.partial(rollout, world))(
        jnp.asarray(seeds), jnp.asarray(actions), jnp.asarray(event_codes)
    )


def onset_list(observation: Observation) -> list[Onset]:
    """The onsets of one rollout in order of time.

    Args:
        observation: of one frame, or stacked over frames; not batched.
    """
    strength = np.asarray(observation.onset_strength)
    strength = strength.reshape(-1, strength.shape[-1])
    sample = np.asarray(observation.onset_sample).reshape(-1)
    rows, bodies = np.nonzero(strength)
    return [
        Onset(sample=int(sample[row]), body=int(body), strength=float(strength[row, body]))
        for row, body in zip(rows, bodies, strict=True)
    ]
