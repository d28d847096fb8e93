"""Any Gymnasium environment: real ones, and small ones of every kind of action, failure and clock."""

import dataclasses
import fractions
import pickle
import sys

import numpy as np
import pytest

from data_pipelines.record import decode, encode
from data_pipelines.source import Rejected
from data_pipelines.sources import gymnasium as source
from data_pipelines.sources.gymnasium import Environment, GymnasiumSource
from data_pipelines.sources.gymnasium_actions import sample_actions, space_names

gymnasium = pytest.importorskip("gymnasium", reason="needs Gymnasium: pip install 'pixr1-jax[games]'")
SEEDS = {"train": range(0, 6, 2), "test": range(1, 3, 2)}


class Toy(gymnasium.Env):
    """Shows its last action and a random number of the seed; ends, fails or changes its mission when told to."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 29.97}
    observation_space = gymnasium.spaces.Discrete(100)

    def __init__(self, space=None, length=1000, fails_at=1000, picture=np.uint8, render_mode=None):
        self.action_space = gymnasium.spaces.Discrete(3) if space is None else space
        self.length, self.fails_at, self.picture, self.render_mode = length, fails_at, picture, render_mode
        # One buffer for ever, as some environments have it.
        self.frame = np.zeros((5, 7, 3), picture)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.mission = 0, "begin"
        self.frame[:] = self.np_random.integers(200)
        return 0, {}

    def step(self, action):
        assert self.action_space.contains(action)
        if self.steps == self.fails_at:
            raise OSError("the toy broke")
        self.steps += 1
        self.mission = "begin" if self.steps < 4 else "end"
        flat = np.ravel(gymnasium.spaces.flatten(self.action_space, action))
        self.frame[0, 0] = self.steps
        self.frame[0, 1 : 1 + len(flat), 0] = (100 * np.abs(flat[:6])).astype(self.picture)
        return self.steps % 100, 0.0, self.steps == self.length, False, {"step": self.steps}

    def render(self):
        return self.frame


class Named(Toy):
    """Names its actions."""

    metadata = {"render_modes": ["rgb_array"]}

    def get_action_meanings(self):
        return ["NOOP", "Move Left", "FIRE"]


class Crafter(gymnasium.Env):
    """Crafter, which has the interface of the old Gym."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}

    def __init__(self, render_mode=None):
        import crafter

        self._make = lambda seed: crafter.Env(size=(90, 90), seed=seed)
        self._env = self._make(0)
        self.action_space = gymnasium.spaces.Discrete(17)
        self.observation_space = gymnasium.spaces.Box(0, 255, (90, 90, 3), np.uint8)

    def get_action_meanings(self):
        return self._env.action_names

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._env = self._make(seed)
        return self._env.reset(), {}

    def step(self, action):
        observation, reward, done, info = self._env.step(action)
        return observation, reward, done, False, info

    def render(self):
        return self._env.render()


def scripted(observation, info, rng):
    """Plays the number of its own last frame modulo 3."""
    assert isinstance(rng, np.random.Generator)
    return info.get("step", 0) % 3


def illegal(observation, info, rng):
    """Plays what no environment knows."""
    return 77


@pytest.fixture(autouse=True, scope="module")
def toys():
    """Registers the environments of this file."""
    for name, kind in (("Toy-v0", Toy), ("Named-v0", Named), ("Crafter-v0", Crafter)):
        gymnasium.register(name, kind)
    yield
    for name in ("Toy-v0", "Named-v0", "Crafter-v0"):
        del gymnasium.registry[name]


@pytest.fixture
def policies(monkeypatch):
    """Makes the policies of this file importable by name."""
    monkeypatch.setitem(sys.modules, "policies_of_this_test", sys.modules[__name__])
    return "policies_of_this_test"


def make(*environments, seeds=SEEDS, frames=12, min_frames=1) -> GymnasiumSource:
    return GymnasiumSource(environments, seeds, frames, min_frames)


def record(source) -> list:
    return [result for _, result in source.record(source.items())]


REAL = [
    (Environment("CartPole-v1"), "pygame", (400, 600), 50, ("action_0", "action_1")),
    (Environment("Pendulum-v1"), "pygame", (500, 500), 30, ("axis_0",)),
    (
        Environment("minigrid:MiniGrid-DoorKey-5x5-v0"),
        "minigrid",
        (160, 160),
        10,
        ("left", "right", "forward", "pickup", "drop", "toggle", "done"),
    ),
    (Environment("Crafter-v0"), "crafter", (90, 90), 5, None),
]


