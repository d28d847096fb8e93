"""Checkpoints: what was saved comes back, on any mesh; what does not fit is named; half a save is none."""

import resource
import shutil
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pixr1_jax.training.checkpoint import CheckpointError, Checkpoints, load_params
from pixr1_jax.training.checkpoint_policy import CheckpointPolicy


class Layer(nnx.Module):
    def __init__(self, key, width):
        self.kernel = nnx.Param(jax.random.normal(key, (8, width)), axes=("embed", "mlp"))
        self.bias = nnx.Param(jnp.ones(width), axes=("mlp",))


class Model(nnx.Module):
    def __init__(self, key, width=16):
        self.blocks = jax.vmap(lambda k: Layer(k, width))(jax.random.split(key, 2))
        self.heads = nnx.List([Layer(key, 4)])


class State(NamedTuple):
    params: Any
    ema: Any
    opt_state: Any
    step: jax.Array
    key: jax.Array


TX = optax.adamw(1e-2)


def make_state(seed=0, width=16):
    model: Any = Model(jax.random.key(seed), width)
    grads = jax.tree.map(jnp.sin, model)
    _, opt_state = TX.update(grads, TX.init(model), model)
    ema = jax.tree.map(lambda leaf: 0.5 * leaf, model)
    return State(model, ema, opt_state, jnp.int32(7), jax.random.key(seed))


def make_iterator():
    dataset = grain.MapDataset.range(1000).shuffle(seed=3).repeat().batch(4)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))


class Counter:
    """The smallest data iterator."""

    def __init__(self, position=0):
        self.position = position

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


def data(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(data(a), data(b))


def save(directory, step, state, iterator=None):
    checkpoints = Checkpoints(directory, CheckpointPolicy(1, keep=5))
    assert checkpoints.save(step, state, iterator or Counter(step))
    checkpoints.close()


def restore(directory, state, iterator=None, step=None):
    checkpoints = Checkpoints(directory, CheckpointPolicy(1, keep=5))
    try:
        return checkpoints.restore(jax.eval_shape(lambda: state), iterator or Counter(), step)
    finally:
        checkpoints.close()


def test_state_and_data_position_come_back(tmp_path):
    iterator = make_iterator()
    for _ in range(5):
        next(iterator)
    state = make_state()
    save(tmp_path, 7, state, iterator)
    wanted = [next(iterator).tolist() for _ in range(3)]

    other = make_iterator()
    restored = restore(tmp_path, make_state(seed=1), other)
    assert_same(restored, state)
    assert restored.params.blocks.kernel.axes == ("embed", "mlp")
    assert [next(other).tolist() for _ in range(3)] == wanted
    assert jax.random.uniform(restored.key) == jax.random.uniform(state.key)


def test_a_save_goes_on_while_training_overwrites_the_state(tmp_path):
    state = {"params": {"w": jnp.arange(2**20, dtype=jnp.float32)}}
    wanted = np.array(state["params"]["w"])
    advance = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0 - 1, tree), donate_argnums=0)
    counter = Counter(3)
    checkpoints = Checkpoints(tmp_path, CheckpointPolicy(1, keep=1))
    template = jax.eval_shape(lambda: state)
    assert checkpoints.save(3, state, counter)
    for _ in range(5):
        state = advance(state)
        counter.position += 1
    jax.block_until_ready(state)
    restored = checkpoints.restore(template, counter)
    checkpoints.close()
    np.testing.assert_array_equal(restored["params"]["w"], wanted)
    assert counter.position == 3


def test_saves_are_due_forced_or_neither_and_the_newest_stay(tmp_path):
    state, started = make_state(), []
    checkpoints = Checkpoints(tmp_path, CheckpointPolicy(4, keep=2))
    assert checkpoints.latest_step() is None
    for step in range(14):
        if checkpoints.save(step, state, Counter(step)):
            started.append(step)
    assert checkpoints.save(13, state, Counter(13), force=True)
    assert not checkpoints.save(13, state, Counter(13), force=True)
    checkpoints.wait()
    assert started == [4, 8, 12]
    assert checkpoints.latest_step() == 13
    assert sorted(path.name for path in tmp_path.iterdir()) == ["12", "13"]
    counter = Counter()
    assert_same(checkpoints.restore(state, counter, step=12), state)
    assert counter.position == 12
    with pytest.raises(CheckpointError, match=r"no step 4; the finished steps are \[12, 13\]"):
        checkpoints.restore(state, Counter(), step=4)
    checkpoints.close()
    # A run that went back in time does not mix its steps with those of the abandoned future.
    again = Checkpoints(tmp_path, CheckpointPolicy(4, keep=2))
    with pytest.raises(CheckpointError, match="holds step 13, later than step 8"):
        again.save(8, state, Counter(8))
    again.close()


