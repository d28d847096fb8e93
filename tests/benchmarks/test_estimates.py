"""The table of estimates under a compiler whose costs are known."""

import pytest

from pixr1_jax.benchmarks import aot, cases, estimates
from pixr1_jax.core.chips import CHIPS

FLOPS_PER_CYCLE = CHIPS["v5e"].flops_per_cycle
ROW = {"chip": "v5e", "shape": "training", "queries": 8192, "keys": 8192, "dim": 128, "kernel": "ours"}
ROW |= {"variant": "forward", "density": 0.5, "tail": False}
STREAMING = {**ROW, "shape": "streaming", "queries": 1536, "keys": 32768}


class Machine:
    """Each head: a fetch, then 500 cycles and half of the peak. The next head's fetch hides behind the last tile."""

    fetch, speed = 20000, 0.5

    def cost(self, chip, build, arguments):
        queries, keys = (arguments[name] * arguments["block"] for name in ("query_blocks", "listed"))
        flops = cases.useful_flops(arguments["variant"], queries, keys, arguments["dim"])
        work = flops / (self.speed * FLOPS_PER_CYCLE)
        tile = work * 512 / queries
        return aot.Cost(
            self.fetch + work + 500 + (arguments["heads"] - 1) * (work - tile + max(tile, self.fetch)), 7, 9
        )


def test_a_large_size_lies_on_the_line_through_small_ones():
    row = estimates.estimate(Machine(), ROW)
    flops = cases.useful_flops("forward", 8192, 4096, 128)
    # Fetch and overhead are paid once, whatever the number of queries.
    assert row["cycles"] == pytest.approx(20500 + flops / (0.5 * FLOPS_PER_CYCLE), abs=1)
    assert row["marginal_mxu_percent"] == pytest.approx(50, abs=0.01)
    assert row["simulated"] == [[512, 32], [1024, 32]] and row["listed"] == 32


@pytest.mark.parametrize("density", estimates.DENSITIES)
def test_a_fetch_that_hides_work_does_not_bend_the_streaming_figures(density):
    row = estimates.estimate(Machine(), {**STREAMING, "density": density})
    work = cases.useful_flops("forward", 1536, 32768 * density, 128) / (0.5 * FLOPS_PER_CYCLE)
    assert row["cycles"] == pytest.approx(work * 2 / 3 + max(work / 3, 20000), abs=2)
    assert row["marginal_mxu_percent"] == pytest.approx(50, abs=0.01)


def test_each_core_of_a_chip_has_its_head():
    asked = []

    class Recorder(Machine):
        def cost(self, chip, build, arguments):
            asked.append(arguments["heads"])
            return aot.Cost(1e6 * arguments["listed"] * arguments["heads"], 1, 1)

    estimates.estimate(Recorder(), {**STREAMING, "chip": "v5p", "density": 0.125})
    assert set(asked) == {2, 4}


def test_more_than_the_peak_is_refused():
    machine = Machine()
    machine.speed = 1.3
    assert "130.0 % of the peak" in estimates.estimate(machine, ROW)["error"]


def test_a_failure_costs_one_row():
    class Broken:
        def cost(self, *_):
            raise aot.CompileError("libtpu ended the process")

    assert estimates.estimate(Broken(), ROW) == {**ROW, "error": "libtpu ended the process"}


def test_rows_of_a_sweep_are_distinct():
    rows = [tuple(sorted(row.items())) for row in estimates.Sweep(["v5e", "v6e"])]
    # Two passes at five densities, four at the four that are whole groups there, each once with a tail; three peers.
    assert len(rows) == len(set(rows)) == 2 * 2 * (2 * (5 + 1) + 4 * (4 + 1) + 3)
