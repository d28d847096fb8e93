"""A call of a TPU kernel: its static sizes, its block specs, and how it is launched.

The grid is (batch, head, window, step). A window of one head's keys and values stays in vector memory while all tiles
pass by, some in each step: the next window is fetched during the last step of this one, which should have work enough
to hide that. Windows exist since vector memory is finite; their results are merged outside, by their softmax
denominators.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pixr1_jax.attention.backend import on_device
from pixr1_jax.attention.blocks import BlockLists, Tail
from pixr1_jax.attention.tpu import schedule

RESIDENT_BYTES = 40 << 20  # of a window; v5p has 64 MiB of vector memory, v5e and v6e have 128
LIMIT_BYTES = 60 << 20
STEP_BYTES = 1 << 20  # of the queries of a step
INTERPRET: bool | pltpu.InterpretParams = True
_LANES = 128


def unserved(block: int, tile: int, compiled: bool) -> str:
    """Why the kernels do not serve blocks of `block` tokens in tiles of `tile`, with the fix; empty if they do."""
    if block % 16 or block > schedule.MAX_BLOCK:
        return (
            f"needs blocks of a multiple of 16 tokens, at most {schedule.MAX_BLOCK}, not {block}; change tokens.block"
        )
    if tile > schedule.MAX_TILE:
        return f"needs tiles of at most {schedule.MAX_TILE} blocks, not {tile}; change the tile"
    if compiled and tile * block % _LANES:
        return f"needs tiles of a multiple of {_LANES} queries, not {tile} blocks of {block}; change the tile"
    return ""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Static visits of each tile, for the compiler's cycle estimates: blocks without a mask, and with one."""

    whole: int
    masked: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """Static sizes of a call.

    Attributes:
      batch: Rows.
      heads: Heads of a row.
      lists: 1, or `heads` where each head has its own lists.
      tiles: Tiles of a row.
      tile: Query blocks of a tile.
      step: Tiles of a step.
      block: Tokens in a block.
      dim: Head dimension.
      key_blocks: Key blocks of a row.
      windows: Windows of keys.
      window_blocks: Key blocks of a window.
      tail_rows: Pseudo-tokens of a window, padded to whole vectors; 0 without a tail.
      slots: Length of a packed list.
      scale: Factor on the scores.
      online: Whether the logits have no bound, so that a running maximum is kept.
      dtype: Of queries, keys, values and results.
    """

    batch: int
    heads: int
    lists: int
    tiles: int
    tile: int
    step: int
    block: int
    dim: int
    key_blocks: int
    windows: int
    window_blocks: int
    tail_rows: int
    slots: int
    scale: float
    online: bool
    dtype: Any

    @classmethod
    def of(
        cls,
        q: jax.Array,
        k: jax.Array,
        lists: BlockLists,
        tail: Tail | None,
        *,
        block: int,
        scale: float,
        max_logit: float | None,
        bytes_a_value: int,
    ) -> "Plan":
        """Sizes of a call whose window takes `bytes_a_value` bytes of vector memory for each value of a key."""
        batch, heads, key_tokens, dim = k.shape
        key_blocks = key_tokens // block
        windows = window_count(key_blocks, block, dim, bytes_a_value)
        window_blocks = -(-key_blocks // windows)
        slots = min(lists.indices.shape[-1], window_blocks)
        tiles = lists.indices.shape[2]
        most = max(STEP_BYTES // (lists.tile * block * dim * q.dtype.itemsize), 1)
        step = next(n for n in range(min(most, tiles), 0, -1) if tiles % n == 0)
        return cls(
            batch=batch,
            heads=heads,
            lists=lists.indices.shape[1],
            tiles=tiles,
            tile=lists.tile,
            step=step,
            block=block,
            dim=dim,
            key_blocks=key_blocks,
            windows=windows,
            window_blocks=window_blocks,
            tail_rows=0 if tail is None else _whole(window_blocks, _LANES),
            slots=schedule.HEADER + _whole(slots, schedule.MOST),
            scale=scale,
            online=max_logit is None,
            dtype=q.dtype,
        )

    @property
    def tile_tokens(self) -> int:
        """Queries of a tile."""
        return self.tile * self.block

    @property
    def step_tokens(self) -> int:
        """Queries of a step."""
        return self.step * self.tile_tokens

    @property
    def window_tokens(self) -> int:
        """Keys of a window."""
        return self.window_blocks * self.block

    @property
    def query_tokens(self) -> int:
        """Queries of a row."""
        return self.tiles * self.tile_tokens

    def list_spec(self) -> pl.BlockSpec:
        """The packed lists of a step, in scalar memory."""
        own = lambda b, h, w, s: (b, h if self.lists > 1 else 0, w, s, 0, 0)
        return pl.BlockSpec((None, None, None, self.step, 1, self.slots), own, memory_space=pltpu.SMEM)

    def query_spec(self) -> pl.BlockSpec:
        """A step's rows of [batch, heads, query_tokens, dim]."""
        return pl.BlockSpec((None, None, self.step_tokens, self.dim), lambda b, h, w, s: (b, h, s, 0))

    def key_spec(self, first: int = 0, once: bool = False) -> pl.BlockSpec:
        """A window's rows of [batch, heads, key_tokens, dim], from block `first` on; held once, or twice to overlap."""
        rows = self.window_tokens - first * self.block
        mode = pl.Buffered(1) if once else None
        return pl.BlockSpec((None, None, rows, self.dim), lambda b, h, w, s: (b, h, w, 0), pipeline_mode=mode)

    def pooled_spec(self) -> pl.BlockSpec:
        """A window's pseudo-tokens, of [batch, heads, windows, tail_rows, dim]."""
        return pl.BlockSpec((None, None, None, self.tail_rows, self.dim), lambda b, h, w, s: (b, h, w, 0, 0))

    def pooled_shape(self, dtype) -> jax.ShapeDtypeStruct:
        """Pseudo-tokens of all windows."""
        return jax.ShapeDtypeStruct((self.batch, self.heads, self.windows, self.tail_rows, self.dim), dtype)

    def tail_specs(self) -> list[pl.BlockSpec]:
        """Keys, values and weights of the pseudo-tokens; nothing without a tail."""
        if not self.tail_rows:
            return []
        own = lambda b, h, w, s: (b, h if self.lists > 1 else 0, s, w, 0, 0)
        weight = pl.BlockSpec((None, None, self.step, None, self.tile, self.tail_rows), own)
        return [self.pooled_spec(), self.pooled_spec(), weight]

    def partial_spec(self) -> pl.BlockSpec:
        """A step's rows of [batch, heads, windows, query_tokens, dim]."""
        return pl.BlockSpec((None, None, None, self.step_tokens, self.dim), lambda b, h, w, s: (b, h, w, s, 0))

    def partial_shape(self, dtype) -> jax.ShapeDtypeStruct:
        """Results of all windows."""
        return jax.ShapeDtypeStruct((self.batch, self.heads, self.windows, self.query_tokens, self.dim), dtype)

    def row_spec(self) -> pl.BlockSpec:
        """One number a query, [batch, heads, windows, 1, query_tokens]."""
        return pl.BlockSpec((None, None, None, 1, self.step_tokens), lambda b, h, w, s: (b, h, w, 0, s))

    def row_spec_of_row(self) -> pl.BlockSpec:
        """One number a query that all windows share, [batch, heads, 1, 1, query_tokens]."""
        return pl.BlockSpec((None, None, None, 1, self.step_tokens), lambda b, h, w, s: (b, h, 0, 0, s))

    def row_shape(self) -> jax.ShapeDtypeStruct:
        """Numbers of all windows."""
        shape = (self.batch, self.heads, self.windows, 1, self.query_tokens)
        return jax.ShapeDtypeStruct(shape, jnp.float32)


def window_count(key_blocks: int, block: int, dim: int, bytes_a_value: int) -> int:
    """Windows in which keys come that take `bytes_a_value` bytes of vector memory for each value."""
    resident = key_blocks * block * max(dim, _LANES) * bytes_a_value
    fewest = max(-(-resident // RESIDENT_BYTES), -(-key_blocks // schedule.MAX_KEY_BLOCKS))
    # Windows that divide the keys spare a padded copy of them.
    even = (n for n in range(fewest, 2 * fewest) if key_blocks % n == 0)
    return min(next(even, fewest), key_blocks)


def pallas_call(
    plan: Plan,
    kernel: Callable,
    *,
    estimate: Estimate | None,
    in_specs,
    out_specs,
    out_shape,
    products: int,
    keys_read: int | None = None,
    scratch=(),
) -> Callable:
    """A Pallas call over the plan's grid, lists first; on anything but a TPU it is interpreted, which only tests want.

    With an estimate the kernel reads no lists. `products` is matrix products a visit, `keys_read` how many keys and
    values a head reads if not its windows.
    """
    kernel = functools.partial(kernel, plan=plan, estimate=estimate)
    if estimate is not None:
        kernel, in_specs = functools.partial(kernel, None), in_specs[1:]
    listed = (plan.slots - schedule.HEADER) * plan.block
    heads = plan.batch * plan.heads
    pairs = heads * plan.windows * plan.query_tokens * listed
    keys = keys_read or plan.windows * plan.window_tokens
    options: dict[str, Any] = dict(
        grid=(plan.batch, plan.heads, plan.windows, plan.tiles // plan.step),
        in_specs=in_specs,
        out_specs=out_specs,
        scratch_shapes=list(scratch),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * pairs * plan.dim,
            transcendentals=pairs,
            bytes_accessed=2 * heads * plan.dim * jnp.dtype(plan.dtype).itemsize * (plan.query_tokens + keys),
        ),
    )
    order = ("parallel", "parallel", "arbitrary", "arbitrary")
    params = pltpu.CompilerParams(dimension_semantics=order, vmem_limit_bytes=LIMIT_BYTES)

    def run(*operands, interpret: bool):
        # Under `shard_map` the results vary over every mesh axis over which some operand does.
        varying = jax.eval_shape(lambda *xs: sum(x.sum() for x in xs), *operands).manual_axis_type
        shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=varying) for x in out_shape]
        call = pl.pallas_call(
            kernel,
            out_shape=shapes,
            compiler_params=params,
            interpret=INTERPRET if interpret else False,
            **options,
        )
        return call(*operands)

    if estimate is not None:
        return lambda _, *operands: run(*operands, interpret=False)
    return functools.partial(on_device, "tpu", run)


def _whole(x: int, step: int) -> int:
    return -(-x // step) * step
