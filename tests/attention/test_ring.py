"""Ring attention on CPU devices against the dense reference: outputs, gradients, tangents, and what is skipped."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from pixr1_jax.attention import api, reference, ring
from pixr1_jax.attention.blocks import Tail, block_lists
from pixr1_jax.benchmarks import aot

pytestmark = pytest.mark.usefixtures("quick_compile")

BATCH, HEADS, QUERIES, OWN, PAST, TILE = 2, 2, 3, 3, 2, 2  # blocks of a device; its last tile is not full
ROOT = pathlib.Path(__file__).resolve().parents[2]


def problem(seed, size, *, block=4, dim=8, past=True, tail=True, by_head=True, density=0.5):
    """As all devices together hold it: one list is empty, and what is not valid is NaN.

    Returns what is differentiated, as a dict, and what decides who reads what: seen, valid lengths, tail weights.
    """
    rng = np.random.default_rng(seed)

    def array(blocks, normal=True):
        x = rng.standard_normal((BATCH, size * blocks * block, HEADS, dim))
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True)) if normal else x

    old = PAST if past else 0
    keys = size * (old + OWN)
    valid = rng.choice([block, block, block, 3, 0], (BATCH, keys)).astype(np.int32)
    seen = (rng.random((BATCH, HEADS if by_head else 1, size * QUERIES, keys)) < density) & (valid > 0)[:, None, None]
    seen[0, 0, 1] = False
    dead = (np.arange(block) >= valid[..., None]).reshape(BATCH, -1)[..., None, None]
    k, v = (np.where(dead, np.nan, np.concatenate([array(old, n), array(OWN, n)], axis=1)) for n in (True, False))
    at = size * old * block
    values = {"q": array(QUERIES), "k": k[:, at:], "v": v[:, at:]}
    if past:
        values["past"] = (k[:, :at], v[:, :at])
    weight = np.zeros(seen.shape)
    if tail:
        pooled = rng.standard_normal((2, BATCH, keys, HEADS, dim))
        values["tail"] = (pooled[0], pooled[1])
        weight = np.where(~seen & (rng.random(seen.shape) < 0.3), valid[:, None, None], 0)
        weight[0, 0, 1] = 0
    values = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), values)
    return values, (jnp.asarray(seen), jnp.asarray(valid), jnp.asarray(weight, jnp.float32))


def oracle(values, rest, block=4):
    seen, valid, weight = rest
    k, v = values["k"], values["v"]
    if "past" in values:
        k, v = (jnp.concatenate([old, new], axis=1) for old, new in zip(values["past"], (k, v), strict=True))
    lists = block_lists(seen, valid, block=block)
    tail = Tail(*values["tail"], weight) if "tail" in values else None
    scale = values["q"].shape[-1] ** -0.5
    return reference.attend(values["q"], k, v, lists, valid, tail, block=block, scale=scale)[0]


def ring_attention(
    size, values, rest, *, block=4, implementation="gather", check_vma=True, layers=1, tensor=1, **options
):
    """The same by a ring of devices, each of which lists what its queries read; heads over `tensor` such rings."""

    def local(values, rest):
        seen, valid, weight = rest
        tail = Tail(*values["tail"], weight) if "tail" in values else None
        run = lambda q: ring.attend(
            q,
            values["k"],
            values["v"],
            block_lists(seen, valid, block=block, tile=TILE),
            valid,
            block=block,
            scale=q.shape[-1] ** -0.5,
            past=values.get("past"),
            tail=tail,
            implementation=implementation,
            **options,
        )
        if layers == 1:
            return run(values["q"])
        step = jax.checkpoint(lambda q, _: (q + run(q), None))
        return jax.lax.scan(step, values["q"], None, length=layers)[0]

    devices = jax.devices()[: size * tensor]
    mesh = jax.make_mesh((tensor, size), ("tensor", "context"), axis_types=(AxisType.Auto,) * 2, devices=devices)
    tokens, pooled = PartitionSpec(None, "context", "tensor"), PartitionSpec(None, None, "tensor")
    by_query = PartitionSpec(None, "tensor" if rest[0].shape[1] > 1 else None, "context")
    specs = {name: pooled if name == "tail" else tokens for name in values}
    mapped = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(specs, (by_query, PartitionSpec(), by_query)),
        out_specs=tokens,
        check_vma=check_vma,
    )
    return mapped(values, rest)


def gradients(run, values, rest, weight):
    """Output and gradients of a weighted sum of it."""

    def loss(values):
        out = run(values, rest)
        return (out * weight).sum(), out

    (_, out), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(values)
    return out, gradient


def draw_like(seed, x):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), x)


def assert_same(mine, true, atol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), mine, true)


def check_gradients(size, values, rest, **options):
    weight = draw_like(1, values["q"])
    out, gradient = gradients(functools.partial(ring_attention, size, **options), values, rest, weight)
    block = options.get("block", 4)
    true_out, true = gradients(functools.partial(oracle, block=block), values, rest, weight)
    assert np.isfinite(true_out).all()
    assert_same(out, true_out, 2e-6)
    assert_same(gradient, true, 1e-5)
    return out


@pytest.mark.parametrize("size", [1, 2, 4])
def test_outputs_and_gradients_are_the_references(size):
    """With a past, a tail, lists of each head, an empty list, short blocks, and NaN in all padding."""
    values, rest = problem(size, size)
    out = check_gradients(size, values, rest)
    np.testing.assert_array_equal(out[0, 4:8, 0], 0.0)


def test_one_list_for_all_heads_and_neither_past_nor_tail():
    values, rest = problem(4, 2, past=False, tail=False, by_head=False, density=0.2)
    check_gradients(2, values, rest, implementation="reference")


@pytest.mark.parametrize("by_head", [True, False])
def test_heads_over_other_devices(by_head):
    """Two rings, each with its own head: what one of them skips the other may read."""
    values, rest = problem(5, 2, by_head=by_head, density=0.2)
    check_gradients(2, values, rest, tensor=2)


def test_large_rings_are_loops(monkeypatch):
    monkeypatch.setattr(ring, "UNROLLED", 2)
    values, rest = problem(6, 4)
    run = jax.make_jaxpr(functools.partial(ring_attention, 4))
    assert "length=2" in str(run(values, rest))  # the own and the last shard stand outside
    check_gradients(4, values, rest)


def test_unchecked_in_scanned_and_recomputed_layers():
    values, rest = problem(7, 2, tail=False)
    weight = draw_like(8, values["q"])
    run = functools.partial(ring_attention, 2, check_vma=False, layers=2)

    def true(values, rest):
        q = values["q"]
        for _ in range(2):
            q = q + oracle(values | {"q": q}, rest)
        return q

    assert_same(gradients(run, values, rest, weight), gradients(true, values, rest, weight), 2e-5)


@pytest.mark.parametrize(
    ("names", "forward_mode"),
    [(("q",), True), (("q", "k", "v", "tail"), True), (("q", "k", "v", "past", "tail"), True), (("q", "k"), False)],
)
def test_tangents_are_jvps_of_the_reference(names, forward_mode):
    """With keys that stand still, with a past that does, and with everything moving."""
    values, rest = problem(9, 2)
    moving = {name: values[name] for name in names}
    direction = draw_like(10, moving)
    run = lambda f, **options: jax.jit(
        lambda moving: jax.jvp(lambda x: f(values | x, rest, **options), (moving,), (direction,))
    )
    mine = run(functools.partial(ring_attention, 2), forward_mode=forward_mode)
    assert_same(mine(moving), run(oracle)(moving), 1e-5)
    sent = str(jax.make_jaxpr(mine)(moving)).count("all_gather[")
    if forward_mode:  # two of each array of keys and values that moves, one of each that does not
        assert sent == {1: 4, 4: 6, 5: 8}[len(names)]


def reading(size, pairs, rest):
    """`rest` where devices read only the shards that `pairs` names, (device, shard)."""
    seen, valid, weight = rest
    keep = np.zeros((size * QUERIES, valid.shape[1]), bool)
    for device, shard in pairs:
        keep[device * QUERIES : (device + 1) * QUERIES, shard * OWN : (shard + 1) * OWN] = True
    return seen & keep, valid, weight * keep


def test_a_shard_that_nobody_names_is_not_read(monkeypatch):
    """Its NaN would spread: `gather` multiplies what it does not read by zero."""
    size, poisoned = 4, 2
    pairs = [(0, 0), (1, 0), (1, 1), (2, 2), (3, 0), (3, 3)]
    values, rest = problem(11, size, past=False, tail=False, density=1.0)
    rest = reading(size, pairs, rest)
    calls = []
    inner = ring.BACKENDS["gather"]

    def counted(name):
        def run(*args, **numbers):
            device = jax.lax.axis_index("context")
            jax.debug.callback(lambda device: calls.append((name, int(device))), device)
            return getattr(inner, name)(*args, **numbers)

        return run

    counting = ring.Backend(counted("forward"), counted("backward"), inner.tangent, inner.unserved)
    monkeypatch.setitem(ring.BACKENDS, "gather", counting)
    weight = draw_like(12, values["q"])
    queries = slice(poisoned * QUERIES * 4, (poisoned + 1) * QUERIES * 4)
    keys = slice(poisoned * OWN * 4, (poisoned + 1) * OWN * 4)
    weight = weight.at[:, queries].set(0.0)
    true_out, true = gradients(oracle, values, rest, weight)
    values = values | {name: values[name].at[:, keys].set(jnp.nan) for name in ("k", "v")}
    out, gradient = gradients(functools.partial(ring_attention, size), values, rest, weight)
    jax.effects_barrier()
    # Every device reads its own shard, here all that the pairs name, and nothing else.
    for name in ("forward", "backward"):
        assert sorted(device for what, device in calls if what == name) == sorted(device for device, _ in pairs)
    assert np.isnan(out[:, queries]).any()
    others = lambda x, where: np.delete(np.asarray(x), where, axis=1)
    assert_same(others(out, queries), others(true_out, queries), 2e-6)
    assert_same(others(gradient["q"], queries), others(true["q"], queries), 1e-5)
    for name in ("k", "v"):
        assert_same(others(gradient[name], keys), others(true[name], keys), 1e-5)


def test_a_tail_alone_is_read():
    """Pseudo-tokens of a shard whose blocks no list names."""
    values, rest = problem(13, 2)
    seen, valid, weight = rest
    check_gradients(2, values, (jnp.zeros_like(seen), valid, weight))


@pytest.mark.parametrize(
    ("implementation", "bounded"), [("pallas_tpu", True), ("pallas_tpu", False), ("pallas_gpu", True)]
)
def test_kernels_interpreted(implementation, bounded):
    values, rest = problem(14, 2, block=16, dim=16, tail=bounded)
    options = {"block": 16, "implementation": implementation, "check_vma": False}
    check_gradients(2, values, rest, max_logit=api.MAX_LOGIT if bounded else None, **options)


def test_tangent_of_tpu_kernels_interpreted():
    values, rest = problem(15, 2, block=16, dim=16)
    direction = draw_like(16, values["q"])
    options = {"implementation": "pallas_tpu", "check_vma": False, "forward_mode": True, "max_logit": api.MAX_LOGIT}
    run = lambda f: jax.jit(lambda q: jax.jvp(lambda q: f(values | {"q": q}, rest, block=16), (q,), (direction,)))(
        values["q"]
    )
    assert_same(run(functools.partial(ring_attention, 2, **options)), run(oracle), 1e-5)


def test_bfloat16_is_added_in_float32():
    values, rest = problem(17, 2)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), values)
    weight = draw_like(18, values["q"])
    out, gradient = gradients(functools.partial(ring_attention, 2), half, rest, weight)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    true_out, true = gradients(oracle, exact, rest, weight)
    chex.assert_trees_all_equal_dtypes(half, gradient)
    for mine, theirs in zip(jax.tree.leaves((out, gradient)), jax.tree.leaves((true_out, true)), strict=True):
        assert mine.dtype == jnp.bfloat16
        assert np.linalg.norm(mine.astype(jnp.float32) - theirs) < 6e-3 * np.linalg.norm(theirs)


def test_errors_say_what_does_not_fit():
    values, (seen, valid, weight) = problem(19, 2)
    run = lambda values, seen, valid: jax.eval_shape(
        functools.partial(ring_attention, 2), values, (seen, valid, weight)
    )
    with pytest.raises(ValueError, match="key_valid has 9 key blocks; 2 devices on axis 'context' with 5 each have 10"):
        run(values, seen[..., :9], valid[:, :9])
    with pytest.raises(ValueError, match="tail has 9 key blocks"):
        run(values | {"tail": tuple(x[:, :9] for x in values["tail"])}, seen, valid)
    with pytest.raises(ValueError, match="on each device 8 queries, 8 past and 12 own keys must be whole blocks of 4"):
        run(values | {"q": values["q"][:, :16]}, seen, valid)


AHEAD = r"""
import json, re
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from pixr1_jax.attention import api, ring
from pixr1_jax.attention.blocks import Tail, block_lists

