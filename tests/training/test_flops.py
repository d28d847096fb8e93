"""The count of operations against XLA's own, against every product of the traced step, and against actual lists."""

import collections
import functools
import math

import jax
import jax.numpy as jnp
import pytest

from pixr1_jax.attention import select
from pixr1_jax.attention.blocks import Blocks, block_lists, visible
from pixr1_jax.core.tree import named_leaves
from pixr1_jax.objectives.flow_map import FlowMap
from pixr1_jax.objectives.pretrain import Pretrain
from pixr1_jax.objectives.tasks import TimeSampling
from pixr1_jax.omni.model import Omni
from pixr1_jax.training import flops

SAMPLING = TimeSampling(mean=1.0, deviation=1.0, pure_noise=0.2, drop=0.1, drift=0.05, tasks=(("joint", 1.0),))
ROWS = 2


@pytest.fixture(scope="module")
def scene(tiny):
    """Wide enough that what is not a product of matrices is little."""
    config = tiny.config(width=256, heads=2, head_dim=64, hidden=512, video_rank=48, audio_rank=20)
    batch, room = tiny.batch(config.tokens, [[tiny.window(config.tokens, 4, seed=seed)] for seed in range(ROWS)])
    shapes = jax.eval_shape(lambda: Omni(config, jax.random.key(0)))
    return config, {name: jnp.asarray(value) for name, value in batch.items()}, room, shapes


def pretrain(config, room):
    return Pretrain(config, SAMPLING, 0.25, 0.3, room.clean_blocks, room.blocks)


def flow_map(config, room):
    rest = {"time_floor": 0.25, "audio_weight": 0.3, "softening": 0.02}
    rest |= {"clean_blocks": room.clean_blocks, "max_keys": room.blocks}
    return FlowMap(config, SAMPLING, 0.25, 0.5, 1.5, 100, **rest)


def gradient(task):
    return jax.grad(lambda params, teacher, batch: task.loss(params, teacher, batch, 0, jnp.int32(3))[0])


def counted(task, config, room):
    """Our count where attention is dense, as `reference` computes it: every block reads every block."""
    clean, noisy = room.clean_blocks, room.noisy_blocks
    pairs = {"row": (room.blocks**2, 0), "clean": (clean**2, 0), "noisy": (noisy**2, noisy * clean)}
    total = 0.0
    for each in flops.PASSES[type(task)]:
        own, past = (config.layers * count for count in pairs[each.part])
        total += each.matrices * flops.matrix_flops(config, room, each.part)
        total += flops.attention_flops(config, each.own * own + each.past * past)
    return ROWS * total


def products(jaxpr, times=1):
    """Operations of every matrix product in a jaxpr, the body of a scan as often as it runs."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (summed, _), _ = equation.params["dimension_numbers"]
            left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            total += 2 * times * math.prod(out) * math.prod(left[axis] for axis in summed)
        inner = times * (equation.params["length"] if equation.primitive.name == "scan" else 1)
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                part = getattr(part, "jaxpr", part)
                if hasattr(part, "eqns"):
                    total += products(part, inner)
    return total


@pytest.mark.parametrize("make", [pretrain, flow_map])
def test_the_count_is_that_of_xla(scene, make, monkeypatch):
    """XLA also counts what is no product, a lookup of cells by one-hot rows among it: 2.4 % here."""
    config, batch, room, shapes = scene
    task = make(config, room)
    # XLA counts the body of a loop once, however often it runs.
    monkeypatch.setattr(jax.lax, "scan", functools.partial(jax.lax.scan, unroll=True))
    lowered = jax.jit(gradient(task)).lower(shapes, shapes, batch)
    ours = counted(task, config, room)
    assert ours < lowered.cost_analysis()["flops"] < 1.03 * ours


@pytest.mark.parametrize("make", [pretrain, flow_map])
def test_the_count_is_that_of_all_products(scene, make):
    """Within 0.3 %; lookups of cells by one-hot rows are left out, one a pass and one for the gradient."""
    config, batch, room, shapes = scene
    task = make(config, room)
    found = products(jax.make_jaxpr(gradient(task))(shapes, shapes, batch).jaxpr)
    blocks = 2 * room.blocks
    if (
        make is flow_map
    ):  # contexts of teacher and student, the teacher's two noisy passes, the student's and its tangent
        blocks += 2 * room.clean_blocks + 4 * room.noisy_blocks
    found -= ROWS * blocks * config.tokens.block * 2 * (1 + 4 * room.chunks) * 6 * config.width
    assert counted(task, config, room) == pytest.approx(found, rel=3e-3)


def test_every_matrix_of_the_model_is_counted(tiny):
    config = tiny.config()
    matrices = {
        path
        for path, leaf in named_leaves(jax.eval_shape(lambda: Omni(config, jax.random.key(0)))).items()
        if leaf.ndim - path.startswith("layers/") >= 2
    }
    _, room = tiny.batch(config.tokens, [[tiny.window(config.tokens, 3)]])
    assert set(flops.matrix_rows(config, room, "row")) | set(flops.LOOKUPS) == matrices


def reads_of_lists(config, blocks, start, stop):
    """Entries of all lists that name the part's own blocks, and others, and pseudo-tokens that are read."""
    query, key, block = blocks[start:stop], blocks[:stop], config.tokens.block
    seen, budget = visible(query, key, config.memory), config.attention.budget
    found = collections.Counter()
    for layer in range(config.layers):
        lists = block_lists(seen, key.valid, block=block)
        if budget:
            options = select.candidates(query, key, seen, config.memory, budget, layers=config.layers)
            shape = seen.shape[0], query.count * block, config.heads, config.head_dim
            queries = jax.random.normal(jax.random.key(layer), shape)
            keys = jax.random.normal(jax.random.key(9 + layer), (shape[0], key.count, *shape[2:]))
            sizes = {"block": block, "tile": 1, "max_keys": None}
            lists, tail = select.select(queries, keys, keys, options, options.keep[layer], **sizes)
            found["tail"] += (tail.weight[:, 0] > 0).sum()
        counts, indices = lists.counts[:, 0], lists.indices[:, 0]
        listed = jnp.arange(indices.shape[-1]) < counts[..., None]
        found["own"] += (listed & (indices >= start)).sum()
        found["past"] += (listed & (indices < start)).sum()
    return dict(found)


