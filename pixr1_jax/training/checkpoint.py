"""Checkpoints: the whole training state and the data position in one atomic save, restored onto any mesh.

On disk a step is an Orbax checkpoint `DIRECTORY/STEP/` with two items: `state`, arrays in nested dicts keyed
by readable names (no Python class is recorded), and `data`, one JSON file a process with the position of its
data iterator. Its metadata hold a checksum of every array, which a restore compares.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Awaitable, Iterator, Mapping
from typing import Any, Literal, Protocol, cast

import jax
import jax.numpy as jnp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from pixr1_jax.core import tree as tree_lib
from pixr1_jax.training.checkpoint_policy import CheckpointPolicy, MetricMean, SaveClock
from pixr1_jax.training.checksums import checksums

# Orbax writes this file last, on every kind of storage: a directory without it is an unfinished save.
_COMMIT_MARKER = "commit_success.txt"
_STATE, _DATA = "state", "data"
_CHECKSUMS = "checksums"  # in the metadata: by path of an array
_SAVE_FAILED = "the save failed; check the space and the permissions"


class CheckpointError(ValueError):
    """A checkpoint cannot be written or does not fit this run; the message names the path and the way out."""


class DataIterator(Protocol):
    """What a checkpoint needs of a data iterator; Grain's iterators have it."""

    def get_state(self) -> dict[str, Any]:
        """Returns the position as JSON values."""
        ...

    def set_state(self, state: dict[str, Any], /) -> None:
        """Continues from a position that `get_state` returned."""
        ...


class Checkpoints:
    """The checkpoints of one training run.

    Every process of the job makes the same calls, from its main thread.

    The run owns its directory: what a killed save left behind is removed when the object is created, so other
    programs read through `load_params`.
    """

    def __init__(self, directory: str | os.PathLike[str], policy: CheckpointPolicy):
        """Opens the directory, creates it if absent, and removes unfinished saves.

        Args:
            directory: A local folder or a bucket path (`gs://...`).
            policy: When to save, and what to keep.

        Raises:
            CheckpointError: If the directory cannot be written.
        """
        self._directory = _absolute(directory)
        self._clock, self._mean = SaveClock(policy), MetricMean(policy)
        _prepare(self._directory)
        # Kept in memory so that all processes decide alike, however late a shared folder shows a new file.
        self._newest = max(finished_steps(self._directory), default=-1)
        never = ocp.training.save_decision_policies.SpecificStepsPolicy(())
        context = ocp.Context()
        # A folder that cannot be made in the background would be waited for, for minutes.
        context.asynchronous.create_directories_asynchronously = False
        self._checkpointer = ocp.training.Checkpointer(
            self._directory,
            context=context,
            # When to save is decided in `save`, alike on all processes: no policy of Orbax's may add a save.
            # Orbax's own annotations of its policies do not agree, hence the exception.
            save_decision_policy=never,  # pyright: ignore[reportArgumentType]
            preservation_policy=policy.kept(),
        )

    def save(self, step: int, state: Any, data_iterator: DataIterator, *, force: bool = False) -> bool:
        """Starts a save when one is due or forced, and returns while it is written in the background.

        State and position are copied before the call returns: training may go on, and donate or overwrite
        them. A save still being written is waited for first.

        Args:
            step: Number of updates taken.
            state: A pytree of `jax.Array`; with more than one process, of global arrays.
            data_iterator: The iterator, positioned at the batch of the next update.
            force: Save although none is due.

        Returns:
            Whether a save was started: False when none is due, or this step is saved already.

        Raises:
            CheckpointError: If the state holds something else than non-empty arrays, if the directory holds a
                later step than this one, or if the save before failed in the background.
        """
        if not (self._clock.due(step) or force):
            return False
        self.wait()
        if self._newest == step:
            return False
        if self._newest > step:
            raise CheckpointError(
                f"{self._directory}: holds step {self._newest}, later than step {step}; delete those steps "
                "or save to a new directory"
            )
        items = {_STATE: _savable(state, self._directory), _DATA: _DataPosition(data_iterator)}
        metrics: Any = self._mean.take()
        metadata: Any = {_CHECKSUMS: checksums(state)}
        with _storage_errors(self._directory / str(step), _SAVE_FAILED):
            self._checkpointer.save_checkpointables_async(
                step, items, force=True, metrics=metrics, custom_metadata=metadata
            )
        self._newest = step
        self._clock.saved()
        return True

    def note(self, metrics: Mapping[str, float]) -> None:
        """Tells what was logged, by which the best checkpoints are found.

        Raises:
            ValueError: If the policy's metric is not there.
        """
        self._mean.note(metrics)

    def latest_step(self) -> int | None:
        """Returns the newest finished step, or None where there is none."""
        return max(finished_steps(self._directory), default=None)

    def restore(self, abstract_state: Any, data_iterator: DataIterator, step: int | None = None) -> Any:
        """Reads a checkpoint onto the shardings of this run, and sets the data iterator.

        Args:
            abstract_state: The state of this run, of arrays or of `jax.ShapeDtypeStruct`; a leaf without
                sharding goes to the first local device.
            data_iterator: Set to the saved position. The number of processes may have changed where all of
                them saved the same position.
            step: Which step; None takes the newest.

        Returns:
            The state, structured as `abstract_state`.

        Raises:
            CheckpointError: If the step is absent, if a path, shape or dtype differs (the message names the
                first one), if an array is not what was saved, or if the data position cannot be taken over.
        """
        self.wait()
        path = _step_path(self._directory, step)
        position = _DataPosition(data_iterator)
        saved, sums = _saved_tree(path)
        state = _load_state(path, abstract_state, saved, sums, {_DATA: position})
        position.apply(path)
        return state

    def wait(self) -> None:
        """Waits until the save under way is on disk.

        Raises:
            CheckpointError: If that save failed.
        """
        with _storage_errors(self._directory, _SAVE_FAILED):
            self._checkpointer.wait()

    def close(self) -> None:
        """Waits as `wait` does, and releases what is held."""
        with _storage_errors(self._directory, _SAVE_FAILED):
            self._checkpointer.close()


