"""One physics substep (1/240 s) of the agent and the balls."""

import dataclasses

import jax
import jax.numpy as jnp

from data_pipelines.sources.playground.world import (
    AGENT_HALF_HEIGHT,
    AGENT_RADIUS,
    PHYSICS_RATE,
    STEP_LENGTH,
    WALL,
    Bodies,
    Layout,
)

DT = 1.0 / PHYSICS_RATE
GRAVITY = 3.6
WALK_SPEED = 0.6
WALK_ACCELERATION = 6.0
JUMP_SPEED = (2 * GRAVITY * 0.37) ** 0.5
KICK_BOUNCE = 0.25  # restitution between agent and ball
KICK_LIFT = 2.3  # upward speed of a kicked ball for each unit/s of the agent
SQUEEZE_SPEED = 0.7  # sideways speed of a ball that the agent lands on
MAX_BALL_SPEED = 2.3
MAX_SHOVE = 0.01  # how far a substep may push a ball out of the agent
REST_SPEED = 0.15  # slower impacts neither bounce nor sound
BOUNCE_GRIP = 0.88  # tangential speed kept in a bounce
ROLLING_FRICTION = 1.0  # 1/s
REFRACTORY = 12  # substeps before a body may sound again
FOOTFALL = 0.3  # impact speeds that the agent's steps and take-offs sound like
TAKE_OFF = 0.8


def substep(length: float, layout: Layout, bodies: Bodies, held: jax.Array) -> tuple[Bodies, jax.Array]:
    """Moves all bodies by one substep.

    Args:
        length: width of the world.
        layout: what the seed drew.
        bodies: the bodies before.
        held: bool [3], the buttons in the order of ACTION_NAMES.

    Returns:
        The bodies after, and float32 [1 + balls]: the speed of the impact for each body that begins to sound
        in this substep, else 0.
    """
    agent, agent_impact = _move_agent(length, layout, bodies, held)
    position, velocity, ball_impact = _move_balls(length, layout, bodies, agent)
    impact = jnp.concatenate([agent_impact[None], ball_impact])
    sounds = (impact >= REST_SPEED) & (bodies.quiet >= REFRACTORY)
    moved = dataclasses.replace(
        agent,
        position=jnp.concatenate([agent.position[:1], position]),
        velocity=jnp.concatenate([agent.velocity[:1], velocity]),
        quiet=jnp.where(sounds, 0, jnp.minimum(bodies.quiet + 1, PHYSICS_RATE)),
    )
    return moved, jnp.where(sounds, impact, 0.0)


def _move_agent(length: float, layout: Layout, bodies: Bodies, held: jax.Array) -> tuple[Bodies, jax.Array]:
    direction = held[1].astype(jnp.float32) - held[0].astype(jnp.float32)
    x, y = bodies.position[0]
    vx, vy = bodies.velocity[0]
    limit = WALK_ACCELERATION * DT
    vx = vx + jnp.clip(direction * WALK_SPEED - vx, -limit, limit)
    take_off = bodies.grounded & held[2]
    vy = jnp.where(take_off, JUMP_SPEED, vy)

    new_x = jnp.clip(x + vx * DT, WALL + AGENT_RADIUS, length - WALL - AGENT_RADIUS)
    vx = jnp.where(new_x == x + vx * DT, vx, 0.0)
    new_y = y + vy * DT - 0.5 * GRAVITY * DT**2
    vy = vy - GRAVITY * DT

    # A platform holds the agent up only if its feet were not below the top before this substep.
    feet = y - AGENT_HALF_HEIGHT
    top = layout.platform_centre[:, 1] + layout.platform_half[:, 1]
    above = jnp.abs(new_x - layout.platform_centre[:, 0]) < layout.platform_half[:, 0] + AGENT_RADIUS / 2
    floor = jnp.max(jnp.where(above & (feet >= top - 1e-4), top, 0.0)) + AGENT_HALF_HEIGHT
    grounded = (new_y <= floor) & (vy <= 0)
    landing = jnp.where(grounded & ~bodies.grounded, -vy, 0.0)

    walked = bodies.stride + jnp.abs(new_x - x) * grounded
    footfall = jnp.floor(walked / STEP_LENGTH) != jnp.floor(bodies.stride / STEP_LENGTH)
    stride = jnp.where(jnp.abs(vx) < 1e-3, STEP_LENGTH / 2, jnp.mod(walked, 2 * STEP_LENGTH))
    impact = jnp.maximum(landing, jnp.maximum(FOOTFALL * footfall, TAKE_OFF * take_off))
    agent = dataclasses.replace(
        bodies,
        position=bodies.position.at[0].set(jnp.stack([new_x, jnp.where(grounded, floor, new_y)])),
        velocity=bodies.velocity.at[0].set(jnp.stack([vx, jnp.where(grounded, 0.0, vy)])),
        facing=jnp.where(direction == 0, bodies.facing, direction),
        grounded=grounded,
        stride=stride,
    )
    return agent, impact


