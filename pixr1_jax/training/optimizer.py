"""AdamW or Muon with one learning-rate schedule, an update that refuses non-finite numbers, and the averaged weights.

Everything is a function of pytrees: parameters are an nnx module used as a pytree, gradients and averages
mirror it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from ml_collections import ConfigDict

Params = Any
_NAMES = ("adamw", "muon")
_SCHEDULES = ("constant", "cosine")
_FIELDS = (
    "name",
    "learning_rate",
    "warmup_steps",
    "total_steps",
    "schedule",
    "final_scale",
    "b1",
    "b2",
    "weight_decay",
    "clip_norm",
)
# The logical axis along which equal blocks are stacked; it says nothing about the shape of one block's array.
_STACKING_AXIS = "layers"


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Builds the optimizer behind global-norm clipping.

    The gradient is scaled down to `clip_norm` when its global norm is larger; weight decay is decoupled and
    multiplied by the learning rate. Moments are float32 whatever the dtype of the parameters.

    "adamw" is AdamW (Loshchilov and Hutter, 2019); weight decay touches matrices only: see `decay_mask`. "muon" is Muon
    (Jordan et al., 2024) for the matrices of the layers, each query, key, value, gate on its own, with momentum `b1`
    and updates of AdamW's size (root mean square 0.2, arXiv 2502.16982), so that AdamW's learning rate serves;
    everything else, embeddings and heads among it, takes AdamW without decay.

    Args:
        config: The fields `name` ("adamw" or "muon"), `learning_rate`, `warmup_steps`, `total_steps`, `schedule`
            ("constant" or "cosine"), `final_scale` (where the cosine ends, as a fraction of `learning_rate`), `b1`,
            `b2`, `weight_decay` and `clip_norm` (global norm; `inf` never clips).

    Returns:
        An optax transformation whose `update` needs the parameters.

    Raises:
        ValueError: If a field is missing, unknown or out of range; the message names it.
    """
    fields = _valid_fields(config)
    rate, decay = learning_rate(config), fields["weight_decay"]
    descend = optax.adamw(rate, b1=fields["b1"], b2=fields["b2"], weight_decay=decay, mask=decay_mask)
    if fields["name"] == "muon":
        turn = optax.contrib.muon(
            rate, beta=fields["b1"], weight_decay=decay, muon_weight_dimension_numbers=muon_axes, consistent_rms=0.2
        )
        descend = optax.partition({"muon": turn, "adamw": descend}, _labels)
    return _in_float32(optax.chain(optax.clip_by_global_norm(fields["clip_norm"]), descend))


def learning_rate(config: ConfigDict) -> Callable[[jax.typing.ArrayLike], jax.Array]:
    """Returns the learning rate as a function of the number of updates already taken.

    The rate rises linearly over `warmup_steps`, and is not zero at the first update: update n (from 0) uses
    `learning_rate * (n + 1) / warmup_steps`. Then it stays ("constant"), or follows half a cosine that ends
    at `final_scale * learning_rate` at `total_steps` and stays there ("cosine").

    Args:
        config: The section that `make_optimizer` takes.

    Returns:
        A function from an update count (int, or int32 array) to a float32 scalar; traceable.

    Raises:
        ValueError: If a field is missing, unknown or out of range; the message names it.
    """
    fields = _valid_fields(config)
    peak, warmup, total = fields["learning_rate"], fields["warmup_steps"], fields["total_steps"]
    final_scale = fields["final_scale"] if fields["schedule"] == "cosine" else 1.0

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        count = jnp.asarray(count, jnp.float32)
        rise = jnp.minimum(1.0, (count + 1) / max(warmup, 1))
        progress = jnp.clip((count - warmup) / max(total - warmup, 1), 0.0, 1.0)
        fall = final_scale + (1 - final_scale) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return peak * rise * fall

    return schedule


