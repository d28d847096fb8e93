"""Timing on this device, and what is written."""

import json

import numpy as np
import pytest

from pixr1_jax.benchmarks import results, timing
from pixr1_jax.benchmarks.estimates import Shape

SMALL = Shape("small", 256, 512)


def test_masks_have_the_density_they_name():
    masks = {(name, density): mask for name, density, mask in timing.block_masks(SMALL, (1.0, 0.25))}
    assert masks["dense", 1.0].all() and (masks["sparse", 0.25].sum(axis=1) == 1).all()
    np.testing.assert_array_equal(masks["causal", 7 / 8], [[1, 1, 1, 0], [1, 1, 1, 1]])


def test_what_a_cpu_has_is_timed_and_written(tmp_path, quick_compile):
    rows = list(timing.rows("cpu", heads=1, dims=(16,), densities=(), where=(SMALL,), repeats=2))
    assert {row["kernel"] for row in rows} == {"gather", "reference"}
    assert {row["variant"] for row in rows} == {"forward", "backward", "tangent"} and len(rows) == 2 * 3
    assert not [row for row in rows if "error" in row]
    assert all(0 < row["us_low"] <= row["us"] <= row["us_high"] for row in rows)
    table = {"title": "times", **results.provenance("pixr1 bench kernels"), "rows": rows}
    paths = results.write(tmp_path / "new", "kernels-cpu", table)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(path.name for path in paths)
    assert json.loads(paths[0].read_text()) == table
    assert paths[1].read_bytes().startswith(b"\x89PNG")


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path):
    table = {"title": "times", **results.provenance("x"), "rows": []}
    results.write(tmp_path, "kernels", table)
    before = (tmp_path / "kernels.json").read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        results.write(tmp_path, "kernels", {**table, "rows": [{"us": float("nan")}]})
    assert (tmp_path / "kernels.json").read_bytes() == before and len(list(tmp_path.iterdir())) == 2
