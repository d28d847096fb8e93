"""What the GPU kernels share: padding to powers of two, launching, reading blocks, softmax in base 2."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pixr1_jax.attention.blocks import Tail

LOG2_E = math.log2(math.e)
TAIL_KEYS = 32  # pseudo-tokens are padded to a multiple of it
_LOW = -1e30  # below every score, and finite so that differences are


@dataclasses.dataclass(frozen=True)
class Room:
    """Triton's tensors have sizes that are powers of two; blocks and heads that do not are padded.

    Attributes:
      block: Tokens in a block.
      dim: Size of a head.
    """

    block: int
    dim: int

    @property
    def tokens(self) -> int:
        """Tokens of a padded block."""
        return max(16, pl.next_power_of_2(self.block))

    @property
    def is_exact(self) -> bool:
        """Whether a block has no padding of its own."""
        return self.tokens == self.block

    def pad(self, x: jax.Array) -> jax.Array:
        """[batch, heads, blocks * block, dim] or [batch, heads, blocks * block], with room."""
        if x.ndim == 4:
            x = self.pad_dim(x)
        if self.is_exact:
            return x
        blocks = x.reshape(*x.shape[:2], -1, self.block, *x.shape[3:])
        blocks = jnp.pad(blocks, [(0, 0)] * 3 + [(0, self.tokens - self.block)] + [(0, 0)] * (x.ndim - 3))
        return blocks.reshape(*x.shape[:2], -1, *x.shape[3:])

    def pad_dim(self, x: jax.Array) -> jax.Array:
        """[..., dim], with room."""
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, max(16, pl.next_power_of_2(self.dim)) - self.dim)])

    def crop(self, x: jax.Array) -> jax.Array:
        """Undoes `pad`."""
        if not self.is_exact:
            blocks = x.reshape(*x.shape[:2], -1, self.tokens, *x.shape[3:])[:, :, :, : self.block]
            x = blocks.reshape(*x.shape[:2], -1, *x.shape[3:])
        return x[..., : self.dim] if x.ndim == 4 else x

    def pad_pooled(self, x: jax.Array) -> jax.Array:
        """Whole steps of pseudo-tokens [batch, heads, key_blocks, dim]."""
        return jnp.pad(self.pad_dim(x), [(0, 0), (0, 0), (0, -x.shape[2] % TAIL_KEYS), (0, 0)])

    def pad_tail(self, tail: Tail, query_blocks: int) -> Tail:
        """Whole steps of pseudo-tokens, and weights for each query block; those that are added weigh nothing."""
        rows, columns = query_blocks - tail.weight.shape[2], -tail.key.shape[2] % TAIL_KEYS
        weight = jnp.pad(tail.weight, [(0, 0), (0, 0), (0, rows), (0, columns)])
        return Tail(self.pad_pooled(tail.key), self.pad_pooled(tail.value), weight)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How a kernel is cut.

    Attributes:
      own: Tokens of a program.
      step: Tokens that it reads in a step of its loop.
      warps: Warps of a program.
      stages: Steps whose loads are in flight.
    """

    own: int
    step: int
    warps: int
    stages: int

    def fit(self, room: Room) -> "Sizes":
        """Both within a block, and fewer warps where a program has fewer tokens: else warps would repeat the work."""
        own = min(self.own, room.tokens)
        warps = max(min(4, self.warps), self.warps * own // self.own)
        return dataclasses.replace(self, own=own, step=min(self.step, room.tokens), warps=warps)


# Products of float32 are exact, without the tensor cores, and hold both factors in registers.
FLOAT32_SIZES = Sizes(own=16, step=16, warps=8, stages=1)


def whole(x: jax.Array) -> pl.BlockSpec:
    """All of the program's batch and head, [batch, heads or 1, ...]."""
    rest = (0,) * (x.ndim - 2)
    return pl.BlockSpec((None, None, *x.shape[2:]), lambda i, h, b: (b, _head(x, h), *rest))


def part(x: jax.Array | jax.ShapeDtypeStruct, size: int) -> pl.BlockSpec:
    """The program's own `size` rows of x [batch, heads or 1, rows, ...]."""
    rest = (0,) * (x.ndim - 3)
    return pl.BlockSpec((None, None, size, *x.shape[3:]), lambda i, h, b: (b, _head(x, h), i, *rest))


def row(x: jax.Array, programs: int) -> pl.BlockSpec:
    """One row of x [batch, heads or 1, rows, entries], which `programs` programs share."""
    at = lambda i: i if programs == 1 else lax.div(i, jnp.int32(programs))
    return pl.BlockSpec((None, None, None, x.shape[3]), lambda i, h, b: (b, _head(x, h), at(i), 0))


def _head(x: jax.Array | jax.ShapeDtypeStruct, head):
    return 0 if x.shape[1] == 1 else head


def launch(
    kernel: Callable,
    programs: int,
    inputs: Sequence[tuple[jax.Array, pl.BlockSpec]],
    outputs: Sequence[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
    sizes: Sizes,
    *,
    name: str,
    interpret: bool,
) -> Any:
    """Runs `programs` programs for each head and batch of the first output."""
    batch, heads = outputs[0][0].shape[:2]
    # Under `shard_map` the outputs vary over every mesh axis over which some input does.
    arrays = [array for array, _ in inputs]
    varying = jax.eval_shape(lambda *xs: sum(x.sum() for x in xs), *arrays).manual_axis_type
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=varying) for x, _ in outputs]
    return pl.pallas_call(
        kernel,
        # The programs of a head run together, so that its keys stay in the L2 cache.
        grid=(programs, heads, batch),
        in_specs=[spec for _, spec in inputs],
        out_specs=[spec for _, spec in outputs],
        out_shape=shapes,
        compiler_params=plgpu.CompilerParams(num_warps=sizes.warps, num_stages=sizes.stages),
        name=name,
        interpret=interpret,
    )(*arrays)


