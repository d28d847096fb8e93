"""What a compiled program does, read from its text: against sums by hand."""

import os
import subprocess
import sys

import pytest

from pixr1_jax.benchmarks import aot, module

# Compiled for four chips of v5e that are not here: 5 layers with one collective of each kind in a loop.
PROGRAM = """
import sys, jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
mesh = Mesh(np.array(devices), ("x",), axis_types=(AxisType.Auto,))

def layer(x, w):
    w = jax.lax.all_gather(w, "x", tiled=True)                    # [128, 512] from each, to [512, 512]
    x = jnp.tanh(jnp.dot(x, w, precision="highest"))
    x = jax.lax.ppermute(x, "x", [(i, (i + 1) % 4) for i in range(4)])
    x = jax.lax.all_to_all(x, "x", split_axis=1, concat_axis=0, tiled=True)
    x = jnp.tanh(x.reshape(256, 512))
    return x, None

def run(x, ws):
    x, _ = jax.lax.scan(layer, x, ws)
    return jax.lax.psum(x, "x")

f = jax.shard_map(run, mesh=mesh, in_specs=(P("x"), P(None, "x")), out_specs=P(), check_vma=False)
shape = lambda s, p: jax.ShapeDtypeStruct(s, jnp.float32, sharding=NamedSharding(mesh, p))
compiled = jax.jit(f).lower(shape((1024, 512), P("x")), shape((5, 512, 512), P(None, "x"))).compile()
open(sys.argv[1], "w").write(compiled.as_text())
"""


@pytest.mark.skipif(aot.libtpu_version() is None, reason="libtpu is not installed (extra tpu)")
def test_collectives_in_a_loop_count_as_often_as_it_runs(tmp_path):
    path = tmp_path / "program.txt"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    subprocess.run([sys.executable, "-c", PROGRAM, str(path)], check=True, env=environment, capture_output=True)
    found = module.work(path.read_text(), devices=4)
    rows = 256 * 512 * 4  # bytes of a device's part of x
    assert found.unknown_loops == 0
    sent = {kind: (amounts["count"], amounts["bytes"]) for kind, amounts in found.collectives.items()}
    assert sent["all-gather"] == (5, 5 * 3 * 128 * 512 * 4)
    assert sent["collective-permute"] == (5, 5 * rows)
    assert sent["all-to-all"] == (5, 5 * rows * 3 / 4)
    assert sent["all-reduce"] == (1, 2 * rows * 3 / 4)
    assert all("dcn_bytes" not in amounts for amounts in found.collectives.values())
    crossing = module.work(path.read_text(), devices=4, slices=2)
    assert {kind: amounts["dcn_bytes"] for kind, amounts in crossing.collectives.items()} == {
        kind: amount for kind, (_, amount) in sent.items()
    }
    assert found.hbm > 5 * 128 * 512 * 4, "the weights come from HBM; what follows fits vector memory"


TEXT = """HloModule jit_f

%cut (p0: f32[8,128,128], p1: s32[]) -> f32[128,128] {
  %p0 = f32[8,128,128]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,128,128]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,128,128}
  ROOT %view = f32[128,128]{1,0} bitcast(%slice)
}

%put (q0: f32[8,128,128], q1: f32[128,128], q2: s32[]) -> f32[8,128,128] {
  %q0 = f32[8,128,128]{2,1,0} parameter(0)
  %q1 = f32[128,128]{1,0} parameter(1)
  %q2 = s32[] parameter(2)
  %none = s32[] constant(0)
  %shaped = f32[1,128,128]{2,1,0} bitcast(%q1)
  ROOT %update = f32[8,128,128]{2,1,0} dynamic-update-slice(%q0, %shaped, %q2, %none, %none)
}

%body (b: (s32[], f32[8,128,128])) -> (s32[], f32[8,128,128]) {
  %b = (s32[], f32[8,128,128]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%b), index=0
  %xs = f32[8,128,128]{2,1,0} get-tuple-element(%b), index=1
  %one = f32[128,128]{1,0} fusion(%xs, %i), kind=kLoop, calls=%cut, backend_config={"estimated_cycles":"100"}
  %ys = f32[8,128,128]{2,1,0} fusion(%xs, %one, %i), kind=kLoop, calls=%put, backend_config={"estimated_cycles":"7"}
  ROOT %next = (s32[], f32[8,128,128]{2,1,0}) tuple(%i, %ys)
}

%condition (c: (s32[], f32[8,128,128])) -> pred[] {
  %c = (s32[], f32[8,128,128]{2,1,0}) parameter(0)
  %n = s32[] constant(8)
  %j = s32[] get-tuple-element(%c), index=0
  ROOT %less = pred[] compare(%j, %n), direction=LT
}

ENTRY %main (x: f32[8,128,128]) -> f32[8,128,128] {
  %x = f32[8,128,128]{2,1,0} parameter(0)
  %start = s32[] constant(0)
  %pair = (s32[], f32[8,128,128]{2,1,0}) tuple(%start, %x)
  %loop = (s32[], f32[8,128,128]{2,1,0}) while(%pair), condition=%condition, body=%body
  ROOT %result = f32[8,128,128]{2,1,0} get-tuple-element(%loop), index=1
}
"""


def test_a_slice_of_a_stack_counts_as_itself():
    found = module.work(TEXT, devices=1)
    tile = 128 * 128 * 4
    # Each of 8 trips reads a slice and writes it out, reads it again and puts it back; indices are 4 bytes.
    assert found.hbm == pytest.approx(8 * 4 * tile, rel=1e-3)
    assert found.cycles == 8 * 107 and not found.collectives


def test_a_loop_without_a_constant_is_reported():
    text = TEXT.replace("%n = s32[] constant(8)", "%n = s32[] get-tuple-element(%c), index=0")
    found = module.work(text, devices=1)
    assert found.unknown_loops == 1 and found.cycles == 107
    known = text.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}')
    assert module.work(known, devices=1).cycles == 3 * 107
    with pytest.raises(ValueError, match="no entry"):
        module.work("HloModule nothing", devices=1)


@pytest.mark.parametrize(
    ("rest", "groups"),
    [
        (", replica_groups={{0,1},{2,3}}, dimensions={0}", [[0, 1], [2, 3]]),
        (", replica_groups=[2,2]<=[4], dimensions={0}", [[0, 1], [2, 3]]),
        (", replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}", [[0, 2], [1, 3]]),
        (", replica_groups=mesh['a'=2,'b'=2] {'b'}, dimensions={0}", [[0, 1], [2, 3]]),
        (", replica_groups=mesh['a'=2,'b'=2] {'a'}, dimensions={0}", [[0, 2], [1, 3]]),
        (", replica_groups=mesh['a'=2,'b'=2] {'a','b'}, dimensions={0}", [[0, 1, 2, 3]]),
        (", replica_groups=mesh['a'=4,'b'=1] {'a':(2)2}, dimensions={0}", [[0, 1], [2, 3]]),
        (", replica_groups=mesh['a'=4,'b'=1] {'a':(1)2}, dimensions={0}", [[0, 2], [1, 3]]),
        (", source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
        (", dimensions={0}", [[0, 1, 2, 3]]),
    ],
)
def test_groups_of_devices(rest, groups):
    assert module._groups(rest, 4) == groups