def _move_balls(length: float, layout: Layout, bodies: Bodies, agent: Bodies) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Positions, velocities [balls, 2] and impact speeds [balls] after free flight and all contacts."""
    position, velocity = bodies.position[1:], bodies.velocity[1:]
    fall = jnp.array([0.0, GRAVITY * DT])
    # The exact parabola: with any other rule the energy of a flight would drift.
    position = position + (velocity - 0.5 * fall) * DT
    velocity = velocity - fall
    position, velocity, pair_impact = _touch_each_other(layout, position, velocity)
    position, velocity, kick_impact = _touch_agent(layout, agent, position, velocity)
    position, velocity, wall_impact = _touch_world(length, layout, position, velocity)
    speed = jnp.linalg.norm(velocity, axis=-1, keepdims=True)
    velocity = velocity * jnp.minimum(1.0, MAX_BALL_SPEED / jnp.maximum(speed, 1e-6))
    return position, velocity, jnp.maximum(jnp.maximum(pair_impact, kick_impact), wall_impact)


def _touch_each_other(
    layout: Layout, position: jax.Array, velocity: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    mass = layout.ball_radius**2
    share = mass[None, :] / (mass[:, None] + mass[None, :])  # part of a pair's exchange that moves the first ball
    offset = position[:, None] - position[None, :]
    normal, distance = _unit(offset)
    depth = layout.ball_radius[:, None] + layout.ball_radius[None, :] - distance
    closing = -jnp.sum((velocity[:, None] - velocity[None, :]) * normal, axis=-1)
    touching = (depth > 0) & ~jnp.eye(len(mass), dtype=bool)
    bouncing = touching & (closing > 0)
    bounce = jnp.minimum(layout.ball_bounce[:, None], layout.ball_bounce[None, :])
    push = jnp.where(bouncing, (1 + bounce) * closing * share, 0.0)
    velocity = velocity + jnp.sum(push[..., None] * normal, axis=1)
    # Moved apart by mass, so the centre of mass and with it the potential energy stays.
    apart = jnp.where(touching, depth * share, 0.0)
    position = position + jnp.sum(apart[..., None] * normal, axis=1)
    return position, velocity, jnp.max(jnp.where(bouncing, closing, 0.0), axis=1)


def _touch_agent(
    layout: Layout, agent: Bodies, position: jax.Array, velocity: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Balls against the agent, an upright capsule that balls cannot move."""
    centre, agent_velocity = agent.position[0], agent.velocity[0]
    half = AGENT_HALF_HEIGHT - AGENT_RADIUS
    nearest_y = jnp.clip(position[:, 1], centre[1] - half, centre[1] + half)
    offset = position - jnp.stack([jnp.full_like(nearest_y, centre[0]), nearest_y], axis=-1)
    normal, distance = _unit(offset)
    depth = layout.ball_radius + AGENT_RADIUS - distance
    side = jnp.where(offset[:, 0] >= 0, 1.0, -1.0)
    below = normal[:, 1] < -0.3
    normal = jnp.where(below[:, None], jnp.stack([side, jnp.zeros_like(side)], axis=-1), normal)

    touching = depth > 0
    closing = -jnp.sum((velocity - agent_velocity) * normal, axis=-1)
    depth = jnp.clip(depth, 0.0, MAX_SHOVE)
    closing = jnp.where(below, jnp.maximum(closing, 0.0), _closing_at_surface(closing, depth * normal[:, 1]))
    bouncing = touching & (closing > 0)
    velocity = velocity + jnp.where(bouncing, (1 + KICK_BOUNCE) * closing, 0.0)[:, None] * normal
    squeezed = side * jnp.maximum(side * velocity[:, 0], SQUEEZE_SPEED)
    approach = jnp.where(jnp.abs(normal[:, 0]) > 0.5, side * agent_velocity[0], 0.0)
    lifted = jnp.maximum(velocity[:, 1], KICK_LIFT * approach)
    velocity = jnp.stack(
        [
            jnp.where(touching & below, squeezed, velocity[:, 0]),
            jnp.where(bouncing & ~below & (approach > 0.1), lifted, velocity[:, 1]),
        ],
        axis=-1,
    )
    position = position + depth[:, None] * normal
    return position, velocity, jnp.where(bouncing, closing, 0.0)


