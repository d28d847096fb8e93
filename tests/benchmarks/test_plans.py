"""`pixr1 plan`: what is asked, what is tried, and real compiles of tiny steps for slices that are not here."""

import dataclasses
import io
import json
import math

import pytest
import rich.console
from ml_collections import ConfigDict

from pixr1_jax.benchmarks import aot, plans
from pixr1_jax.core import topology

needs_libtpu = pytest.mark.skipif(aot.libtpu_version() is None, reason="libtpu is not installed (extra tpu)")


@pytest.fixture
def config(tiny) -> ConfigDict:
    made = tiny.experiment(stream__steps=2)
    row = {"chunks": 8, "patches": 48, "text": 24, "clean_blocks": 12, "noisy_blocks": 18}
    with made.unlocked():
        made.pack.row, made.pack.fill, made.pack.picture = ConfigDict(row), False, (tiny.HEIGHT, tiny.WIDTH)
        made.export.size = (tiny.HEIGHT, tiny.WIDTH)
        made.plan = ConfigDict({"topology": "v5e:2x2", "num_slices": 1, "max_hbm_gib": 1.0})
    return made


def asked(name: str, num_slices: int = 1, step: str = "train") -> plans.Question:
    return plans.Question(topology.parse(name), num_slices, step, quick=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "v5p:3x3x3"}, "v5p"),
        ({"name": "v9:2x2"}, "'v9:2x2' is no TPU slice known here; give a topology such as"),
        ({"step": "dream"}, "--step=dream: use one of train, distill, stream"),
        ({"num_slices": -1}, "--num_slices=-1: use 1 or more"),
    ],
)
def test_what_cannot_be_asked_is_one_line(config, changes, message):
    arguments = {"name": None, "num_slices": None, "step": "train", "quick": True}
    with pytest.raises(ValueError, match=message) as found:
        plans.question(config, **arguments | changes)
    assert "\n" not in str(found.value)


def test_a_topology_is_the_configs_or_missing(config):
    if aot.libtpu_version() is not None:
        assert plans.question(config, None, None, "train", True).slice.name == "v5e:2x2"
        assert plans.question(config, "v6e-256", 2, "train", False) == plans.Question(
            topology.parse("v6e:16x16"), 2, "train", False
        )
    with config.unlocked():
        del config.plan
    with pytest.raises(ValueError, match="--topology is missing, and the config has no plan.topology"):
        plans.question(config, None, None, "train", True)


@pytest.mark.parametrize("slices", [1, 2])
def test_a_search_tries_shapes_that_divide(config, slices):
    config.pack.batch_rows = 16
    config.model.heads = 2
    shapes = list(plans.mesh_shapes(config, asked("v5e:2x4", slices)))
    assert len(shapes) == len(set(shapes)) and shapes
    for shape in shapes:
        assert math.prod(shape.sizes) == 8 * slices and shape.slice == slices
        assert config.model.heads % (shape.tensor * shape.context) == 0
        assert config.pack.batch_rows % (shape.slice * shape.data * shape.fsdp) == 0
    found = {dataclasses.astuple(shape)[1:] for shape in shapes}
    assert {(1, 8, 1, 1), (8, 1, 1, 1), (1, 4, 2, 1), (1, 4, 1, 2)} <= found
    config.mesh.context_parallel = "ring"
    assert {(1, 2, 4, 1), (1, 1, 8, 1)} <= {
        dataclasses.astuple(s)[1:] for s in plans.mesh_shapes(config, asked("v5e:2x4"))
    }


def row(fits=True, seconds=1.0, peak=10.0, compute=1.0):
    return {"fits": fits, "peak_hbm_gib": peak, "bound": {"seconds": seconds}, "seconds": {"compute": compute}}


def test_the_best_mesh_fits_is_fast_and_then_small():
    best, slower, larger = row(peak=9.0), row(seconds=1.5), row(seconds=1.005, peak=12.0)
    too_large, failed = row(fits=False, peak=50.0), {"error": "no"}
    assert sorted([failed, too_large, slower, larger, best], key=plans._rank) == [
        best,
        larger,
        slower,
        too_large,
        failed,
    ]


@pytest.fixture(scope="module")
def compiler():
    with aot.Compiler(timeout=600) as compiler:
        yield compiler


@needs_libtpu
def test_a_step_on_a_mesh(compiler, config, tmp_path):
    config.mesh.data, config.mesh.fsdp = 1, 4
    question = asked("v5e:2x2")
    found = plans.ask(compiler, config, question)
    assert found["fits"] and found["chips"] == 4 and found["mesh"]["fsdp"] == 4
    assert 0 < found["peak_hbm_gib"] < 1 and found["unknown_loops"] == 0
    # Parameters are divided, so they are gathered, and their gradients are summed over the rows' devices.
    gathered = sum(found["collectives"][kind]["bytes"] for kind in found["collectives"])
    assert gathered > 0.5 * found["memory_gib"]["parameters"] * 2**30
    assert found["executed_flops"] >= found["flops_per_step"] > 0
    assert found["bound"]["seconds"] == max(found["seconds"].values())
    table = plans.whole(config, question, "pixr1 plan", [found])
    plans.write(tmp_path / "sub" / "plan.json", table)
    read = json.loads((tmp_path / "sub" / "plan.json").read_text())
    keys = {"fits", "peak_hbm_gib", "flops_per_step", "collectives", "bound", "topology", "config", "libtpu"}
    assert keys <= set(read) and [path.name for path in (tmp_path / "sub").iterdir()] == ["plan.json"]
    out = io.StringIO()
    plans.show(found, question, rich.console.Console(file=out, width=120))
    assert "mesh fsdp=4" in out.getvalue() and "MFU at most" in out.getvalue()


@needs_libtpu
def test_a_step_that_needs_too_much_is_a_result(compiler, config):
    config.pack.batch_rows = 1 << 20
    found = plans.ask(compiler, config, asked("v5e:1x1"))
    assert not found["fits"] and found["peak_hbm_gib"] > found["limit_hbm_gib"] == 15.75
    out = io.StringIO()
    plans.show(found, asked("v5e:1x1"), rich.console.Console(file=out, width=120))
    assert f"does not fit: needs {found['peak_hbm_gib']:.1f} GiB, has 15.8" in out.getvalue()


@needs_libtpu
def test_the_exported_stream_on_one_chip(compiler, config):
    found = plans.ask(compiler, config, asked("v5e:2x2", step="stream"))
    assert found["fits"] and found["chips"] == 1 and not found["collectives"]
    assert found["frames_per_step"] == config.tokens.chunk_frames
    assert {"parameters", "cache and state"} <= set(found["memory_gib"])
    assert found["frames_per_second_bound"] > 0


@needs_libtpu
def test_a_mesh_that_does_not_fit_is_the_partitions_one_line(compiler, config):
    config.mesh.data = 3
    with pytest.raises(aot.CompileError, match="does not fit 4 devices; change an axis"):
        plans.ask(compiler, config, asked("v5e:2x2"))
