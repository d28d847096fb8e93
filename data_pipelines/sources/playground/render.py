"""Pixels of a state: analytic anti-aliased shapes over sky, hills and ground, and what of it can be seen."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.sources.playground.scene import Shapes
from data_pipelines.sources.playground.world import RAIN_COLUMN, VIEW_TOP, WALL, Layout, World

SKY_TOP = ((0.36, 0.66, 0.95), (0.36, 0.27, 0.52), (0.05, 0.06, 0.19))  # day, dusk, night
SKY_LOW = ((0.80, 0.93, 0.99), (0.99, 0.62, 0.40), (0.17, 0.20, 0.40))
LIGHT = ((1.0, 1.0, 1.0), (0.92, 0.72, 0.66), (0.46, 0.50, 0.72))
RAIN_SKY = (0.62, 0.68, 0.74)  # factors by which rain dims the sky and the light
RAIN_LIGHT = (0.80, 0.85, 0.90)
SUN_HEIGHT = (0.66, 0.30, -0.30)
MOON_HEIGHT = (1.10, 1.10, 0.66)
SUN_COLOURS = ((1.0, 0.90, 0.45), (1.0, 0.48, 0.24), (1.0, 0.4, 0.2))
MOON_COLOUR = (0.93, 0.94, 0.84)
DISC_RADIUS = 0.075
HILL_COLOUR = (0.50, 0.72, 0.55)
HILL_DISTANCE = 0.35  # share of the camera's motion that the hills follow
TURF = (0.42, 0.72, 0.30)
EARTH = ((0.58, 0.42, 0.28), (0.50, 0.35, 0.23))
STONE = (0.52, 0.52, 0.58)
TURF_DEPTH = 0.03
TILE = 0.2  # width of a ground tile; the shading by turns shows how fast the ground moves
OUTLINE = 0.012
RAIN_PERIOD = 160  # substeps after which the rain repeats
RAIN_HEIGHT = 1.15  # distance between two streaks of a column
RAIN_STREAK = 0.15
RAIN_HALF_WIDTH = 0.008
RAIN_COLOUR = (0.78, 0.86, 0.96)
RAIN_OPACITY = 0.85
VISIBLE_PIXELS = 0.5


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Picture:
    """One rendered frame and what of each object it shows."""

    frame: jax.Array  # [height, width, 3] uint8 RGB
    visible: jax.Array  # [objects] bool: covers at least half a pixel, not counting what is hidden
    boxes: jax.Array  # [objects, 4] left, top, right, bottom in pixels, clipped to the picture; 0 if not visible


def render(
    world: World,
    layout: Layout,
    shapes: Shapes,
    owner: np.ndarray,
    camera: jax.Array,
    weather: jax.Array,
    substep: jax.Array,
) -> Picture:
    """Draws one frame.

    Args:
        world: the configuration.
        layout: what the seed drew.
        shapes: what to draw, front to back.
        owner: int [shapes], the object each shape belongs to, in the order of object_names.
        camera: [] centre of the view.
        weather: [4] weights of day, dusk and night; amount of rain.
        substep: [] int32 time.
    """
    left = camera - world.view_width / 2
    x = left + (jnp.arange(world.width) + 0.5) / world.height
    y = VIEW_TOP - (jnp.arange(world.height) + 0.5) / world.height
    time = weather[:3] / jnp.sum(weather[:3])
    rain = weather[3]
    light = (time @ jnp.array(LIGHT)) * _dimmed(RAIN_LIGHT, rain)
    image, coverage = _compose(world, shapes, light, x, y)
    image = image.at[..., :3].add(image[..., 3:] * _background(world, layout, time, rain, light, camera, x, y))
    alpha = RAIN_OPACITY * rain * _rain(world, layout, x, y, substep)
    image = image[..., :3] * (1 - alpha) + alpha * light * jnp.array(RAIN_COLOUR)

    objects = 1 + world.balls + world.platforms + world.landmarks
    visible = jax.ops.segment_sum(coverage, owner, objects) >= VISIBLE_PIXELS
    boxes = jnp.where(visible[:, None], _boxes(world, shapes, owner, objects, left), 0.0)
    frame = jnp.round(jnp.clip(image, 0.0, 1.0) * 255).astype(jnp.uint8)
    return Picture(frame=frame, visible=visible, boxes=boxes)


def _compose(world: World, shapes: Shapes, light: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Colours and what shines through [height, width, 4], and the visible pixels of each shape [shapes]."""

    def paint(image: jax.Array, shape: Shapes) -> tuple[jax.Array, jax.Array]:
        distance = _distance(shape, x[None, :], y[:, None])
        share = jnp.clip(0.5 - distance * world.height, 0.0, 1.0) * image[..., 3]
        inner = jnp.clip(0.5 - (distance + OUTLINE * shape.outline) * world.height, 0.0, 1.0)
        lit = shape.colour * (light + shape.glow * (1 - light))
        tint = 0.4 + 0.6 * jnp.where(shape.outline > 0, inner, 1.0)
        painted = image[..., :3] + (share * tint)[..., None] * lit
        return jnp.concatenate([painted, (image[..., 3] - share)[..., None]], axis=-1), jnp.sum(share)

    empty = jnp.zeros((world.height, world.width, 4), jnp.float32).at[..., 3].set(1.0)
    return jax.lax.scan(paint, empty, shapes)


