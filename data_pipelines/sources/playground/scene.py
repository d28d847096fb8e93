"""What is drawn: the objects of a state as a list of shapes in world units, front to back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.sources.playground.physics import WALK_SPEED
from data_pipelines.sources.playground.world import (
    AGENT_HALF_HEIGHT,
    LANDMARK_KINDS,
    STEP_LENGTH,
    Bodies,
    Layout,
    World,
)

AGENT_COLOUR = (0.93, 0.30, 0.22)
LEG_COLOUR = (0.30, 0.12, 0.16)
WHITE = (0.98, 0.97, 0.94)
BLACK = (0.08, 0.07, 0.12)
WOOD = (0.45, 0.30, 0.18)
LAMPLIGHT = (1.0, 0.87, 0.42)
LEG_SWING = 0.55  # radians
BODY_GLOW = 0.5  # agent and balls keep half their brightness at night

_PARTS = 3  # shapes of a landmark
# One row a shape, front to back: offset in x, centre in y, lower and upper half width, half height, rounding,
# colour (0 own, 1 own but darker, 2 wood, 3 lamplight).
_LANDMARKS = np.array(
    [
        [  # tree
            (-0.05, 0.46, 0, 0, 0, 0.07, 0),
            (0.0, 0.40, 0, 0, 0, 0.17, 1),
            (0.0, 0.13, 0.035, 0.03, 0.13, 0.0, 2),
        ],
        [  # house
            (0.0, 0.13, 0.05, 0.05, 0.055, 0.0, 3),
            (0.0, 0.345, 0.21, 0.03, 0.085, 0.01, 1),
            (0.0, 0.13, 0.17, 0.17, 0.13, 0.0, 0),
        ],
        [  # tower
            (0.0, 0.42, 0.0, 0.0, 0.035, 0.03, 3),
            (0.0, 0.66, 0.14, 0.0, 0.09, 0.01, 1),
            (0.0, 0.285, 0.12, 0.095, 0.285, 0.0, 0),
        ],
        [  # lamp
            (0.0, 0.55, 0.0, 0.0, 0.0, 0.075, 3),
            (0.0, 0.26, 0.018, 0.018, 0.24, 0.0, 1),
            (0.0, 0.035, 0.08, 0.04, 0.035, 0.0, 0),
        ],
        [  # pine
            (0.0, 0.50, 0.12, 0.0, 0.11, 0.01, 0),
            (0.0, 0.26, 0.17, 0.05, 0.13, 0.01, 1),
            (0.0, 0.065, 0.03, 0.03, 0.065, 0.0, 2),
        ],
        [  # flag
            (0.13, 0.55, 0.12, 0.12, 0.08, 0.0, 0),
            (0.0, 0.68, 0.0, 0.0, 0.0, 0.03, 3),
            (0.0, 0.32, 0.018, 0.018, 0.32, 0.0, 2),
        ],
    ],
    np.float32,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shapes:
    """Rounded trapezoids: with the right sizes also boxes, triangles, capsules and circles. World units."""

    centre: jax.Array  # [shapes, 2]
    lower: jax.Array  # [shapes] half width at the bottom
    upper: jax.Array  # [shapes] half width at the top
    half: jax.Array  # [shapes] half height
    rounding: jax.Array  # [shapes] radius added all round
    angle: jax.Array  # [shapes] radians, counter-clockwise
    colour: jax.Array  # [shapes, 3] RGB in 0..1
    glow: jax.Array  # [shapes] 1 shines by itself, 0 takes the light of the time of day
    outline: jax.Array  # [shapes] 1 has a dark outline


def draw(world: World, layout: Layout, bodies: Bodies) -> tuple[Shapes, np.ndarray]:
    """The shapes of a state front to back, and the index in object_names of the object each belongs to."""
    agent = _agent(bodies)
    balls = _balls(layout, bodies)
    platforms = _platforms(layout)
    landmarks = _landmarks(layout)
    parts = [agent, balls, platforms, landmarks]
    shapes = jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)
    ball, platform = 1, 1 + world.balls
    landmark = platform + world.platforms
    owner = np.concatenate(
        [
            np.zeros(len(agent.half), np.int32),
            np.repeat(np.arange(ball, platform), 2),
            np.repeat(np.arange(platform, landmark), 2),
            np.repeat(np.arange(landmark, landmark + world.landmarks), _PARTS),
        ]
    )
    return shapes, owner


def _shapes(
    centre: jax.Array,
    *,
    colour: jax.Array,
    lower: jax.Array | float = 0.0,
    upper: jax.Array | float = 0.0,
    half: jax.Array | float = 0.0,
    rounding: jax.Array | float = 0.0,
    angle: jax.Array | float = 0.0,
    glow: jax.Array | float = 0.0,
    outline: jax.Array | float = 1.0,
) -> Shapes:
    count = centre.shape[0]
    scalars = {"lower": lower, "upper": upper, "half": half, "rounding": rounding}
    scalars |= {"angle": angle, "glow": glow, "outline": outline}
    columns = {name: jnp.broadcast_to(jnp.asarray(value, jnp.float32), count) for name, value in scalars.items()}
    return Shapes(centre=centre, colour=jnp.broadcast_to(colour, (count, 3)), **columns)


def _agent(bodies: Bodies) -> Shapes:
    centre, velocity = bodies.position[0], bodies.velocity[0]
    stretch = 1 + 0.06 * jnp.clip(velocity[1], -1.5, 1.5)
    eye = centre + jnp.stack([0.022 * bodies.facing, jnp.float32(0.042)])
    head = _shapes(
        jnp.stack([eye + jnp.stack([0.014 * bodies.facing, jnp.float32(0.0)]), eye]),
        colour=jnp.array([BLACK, WHITE]),
        rounding=jnp.array([0.014, 0.032]),
        glow=BODY_GLOW,
        outline=0.0,
    )
    body = _shapes(
        (centre + jnp.array([0.0, 0.018]))[None],
        colour=jnp.array(AGENT_COLOUR),
        lower=0.02,
        upper=0.015,
        half=0.04 * stretch,
        rounding=0.044,
        glow=BODY_GLOW,
    )
    # Heels are furthest apart at each footfall; in the air the legs trail.
    pace = jnp.abs(velocity[0]) / WALK_SPEED
    swing = jnp.where(bodies.grounded, pace * jnp.cos(jnp.pi * bodies.stride / STEP_LENGTH), 0.5)
    angles = LEG_SWING * swing * jnp.array([1.0, -1.0])
    hip = centre + jnp.array([0.0, -0.035])
    length = AGENT_HALF_HEIGHT - 0.035 - 0.02
    foot = jnp.stack([jnp.sin(angles), -jnp.cos(angles)], axis=-1)
    spread = jnp.array([[0.018, 0.0], [-0.018, 0.0]])
    legs = _shapes(
        hip + spread + foot * (length / 2),
        colour=jnp.array(LEG_COLOUR),
        half=length / 2,
        rounding=0.02,
        angle=angles,
        outline=0.0,
    )
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), head, body, legs)


def _balls(layout: Layout, bodies: Bodies) -> Shapes:
    """Each ball is a disc with a pale band that shows how far it has rolled."""
    centre, radius = bodies.position[1:], layout.ball_radius
    band = _shapes(
        centre,
        colour=0.4 * layout.ball_colour + 0.6 * jnp.array(WHITE),
        half=0.5 * radius,
        rounding=0.24 * radius,
        angle=-centre[:, 0] / radius,
        glow=BODY_GLOW,
        outline=0.0,
    )
    disc = _shapes(centre, colour=layout.ball_colour, rounding=radius, glow=BODY_GLOW)
    return _interleave(band, disc)


def _platforms(layout: Layout) -> Shapes:
    half_width, half_height = layout.platform_half[:, 0], layout.platform_half[:, 1]
    turf_centre = layout.platform_centre + jnp.stack([0 * half_height, 0.6 * half_height], axis=-1)
    turf = _shapes(
        turf_centre,
        colour=0.6 * layout.platform_colour + 0.4,
        lower=half_width,
        upper=half_width,
        half=0.4 * half_height,
        outline=0.0,
    )
    slab = _shapes(
        layout.platform_centre,
        colour=0.8 * layout.platform_colour,
        lower=half_width - 0.01,
        upper=half_width - 0.01,
        half=half_height - 0.01,
        rounding=0.01,
    )
    return _interleave(turf, slab)


def _landmarks(layout: Layout) -> Shapes:
    part = jnp.asarray(_LANDMARKS)[layout.landmark_kind % LANDMARK_KINDS].reshape(-1, 7)
    x = jnp.repeat(layout.landmark_x, _PARTS) + part[:, 0]
    own = layout.landmark_colour
    count = own.shape[0]
    choices = [own, 0.68 * own, jnp.broadcast_to(jnp.array(WOOD), (count, 3))]
    choices.append(jnp.broadcast_to(jnp.array(LAMPLIGHT), (count, 3)))
    palette = jnp.stack(choices, axis=1)  # [landmarks, 4, 3]
    slot = part[:, 6].astype(jnp.int32)
    colour = palette[jnp.repeat(jnp.arange(count), _PARTS), slot]
    return _shapes(
        jnp.stack([x, part[:, 1]], axis=-1),
        colour=colour,
        lower=part[:, 2],
        upper=part[:, 3],
        half=part[:, 4],
        rounding=part[:, 5],
        glow=(slot == 3).astype(jnp.float32),
    )


def _interleave(first: Shapes, second: Shapes) -> Shapes:
    """Shapes first[0], second[0], first[1], ..."""
    return jax.tree.map(lambda a, b: jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:]), first, second)
