"""What selection costs beside the attention that it saves: `python benchmarks/selection_cost.py`.

Times, at one streaming shape and one training shape, of pooling the keys (once, when a block enters the cache),
choosing (pooled queries, scores, top-K), compressing the choice to lists, and attention over the lists with the tail,
by `gather` on this machine, beside attention over everything that is seen. Repetitions are interleaved and the least
time of each part is taken, so that a shared machine disturbs all parts alike. Prints JSON.
"""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.row_layout import BlockKind, Role
from pixr1_jax.attention import api, select
from pixr1_jax.attention.blocks import Blocks, MemoryPolicy, block_lists
from pixr1_jax.attention.select import Budget

SHAPES = {
    # 12 query blocks of a noisy chunk against 128 key blocks of its past.
    "streaming": {"batch": 1, "chunks": 11, "chunk_blocks": 12, "block": 128, "heads": 4, "dim": 128, "keep": 16},
    "training": {"batch": 4, "chunks": 8, "chunk_blocks": 5, "block": 8, "heads": 2, "dim": 80, "keep": 4},
}
_REPEATS = 5


def row(shape: dict, queries: int) -> tuple[Blocks, Blocks, MemoryPolicy]:
    """Clean chunks and after them a noisy one; the queries are the last blocks."""
    chunks, size = shape["chunks"] + 1, shape["chunk_blocks"]
    chunk = np.repeat(np.arange(chunks), size)
    kind = np.tile([BlockKind.HEAD, BlockKind.MEMORY] + [BlockKind.PATCH] * (size - 2), chunks)
    fields = {
        "segment": np.zeros_like(chunk),
        "chunk": chunk,
        "role": np.where(chunk == chunks - 1, Role.NOISY, Role.CLEAN),
        "kind": kind,
        "valid": np.full_like(chunk, shape["block"]),
        "until": np.full_like(chunk, 1 << 30),
    }
    tile = lambda x: jnp.asarray(np.tile(x, (shape["batch"], 1)), jnp.int32)
    keys = Blocks(**{name: tile(value) for name, value in fields.items()})
    return keys[-queries:], keys, MemoryPolicy(window=chunks, sinks=1, bank=1, horizon=chunks + 1)


def measure(shape: dict, queries: int) -> dict[str, float]:
    """Seconds of each part."""
    query, key, policy = row(shape, queries)
    seen = (query.chunk[..., :, None] > key.chunk[..., None, :]) | (
        (query.chunk[..., :, None] == key.chunk[..., None, :]) & (query.role[..., :, None] == key.role[..., None, :])
    )
    block, heads, dim = shape["block"], shape["heads"], shape["dim"]
    budget = Budget(clean=(shape["keep"],), noisy=(shape["keep"],), early=(), group=1, ramp_steps=0)
    options = select.candidates(query, key, seen, policy, budget, layers=1)
    rng = np.random.default_rng(0)
    array = lambda blocks: jnp.asarray(rng.standard_normal((shape["batch"], blocks * block, heads, dim)), jnp.float32)
    q, k, v = array(query.count), array(key.count), array(key.count)
    most = int((options.always.sum(-1) + shape["keep"]).max())
    sizes = {"block": block, "tile": 1}
    attend = lambda q, k, v, lists, tail: api.attend(
        q, k, v, lists, key.valid, block=block, scale=dim**-0.5, tail=tail, implementation="gather"
    )
    parts = {
        "pool keys and values": jax.jit(lambda k, v: [select.pool(x, key.valid, block) for x in (k, v)]),
        "choose": jax.jit(lambda q, k: select.choose(select.pool(q, query.valid, block), k, options, options.keep[0])),
        "lists": jax.jit(lambda chosen: block_lists(chosen, key.valid, max_keys=most, **sizes)),
        "attend": jax.jit(attend),
        "attend to everything": jax.jit(lambda q, k, v: attend(q, k, v, everything, None)),
    }
    everything = block_lists(seen, key.valid, max_keys=int(seen.sum(-1).max()), **sizes)
    means = parts["pool keys and values"](k, v)
    chosen = parts["choose"](q, means[0])
    lists, tail = select.select(q, *means, options, options.keep[0], max_keys=most, **sizes)
    inputs = {
        "pool keys and values": (k, v),
        "choose": (q, means[0]),
        "lists": (chosen,),
        "attend": (q, k, v, lists, tail),
        "attend to everything": (q, k, v),
    }
    found = {name: [] for name in parts}
    for _ in range(_REPEATS + 1):
        for name, part in parts.items():
            start = time.perf_counter()
            jax.block_until_ready(part(*inputs[name]))
            found[name].append(time.perf_counter() - start)
    seconds = {name: min(times[1:]) for name, times in found.items()}
    sparse = seconds["choose"] + seconds["lists"] + seconds["attend"]
    return {
        "blocks read": float(lists.counts.mean()),
        "blocks seen": float(seen.sum(-1).mean()),
        **{f"{name}, s": value for name, value in seconds.items()},
        "selection's share of sparse attention": (seconds["choose"] + seconds["lists"]) / sparse,
        "with pooling every time": 1 - seconds["attend"] / (sparse + seconds["pool keys and values"]),
        "sparse beside dense": sparse / seconds["attend to everything"],
    }


def main() -> None:
    """Prints both shapes."""
    report = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    for name, shape in SHAPES.items():
        queries = shape["chunk_blocks"] * (1 if name == "streaming" else shape["chunks"] + 1)
        report[name] = measure(shape, queries)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