PARTS = {"row": lambda clean: (0, None), "clean": lambda clean: (0, clean), "noisy": lambda clean: (clean, None)}


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("budget", [{}, {"clean": (1,), "noisy": (2, 3), "early": (1,), "group": 2}])
def test_reads_are_those_of_the_lists(tiny, part, budget):
    config = tiny.config(attention=tiny.attention(**budget))
    spec = config.tokens
    rows = [[tiny.window(spec, 6, seed=1)], [tiny.window(spec, 3, seed=2), tiny.window(spec, 2, seed=3)]]
    batch, room = tiny.batch(spec, rows, spare=1)
    blocks = Blocks.of({name: jnp.asarray(value) for name, value in batch.items() if name.startswith("block_")})
    where = PARTS[part](room.clean_blocks)
    read = {k: int(v) for k, v in jax.jit(lambda blocks: reads_of_lists(config, blocks, *where))(blocks).items()}
    own, past = jax.jit(lambda batch: flops.block_reads(config, batch, room.clean_blocks, part))(batch)
    assert read["own"] > 0 and (read["past"] > 0) == (part == "noisy") and (read.get("tail", 0) > 0) == bool(budget)
    assert float(own) + float(past) == pytest.approx(sum(read.values()) - read.get("tail", 0) * (1 - 1 / spec.block))
    if not budget:
        assert (float(own), float(past)) == (read["own"], read["past"])


def test_a_step_is_its_passes(scene):
    config, batch, room, _ = scene
    task = flow_map(config, room)
    matrices = lambda part: ROWS * flops.matrix_flops(config, room, part)
    count = jax.jit(flops.block_reads, static_argnums=(0, 2, 3))
    reads = lambda part: [float(x) for x in count(config, batch, room.clean_blocks, part)]
    clean, noisy, row = reads("clean"), reads("noisy"), reads("row")
    attention = flops.attention_flops(config, 2 * clean[0] + 5 * noisy[0] + 4 * noisy[1] + 3 * row[0])
    expected = 2 * matrices("clean") + 4 * matrices("noisy") + 3 * matrices("row") + attention
    assert flops.StepFlops(task, room, ROWS)(batch, 0) == pytest.approx(expected, rel=1e-6)


def test_a_budget_that_ramps_costs_less_and_less(tiny):
    config = tiny.config(attention=tiny.attention(clean=(0,), noisy=(0,), ramp_steps=10))
    batch, room = tiny.batch(config.tokens, [[tiny.window(config.tokens, 6)]])
    batch = {name: jnp.asarray(value) for name, value in batch.items()}
    count = flops.StepFlops(pretrain(config, room), room, 1)
    dense = flops.StepFlops(pretrain(tiny.config(), room), room, 1)
    costs = [count(batch, step) for step in (0, 5, 10, 20)]
    assert costs[0] == dense(batch, 0) and costs[0] > costs[1] > costs[2] == costs[3]
