"""Sound of contacts: one damped oscillator per body and channel, exact on the frame clock.

A contact of amplitude `a` adds `a * exp(-t / decay) * sin(2 pi pitch t)`, `t` seconds after its first sample.
The sum over all contacts of a body is the imaginary part of one complex number that turns and shrinks from
sample to sample, so nothing but that number is carried from frame to frame. The bodies are added and bent
into -1..1 by tanh.
"""

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.sources.playground.world import PHYSICS_RATE, World

AGENT_DECAY = 0.05  # seconds
BALL_DECAY = 0.12
SOFTEST = 0.22  # amplitude of the faintest contact, and how much the hardest adds
LOUDEST = 0.5
FULL_IMPACT = 2.0  # units/s
FADE_WIDTH = 0.5  # contacts fade out over this share of half the view beyond its edge


def substep_samples(world: World) -> np.ndarray:
    """First sample of each substep within its frame, and the end of the frame: int [substeps + 1]."""
    return np.arange(world.substeps + 1) * world.sample_rate // PHYSICS_RATE


def contact_strength(world: World, impact: jax.Array, x: jax.Array, camera: jax.Array) -> jax.Array:
    """Amplitude [..., bodies] at which contacts are heard.

    Args:
        world: the configuration.
        impact: [..., bodies] impact speed, 0 for no contact.
        x: [..., bodies] places of the bodies in the world.
        camera: [...] centre of the view.
    """
    loudness = SOFTEST + LOUDEST * jnp.minimum(impact / FULL_IMPACT, 1.0)
    beyond = jnp.maximum(jnp.abs(_screen_side(world, x, camera)) - 1.0, 0.0)
    return jnp.where(impact > 0, loudness * jnp.maximum(1.0 - beyond / FADE_WIDTH, 0.0), 0.0)


def pan(world: World, x: jax.Array, camera: jax.Array) -> jax.Array:
    """Left and right gains [..., bodies, 2] of equal power for bodies at x [..., bodies]."""
    angle = (jnp.clip(_screen_side(world, x, camera), -1.0, 1.0) + 1.0) * (jnp.pi / 4)
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def synthesise(
    world: World, pitch: jax.Array, resonators: jax.Array, strikes: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One frame of sound.

    Args:
        world: the configuration.
        pitch: [bodies] Hz.
        resonators: complex64 [bodies, 2] at the first sample of the frame.
        strikes: [substeps, bodies, 2] amplitude added at the first sample of each substep.

    Returns:
        The resonators at the first sample of the next frame, and float32 [samples_per_frame, 2] within -1..1.
    """
    starts = substep_samples(world)
    owner = np.searchsorted(starts, np.arange(world.samples_per_frame), side="right") - 1
    since = np.arange(world.samples_per_frame) - starts[owner]

    def ring(carry: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        strike, turn = inputs
        struck = carry + strike
        return struck * turn[:, None], struck

    turns = _turn(world, pitch, np.diff(starts))
    resonators, struck = jax.lax.scan(ring, resonators, (strikes.astype(jnp.complex64), turns))
    table = _turn(world, pitch, np.arange(since.max() + 1))
    waves = jnp.imag(struck[owner] * table[since][..., None])
    return resonators, jnp.tanh(jnp.sum(waves, axis=1))


def _screen_side(world: World, x: jax.Array, camera: jax.Array) -> jax.Array:
    """Place on the screen: -1 at the left edge, 1 at the right edge."""
    return (x - camera[..., None]) * (2.0 / world.view_width)


def _turn(world: World, pitch: jax.Array, samples: np.ndarray) -> jax.Array:
    """Complex factors [samples, bodies] by which the resonators move on."""
    decay = jnp.full(pitch.shape, BALL_DECAY).at[0].set(AGENT_DECAY)
    seconds = jnp.asarray(samples, jnp.float32)[:, None] / world.sample_rate
    angle = 2 * jnp.pi * pitch * seconds
    return jnp.exp(-seconds / decay) * jax.lax.complex(jnp.cos(angle), jnp.sin(angle))
