"""From what a step does to the least time that it takes."""

import copy

import pytest

from pixr1_jax.benchmarks import bounds, planned

GIB = 2**30
FACTS = {
    "parameters": 8_000_000,
    "memory": {"parameters": 2 * GIB, "teacher": 0, "temporaries": 3 * GIB},
    "flops": 4 * 918e12 * 0.6,
    "executed_flops": 4 * 918e12 * 0.8,
    "frames": 100,
    "mesh": {"slice": 2, "fsdp": 2},
    "collectives": {
        "all-gather": {"count": 3.0, "bytes": 400e9 * 0.5},
        "all-reduce": {"count": 1.0, "bytes": 400e9 * 0.25, "dcn_bytes": 12.5e9 * 0.1},
    },
    "hbm_bytes": 1640e9 * 0.7,
    "cycles": None,
    "kernels": 2.0,
    "unknown_loops": 0,
    "seconds": 1.0,
}


def test_the_longest_resource_bounds_the_step():
    table = bounds.report(FACTS, "v6e")
    assert table["fits"] and table["peak_hbm_gib"] == 5.0 and table["chips"] == 4
    assert table["memory_gib"] == {"parameters": 2.0, "temporaries": 3.0}
    assert table["seconds"] == pytest.approx({"compute": 0.8, "hbm": 0.7, "ici": 0.75, "dcn": 0.1}, rel=1e-3)
    assert table["bound"] == {"by": "compute", "seconds": 0.8}
    assert table["mfu_bound"] == 0.75 and table["frames_per_second_bound"] == 125.0


def test_slices_may_be_what_it_waits_for():
    facts = copy.deepcopy(FACTS)
    facts["collectives"]["all-reduce"]["dcn_bytes"] = 12.5e9 * 1.2
    table = bounds.report(facts, "v6e")
    assert table["bound"] == {"by": "dcn", "seconds": 1.2} and table["mfu_bound"] == 0.5


def test_what_does_not_fit_says_what_it_needs_and_has_no_bound():
    facts = {name: value for name, value in FACTS.items() if name not in ("collectives", "hbm_bytes")}
    table = bounds.report({**facts, "oom": {"needed": 118 * GIB, "limit": 95 * GIB}}, "v5p")
    assert not table["fits"] and (table["peak_hbm_gib"], table["limit_hbm_gib"]) == (118.0, 95.0)
    assert "bound" not in table and "collectives" not in table


def test_the_compilers_messages_on_memory():
    used = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 40.00G of 31.25G hbm. Exceeded by 8.75G."
    assert planned.out_of_memory(used, 0) == {"needed": 40 * GIB, "limit": 31.25 * GIB}
    rest = "the total memory required for HLO temporaries (144.46G) exceeds available HBM (95.74G)."
    found = planned.out_of_memory(f"RESOURCE_EXHAUSTED: Ran out of memory on HBM, {rest}", 2 * GIB)
    assert found == pytest.approx({"needed": 146.46 * GIB, "limit": 95.74 * GIB})
    assert planned.out_of_memory("INTERNAL: Mosaic failed", 0) is None
    assert planned.out_of_memory("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem", 0) is None