def load_params(
    directory: str | os.PathLike[str],
    template: Any,
    *,
    which: Literal["ema", "params"] = "ema",
    step: int | None = None,
) -> Any:
    """Reads only the weights of a checkpoint, for distillation, export and evaluation; never writes.

    Args:
        directory: The directory of a run's checkpoints.
        template: The model, of arrays or of `jax.ShapeDtypeStruct`; a leaf without sharding goes to the first
            local device.
        which: The state's branch: the averaged weights or the last ones.
        step: Which step; None takes the newest.

    Returns:
        The weights, structured as `template`.

    Raises:
        CheckpointError: If there is no such step or branch, a path, shape or dtype differs, or an array is not
            what was saved.
    """
    path = _step_path(_absolute(directory), step)
    saved, sums = _saved_tree(path)
    if which not in saved:
        raise CheckpointError(f"{path}: its state holds no {which!r}; it holds {', '.join(sorted(saved))}")
    return _load_state(path, {which: template}, {which: saved[which]}, sums, {})[which]


class _DataPosition:
    """The position of a data iterator, in Orbax's protocol of objects that save themselves.

    The file names are Grain's. Unlike Grain's own implementation, reading accepts another number of processes
    when every process saved the same position, as all do whose position counts global batches.
    """

    def __init__(self, iterator: DataIterator):
        self._iterator = iterator
        self._saved: dict[str, str] = {}
        try:
            self._text = json.dumps(iterator.get_state())
        except TypeError as error:
            raise CheckpointError(f"data iterator: its state is not JSON ({error}); return plain values") from error

    async def save(self, directory: ocp.path.PathAwaitingCreation) -> Awaitable[None]:
        text = self._text

        async def write() -> None:
            path = await directory.await_creation()
            name = f"process_{jax.process_index()}-of-{jax.process_count()}.json"
            await asyncio.to_thread((path / name).write_text, text)

        return write()

    async def load(self, directory: ocp.path.Path) -> Awaitable[None]:
        async def read() -> None:
            self._saved = await asyncio.to_thread(_read_positions, directory)

        return read()

    def apply(self, path: epath.Path) -> None:
        """Moves the iterator to the position read from `path`."""
        own = f"process_{jax.process_index()}-of-{jax.process_count()}.json"
        texts = {self._saved[own]} if own in self._saved else set(self._saved.values())
        if len(texts) != 1:
            raise CheckpointError(
                f"{path}/{_DATA}: holds {len(texts)} different data positions and none is {own}; restart "
                "with the number of processes that saved it"
            )
        try:
            self._iterator.set_state(json.loads(texts.pop()))
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(
                f"{path}/{_DATA}: the data iterator refuses this position ({error}); use the data config "
                "that the checkpoint was made with"
            ) from error


def _read_positions(directory: epath.Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.glob("process_*-of-*.json")}