@pytest.mark.parametrize(("old", "new"), [((8, 1), (2, 4)), ((1, 1), (4, 2)), ((2, 4), (1, 1))])
def test_restore_onto_another_mesh(tmp_path, old, new):
    def place(tree, shape):
        devices = jax.devices()[: shape[0] * shape[1]]
        mesh = jax.make_mesh(shape, ("data", "tensor"), (AxisType.Auto,) * 2, devices=devices)

        def put(leaf):
            spec = P("data", "tensor") if leaf.ndim == 2 else P()
            return jax.device_put(leaf, NamedSharding(mesh, spec))

        return jax.tree.map(put, tree)

    state = {"params": {"w": jnp.arange(128.0).reshape(16, 8), "b": jnp.ones(3)}, "step": jnp.int32(5)}
    save(tmp_path, 5, place(state, old))
    template = place(jax.tree.map(jnp.zeros_like, state), new)
    checkpoints = Checkpoints(tmp_path, CheckpointPolicy(1, keep=1))
    restored = checkpoints.restore(template, Counter())
    checkpoints.close()
    assert_same(restored, state)
    for leaf, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(template), strict=True):
        assert leaf.sharding == wanted.sharding


def differing(state, what):
    if what == "shape":
        return make_state(width=32), "ema/blocks/bias is float32\\[2, 16\\] in the checkpoint and float32\\[2, 32\\]"
    if what == "dtype":
        return state._replace(
            step=jnp.float32(7)
        ), "step is int32\\[\\] in the checkpoint and float32\\[\\] in this run"
    if what == "extra":
        return state._replace(ema=None), "ema/blocks/bias is float32\\[2, 16\\] in the checkpoint and absent in this"
    wider = {**state._asdict(), "critic": {"w": jnp.ones((2, 2)), "v": jnp.ones(3)}}
    return wider, "critic/v is absent in the checkpoint and float32\\[3\\] in this run"


@pytest.mark.parametrize("what", ["shape", "dtype", "extra", "missing"])
def test_the_first_differing_path_is_named(tmp_path, what):
    state = make_state()
    save(tmp_path, 7, state)
    template, text = differing(state, what)
    counter = Counter(99)
    with pytest.raises(CheckpointError, match=f"^{tmp_path}/7: {text}.*; use the config") as raised:
        restore(tmp_path, template, counter)
    assert "\n" not in str(raised.value)
    assert counter.position == 99


def test_weights_alone_are_read_without_the_rest(tmp_path):
    state = make_state()
    save(tmp_path, 7, state)
    template = jax.eval_shape(lambda: Model(jax.random.key(1)))
    assert_same(load_params(tmp_path, template), state.ema)
    assert_same(load_params(tmp_path, template, which="params", step=7), state.params)
    with pytest.raises(CheckpointError, match=r"/7: ema/blocks/bias is float32\[2, 16\]"):
        load_params(tmp_path, Model(jax.random.key(1), 32))
    with pytest.raises(CheckpointError, match="holds no 'teacher'; it holds ema, key, opt_state, params, step"):
        load_params(tmp_path, template, which="teacher")  # pyright: ignore[reportArgumentType]
    with pytest.raises(CheckpointError, match="holds no finished checkpoint"):
        load_params(tmp_path / "elsewhere", template)
    assert not (tmp_path / "elsewhere").exists()


def test_half_a_save_is_no_checkpoint(tmp_path):
    state = make_state()
    save(tmp_path, 7, state, Counter(7))
    shutil.copytree(tmp_path / "7", tmp_path / "9")
    (tmp_path / "9" / "commit_success.txt").unlink()
    shutil.copytree(tmp_path / "7", tmp_path / "11.orbax-checkpoint-tmp")
    (tmp_path / "notes").mkdir()
    assert_same(load_params(tmp_path, state.params), state.ema)

    checkpoints = Checkpoints(tmp_path, CheckpointPolicy(1, keep=5))
    assert checkpoints.latest_step() == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["7", "notes"]
    counter = Counter()
    assert_same(checkpoints.restore(state, counter), state)
    assert counter.position == 7
    for step in (9, 11):
        assert checkpoints.save(step, state, Counter(step))
    checkpoints.close()
    assert checkpoints.latest_step() == 11


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("lost", ["state/d", "state/ocdbt.process_0", "state/_METADATA", "state", "data"])
def test_a_damaged_checkpoint_is_named(tmp_path, lost):
    state = make_state()
    save(tmp_path, 7, state)
    path = tmp_path / "7" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    counter = Counter(99)
    with pytest.raises(CheckpointError, match=f"^{tmp_path}/7: cannot be used, and no step is before it") as raised:
        restore(tmp_path, state, counter)
    assert "\n" not in str(raised.value)
    assert counter.position == 99