def _distance(shape: Shapes, x: jax.Array, y: jax.Array) -> jax.Array:
    """Signed distance [height, width] of points to one rounded trapezoid, negative inside."""
    dx, dy = x - shape.centre[0], y - shape.centre[1]
    cos, sin = jnp.cos(shape.angle), jnp.sin(shape.angle)
    across, along = jnp.abs(cos * dx + sin * dy), cos * dy - sin * dx
    # By symmetry one slanted side and the two ends bound the shape.
    end_width = jnp.where(along < 0, shape.lower, shape.upper)
    end_x = jnp.maximum(across - end_width, 0.0)
    end_y = jnp.abs(along) - shape.half
    lean, rise = shape.upper - shape.lower, 2 * shape.half
    part = ((across - shape.lower) * lean + (along + shape.half) * rise) / jnp.maximum(lean**2 + rise**2, 1e-9)
    part = jnp.clip(part, 0.0, 1.0)
    side_x = across - shape.lower - part * lean
    side_y = along + shape.half - part * rise
    outside = jnp.sqrt(jnp.minimum(end_x**2 + end_y**2, side_x**2 + side_y**2))
    inside = (side_x < 0) & (end_y < 0)
    return jnp.where(inside, -outside, outside) - shape.rounding


def _background(
    world: World,
    layout: Layout,
    time: jax.Array,
    rain: jax.Array,
    light: jax.Array,
    camera: jax.Array,
    x: jax.Array,
    y: jax.Array,
) -> jax.Array:
    """Sky, sun, moon, hills, ground and walls [height, width, 3]."""
    scale = world.height
    up = jnp.clip(y / VIEW_TOP, 0.0, 1.0)[:, None, None]
    sky = (time @ jnp.array(SKY_LOW)) * (1 - up) + (time @ jnp.array(SKY_TOP)) * up
    sky = jnp.broadcast_to(sky * _dimmed(RAIN_SKY, rain), (world.height, world.width, 3))

    disc_x = x[None, :] - (camera + world.view_width / 2 - 0.2)
    for height, colour in (
        (SUN_HEIGHT, time @ jnp.array(SUN_COLOURS)),
        (MOON_HEIGHT, jnp.array(MOON_COLOUR)),
    ):
        distance = jnp.hypot(disc_x, y[:, None] - time @ jnp.array(height)) - DISC_RADIUS
        sky = _over(sky, colour, jnp.clip(0.5 - distance * scale, 0.0, 1.0) * (1 - rain))

    far = x - camera + HILL_DISTANCE * camera
    phase = layout.hill_phase
    crest = 0.17 + 0.07 * jnp.sin(2.3 * far + phase[0]) + 0.035 * jnp.sin(5.1 * far + phase[1])
    haze = 0.55 * jnp.array(HILL_COLOUR) * light + 0.45 * (time @ jnp.array(SKY_LOW)) * _dimmed(RAIN_SKY, rain)
    image = _over(sky, haze, jnp.clip(0.5 + (crest[None, :] - y[:, None]) * scale, 0.0, 1.0))

    tile = jnp.clip(0.5 + scale * TILE * 0.5 * _triangle(x / (2 * TILE)), 0.0, 1.0)[None, :, None]
    earth = jnp.array(EARTH[0]) * tile + jnp.array(EARTH[1]) * (1 - tile)
    turf = jnp.array(TURF) * (0.92 + 0.08 * tile)
    depth = jnp.clip(0.5 - (y + TURF_DEPTH) * scale, 0.0, 1.0)[:, None, None]
    ground = (turf * (1 - depth) + earth * depth) * light
    image = _over(image, ground, jnp.clip(0.5 - y * scale, 0.0, 1.0)[:, None])

    beyond = jnp.maximum(WALL - x, x - (world.length - WALL))
    return _over(image, jnp.array(STONE) * light, jnp.clip(0.5 + beyond * scale, 0.0, 1.0)[None, :])


