"""Selection against its rules told block by block in plain Python, and attention with a tail against numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.row_layout import BlockKind, Role
from pixr1_jax.attention import api, select
from pixr1_jax.attention.blocks import Blocks, MemoryPolicy, visible
from pixr1_jax.attention.select import Budget

BLOCK, HEADS, DIM, LAYERS = 4, 2, 8, 3
POLICY = MemoryPolicy(window=2, sinks=1, bank=8, horizon=12)


def budget(**fields):
    return Budget(**({"clean": (2,), "noisy": (1, 2, 3), "early": (2, 1), "group": 1, "ramp_steps": 0} | fields))


@pytest.fixture(scope="module")
def row(tiny):
    """Metadata of a packed row of two clips: six chunks with a change of text, and two chunks of another size."""
    spec = tiny.token_spec()
    long = tiny.window(spec, 6, events=((0, "a"), (6, "bcdef")))
    packed, _ = tiny.batch(spec, [[long, tiny.window(spec, 2, seed=1, height=16)]], spare=2)
    blocks = Blocks.of({name: jnp.asarray(value) for name, value in packed.items()})
    return blocks, visible(blocks, blocks, POLICY)


def tensors(seed, count):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((1, count * BLOCK, HEADS, DIM)).astype(np.float32) for _ in range(3)]


def run(x, marks):
    """Blocks around each that follow one another with the same marks: (first block, place in it)."""
    out, first = [], 0
    for i in range(len(x)):
        if i and marks(x[i]) != marks(x[i - 1]):
            first = i
        out.append((first, i - first))
    return out


def rules(blocks, seen, q, k, chosen_numbers):
    """What each (head, query block) reads in full, from the words of the design.

    Args:
      blocks: Blocks [1, blocks].
      seen: bool [blocks, blocks].
      q: [1, tokens, heads, dim]; `k` likewise.
      k: See `q`.
      chosen_numbers: (budget, layer).
    """
    budget, layer = chosen_numbers
    fields = {field.name: np.asarray(getattr(blocks, field.name))[0] for field in dataclasses.fields(Blocks)}
    x = [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)]
    count = len(x)
    place = [at for _, at in run(x, lambda b: (b["segment"], b["chunk"], b["role"], b["kind"]))]
    in_chunk = run(x, lambda b: (b["segment"], b["chunk"], b["role"], b["kind"] == BlockKind.TEXT))
    group = [(first, at // budget.group) for first, at in in_chunk]

    def always(i, j):
        a, b = x[i], x[j]
        own = a["chunk"] == b["chunk"] and a["role"] == b["role"]
        before = a["chunk"] - 1 == b["chunk"] and a["kind"] == b["kind"] and place[i] == place[j]
        return own or before or b["chunk"] < POLICY.sinks or b["kind"] in (BlockKind.TEXT, BlockKind.HEAD)

    def mean(tensor, blocks, head):
        tokens = [tensor[0, b * BLOCK + t, head] for b in blocks for t in range(x[b]["valid"])]
        return np.mean(tokens, axis=0) if tokens else np.zeros(DIM)

    reads = np.zeros((HEADS, count, count), bool)
    for i in range(count):
        mates = [m for m in range(count) if group[m] == group[i]]
        fixed = [j for j in range(count) if seen[i, j] and any(always(m, j) for m in mates)]
        rest = [j for j in range(count) if seen[i, j] and j not in fixed]
        numbers = budget.noisy if x[i]["role"] == Role.NOISY else budget.clean
        keep = numbers[layer if len(numbers) > 1 else 0]
        keep += budget.early[x[i]["chunk"]] if x[i]["chunk"] < len(budget.early) else 0
        for head in range(HEADS):
            score = {j: mean(q, mates, head) @ mean(k, [j], head) for j in rest}
            best = sorted(rest, key=lambda j: (-score[j], j))[:keep]
            reads[head, i, fixed + best] = True
    return reads


@settings(deadline=None, max_examples=12)
@given(
    seed=st.integers(0, 10**6),
    numbers=st.sampled_from([{}, {"group": 2}, {"group": 3, "early": ()}, {"noisy": (0,), "clean": (4,)}]),
    layer=st.integers(0, LAYERS - 1),
)
def test_selection_is_its_rules_block_by_block(row, seed, numbers, layer):
    blocks, seen = row
    q, k, v = tensors(seed, blocks.count)
    plan = budget(**numbers)
    options = select.candidates(blocks, blocks, seen, POLICY, plan, layers=LAYERS)
    means = [select.pool(jnp.asarray(x), blocks.valid, BLOCK) for x in (k, v)]
    lists, tail = select.select(
        jnp.asarray(q), *means, options, options.keep[layer], block=BLOCK, tile=1, max_keys=None
    )
    expected = rules(blocks, np.asarray(seen)[0], q, k, (plan, layer))
    reads = np.zeros_like(expected)
    for head, i in np.ndindex(*reads.shape[:2]):
        reads[head, i, np.asarray(lists.indices[0, head, i, : int(lists.counts[0, head, i])])] = True
    np.testing.assert_array_equal(reads, expected)
    valid = np.asarray(blocks.valid)[0]
    np.testing.assert_array_equal(tail.weight[0], np.where(np.asarray(seen)[0] & ~expected, valid, 0))
    chunk, head = 6, 1  # of the second clip; a text takes two blocks at most
    always = plan.always(POLICY, chunk=chunk, head=head, text=2)
    assert reads.sum(-1).max() <= always + plan.most


def test_pooling_is_the_mean_of_valid_tokens_whatever_padding_holds():
    x = tensors(0, 3)[0]
    valid = np.array([[BLOCK, 1, 0]], np.int32)
    poisoned = x.copy()
    poisoned[:, BLOCK + 1 :] = np.nan
    pooled = np.asarray(select.pool(jnp.asarray(poisoned), jnp.asarray(valid), BLOCK))
    np.testing.assert_allclose(pooled[0, 0], x[0, :BLOCK].mean(0), atol=1e-6)
    np.testing.assert_array_equal(pooled[0, 1], x[0, BLOCK])
    np.testing.assert_array_equal(pooled[0, 2], 0)


def attended(row, q, k, v, plan, ramp=None, implementation="reference", tile=2):
    blocks, seen = row
    options = select.candidates(blocks, blocks, seen, POLICY, plan, layers=1, ramp=ramp)
    means = [select.pool(x, blocks.valid, BLOCK) for x in (k, v)]
    lists, tail = select.select(q, *means, options, options.keep[0], block=BLOCK, tile=tile, max_keys=None)
    return api.attend(
        q, k, v, lists, blocks.valid, block=BLOCK, scale=DIM**-0.5, tail=tail, implementation=implementation
    )


def dense(row, q, k, v):
    """Softmax over all valid tokens that are seen, in float64."""
    blocks, seen = row
    alive = np.arange(BLOCK) < np.asarray(blocks.valid)[..., None]
    mask = np.repeat(np.repeat(np.asarray(seen), BLOCK, 1), BLOCK, 2) & alive.reshape(1, 1, -1)
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = np.where(mask[:, None], np.einsum("bqhd,bkhd->bhqk", q, k) * DIM**-0.5, -np.inf)
    weights = np.where(
        mask[:, None], np.exp(scores - scores.max(-1, keepdims=True, where=mask[:, None], initial=-50)), 0
    )
    total = weights.sum(-1, keepdims=True)
    return np.einsum("bhqk,bkhd->bqhd", weights / np.where(total > 0, total, 1), v)


@pytest.mark.parametrize("implementation", sorted(api.PLAIN))
@pytest.mark.parametrize("tile", [1, 3])
def test_choosing_everything_is_dense_attention(row, implementation, tile):
    q, k, v = (jnp.asarray(x) for x in tensors(1, row[0].count))
    plan = budget(noisy=(row[0].count,), clean=(row[0].count,))
    out = attended(row, q, k, v, plan, implementation=implementation, tile=tile)
    np.testing.assert_allclose(out, dense(row, q, k, v), atol=3e-6)


def test_the_ramp_goes_from_everything_to_the_budget(row):
    q, k, v = (jnp.asarray(x) for x in tensors(2, row[0].count))
    plan = budget(noisy=(1,), clean=(1,), early=(), ramp_steps=10)
    run = jax.jit(lambda step: attended(row, q, k, v, plan, plan.ramp(step)))
    distance = [float(jnp.abs(run(step) - dense(row, q, k, v)).mean()) for step in (0, 5, 10, 99)]
    assert distance[0] < 1e-6 < 1e-3 < distance[1] < distance[2] == distance[3]
    assert run._cache_size() == 1
    done = attended(row, q, k, v, dataclasses.replace(plan, ramp_steps=0))
    np.testing.assert_allclose(run(10), done, atol=1e-6)
    assert dataclasses.replace(plan, ramp_steps=0).ramp(jnp.int32(3)) is None


def test_blocks_of_equal_tokens_lose_nothing_by_pooling(row):
    blocks, _ = row
    q, *_ = tensors(3, blocks.count)
    k, v = (np.repeat(x[:, ::BLOCK], BLOCK, axis=1) for x in tensors(4, blocks.count)[:2])
    plan = budget(noisy=(0,), clean=(0,), early=())
    out = attended(row, *(jnp.asarray(x) for x in (q, k, v)), plan)
    np.testing.assert_allclose(out, dense(row, q, k, v), atol=3e-6)


def test_unchosen_blocks_have_gradients_through_their_means_and_tangents_agree(row):
    blocks, seen = row
    q, k, v = (jnp.asarray(x) for x in tensors(5, blocks.count))
    plan = budget(noisy=(1,), clean=(1,), early=())
    loss = lambda k, v: jnp.square(attended(row, q, k, v, plan)).sum()
    gradient = jax.grad(loss, argnums=(0, 1))(k, v)
    read = np.asarray(seen).any(1)[0]
    by_block = lambda x: np.abs(np.asarray(x)).reshape(blocks.count, -1).max(-1)
    for one in gradient:
        assert (by_block(one)[read] > 0).all() and (by_block(one)[~read] == 0).all()
    move = [jnp.asarray(x) for x in tensors(6, blocks.count)[:2]]
    _, tangent = jax.jvp(loss, (k, v), tuple(move))
    inner = sum(jnp.vdot(a, b) for a, b in zip(gradient, move, strict=True))
    np.testing.assert_allclose(tangent, inner, rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"clean": ()}, "a budget needs numbers of blocks"),
        ({"noisy": (1, -2, 3)}, r"none of its numbers below 0; got .*noisy=\(1, -2, 3\)"),
        ({"ramp_steps": -1}, "ramp_steps=-1"),
        ({"group": 0}, "budget.group=0; use at least 1"),
    ],
)
def test_budgets_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        budget(**fields)


def test_budgets_that_do_not_fit_a_model(tiny):
    with pytest.raises(ValueError, match="budget.noisy has 3 numbers; give 1, or 2, one a layer"):
        tiny.config(attention=tiny.attention(noisy=(1, 2, 3)))
    for block, noisy in ((32, 3), (64, 8)):
        budget(noisy=(noisy,), clean=(8,), early=()).check(LAYERS, block)
    with pytest.raises(ValueError, match="budget names 12 blocks; with blocks of 128 tokens.*use multiples of 8"):
        budget(noisy=(8,), clean=(8,), early=(12,)).check(LAYERS, 128)


def test_attention_configs_that_cannot_be(tiny):
    with pytest.raises(ValueError, match="implementation 'flash' is unknown"):
        tiny.attention("flash")
    with pytest.raises(ValueError, match="attention.tile=32; use 1 to 31"):
        tiny.attention(tile=32)
