"""The process that compiles: it may abort, hang or refuse, and the next request is answered all the same."""

import pytest

from pixr1_jax.benchmarks import aot
from pixr1_jax.core.chips import CHIPS

needs_libtpu = pytest.mark.skipif(aot.libtpu_version() is None, reason="libtpu is not installed (extra tpu)")
XLA, FLASH = ("pixr1_jax.benchmarks.cases:" + name for name in ("xla", "flash"))


def test_an_abort_is_reported_and_survived():
    with aot.Compiler(timeout=60) as compiler:
        for _ in range(2):
            with pytest.raises(aot.CompileError, match=r"os:abort on v5e: libtpu ended the process \(status -6\)"):
                compiler.cost("v5e", "os:abort", {})
        with pytest.raises(aot.CompileError, match="No module named 'absent'"):
            compiler.cost("v5e", "absent:build", {})


def test_a_program_that_hangs_is_given_up():
    with aot.Compiler(timeout=1) as compiler, pytest.raises(aot.CompileError, match="took more than 1 s"):
        compiler.cost("v5e", "signal:pause", {})


@pytest.mark.parametrize("names", ["v5", "v5e,v9", ","])
def test_unknown_chips_are_named(names):
    with pytest.raises(ValueError, match="take some of v5e,v5p,v6e"):
        aot.check_chips(names)


def test_time_is_the_larger_of_estimate_and_roofline():
    chip = CHIPS["v5e"]
    compute = aot.Cost(cycles=1500, hbm=1, vmem=0).at(chip, chip.flops_per_cycle * 750)
    assert (compute["us"], compute["bound"], compute["mxu_percent"]) == (1.0, "compute", 50.0)
    memory = aot.Cost(cycles=1500, hbm=2 * 819e3, vmem=0).at(chip, chip.flops_per_cycle * 750)
    assert (memory["us"], memory["bound"], memory["mxu_percent"]) == (2.0, "hbm", 25.0)


def test_two_heads_on_two_cores_cost_what_one_costs_on_one():
    chip = CHIPS["v5p"]
    figures = aot.Cost(cycles=1750, hbm=1, vmem=0).at(chip, chip.flops_per_cycle / 2 * 875)
    assert (figures["us"], figures["mxu_percent"]) == (0.5, 50.0)


@needs_libtpu
@pytest.mark.parametrize("chip", CHIPS)
def test_dense_peers_come_to_a_possible_share_of_the_peak(chip):
    # A kernel's grid is shared out over the cores of a chip, so each core needs its head.
    heads = CHIPS[chip].cores
    sizes = {"variant": "forward", "queries": 1024, "keys": 2048, "dim": 128, "heads": heads}
    flops = 4 * 1024 * 2048 * 128 * heads
    with aot.Compiler(timeout=120) as compiler:
        for build, more in ((XLA, {}), (FLASH, {"block_q": 512, "block_k": 1024})):
            cost = compiler.cost(chip, build, {**sizes, **more})
            share = aot.mxu_percent(CHIPS[chip], flops, cost.cycles)
            assert 5 < share < 100, (build, share)
            assert cost.hbm >= 2 * 128 * (1024 + 2 * 2048 + 1024) * heads