def _rain(world: World, layout: Layout, x: jax.Array, y: jax.Array, substep: jax.Array) -> jax.Array:
    """How much of each pixel rain covers [height, width, 1]: one falling streak per column of air."""
    scale = world.height
    columns = layout.rain_phase.shape[0]
    column = jnp.clip(jnp.floor(x / RAIN_COLUMN).astype(jnp.int32), 0, columns - 1)
    across = jnp.abs(x - (column + 0.5) * RAIN_COLUMN) - RAIN_HALF_WIDTH
    # A streak thinner than a pixel is as much fainter.
    share = jnp.clip(0.5 - across * scale, 0.0, 1.0) * jnp.minimum(1.0, 2 * RAIN_HALF_WIDTH * scale)
    fallen = jnp.mod(substep, RAIN_PERIOD) / RAIN_PERIOD + layout.rain_phase[column]
    along = jnp.mod(y[:, None] + fallen[None, :] * RAIN_HEIGHT, RAIN_HEIGHT) - RAIN_HEIGHT / 2
    streak = jnp.clip(0.5 - (jnp.abs(along) - RAIN_STREAK / 2) * scale, 0.0, 1.0)
    fading = jnp.clip(0.65 - 0.7 * along / RAIN_STREAK, 0.0, 1.0)
    air = jnp.clip(0.5 + y * scale, 0.0, 1.0)[:, None]
    return (share[None, :] * streak * fading * air)[..., None]


def _boxes(world: World, shapes: Shapes, owner: np.ndarray, objects: int, left: jax.Array) -> jax.Array:
    """Screen boxes [objects, 4] that hold all shapes of each object."""
    wide = jnp.maximum(shapes.lower, shapes.upper)
    cos, sin = jnp.abs(jnp.cos(shapes.angle)), jnp.abs(jnp.sin(shapes.angle))
    extent = jnp.stack([cos * wide + sin * shapes.half, sin * wide + cos * shapes.half], axis=-1)
    extent = extent + shapes.rounding[:, None]
    low = jax.ops.segment_min(shapes.centre - extent, owner, objects)
    high = jax.ops.segment_max(shapes.centre + extent, owner, objects)
    edges = [low[:, 0] - left, VIEW_TOP - high[:, 1], high[:, 0] - left, VIEW_TOP - low[:, 1]]
    limits = (world.width, world.height, world.width, world.height)
    return jnp.stack([jnp.clip(edge * world.height, 0.0, limit) for edge, limit in zip(edges, limits, strict=True)], -1)


def _dimmed(factors: tuple[float, float, float], rain: jax.Array) -> jax.Array:
    return 1 - rain * (1 - jnp.array(factors))


def _triangle(phase: jax.Array) -> jax.Array:
    """Triangle wave of period 1 between -1 and 1, zero at multiples of 1/2."""
    return 4 * jnp.abs(jnp.mod(phase - 0.25, 1.0) - 0.5) - 1


def _over(image: jax.Array, colour: jax.Array, alpha: jax.Array) -> jax.Array:
    """Lays a colour [3] or [height, width, 3] over an image by alpha [height, width]."""
    alpha = alpha[..., None]
    return image * (1 - alpha) + colour * alpha