def _saved_tree(path: epath.Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Returns the tree of the saved state, with shape and dtype in the place of each array, and the checksums."""
    with _storage_errors(path, _unreadable(path)):
        metadata = ocp.metadata(path)
        saved = cast(dict[str, Any] | None, metadata.metadata)
        sums = cast(dict[str, Any], metadata.custom_metadata or {}).get(_CHECKSUMS, {})
    if saved is None:  # Orbax logs why, and goes on.
        raise CheckpointError(f"{path}: {_unreadable(path)} (its state is damaged)")
    return saved, sums


def _load_state(
    path: epath.Path, template: Any, saved: dict[str, Any], sums: Mapping[str, int], others: dict[str, Any]
) -> Any:
    """Reads the branches of the state that `template` has, and the other items in the same pass.

    `saved` is what `template` must agree with: the saved tree, or some branches of it.
    """
    nested = tree_lib.to_dict(template)
    _compare(path, tree_lib.named_leaves(saved), tree_lib.named_leaves(nested))
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with _storage_errors(path, _unreadable(path)), context:
        items = ocp.load_checkpointables(path, {_STATE: jax.tree.map(_abstract, nested), **others})
    for name, value in sorted(checksums(items[_STATE]).items()):
        if value != sums.get(name, value):
            raise CheckpointError(f"{path}: {name} is not what was saved: the checkpoint {_unreadable(path)}")
    return tree_lib.from_dict(template, items[_STATE])


def _unreadable(path: epath.Path) -> str:
    """What to do about a step that cannot be used."""
    before = [step for step in finished_steps(path.parent) if step < int(path.name)]
    if before:
        return f"cannot be used; delete this step to fall back to step {before[-1]}"
    return "cannot be used, and no step is before it; restore its files or start in a new directory"


def _compare(path: epath.Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises at the first path, in alphabetical order, where the checkpoint is not what the run wants."""
    for name in sorted(saved.keys() | wanted.keys()):
        here = _describe(wanted[name]) if name in wanted else "absent"
        there = _describe(saved[name]) if name in saved else "absent"
        if here != there:
            raise CheckpointError(
                f"{path}: {name} is {there} in the checkpoint and {here} in this run; use the config that "
                "the checkpoint was made with, or start in a new directory"
            )


def _describe(leaf: Any) -> str:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        # Orbax stores a typed key as the integers under it.
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return f"{jnp.dtype(leaf.dtype).name}{list(leaf.shape)}"


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _savable(state: Any, directory: epath.Path) -> dict[str, Any]:
    for name, leaf in tree_lib.named_leaves(state).items():
        if not isinstance(leaf, jax.Array) or leaf.size == 0:
            kind = "an empty array" if isinstance(leaf, jax.Array) else f"a {type(leaf).__name__}"
            raise CheckpointError(f"{directory}: {name} is {kind}; only non-empty jax.Array leaves can be saved")
    return tree_lib.to_dict(state)


def _absolute(directory: str | os.PathLike[str]) -> epath.Path:
    # Orbax takes absolute paths only; a bucket path ("gs://...") is absolute already.
    text = os.fspath(directory)
    return epath.Path(text if "://" in text else os.path.abspath(text))


def _prepare(directory: epath.Path) -> None:
    """Makes the directory, proves that it can be written, and removes what killed saves left."""
    if jax.process_index() == 0:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            probe = directory / ".writable"
            probe.write_text("")
            probe.unlink()
            for path in directory.iterdir():
                if _is_unfinished(path):
                    path.rmtree()
        except OSError as error:
            raise CheckpointError(
                f"{directory}: cannot be written ({error.strerror or error}); choose another directory"
            ) from error
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("checkpoint directory")


def _is_unfinished(path: epath.Path) -> bool:
    step = path.name.partition(".orbax-checkpoint-tmp")[0]
    return step.isdecimal() and path.is_dir() and not (path.name == step and (path / _COMMIT_MARKER).exists())


def finished_steps(directory: str | os.PathLike[str]) -> list[int]:
    """Returns the steps of all finished checkpoints in a directory, ascending; none if it does not exist."""
    directory = _absolute(directory)
    if not directory.is_dir():
        return []
    return sorted(
        int(path.name) for path in directory.iterdir() if path.name.isdecimal() and (path / _COMMIT_MARKER).exists()
    )


def _step_path(directory: epath.Path, step: int | None) -> epath.Path:
    steps = finished_steps(directory)
    if not steps:
        raise CheckpointError(f"{directory}: holds no finished checkpoint; check the path")
    if step is not None and step not in steps:
        raise CheckpointError(f"{directory}: holds no step {step}; the finished steps are {steps}")
    return directory / str(steps[-1] if step is None else step)


@contextlib.contextmanager
def _storage_errors(path: epath.Path, advice: str) -> Iterator[None]:
    """Turns what Orbax and the storage raise into one line that names the path."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path}: {advice} ({reason})") from error
