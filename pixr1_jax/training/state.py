"""The state of training, and the one jitted step that moves it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pixr1_jax.omni.model import Omni
from pixr1_jax.training.optimizer import ema_update, guarded_update

Batch = Mapping[str, jax.Array]
LossFunction = Callable[[Omni, Omni | None, Batch, int, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


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
    loss: LossFunction,
    tx: optax.GradientTransformation,
    seed: int,
    ema_decay: float,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of an objective: loss, gradient, guarded update, average.

    A step whose loss or gradient is not finite changes nothing but the counters.
    """
    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(state.params, teacher, batch, seed, state.step)
    params, opt_state, finite, norm = guarded_update(tx, gradient, state.opt_state, state.params, loss=value)
    ema = ema_update(state.ema, params, ema_decay, state.step)
    ema = jax.tree.map(lambda new, old: jnp.where(finite, new, old), ema, state.ema)
    bad = (~finite).astype(jnp.int32)
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
    return state, metrics