def flip_one_bit(folder):
    """Of the largest data file, where arrays are; their compression has no checksum."""
    path = max((path for path in folder.rglob("d/*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_one_wrong_bit_is_found_and_the_step_before_is_named(tmp_path):
    state = {"params": {"w": jax.random.normal(jax.random.key(0), (64, 128))}, "step": jnp.int32(3)}
    for step in (3, 7):
        save(tmp_path, step, state)
    flip_one_bit(tmp_path / "7" / "state")
    counter = Counter(99)
    text = "7: params/w is not what was saved: .* delete this step to fall back to step 3"
    with pytest.raises(CheckpointError, match=text):
        restore(tmp_path, state, counter)
    with pytest.raises(CheckpointError, match=text):
        load_params(tmp_path, state["params"], which="params")
    assert counter.position == 99
    shutil.rmtree(tmp_path / "7")
    assert_same(restore(tmp_path, state, counter), state)
    assert counter.position == 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_loses_nothing_saved_before(tmp_path):
    """A limit on the size of a file stands for the full disk: what is written beyond it fails."""
    small = {"w": jnp.ones(8)}
    large = {"w": jax.random.normal(jax.random.key(0), (1 << 18,))}
    save(tmp_path, 3, small)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints = Checkpoints(tmp_path, CheckpointPolicy(1, keep=1))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, hard))
        with pytest.raises(CheckpointError, match=f"^{tmp_path}.*: the save failed; check the space") as raised:
            checkpoints.save(5, large, Counter(5))
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in str(raised.value) and "\n" not in str(raised.value)
    counter = Counter()
    assert_same(restore(tmp_path, small, counter), small)
    assert counter.position == 3
    save(tmp_path, 5, large)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "5"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_folder_that_is_no_longer_writable_loses_nothing_saved_before(tmp_path):
    """Another folder of that name, of a file system that takes nothing, stands for it: root may write anywhere else."""
    state = make_state()
    save(tmp_path / "run", 3, state)
    checkpoints = Checkpoints(tmp_path / "run", CheckpointPolicy(1, keep=1))
    (tmp_path / "run").rename(tmp_path / "kept")
    (tmp_path / "run").symlink_to("/proc/self", target_is_directory=True)
    with pytest.raises(CheckpointError, match="run.*: the save failed; check the space and the permissions"):
        checkpoints.save(5, state, Counter(5))
        checkpoints.wait()
    (tmp_path / "run").unlink()
    (tmp_path / "kept").rename(tmp_path / "run")
    assert_same(restore(tmp_path / "run", state), state)


def test_the_best_and_every_kth_stay(tmp_path):
    checkpoints = Checkpoints(
        tmp_path, CheckpointPolicy(1, keep=1, keep_every=4, keep_best=2, metric="loss", best="lowest")
    )
    losses = {
        1: [9.0],
        2: [1.0, 2.0],
        3: [5.0, float("nan")],
        4: [7.0],
        5: [1.9],
        6: [],
        7: [0.5, 9.5],
        8: [3.0],
        9: [8.0],
    }
    for step, values in losses.items():
        for value in values:
            checkpoints.note({"loss": value, "other": 0.0})
        checkpoints.save(step, {"w": jnp.ones(4)}, Counter(step))
        if step == 6:  # what was measured is not lost with the process
            checkpoints.close()
            checkpoints = Checkpoints(
                tmp_path, CheckpointPolicy(1, keep=1, keep_every=4, keep_best=2, metric="loss", best="lowest")
            )
    with pytest.raises(ValueError, match="'loss' is not logged; there are accuracy, other"):
        checkpoints.note({"other": 0.0, "accuracy": 1.0})
    checkpoints.close()
    # 2 (mean 1.5) and 5 (1.9) are best, 4 and 8 are multiples, 9 is the newest.
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [2, 4, 5, 8, 9]


def test_another_number_of_processes_takes_over_a_common_position_only(tmp_path):
    state = make_state()
    save(tmp_path, 7, state, Counter(7))
    folder = tmp_path / "7" / "data"
    text = (folder / "process_0-of-1.json").read_text()
    (folder / "process_0-of-1.json").unlink()
    for process in range(2):
        (folder / f"process_{process}-of-2.json").write_text(text)
    counter = Counter()
    restore(tmp_path, state, counter)
    assert counter.position == 7
    (folder / "process_1-of-2.json").write_text('{"position": 8}')
    with pytest.raises(CheckpointError, match=r"7/data: holds 2 different data positions.*number of processes"):
        restore(tmp_path, state, Counter())


def test_a_refused_data_position_is_named(tmp_path):
    class Stubborn(Counter):
        def set_state(self, state):
            raise ValueError("another dataset")

    save(tmp_path, 7, make_state())
    with pytest.raises(CheckpointError, match=r"7/data: the data iterator refuses this position \(another dataset\)"):
        restore(tmp_path, make_state(), Stubborn())


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"step": 3}, "step is a int"),
        ({"a": {"b": np.ones(3)}}, "a/b is a ndarray"),
        ({"a": jnp.ones((0, 3))}, "a is an empty array"),
    ],
)
def test_states_that_cannot_be_saved_are_named(tmp_path, state, text):
    checkpoints = Checkpoints(tmp_path, CheckpointPolicy(1, keep=1))
    with pytest.raises(CheckpointError, match=text):
        checkpoints.save(1, state, Counter())
    checkpoints.close()


def test_bad_arguments_and_folders_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file/run: cannot be written"):
        Checkpoints(tmp_path / "file" / "run", CheckpointPolicy(1, keep=1))
    checkpoints = Checkpoints(tmp_path / "empty", CheckpointPolicy(1, keep=1))
    with pytest.raises(CheckpointError, match="holds no finished checkpoint"):
        checkpoints.restore(make_state(), Counter())
    checkpoints.close()