topology = topologies.get_topology_desc(platform="tpu", topology_name="v5p:2x2x1")
mesh = Mesh(np.array(topology.devices), ("context",), axis_types=(AxisType.Auto,))
blocks, block, heads, dim = 32, 128, 2, 128

def loss(q, k, v, pooled, seen, valid, weight):
    lists = block_lists(seen, valid, block=block, tile=4)
    out = ring.attend(q, k, v, lists, valid, block=block, scale=dim ** -0.5, tail=Tail(*pooled, weight),
                      max_logit=api.MAX_LOGIT, implementation="pallas_tpu")
    return jax.lax.psum(jnp.square(out.astype(jnp.float32)).sum(), "context")

tokens, by_query = P(None, "context"), P(None, None, "context")
specs = (tokens, tokens, tokens, P(), by_query, P(), by_query)
step = jax.shard_map(jax.value_and_grad(loss, argnums=(0, 1, 2)), mesh=mesh, in_specs=specs,
                     out_specs=(P(), (tokens,) * 3))
shape = lambda spec, dtype, *sizes: jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, spec))
heads_of = lambda spec, rows: shape(spec, jnp.bfloat16, 1, rows, heads, dim)
arguments = [heads_of(tokens, blocks * block)] * 3 + [(heads_of(P(), blocks),) * 2]
arguments += [shape(by_query, jnp.bool_, 1, 1, blocks, blocks), shape(P(), jnp.int32, 1, blocks)]
arguments += [shape(by_query, jnp.float32, 1, 1, blocks, blocks)]
text = jax.jit(step).lower(*arguments).compile().as_text()
kinds = {"send": " collective-permute-start\(", "arrival": " collective-permute-done\(",
         "conditional": " conditional\(", "kernel": "tpu_custom_call", "gather": " all-gather"}