def decay_mask(params: Params) -> Params:
    """Marks the arrays that weight decay applies to.

    The rule: an array decays when it is at least a matrix within one layer. An `nnx.Variable` with `axes`
    metadata counts its logical axes except "layers", the axis along which equal blocks are stacked; without
    that metadata the rank of the array counts. So kernels and embedding tables decay; biases, gains and
    scales do not.

    Args:
        params: A pytree of arrays, or an nnx module in tree mode.

    Returns:
        The same structure with a bool for each array.
    """

    def mark(leaf: Any) -> Any:
        if not isinstance(leaf, nnx.Variable):
            return jnp.ndim(leaf) >= 2
        axes = leaf.get_metadata().get("axes")

        def decays(value: Any) -> bool:
            return (jnp.ndim(value) if axes is None else sum(axis != _STACKING_AXIS for axis in axes)) >= 2

        # Mapping over the variable itself keeps the structure that optax compares with the parameters.
        return jax.tree.map(decays, leaf)

    return jax.tree.map(mark, params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def muon_axes(params: Params) -> Params:
    """The axes that Muon multiplies along: those of stacked matrices, from the first to the last named one.

    Args:
        params: An nnx module in tree mode.

    Returns:
        The same structure with `MuonDimensionNumbers`, or None for what is no matrix of a stacked layer.
    """

    def mark(leaf: Any) -> Any:
        axes = leaf.get_metadata().get("axes") if isinstance(leaf, nnx.Variable) else None

        def along(value: Any) -> optax.contrib.MuonDimensionNumbers | None:
            whole = () if axes is None else (_STACKING_AXIS,) * (jnp.ndim(value) - len(axes)) + tuple(axes)
            named = [place for place, axis in enumerate(whole) if axis not in (None, _STACKING_AXIS)]
            if _STACKING_AXIS not in whole or len(named) != 2:
                return None
            return optax.contrib.MuonDimensionNumbers(*named)

        return jax.tree.map(along, leaf)

    return jax.tree.map(mark, params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def _labels(params: Params) -> Params:
    """Which optimizer each array takes where Muon is asked for."""
    is_leaf = lambda axes: axes is None or isinstance(axes, optax.contrib.MuonDimensionNumbers)
    return jax.tree.map(lambda axes: "adamw" if axes is None else "muon", muon_axes(params), is_leaf=is_leaf)


def guarded_update(
    tx: optax.GradientTransformation,
    grads: Params,
    opt_state: optax.OptState,
    params: Params,
    *,
    loss: jax.Array,
) -> tuple[Params, optax.OptState, jax.Array, jax.Array]:
    """Takes one optimizer step, unless the loss or the gradient is not finite.

    A refused step leaves parameters and optimizer state bitwise as they were, update count included, so the
    schedule does not advance either. Call it inside `jax.jit`.

    Args:
        tx: The optimizer.
        grads: Gradients, structured as `params`.
        opt_state: State of `tx`.
        params: Parameters.
        loss: Scalar of the same step.

    Returns:
        `(params, opt_state, finite, grad_norm)`: `finite` is a bool scalar, False where the step was refused;
        `grad_norm` is the float32 global norm before clipping.
    """
    grad_norm = optax.tree.norm(_as_float32(grads))
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    updates, new_opt_state = tx.update(grads, opt_state, params)
    new = (optax.apply_updates(params, updates), new_opt_state)
    params, opt_state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, (params, opt_state))
    return params, opt_state, finite, grad_norm


def ema_update(ema: Params, params: Params, decay: float, step: jax.typing.ArrayLike) -> Params:
    """Moves the averaged weights towards the current ones.

    The decay warms up as `min(decay, (1 + step) / (10 + step))`, so that the average forgets the initial
    weights early.

    Args:
        ema: Averaged weights; their dtype is kept.
        params: Current weights, structured as `ema`.
        decay: Final decay, in [0, 1).
        step: Number of updates taken before this one.

    Returns:
        The new average.
    """
    step = jnp.asarray(step, jnp.float32)
    rate = 1 - jnp.minimum(decay, (1 + step) / (10 + step))

    def move(average: jax.Array, value: jax.Array) -> jax.Array:
        average32 = average.astype(jnp.float32)
        return (average32 + rate * (value.astype(jnp.float32) - average32)).astype(average.dtype)

    return jax.tree.map(move, ema, params)


def _in_float32(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Runs `tx` on float32 copies; `optax.apply_updates` rounds once, to the dtype of the parameters."""

    def init(params: Params) -> optax.OptState:
        return tx.init(_as_float32(params))

    def update(updates: Params, state: optax.OptState, params: Params | None = None) -> tuple[Params, optax.OptState]:
        return tx.update(_as_float32(updates), state, _as_float32(params))

    return optax.GradientTransformation(init, update)


def _as_float32(tree: Params) -> Params:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def _valid_fields(config: ConfigDict) -> dict[str, Any]:
    fields: dict[str, Any] = config.to_dict()
    missing, unknown = sorted(set(_FIELDS) - set(fields)), sorted(set(fields) - set(_FIELDS))
    if missing or unknown:
        raise ValueError(f"optimizer: missing fields {missing}, unknown fields {unknown}; it takes {_FIELDS}")
    if fields["name"] not in _NAMES:
        raise ValueError(f"optimizer.name is {fields['name']!r}; choose one of {_NAMES}")
    if fields["schedule"] not in _SCHEDULES:
        raise ValueError(f"optimizer.schedule is {fields['schedule']!r}; choose one of {_SCHEDULES}")
    warmup = fields["warmup_steps"]
    ranges: dict[str, tuple[Callable[[float], bool], str]] = {
        "learning_rate": (lambda value: 0 < value < math.inf, "finite and above 0"),
        "warmup_steps": (lambda value: value >= 0, "0 or more"),
        "total_steps": (lambda value: value > warmup, f"above warmup_steps ({warmup})"),
        "final_scale": (lambda value: 0 <= value <= 1, "between 0 and 1"),
        "b1": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
        "b2": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
        "weight_decay": (lambda value: 0 <= value < math.inf, "finite and 0 or more"),
        "clip_norm": (lambda value: value > 0, "above 0 (inf never clips)"),
    }
    for field, (is_valid, text) in ranges.items():
        if not is_valid(fields[field]):
            raise ValueError(f"optimizer.{field} is {fields[field]}; it must be {text}")
    return fields
