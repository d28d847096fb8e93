"""Attention over a mesh: rows and heads divided as they come, the sequence by exchange or by a ring (decision D13).

The compiler can't divide a kernel, so attention runs under `jax.shard_map`. Along "context" every device holds a part
of the tokens of all its heads. "ulysses" exchanges them for all tokens of a part of the heads and back (arXiv
2309.14509); "ring" leaves queries where they are and sends keys round (arXiv 2310.01889).
"""

from functools import partial as bind
from typing import Any

import jax
from jax.sharding import PartitionSpec

from pixr1_jax.attention import api, ring
from pixr1_jax.attention.blocks import BlockLists, Tail
from pixr1_jax.core.partition import Partition, PartitionError

Pair = tuple[jax.Array, jax.Array]


def attend(
    partition: Partition | None,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lists: BlockLists,
    key_valid: jax.Array,
    *,
    past: Pair | None = None,
    tail: Tail | None = None,
    **options: Any,
) -> jax.Array:
    """`api.attend` on arrays that lie as `partition` has it: [batch, length, heads, dim], tails by head.

    Args:
      partition: The mesh; None attends where the arrays are.
      q: As in `api.attend`, and so are all others.
      k: See `q`.
      v: See `q`.
      lists: See `q`.
      key_valid: See `q`.
      past: See `q`.
      tail: See `q`.
      **options: The static arguments of `api.attend`.

    Raises:
      PartitionError: Heads or tiles do not divide.
    """
    if partition is None:
        return api.attend(q, k, v, lists, key_valid, past=past, tail=tail, **options)
    rules, parts = partition.rules, partition.size("length")
    exchanged = parts > 1 and partition.context_parallel == "ulysses"
    travelling = parts > 1 and partition.context_parallel == "ring"
    _check(partition, q, lists, exchanged, travelling, options["block"])
    rows, heads = rules.batch, rules.heads
    # Where whole rows are read, a device reads them for its share of the heads.
    of_head = (*heads, *rules.length) if exchanged else heads
    own_tiles = rules.length if travelling else None
    own_list = of_head if lists.indices.shape[1] > 1 else None
    listed = lambda x: PartitionSpec(rows, own_list, own_tiles, *(None,) * (x.ndim - 3))
    by_token = PartitionSpec(rows, rules.length, heads, None)
    by_block = PartitionSpec(rows, None, of_head, None)
    in_specs = (
        (by_token, by_token, by_token),
        None if past is None else (by_token, by_token),
        jax.tree.map(listed, lists),
        PartitionSpec(rows, None),
        None if tail is None else jax.tree.map(lambda x: listed(x) if x is tail.weight else by_block, tail),
    )

    def run(own: tuple[jax.Array, jax.Array, jax.Array], past, lists, key_valid, tail):
        if travelling:
            return ring.attend(*own, lists, key_valid, past=past, tail=tail, axis=rules.length[0], **options)
        if not exchanged:
            return api.attend(*own, lists, key_valid, past=past, tail=tail, **options)
        gather = bind(jax.lax.all_to_all, axis_name=rules.length, split_axis=2, concat_axis=1, tiled=True)
        scatter = bind(jax.lax.all_to_all, axis_name=rules.length, split_axis=1, concat_axis=2, tiled=True)
        (q, k, v), past = jax.tree.map(gather, (own, past))
        return scatter(api.attend(q, k, v, lists, key_valid, past=past, tail=tail, **options))

    # Kernels say nothing of how their results vary over the mesh, hence no check of it.
    attend = jax.shard_map(run, mesh=partition.mesh, in_specs=in_specs, out_specs=by_token, check_vma=False)
    return attend((q, k, v), past, lists, key_valid, tail)


def _check(
    partition: Partition, q: jax.Array, lists: BlockLists, exchanged: bool, travelling: bool, block: int
) -> None:
    parts, heads, tensor = partition.size("length"), q.shape[2], partition.size("heads")
    among = tensor * parts if exchanged else tensor
    if heads % among:
        axes = "mesh.tensor x mesh.context" if exchanged else "mesh.tensor"
        also = ", or set mesh.context_parallel='ring'" if exchanged else ""
        raise PartitionError(f"model.heads={heads} must be a multiple of {among} ({axes}){also}")
    blocks = q.shape[1] // block
    if travelling and blocks % (parts * lists.tile):
        raise PartitionError(
            f"{blocks} query blocks do not divide into whole tiles of {lists.tile} on each of mesh.context={parts} "
            "devices; change model.attention.tile, pack.row_blocks or the mesh"
        )