@pytest.mark.parametrize(("environment", "package", "size", "rate", "names"), REAL)
def test_real_environments_are_recorded_and_replayed_by_seed(environment, package, size, rate, names):
    pytest.importorskip(package, reason=f"needs {package}")
    made = make(environment)
    items = made.items()
    clips = record(made)
    # One recorded alone, by another copy, in another order, is the same.
    again = [clip for _, clip in pickle.loads(pickle.dumps(made)).record(items[::-1])][::-1]
    for item, clip, other in zip(items, clips, again, strict=True):
        clip.validate()
        assert clip.episode == item.name and clip.seed in SEEDS[item.split]
        assert clip.video.shape[1:3] == size and clip.frame_rate == rate and clip.channels == 0
        assert names is None or clip.action_names == names
        np.testing.assert_array_equal(clip.video, other.video)
        np.testing.assert_array_equal(clip.actions, other.actions)
        np.testing.assert_array_equal(clip.video, source.replay(environment, clip.seed, clip.actions))
    assert len({clip.video.tobytes() for clip in clips}) == len(clips)
    back = decode(encode(clips[0]).to_bytes())
    np.testing.assert_array_equal(back.video, clips[0].video)
    np.testing.assert_array_equal(back.actions, clips[0].actions)


def test_a_mission_is_the_caption_unless_one_is_given():
    changing, given = make(Environment("Toy-v0")), make(Environment("Toy-v0", caption="a toy"))
    assert [(event.frame, event.text) for event in record(changing)[0].events] == [(0, "begin"), (3, "end")]
    assert [(event.frame, event.text) for event in record(given)[0].events] == [(0, "a toy")]


def test_minigrid_tells_its_mission():
    pytest.importorskip("minigrid", reason="needs minigrid")
    clip = record(make(Environment("minigrid:MiniGrid-DoorKey-5x5-v0")))[0]
    assert clip.events[0].text == "use the key to open the door and then get to the goal"


def test_splits_take_environments_in_turn_and_share_the_columns_of_all():
    made = make(
        Environment("Toy-v0", kwargs={"space": gymnasium.spaces.Box(-1, 1, (2,))}),
        Environment("Named-v0", frame_rate=8),
    )
    items = made.items()
    assert [(item.split, item.name) for item in items] == [
        ("train", "gymnasium/train/Toy-v0/000000"),
        ("train", "gymnasium/train/Named-v0/000002"),
        ("train", "gymnasium/train/Toy-v0/000004"),
        ("test", "gymnasium/test/Toy-v0/000001"),
    ]
    clips = record(made)
    assert {clip.action_names for clip in clips} == {("axis_0", "axis_1", "noop", "move_left", "fire")}
    assert clips[0].actions[:, :2].any() and not clips[0].actions[:, 2:].any()
    assert not clips[1].actions[:, :2].any() and (clips[1].actions[:, 2:].sum(1) == 1).all()
    assert [clip.frame_rate for clip in clips[:2]] == [fractions.Fraction(2997, 100), 8]


spaces = gymnasium.spaces
SPACES = [
    (spaces.Discrete(3, start=5), ["action_0", "action_1", "action_2"]),
    (spaces.MultiDiscrete([2, 3]), ["axis_0_0", "axis_0_1", "axis_1_0", "axis_1_1", "axis_1_2"]),
    (spaces.MultiDiscrete([2, 2], start=[3, 4]), ["axis_0_0", "axis_0_1", "axis_1_0", "axis_1_1"]),
    (spaces.MultiBinary(2), ["axis_0", "axis_1"]),
    (spaces.Box(-2, np.inf, (2, 1)), ["axis_0_0", "axis_1_0"]),
    (spaces.Box(0, 255, (2,), np.uint8), ["axis_0", "axis_1"]),
    (spaces.Box(-1, 1, (), np.float64), ["axis"]),
    (
        spaces.Dict(turn=spaces.Box(-1, 1, (1,)), keys=spaces.Tuple([spaces.Discrete(2), spaces.MultiBinary(1)])),
        ["keys.0_0", "keys.0_1", "keys.1_0", "turn_0"],
    ),
]


@pytest.mark.parametrize(("space", "names"), SPACES)
def test_actions_of_every_space_are_named_held_and_replayed(space, names):
    assert sorted(space_names(space)) == names
    rows = sample_actions(space, np.random.default_rng(3), 200, (5, 9))
    assert rows.shape == (200, len(names)) and rows.dtype == np.float32
    changed = (rows[1:] != rows[:-1]).any(axis=1)
    assert 10 < changed.sum() < 100 and len(np.unique(rows, axis=0)) > 1
    np.testing.assert_array_equal(rows, sample_actions(space, np.random.default_rng(3), 200, (5, 9)))
    assert all(space.contains(spaces.unflatten(space, row)) for row in rows)
    environment = Environment("Toy-v0", kwargs={"space": space})
    clip = record(make(environment))[0]
    assert sorted(clip.action_names) == names
    np.testing.assert_array_equal(clip.video, source.replay(environment, clip.seed, clip.actions))