def _touch_world(
    length: float, layout: Layout, position: jax.Array, velocity: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Balls against ground, walls and platforms: the deepest contact of each ball is resolved."""
    radius = layout.ball_radius
    offset = position[:, None] - layout.platform_centre
    normal, distance = _unit(offset - jnp.clip(offset, -layout.platform_half, layout.platform_half))
    depths = jnp.concatenate(
        [
            (radius - position[:, 1])[:, None],
            (WALL + radius - position[:, 0])[:, None],
            (position[:, 0] - (length - WALL - radius))[:, None],
            radius[:, None] - distance,
        ],
        axis=1,
    )
    flat = jnp.broadcast_to(jnp.array([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]]), (len(radius), 3, 2))
    deepest = jnp.argmax(depths, axis=1)
    depth = jnp.take_along_axis(depths, deepest[:, None], axis=1)[:, 0]
    normal = jnp.take_along_axis(jnp.concatenate([flat, normal], axis=1), deepest[:, None, None], axis=1)[:, 0]

    touching = depth > 0
    depth = jnp.maximum(depth, 0.0)
    closing = _closing_at_surface(-jnp.sum(velocity * normal, axis=-1), depth * normal[:, 1])
    hitting = touching & (-jnp.sum(velocity * normal, axis=-1) > 0)
    rebound = jnp.where(closing >= REST_SPEED, layout.ball_bounce * closing, 0.0)
    along = velocity - jnp.sum(velocity * normal, axis=-1, keepdims=True) * normal
    grip = jnp.where(closing >= REST_SPEED, BOUNCE_GRIP, 1.0 - ROLLING_FRICTION * DT)
    bounced = rebound[:, None] * normal + along * grip[:, None]
    velocity = jnp.where(hitting[:, None], bounced, velocity)
    position = position + depth[:, None] * normal
    return position, velocity, jnp.where(hitting, closing, 0.0)


def _closing_at_surface(closing: jax.Array, rise: jax.Array) -> jax.Array:
    """Closing speed at the surface itself, `rise` above where the substep ended: keeps energy exact."""
    return jnp.where(closing > 0, jnp.sqrt(jnp.maximum(closing**2 - 2 * GRAVITY * rise, 0.0)), closing)


def _unit(offset: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Direction [..., 2] and length [...] of an offset; straight up where it is zero."""
    length = jnp.sqrt(jnp.sum(offset**2, axis=-1))
    direction = offset / jnp.maximum(length, 1e-6)[..., None]
    return jnp.where(length[..., None] > 1e-6, direction, jnp.array([0.0, 1.0])), length