def visit(indices, start, end, parts: int, step: Callable, state):
    """Calls `state = step(index, part, state)` for each part of the blocks that `indices[start:end]` names."""

    def body(i, state):
        entry, at = (i, 0) if parts == 1 else (lax.div(i, jnp.int32(parts)), lax.rem(i, jnp.int32(parts)))
        return step(indices[entry], at, state)

    return lax.fori_loop(start * parts, end * parts, body, state)


def visit_tail(weight, pooled: Sequence, size: int, step: Callable, state):
    """Calls `state = step(state, weight, *pooled)` for every few pseudo-tokens of the tail, at most `size`."""
    size = min(size, TAIL_KEYS)

    def body(i, state):
        return step(state, *(read(x, i, size) for x in (weight, *pooled)))

    return lax.fori_loop(0, weight.shape[0] // size, body, state)


def read(ref, at, size: int, limit=None):
    """`size` rows of ref [rows, ...] from `at * size` on; rows at or beyond `limit` of them are cleared."""
    ref = ref.at[pl.ds(at * size, size)]
    if limit is None:
        return plgpu.load(ref)
    alive = jnp.arange(size) < limit
    return plgpu.load(ref, mask=alive.reshape(-1, *(1,) * (len(ref.shape) - 1)), other=0.0)


def product(a, b, contract: tuple[int, int]):
    """Matrix product in float32, over axis contract[0] of a and contract[1] of b; exact for float32 inputs."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    axes = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(a, b, axes, precision=precision, preferred_element_type=jnp.float32)


def no_peak(rows: int, bounded: bool):
    """The running maximum before the first score; None where none is kept."""
    return None if bounded else jnp.full((rows,), _LOW, jnp.float32)


def raise_peak(peak, scores):
    """The running maximum after scores [rows, keys], and the factor on what was summed before; None without one."""
    if peak is None:
        return None, None
    higher = jnp.maximum(peak, scores.max(axis=1))
    return higher, jnp.exp2(peak - higher)


def powers(scores, peak):
    """exp2 of scores [rows, keys] less their row's maximum."""
    return jnp.exp2(scores if peak is None else scores - peak[:, None])


def rescaled(x, factor):
    """Sums x [rows, ...] after the maximum changed."""
    return x if factor is None else x * factor.reshape(-1, *(1,) * (x.ndim - 1))
