"""What a playground world consists of: its configuration, what the seed draws, and the state that moves."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

ACTION_NAMES = ("left", "right", "jump")

PHYSICS_RATE = 240  # substeps per second
VIEW_BOTTOM = -0.12  # height of the lower edge of the view; the view is 1 unit high
VIEW_TOP = VIEW_BOTTOM + 1.0
WALL = 0.1  # thickness of the walls at both ends
AGENT_HALF_HEIGHT = 0.1
AGENT_RADIUS = 0.06
STEP_LENGTH = 0.15  # distance walked between two footfalls
BALL_RADII = (0.065, 0.085)
PLATFORM_HALF_THICKNESS = 0.025
LANDMARK_KINDS = 6
RAIN_COLUMN = 0.15  # width of the column of air that holds one streak of rain
MIN_SAMPLE_RATE = 2400
AGENT_PITCH = 180.0
BALL_PITCHES = (300.0, 900.0)


@dataclasses.dataclass(frozen=True)
class World:
    """The configuration of a playground. Hashable, so it is a static argument of the jitted functions.

    Attributes:
        height: picture height in pixels; sets the scale, the view is always 1 unit high.
        width: picture width in pixels; the view is width / height units wide.
        frame_rate: frames per second, a divisor of 240.
        sample_rate: sound samples per second, a multiple of frame_rate and at least 2400.
        balls: number of balls.
        platforms: number of platforms.
        landmarks: number of landmarks; up to six of them differ in kind as well as in colour.
        length: width of the world in units.

    Raises:
        ValueError: a field is out of its range.
    """

    height: int
    width: int
    frame_rate: int
    sample_rate: int
    balls: int = 2
    platforms: int = 3
    landmarks: int = 6
    length: float = 6.0

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            if getattr(self, name) < 8:
                raise ValueError(f"World.{name} is {getattr(self, name)}; use at least 8 pixels")
        if self.frame_rate < 1 or PHYSICS_RATE % self.frame_rate:
            raise ValueError(
                f"World.frame_rate is {self.frame_rate}; use a divisor of the physics rate {PHYSICS_RATE} Hz"
            )
        if self.sample_rate % self.frame_rate:
            raise ValueError(
                f"World.sample_rate {self.sample_rate} is not a multiple of World.frame_rate "
                f"{self.frame_rate}; a frame must hold a whole number of samples"
            )
        if self.sample_rate < MIN_SAMPLE_RATE:
            raise ValueError(f"World.sample_rate is {self.sample_rate}; use at least {MIN_SAMPLE_RATE} Hz")
        for name, low, high in (("balls", 1, 6), ("platforms", 1, 16), ("landmarks", 1, 64)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"World.{name} is {getattr(self, name)}; use {low} to {high}")
        if not 4.0 <= self.length <= 64.0:
            raise ValueError(f"World.length is {self.length}; use 4 to 64 units")
        if self.view_width > self.length:
            raise ValueError(
                f"World.length {self.length} is narrower than the view of {self.width}x{self.height} pixels "
                f"({self.view_width:.2f} units); make the world longer or the picture less wide"
            )

    @property
    def view_width(self) -> float:
        """Width of the view in units."""
        return self.width / self.height

    @property
    def samples_per_frame(self) -> int:
        """Sound samples that belong to one frame."""
        return self.sample_rate // self.frame_rate

    @property
    def substeps(self) -> int:
        """Physics steps in one frame."""
        return PHYSICS_RATE // self.frame_rate


def object_names(world: World) -> tuple[str, ...]:
    """Names of the objects in the order of `Observation.visible` and `Observation.boxes`."""
    groups = (("ball", world.balls), ("platform", world.platforms), ("landmark", world.landmarks))
    return ("agent", *(f"{name} {i}" for name, count in groups for i in range(count)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Layout:
    """What the seed draws once. All arrays are float32 unless said otherwise."""

    ball_radius: jax.Array  # [balls]
    ball_bounce: jax.Array  # [balls] fraction of the normal speed kept in a bounce
    ball_colour: jax.Array  # [balls, 3]
    pitch: jax.Array  # [1 + balls] Hz; the agent first
    platform_centre: jax.Array  # [platforms, 2]
    platform_half: jax.Array  # [platforms, 2] half sizes
    platform_colour: jax.Array  # [platforms, 3]
    landmark_x: jax.Array  # [landmarks]
    landmark_kind: jax.Array  # [landmarks] int32
    landmark_colour: jax.Array  # [landmarks, 3]
    hill_phase: jax.Array  # [2] radians
    rain_phase: jax.Array  # [columns] in 0..1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bodies:
    """Everything that moves by physics. Index 0 is the agent, then the balls; positions are centres."""

    position: jax.Array  # [1 + balls, 2] units
    velocity: jax.Array  # [1 + balls, 2] units/s
    facing: jax.Array  # [] -1 or 1
    grounded: jax.Array  # [] bool: the agent stands on something
    stride: jax.Array  # [] distance walked, modulo two steps
    quiet: jax.Array  # [1 + balls] int32 substeps since the last sounding contact


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """The whole state of a playground: `step` is a pure function of it, an action and an event code."""

    layout: Layout
    bodies: Bodies
    weather: jax.Array  # [4] weights of day, dusk, night; amount of rain
    resonators: jax.Array  # [1 + balls, 2] complex64: ringing of each body in the left and right channel
    substep: jax.Array  # [] int32 physics steps since reset


def camera_x(world: World, agent_x: jax.Array) -> jax.Array:
    """Centre of the view [...] for an agent at agent_x [...], clamped at the ends of the world."""
    half = world.view_width / 2
    return jnp.clip(agent_x, half, world.length - half)


@functools.partial(jax.jit, static_argnames="world")
def reset(world: World, seed: int | jax.Array) -> State:
    """The state before the first frame.

    Args:
        world: the configuration.
        seed: an int or an int32 scalar, traced or not.
    """
    balls, platforms, landmarks = world.balls, world.platforms, world.landmarks
    columns = int(world.length / RAIN_COLUMN) + 2
    counts = {"start": 1, "ball_x": balls, "ball_y": balls, "ball_speed": balls, "ball_hue": 1 + balls}
    counts |= {"ball_order": balls, "ball_size": balls, "ball_bounce": balls}
    counts |= {"platform_x": platforms, "platform_y": platforms, "platform_width": platforms}
    counts |= {"platform_hue": 1 + platforms, "landmark_x": landmarks, "landmark_kind": LANDMARK_KINDS}
    counts |= {"landmark_hue": 1 + landmarks, "hill": 2, "rain": columns}
    draw = _uniforms(seed, counts)
    return State(
        layout=_layout(world, draw),
        bodies=_bodies(world, draw),
        weather=jnp.zeros(4, jnp.float32),
        resonators=jnp.zeros((1 + balls, 2), jnp.complex64),
        substep=jnp.zeros((), jnp.int32),
    )


def _layout(world: World, draw: dict[str, jax.Array]) -> Layout:
    low, high = BALL_RADII
    # Stratified radii: two balls of one world never sound alike.
    size = (jnp.argsort(draw["ball_order"]) + _between(draw["ball_size"], 0.15, 0.85)) / world.balls
    ball_pitch = BALL_PITCHES[1] * (BALL_PITCHES[0] / BALL_PITCHES[1]) ** size
    half_width = _between(draw["platform_width"], 0.2, 0.32)
    platform_x = _spread(draw["platform_x"], world.length, 0.3)
    platform_x = jnp.clip(platform_x, WALL + half_width, world.length - WALL - half_width)
    platform_y = _between(draw["platform_y"], 0.25, 0.31)
    kinds = jnp.argsort(draw["landmark_kind"])
    return Layout(
        ball_radius=low + (high - low) * size,
        ball_bounce=_between(draw["ball_bounce"], 0.87, 0.92),
        ball_colour=_colours(draw["ball_hue"], saturation=0.8, value=1.0),
        pitch=jnp.concatenate([jnp.full(1, AGENT_PITCH), ball_pitch]).astype(jnp.float32),
        platform_centre=jnp.stack([platform_x, platform_y], axis=-1),
        platform_half=jnp.stack([half_width, jnp.full_like(half_width, PLATFORM_HALF_THICKNESS)], axis=-1),
        platform_colour=_colours(draw["platform_hue"], saturation=0.35, value=0.75),
        landmark_x=_spread(draw["landmark_x"], world.length, 0.25),
        landmark_kind=kinds[jnp.arange(world.landmarks) % LANDMARK_KINDS].astype(jnp.int32),
        landmark_colour=_colours(draw["landmark_hue"], saturation=0.65, value=0.85),
        hill_phase=2 * jnp.pi * draw["hill"],
        rain_phase=draw["rain"],
    )


def _bodies(world: World, draw: dict[str, jax.Array]) -> Bodies:
    start = world.length / 2 + _between(draw["start"][0], -0.5, 0.5)
    # Balls start in the air near the agent, by turns right and left of it, above every platform.
    index = jnp.arange(world.balls)
    side = jnp.where(index % 2 == 0, 1.0, -1.0)
    distance = 0.35 + 0.4 * (index // 2) + _between(draw["ball_x"], -0.1, 0.1)
    x = jnp.clip(start + side * distance, WALL + BALL_RADII[1], world.length - WALL - BALL_RADII[1])
    y = _between(draw["ball_y"], 0.5, 0.74)
    agent = jnp.stack([start, jnp.full_like(start, AGENT_HALF_HEIGHT)])
    speed = _between(draw["ball_speed"], -0.2, 0.2)
    return Bodies(
        position=jnp.concatenate([agent[None], jnp.stack([x, y], axis=-1)]),
        velocity=jnp.zeros((1 + world.balls, 2), jnp.float32).at[1:, 0].set(speed),
        facing=jnp.ones((), jnp.float32),
        grounded=jnp.ones((), bool),
        stride=jnp.full((), STEP_LENGTH / 2, jnp.float32),
        quiet=jnp.full(1 + world.balls, PHYSICS_RATE, jnp.int32),
    )


def _uniforms(seed: int | jax.Array, counts: dict[str, int]) -> dict[str, jax.Array]:
    """Named random numbers in 0..1, all from one draw, which compiles far faster than one draw a name."""
    values = jax.random.uniform(jax.random.key(seed), (sum(counts.values()),))
    ends = np.cumsum(list(counts.values())).tolist()
    return {name: values[end - counts[name] : end] for name, end in zip(counts, ends, strict=True)}


def _between(share: jax.Array, low: float, high: float) -> jax.Array:
    return low + (high - low) * share


def _spread(share: jax.Array, length: float, jitter: float) -> jax.Array:
    """Places [count] over the world: one in each of equal slots, moved by at most a share of the slot."""
    count = share.shape[0]
    return (jnp.arange(count) + 0.5 + _between(share, -jitter, jitter)) * (length / count)


def _colours(share: jax.Array, *, saturation: float, value: float) -> jax.Array:
    """Colours [count, 3] with hues evenly round the circle in random order, from numbers [1 + count]."""
    place = jnp.argsort(share[1:]) / (share.shape[0] - 1)
    hue = jnp.mod(share[0] + place, 1.0)
    ramp = jnp.abs(jnp.mod(hue[:, None] * 6 + jnp.array([0.0, 4.0, 2.0]), 6.0) - 3.0) - 1.0
    return value * (1 - saturation + saturation * jnp.clip(ramp, 0.0, 1.0))
