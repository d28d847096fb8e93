"""Differentiation of attention kernels, the same for every backend.

The kernels of a `Backend` become one function that differentiates in reverse (`backward`) and forwards (`tangent`).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero, linear_call

from pixr1_jax.attention.backend import Backend
from pixr1_jax.attention.blocks import BlockLists, Tail

SAVED = "attended"  # the name of what attention leaves for its backward pass, for `jax.checkpoint`


@dataclasses.dataclass(frozen=True)
class Options:
    """Static choices of a call; fields as in `pixr1_jax.attention.api.attend`."""

    backend: Backend
    block: int
    scale: float
    max_logit: float | None
    forward_mode: bool

    @property
    def numbers(self) -> dict:
        """What each kernel takes by name."""
        return {"block": self.block, "scale": self.scale, "max_logit": self.max_logit}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moving:
    """What attention is differentiated by, head-major: [batch, heads, tokens or blocks, dim] each."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    past: tuple[jax.Array, jax.Array] | None
    tail: tuple[jax.Array, jax.Array] | None

    def keys(self) -> tuple[jax.Array, jax.Array]:
        """All keys and values, the past before the row's own."""
        if self.past is None:
            return self.k, self.v
        key, value = self.past
        return jnp.concatenate([key, self.k], axis=2), jnp.concatenate([value, self.v], axis=2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Fixed:
    """What decides who reads what; it has no derivative."""

    lists: BlockLists
    key_valid: jax.Array
    tail_weight: jax.Array | None

    def tail(self, pooled: tuple[jax.Array, jax.Array] | None) -> Tail | None:
        """The tail of given keys and values."""
        return None if pooled is None or self.tail_weight is None else Tail(*pooled, self.tail_weight)


def attend(
    backend: Backend,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lists: BlockLists,
    key_valid: jax.Array,
    past: tuple[jax.Array, jax.Array] | None,
    tail: Tail | None,
    *,
    block: int,
    scale: float,
    max_logit: float | None,
    forward_mode: bool,
) -> jax.Array:
    """Softmax attention by kernels; see `pixr1_jax.attention.api.attend`."""
    spare = lists.counts.shape[2] * lists.tile * block - q.shape[1]
    heads_first = functools.partial(jnp.swapaxes, axis1=1, axis2=2)
    pooled = None if tail is None else (heads_first(tail.key), heads_first(tail.value))
    moving = Moving(
        q=heads_first(jnp.pad(q, [(0, 0), (0, spare), (0, 0), (0, 0)])),
        k=heads_first(k),
        v=heads_first(v),
        past=None if past is None else (heads_first(past[0]), heads_first(past[1])),
        tail=pooled,
    )
    fixed = Fixed(lists, key_valid, None if tail is None else jax.lax.stop_gradient(tail.weight))
    moving = _varying_alike(moving, fixed)
    out = _attend(Options(backend, block, scale, max_logit, forward_mode), moving, fixed)
    return heads_first(out)[:, : q.shape[1]]


def _varying_alike(moving: Moving, fixed: Fixed) -> Moving:
    """Under `shard_map` a gradient varies over each mesh axis over which any input does, so what it is of must too."""
    every = frozenset().union(*map(_axes, jax.tree.leaves((moving, fixed))))
    return jax.tree.map(lambda x: _vary(x, every), moving)


def zeros(shape: tuple[int, ...], like: jax.Array) -> jax.Array:
    """Zeros in the dtype of `like` that, under `shard_map`, vary over the mesh axes over which it does."""
    return _vary(jnp.zeros(shape, like.dtype), _axes(like))


def _axes(x: jax.Array) -> frozenset[str]:
    return jax.typeof(x).manual_axis_type.varying


def _vary(x: jax.Array, axes: frozenset[str]) -> jax.Array:
    return jax.lax.pcast(x, tuple(sorted(axes - _axes(x))), to="varying")


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attend(options: Options, moving: Moving, fixed: Fixed) -> jax.Array:
    return _forward(options, moving, fixed)[0]


def _forward(options: Options, moving: Moving, fixed: Fixed) -> tuple[jax.Array, jax.Array]:
    tail = fixed.tail(moving.tail)
    return options.backend.forward(moving.q, *moving.keys(), fixed.lists, fixed.key_valid, tail, **options.numbers)


def _tangent(options: Options, moving: Moving, fixed: Fixed, direction: Moving, still: int):
    return options.backend.tangent(
        moving.q,
        *moving.keys(),
        direction.q,
        *direction.keys(),
        fixed.lists,
        fixed.key_valid,
        fixed.tail(moving.tail),
        direction.tail,
        still,
        **options.numbers,
    )


@functools.partial(_attend.defjvp, symbolic_zeros=True)
def _rule(options: Options, primals, tangents):
    moving, fixed = primals
    tangents = tangents[0]
    is_zero = lambda x: isinstance(x, SymbolicZero)
    leaves, structure = jax.tree.flatten(tangents, is_leaf=is_zero)
    moves = [not is_zero(leaf) for leaf in leaves]
    still = 0
    if tangents.past is None or all(map(is_zero, tangents.past)):
        still = 0 if tangents.past is None else tangents.past[0].shape[2] // options.block
        if is_zero(tangents.k) and is_zero(tangents.v):
            still += moving.k.shape[2] // options.block

    def direction(live) -> Moving:
        """The whole direction, from those of its leaves that are not zero."""
        live = iter(live)
        whole = [
            next(live) if moved else zeros(leaf.shape, leaf)
            for moved, leaf in zip(moves, jax.tree.leaves(moving), strict=True)
        ]
        return jax.tree.unflatten(structure, whole)

    live = [leaf for leaf, moved in zip(leaves, moves, strict=True) if moved]
    if options.forward_mode:
        return _tangent(options, moving, fixed, direction(live), still)

    # Both are what the backward pass needs of this one: kept, it need not run again (`omni.model.REMAT`).
    out, lse = (checkpoint_name(x, SAVED) for x in _forward(options, moving, fixed))

    def linear(residual, live):
        moving, fixed, _, _ = residual
        return _tangent(options, moving, fixed, direction(live), still)[1]

    def transposed(residual, d_out):
        moving, fixed, out, lse = residual
        gradient = _backward(options, moving, fixed, out, lse, d_out)
        return [leaf for leaf, moved in zip(jax.tree.leaves(gradient), moves, strict=True) if moved]

    return out, linear_call(linear, transposed, (moving, fixed, out, lse), live)


def _backward(options: Options, moving: Moving, fixed: Fixed, out, lse, d_out) -> Moving:
    tail = fixed.tail(moving.tail)
    dq, dk, dv, *d_tail = options.backend.backward(
        moving.q, *moving.keys(), fixed.lists, fixed.key_valid, tail, out, lse, d_out, **options.numbers
    )
    d_past = None
    if moving.past is not None:
        at = moving.past[0].shape[2]
        d_past = (dk[:, :, :at], dv[:, :, :at])
        dk, dv = dk[:, :, at:], dv[:, :, at:]
    return Moving(dq, dk, dv, d_past, None if tail is None else (d_tail[0], d_tail[1]))