def test_frame_f_is_the_picture_after_action_f(policies):
    clip = record(make(Environment("Toy-v0", policy=f"{policies}:scripted")))[0]
    # The toy draws the number of the step and the buttons of the action that made the picture.
    np.testing.assert_array_equal(clip.video[:, 0, 0, 0], np.arange(1, 13))
    np.testing.assert_array_equal(clip.video[:, 0, 1:4, 0], 100 * clip.actions)
    np.testing.assert_array_equal(clip.actions.argmax(1), np.arange(12) % 3)


def test_a_clip_ends_with_its_episode_and_short_ones_are_rejected():
    short = Environment("Toy-v0", kwargs={"length": 7})
    assert [len(clip.video) for clip in record(make(short, min_frames=7))] == [7] * 4
    found = record(make(short, min_frames=8))
    assert all(isinstance(one, Rejected) for one in found)
    assert found[0].name == "gymnasium/train/Toy-v0/000000"
    assert "ended within 7 frames in each of 8 tries and min_frames is 8" in found[0].reason


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"fails_at": 3}, "OSError: the toy broke"),
        ({"picture": np.float32}, r"ValueError: render\(\) gave float32\[5, 7, 3\]; wrap"),
    ],
)
def test_a_failing_environment_is_rejected_and_the_next_is_recorded(kwargs, reason):
    found = record(make(Environment("Toy-v0", kwargs=kwargs), Environment("Named-v0", frame_rate=5)))
    assert [isinstance(one, Rejected) for one in found] == [True, False, True, True]
    with pytest.raises(ValueError, match=reason):
        raise ValueError(found[0].reason)


def test_an_action_that_the_environment_does_not_know_is_rejected(policies):
    found = record(make(Environment("Toy-v0", policy=f"{policies}:illegal")))
    assert "policy gave 77 in frame 0; use an action of Discrete(3)" in found[0].reason


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (Environment("Nope-v3"), "'Nope-v3' is unknown.*name the module in front"),
        (Environment("CartPole-v9"), "'CartPole-v9' is unknown"),
        (Environment("no_such_module:Toy-v0"), "needs the package of no_such_module.*pip install"),
        (Environment("Toy-v0", kwargs={"colour": 1}), "'Toy-v0' cannot be made with kwargs.*colour"),
        (Environment("Toy-v0", policy="no_such_module:act"), "policy 'no_such_module:act' is not there"),
        (Environment("Named-v0"), "'Named-v0' does not say its render_fps; give its frame_rate"),
        (Environment("Toy-v0", kwargs={"space": spaces.Text(3)}), "action space of the environment is Text.*wrap"),
    ],
)
def test_what_no_clip_can_come_of_is_an_error_with_its_fix(environment, message):
    with pytest.raises(ValueError, match=message):
        record(make(environment))


def test_a_package_missing_at_the_first_picture_is_an_error(monkeypatch):
    def render(self):
        raise gymnasium.error.DependencyNotInstalled("pygame is not installed, run pip install pygame")

    monkeypatch.setattr(Toy, "render", render)
    with pytest.raises(ValueError, match="'Toy-v0' lacks a package: pygame is not installed"):
        record(make(Environment("Toy-v0")))


def test_missing_gymnasium_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ValueError, match=r"needs Gymnasium: pip install 'pixr1-jax\[games\]'"):
        make(Environment("Toy-v0")).items()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("environments", (), "environments is empty"),
        ("environments", (Environment("A-v0"), Environment("m:A-v0")), "name each once"),
        ("seeds", {}, "seeds is {}"),
        ("seeds", {"train": [1], "test": [1]}, "seeds has 1 in 'train' and 'test'"),
        ("seeds", {"train": [1, 1]}, "seeds has 1 in 'train' and 'train'"),
        ("seeds", {"train": [-1]}, "seeds has -1"),
        ("seeds", {"a/b": [1]}, "the split 'a/b'"),
        ("frames", 0, "frames is 0"),
        ("min_frames", 13, "min_frames is 13; use at most frames, which is 12"),
    ],
)
def test_bad_fields_are_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(make(Environment("Toy-v0")), **{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", ""),
        ("kwargs", {"render_mode": "human"}),
        ("policy", "best"),
        ("hold_seconds", (2.0, 1.0)),
        ("frame_rate", 0.0),
    ],
)
def test_bad_fields_of_an_environment_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(Environment("Toy-v0"), **{field: value})
