"""The table of compiler estimates: block-list kernels over density, and their dense peers under the same estimator."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pixr1_jax.attention.tpu import estimate as kernels
from pixr1_jax.attention.tpu import schedule
from pixr1_jax.benchmarks import cases
from pixr1_jax.benchmarks.aot import CompileError, Compiler, Cost, mxu_percent
from pixr1_jax.benchmarks.cases import BLOCK
from pixr1_jax.core.chips import CHIPS

OURS = "pixr1_jax.attention.tpu.estimate:build"
_CASES = "pixr1_jax.benchmarks.cases"

NOTE = (
    "Compiler estimates for each head, not measurements: libtpu's static profile of the compiled "
    "kernel, at an assumed clock. 'us' is the larger of the estimate and of the HBM bytes over the bandwidth. "
    "Our kernels at the streaming shape: what a second head adds to the first, whose keys are fetched meanwhile, if "
    "they fit vector memory at once. "
    "Where 'simulated' (queries, key blocks or keys, heads of a core if not one) differs from the size, cycles and "
    "bytes lie on lines through those sizes, of one head. v5p has two TensorCores: two heads run at once there, "
    "against the peak and bandwidth of the chip."
)

# Sizes of which the profile is taken where a case is larger; whole tiles and whole groups of key blocks.
_QUERIES, _LISTED = (512, 1024), (32, 64)
# Few queries do little with a head's keys, so what counts is how well the next head's are fetched meanwhile. With many
# queries the first fetch is nothing, and simulating another head is dear.
_STEADY = ("streaming",)
# XLA's backward pass takes the profiler many minutes.
_PEERS = (("flash_attention", "forward"), ("xla", "forward"), ("flash_attention", "backward"))
_FLASH_BLOCKS = ((512, 1024), (1024, 1024))
_FLASH_QUERIES, _FLASH_KEYS = (2, 3), (2, 3)  # blocks; with a single key block the peer takes another kernel


@dataclasses.dataclass(frozen=True)
class Shape:
    """Queries and keys, in tokens, of one head."""

    name: str
    queries: int
    keys: int
    variants: Sequence[str]


STREAMING = Shape("streaming", 1536, 32768, ("forward", "forward_streamed"))
TRAINING = Shape("training", 8192, 8192, ("forward", "backward", "tangent", "tangent_still"))
# Whole groups of key blocks at both shapes but for the last, which only streaming has.
DENSITIES = (1.0, 0.5, 0.25, 0.125, 0.0625)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What to estimate."""

    chips: Sequence[str]
    dims: Sequence[int] = (128, 256)
    shapes: Sequence[Shape] = (STREAMING, TRAINING)
    densities: Sequence[float] = DENSITIES
    tail_densities: Sequence[float] = (0.125,)
    peers: bool = True

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields the key of each row, what `estimate` takes; the peers, which are slow to simulate, come last."""
        if self.peers:
            yield from dataclasses.replace(self, peers=False)
            for (kernel, variant), dim, chip in itertools.product(_PEERS, self.dims, self.chips):
                yield {
                    **_base(chip, dim, TRAINING),
                    "kernel": kernel,
                    "variant": variant,
                    "density": 1.0,
                    "tail": False,
                }
            return
        for dim, shape, chip in itertools.product(self.dims, self.shapes, self.chips):
            for variant in shape.variants:
                row = {**_base(chip, dim, shape), "kernel": "ours", "variant": variant}
                for density in self.densities:
                    if listed_blocks(shape.keys, density) % schedule.GROUP == 0:
                        yield {**row, "density": density, "tail": False}
                for density in self.tail_densities:
                    yield {**row, "density": density, "tail": True}


def _base(chip: str, dim: int, shape: Shape) -> dict[str, Any]:
    return {"chip": chip, "shape": shape.name, "queries": shape.queries, "keys": shape.keys, "dim": dim}


def estimate(compiler: Compiler, row: Mapping[str, Any]) -> dict[str, Any]:
    """Estimates one row of a `Sweep`.

    Returns:
      The row's key with the figures of `Cost.at`, "simulated" (the sizes that were compiled), and for our kernels
      "marginal_mxu_percent", the use of the matrix units by further key blocks; or with "error".
    """
    try:
        return {**row, **_METHODS[row["kernel"]](compiler, row)}
    except CompileError as error:
        return {**row, "error": str(error)}


def _ours(compiler: Compiler, row: Mapping[str, Any]) -> dict[str, Any]:
    chip, dim, variant = CHIPS[row["chip"]], row["dim"], row["variant"]
    listed = listed_blocks(row["keys"], row["density"])

    def heads(count: int, queries: int, listed: int) -> Cost:
        arguments = {
            "variant": variant,
            "query_blocks": queries // BLOCK,
            "key_blocks": row["keys"] // BLOCK,
            "listed": listed,
            "block": BLOCK,
            "dim": dim,
            "tail": row["tail"],
            "heads": count,
            "dtype": "bfloat16",
        }
        return compiler.cost(row["chip"], OURS, arguments)

    one = functools.partial(heads, chip.cores)  # on each core
    flops = lambda listed: cases.useful_flops(variant, row["queries"], listed * BLOCK, dim)
    # Of one head: with two, what is added hides behind the second's fetch and looks cheaper than it is.
    low, high = (_linear(one, (row["queries"], _QUERIES), (n, _LISTED))[0].cycles for n in _LISTED)
    marginal = _possible(mxu_percent(chip, chip.cores * flops(_LISTED[1] - _LISTED[0]), high - low))
    whole, simulated = _linear(one, (row["queries"], _QUERIES), (listed, _LISTED))
    # What another head adds shows nothing where the next window of this one is fetched meanwhile.
    key_blocks = row["keys"] // BLOCK
    steady = row["shape"] in _STEADY and kernels.windows(variant, key_blocks=key_blocks, block=BLOCK, dim=dim) == 1
    if steady:
        # Fetch and compute overlap, so two heads are no line in the length of the lists: taken at the very size.
        two = heads(2 * chip.cores, row["queries"], listed)
        whole = Cost(two.cycles - whole.cycles, two.hbm - whole.hbm, two.vmem)
        simulated = [*simulated, [row["queries"], listed, 2]]
    figures = whole.at(chip, flops(listed))
    _possible(figures["mxu_percent"])
    return {
        "listed": listed,
        **figures,
        "heads": "second of two" if steady else "one",
        "marginal_mxu_percent": round(marginal, 2),
        "simulated": simulated,
    }


def _possible(percent: float) -> float:
    """Refuses more than the peak: then something was not counted, or hidden behind something else."""
    if not 0 < percent <= 100:
        raise CompileError(f"the estimate comes to {percent:.1f} % of the peak, so it does not count all the work")
    return percent


def _flash(compiler: Compiler, row: Mapping[str, Any]) -> dict[str, Any]:
    best: dict[str, Any] = {}
    problems = []
    for block_q, block_k in _FLASH_BLOCKS:
        if row["queries"] % block_q or row["keys"] % block_k:
            continue

        def cost(queries: int, keys: int, block_q=block_q, block_k=block_k) -> Cost:
            arguments = {"queries": queries, "keys": keys, "block_q": block_q, "block_k": block_k}
            arguments |= {"variant": row["variant"], "dim": row["dim"], "heads": CHIPS[row["chip"]].cores}
            return compiler.cost(row["chip"], f"{_CASES}:flash", arguments)

        sizes = [
            (size, (points[0] * block, points[1] * block))
            for size, points, block in (
                (row["queries"], _FLASH_QUERIES, block_q),
                (row["keys"], _FLASH_KEYS, block_k),
            )
        ]
        try:
            whole, simulated = _linear(cost, *sizes)
            found = {**whole.at(CHIPS[row["chip"]], _dense_flops(row)), "simulated": simulated}
            _possible(found["mxu_percent"])
        except CompileError as error:
            problems.append(str(error))
            continue
        if not best or found["us"] < best["us"]:
            best = {**found, "block_q": block_q, "block_k": block_k}
    if not best:
        raise CompileError("; ".join(problems) or "no block size divides the shape")
    return best


def _xla(compiler: Compiler, row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("variant", "queries", "keys", "dim")
    arguments = {**{name: row[name] for name in names}, "heads": CHIPS[row["chip"]].cores}
    cost = compiler.cost(row["chip"], f"{_CASES}:xla", arguments)
    figures = cost.at(CHIPS[row["chip"]], _dense_flops(row))
    _possible(figures["mxu_percent"])
    return {**figures, "simulated": [[row["queries"], row["keys"]]]}


_METHODS = {"ours": _ours, "flash_attention": _flash, "xla": _xla}


def listed_blocks(keys: int, density: float) -> int:
    """Key blocks of each query block's list."""
    return max(1, round(keys // BLOCK * density))


def _dense_flops(row: Mapping[str, Any]) -> float:
    return cases.useful_flops(row["variant"], row["queries"], row["keys"], row["dim"])


def _linear(cost: Callable[[int, int], Cost], *axes: tuple[int, tuple[int, int]]) -> tuple[Cost, list[list[int]]]:
    """The cost at a size, taken there or, beyond the second point of an axis, on the line through its two points.

    Args:
      cost: Estimates at two sizes.
      *axes: For each of the two, the size wanted and the two points.

    Returns:
      The cost, and the sizes at which it was taken.
    """

    def weights(size: int, points: tuple[int, int]) -> list[tuple[int, float]]:
        if size <= points[1]:
            return [(size, 1.0)]
        share = (size - points[0]) / (points[1] - points[0])
        return [(points[0], 1 - share), (points[1], share)]

    parts = [
        (cost(first, second), by_first * by_second, [first, second])
        for (first, by_first), (second, by_second) in itertools.product(*(weights(*axis) for axis in axes))
    ]
    total = Cost(
        cycles=sum(part.cycles * weight for part, weight, _ in parts),
        hbm=sum(part.hbm * weight for part, weight, _ in parts),
        vmem=max(part.vmem for part, _, _ in parts),
    )
    return total, [where for _, _, where in parts]