entry = text[text.index("\nENTRY"):].splitlines()
schedule = [next((kind for kind, pattern in kinds.items() if re.search(pattern, line)), "") for line in entry]
found = {"kernels": len(re.findall(kinds["kernel"], text))}
found |= {kind + "s": schedule.count(kind) for kind in ("send", "conditional", "gather")}
# Sends that are under way while a shard is read.
found["hidden"] = 0
for start, kind in enumerate(schedule):
    if kind == "send":
        name = re.search(r"(%collective-permute-start\S*) = ", entry[start])[1]
        done = next(i for i, line in enumerate(entry) if re.search(r"-done\(" + re.escape(name) + r"[,)]", line))
        found["hidden"] += bool({"conditional", "kernel"} & set(schedule[start:done]))
print(json.dumps(found))
"""


@pytest.mark.skipif(aot.libtpu_version() is None, reason="libtpu is not installed (extra tpu)")
def test_compiles_for_four_chips():
    """The real kernels and collectives under the TPU compiler, forward and backward."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    command = [sys.executable, "-c", AHEAD]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    # Keys and values go three steps, the first of them the same in both passes, and their gradients four, of which
    # only the way home is waited for. All shards but the own may be skipped.
    assert found == {"sends": 18, "hidden": 16, "conditionals": 6, "kernels": 8, "gathers": 0}
