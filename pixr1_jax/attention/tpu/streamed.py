"""Forward pass on TPU that fetches only the listed key blocks from main memory, for tiles that read few of many.

Where all tiles of a row together read fewer blocks than there are, as a streamed chunk does against its cache, holding
every key in vector memory would read too much. Here a group of blocks is copied in while the one before is computed.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pixr1_jax.attention.tpu import pieces, schedule, softmax
from pixr1_jax.attention.tpu.plan import Estimate, Plan, pallas_call
from pixr1_jax.attention.tpu.schedule import HEADER, Schedule

GROUP = schedule.MOST  # key blocks that are copied together


def call(plan: Plan, operands: Sequence[Any], estimate: Estimate | None = None):
    """The kernel over all tiles; as `forward.call`, in one window."""
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    group = pltpu.VMEM((2, GROUP * plan.block, plan.dim), plan.dtype)
    return pallas_call(
        plan,
        _kernel,
        estimate=estimate,
        in_specs=[plan.list_spec(), plan.query_spec(), anywhere, anywhere, *plan.tail_specs()],
        out_specs=[plan.partial_spec(), plan.row_spec()],
        out_shape=[plan.partial_shape(plan.dtype), plan.row_shape()],
        products=2,
        keys_read=plan.tiles * (plan.slots - HEADER) * plan.block,
        scratch=(group, group, pltpu.SemaphoreType.DMA((2, 2))),
    )(*operands)


def _kernel(list_ref, q_ref, k_ref, v_ref, *refs, plan: Plan, estimate: Estimate | None):
    *tail_refs, out_ref, lse_ref, key_buffer, value_buffer, arrived = refs
    pairs = ((k_ref, key_buffer), (v_ref, value_buffer))
    # Read here: a condition's branch may not ask where the grid stands.
    row = (pl.program_id(0), pl.program_id(1))

    def start(entries, slot):
        """Begins to copy keys and values of a group, to one half of the buffers."""
        for i, entry in enumerate(entries):
            here = pl.ds(i * plan.block, plan.block)
            for which, (source, buffer) in enumerate(pairs):
                rows = source.at[(*row, pieces.block_rows(entry.index, plan.block))]
                pltpu.make_async_copy(rows, buffer.at[slot, here], arrived.at[slot, which]).start()

    def wait(slot):
        """Until both halves are filled: a semaphore counts bytes, whatever copies they came with."""
        for which, (_, buffer) in enumerate(pairs):
            pltpu.make_async_copy(buffer.at[slot], buffer.at[slot], arrived.at[slot, which]).wait()

    def attend(tile, here):
        steps = pieces.schedule_of(plan, list_ref, tile, estimate)
        whole, count = steps.counts()
        groups = schedule.groups(count, GROUP)
        add = functools.partial(softmax.add, plan, q_ref[here, :])

        @pl.when(groups > 0)
        def _():
            start(_entries(steps, 0), 0)

        def visit(group, carry):
            slot = group & 1

            @pl.when(group + 1 < groups)
            def _():
                start(_entries(steps, group + 1), 1 - slot)

            wait(slot)
            k, v = key_buffer[slot], value_buffer[slot]
            entries = _entries(steps, group)

            def masked(carry):
                clean_k, clean_v = (pieces.clear_padding(x, entries, plan.block) for x in (k, v))
                return add(carry, clean_k, clean_v, pieces.mask(entries, plan))

            unmasked = lambda carry: add(carry, k, v, None)
            if estimate is not None:
                return unmasked(carry) if estimate.masked == 0 else masked(carry)
            return jax.lax.cond((group + 1) * GROUP <= whole, unmasked, masked, carry)

        carry = softmax.add_tail(plan, add, softmax.empty(plan), tail_refs, tile)
        carry = jax.lax.fori_loop(0, groups, visit, carry)
        out, lse_ref[:, here] = softmax.finish(plan, carry)
        out_ref[here, :] = out.astype(out_ref.dtype)

    pieces.each_tile(plan, attend, estimate)


def _entries(steps: Schedule, group):
    return [steps.entry(group * GROUP + i) for i in range(GROUP)]
