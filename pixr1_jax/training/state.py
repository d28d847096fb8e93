"""The state of training, and the one jitted step that moves it."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from pixr1_jax.omni.model import Omni
from pixr1_jax.training.groups import group_norms
from pixr1_jax.training.optimizer import ema_update, guarded_update

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


class Objective(Protocol):
    """What a step needs of an objective; `objectives.pretrain.Pretrain` says what the methods mean."""

    def masses(self, batch: Batch, seed: int, step: jax.Array) -> Mapping[str, jax.Array]:
        """What the loss of a batch that is taken in parts divides by."""
        ...

    def loss(
        self,
        params: Omni,
        teacher: Omni | None,
        batch: Batch,
        seed: int,
        step: jax.Array,
        whole: Mapping[str, jax.Array] | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """Loss and metrics of a batch or of a part of one."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes.

    Attributes:
      step: int32, steps taken, skipped ones included.
      params: Parameters.
      ema: Their exponential moving average, which is what is evaluated, distilled and served.
      opt_state: State of the optimizer.
      skipped: int32, steps whose loss or gradient was not finite.
      skipped_in_a_row: int32, how many of them came last without a good one since.
    """

    step: jax.Array
    params: Omni
    ema: Omni
    opt_state: Any
    skipped: jax.Array
    skipped_in_a_row: jax.Array


def initial_state(params: Omni, tx: optax.GradientTransformation) -> TrainState:
    """State before the first step."""
    zero = jnp.zeros((), jnp.int32)
    ema = jax.tree.map(jnp.copy, params)
    opt_state = tx.init(params)  # pyright: ignore[reportArgumentType] (a module is a pytree; optax's types do not know)
    return TrainState(zero, params, ema, opt_state, zero, zero)


def train_step(
    state: TrainState,
    teacher: Omni | None,
    batch: Batch,
    *,
    objective: Objective,
    tx: optax.GradientTransformation,
    seed: int,
    ema_decay: float,
    accumulate: int,
) -> tuple[TrainState, Metrics]:
    """One step of an objective: loss, gradient, guarded update, average.

    A step whose loss or gradient is not finite changes nothing but the counters. With `accumulate` above 1 the rows are
    taken in so many parts, one after the other; loss and gradient are those of the whole batch all the same.

    Raises:
      ValueError: The rows do not divide into the parts.
    """
    value, metrics, gradient = gradients(objective, state.params, teacher, batch, seed, state.step, accumulate)
    params, opt_state, finite, norm = guarded_update(tx, gradient, state.opt_state, state.params, loss=value)
    ema = ema_update(state.ema, params, ema_decay, state.step)
    ema = jax.tree.map(lambda new, old: jnp.where(finite, new, old), ema, state.ema)
    bad = (~finite).astype(jnp.int32)
    norms = group_norms(gradient, state.params, params)
    state = TrainState(
        step=state.step + 1,
        params=params,
        ema=ema,
        opt_state=opt_state,
        skipped=state.skipped + bad,
        skipped_in_a_row=(state.skipped_in_a_row + 1) * bad,
    )
    metrics |= {
        "loss": value,
        "grad_norm": norm,
        "skipped": state.skipped,
        "skipped_in_a_row": state.skipped_in_a_row,
    }
    metrics |= norms
    return state, metrics


def jitted_step(objective: Objective, tx: optax.GradientTransformation, abstract: TrainState, **static: Any) -> Any:
    """`train_step` as it is compiled, its state donated and returned where `abstract` has it.

    Args:
      objective: What is trained.
      tx: The optimizer.
      abstract: Shapes and shardings of the state.
      **static: The numbers that `train_step` takes by name.
    """
    where = jax.tree.map(lambda x: x.sharding, abstract)
    step = functools.partial(train_step, objective=objective, tx=tx, **static)
    return jax.jit(step, out_shardings=(where, None), donate_argnums=0)


def gradients(
    objective: Objective,
    params: Omni,
    teacher: Omni | None,
    batch: Batch,
    seed: int,
    step: jax.Array,
    accumulate: int,
) -> tuple[jax.Array, Metrics, Omni]:
    """Loss, metrics and gradient of a batch, taken in `accumulate` parts."""
    run = jax.value_and_grad(objective.loss, has_aux=True)
    if accumulate == 1:
        (value, metrics), gradient = run(params, teacher, batch, seed, step)
        return value, metrics, gradient
    rows = next(iter(batch.values())).shape[0]
    if accumulate < 1 or rows % accumulate:
        raise ValueError(f"pack.batch_rows={rows} must be a multiple of accumulate={accumulate}")
    whole = objective.masses(batch, seed, step)
    # Every n-th row makes a part, so that each device keeps the rows that it has.
    parts = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(rows // accumulate, accumulate, *x.shape[1:]), 0, 1), batch)

    def add(total, part):
        (value, metrics), gradient = run(params, teacher, part, seed, step, whole)
        return jax.tree.map(jnp.add, total, (value, metrics, gradient)), None

    one = jax.tree.map(lambda x: x[0], parts)
    (value, metrics), gradient = jax.eval_shape(lambda: run(params, teacher, one, seed, step, whole))
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (value, metrics, gradient))
    (value, metrics, gradient), _ = jax.lax.scan(add, nothing, parts)
    return value, metrics, gradient
