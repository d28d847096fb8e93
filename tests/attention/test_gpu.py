"""The GPU kernels against the dense float32 oracle: interpreted on any device, lowered for CUDA, and run on a GPU."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixr1_jax.attention import gpu, reference
from pixr1_jax.attention.blocks import BlockLists, Tail, block_lists

# Relative L2 errors of outputs, and of gradients. Rounding an exact output to bfloat16 alone costs 1.7e-3, and weights
# that are rounded for the matrix units as much again where the values have no mean.
TOLERANCES = {"float32": (2e-6, 1e-5), "bfloat16": (2.6e-3, 5e-3)}


@dataclasses.dataclass(frozen=True)
class Case:
    """A shape of problem; blocks and heads that are no powers of two are padded."""

    dtype: str = "float32"
    block: int = 16
    dim: int = 64
    tile: int = 1
    lists: int = 1
    tail: bool = False
    tail_moves: bool = True
    bound: float | None = None
    still: int = 0
    batch: int = 2
    heads: int = 2
    queries: int = 3
    keys: int = 6

    @property
    def options(self):
        return {"block": self.block, "scale": self.dim**-0.5, "max_logit": self.bound}


CASES = [
    Case(),
    Case(tile=2, lists=2, tail=True, bound=30.0, still=2),
    Case(block=24, dim=40, tile=2, tail=True, still=1, batch=1),
    Case(dtype="bfloat16", block=32, tail=True),
    Case(dtype="bfloat16", block=32, dim=128, tile=2, bound=30.0, still=2),
    Case(dtype="bfloat16", dim=256, tail=True, tail_moves=False, still=2, queries=2),
]
name = lambda case: "-".join(f"{k}={v}" for k, v in vars(case).items() if v != getattr(Case(), k)) or "plain"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Problem:
    """Tensors [batch, heads, tokens, dim] with NaN in all padding, and a direction and a weighting of each output."""

    main: tuple
    moves: tuple
    lists: BlockLists
    valid: jax.Array
    tail: Tail | None
    d_tail: tuple | None
    d_out: jax.Array


def problem(case: Case, seed: int, density: float = 0.6, size: float = 1.0) -> Problem:
    rng = np.random.default_rng(seed)
    query_blocks = -(-case.queries // case.tile) * case.tile
    heads, lists = (case.batch, case.heads), (case.batch, case.lists)
    array = lambda *shape: (size * rng.standard_normal((*heads, *shape, case.dim))).astype(case.dtype)
    valid = rng.choice([case.block, rng.integers(0, case.block)], (case.batch, case.keys)).astype(np.int32)
    seen = rng.random((*lists, case.queries, case.keys)) < density
    seen[0, :, 1] = False  # one query block reads nothing
    dead = (np.arange(case.block) >= valid[..., None]).reshape(case.batch, 1, -1, 1)
    poison = lambda x: np.where(dead, np.nan, x).astype(case.dtype)
    q, dq, d_out = (array(query_blocks * case.block) for _ in range(3))
    k, v, dk, dv = (poison(array(case.keys * case.block)) for _ in range(4))
    for x in (dk, dv):
        x[:, :, : case.still * case.block] = 0.0
    tail = d_tail = None
    if case.tail:
        read = (rng.random(seen.shape) < 0.5) & ~seen
        read[0, :, 1] = False
        tail = Tail(array(case.keys), array(case.keys), (read * rng.uniform(1, case.block, seen.shape)).astype("f4"))
        d_tail = (array(case.keys), array(case.keys)) if case.tail_moves else None
    made = block_lists(jnp.asarray(seen), jnp.asarray(valid), block=case.block, tile=case.tile)
    return jax.tree.map(jnp.asarray, Problem((q, k, v), (dq, dk, dv), made, valid, tail, d_tail, d_out))


def clean(p: Problem, x):
    """In float32, without the NaN."""
    return jnp.nan_to_num(x.astype(jnp.float32))


@functools.partial(jax.jit, static_argnames="case")
def exact(p: Problem, case: Case):
    """Output, gradients and tangent of the oracle in float32."""
    swap = lambda x: jnp.swapaxes(x, 1, 2)

    def attend(q, k, v, *pooled):
        tail = None
        if p.tail is not None:
            rows = q.shape[2] // case.block - p.tail.weight.shape[2]
            weight = jnp.pad(p.tail.weight, [(0, 0), (0, 0), (0, rows), (0, 0)])
            tail = Tail(swap(pooled[0]), swap(pooled[1]), weight)
        options = {"block": case.block, "scale": case.options["scale"]}
        return swap(reference.attend(swap(q), swap(k), swap(v), p.lists, p.valid, tail, **options)[0])

    tensors, moves = [clean(p, x) for x in p.main], [clean(p, x) for x in p.moves]
    if p.tail is not None:
        tensors += [clean(p, p.tail.key), clean(p, p.tail.value)]
        moves += [clean(p, x) for x in p.d_tail or (0.0 * p.tail.key, 0.0 * p.tail.value)]
    out, tangent = jax.jvp(attend, tensors, moves)
    return out, jax.vjp(attend, *tensors)[1](clean(p, p.d_out)), tangent


@functools.partial(jax.jit, static_argnames=("case", "interpret"))
def ours(p: Problem, case: Case, interpret: bool):
    """Outputs of `forward`, `backward` and `tangent`."""
    options = {**case.options, "interpret": interpret}
    out, lse = gpu.forward(*p.main, p.lists, p.valid, p.tail, **options)
    gradients = gpu.backward(*p.main, p.lists, p.valid, p.tail, out, lse, p.d_out, **options)
    tangents = gpu.tangent(*p.main, *p.moves, p.lists, p.valid, p.tail, p.d_tail, case.still, **options)
    return (out, lse), gradients, tangents


def error(x, y) -> float:
    """Relative, in the L2 norm; infinite where x is not finite."""
    x, y = (np.asarray(a, np.float64) for a in (x, y))
    return (
        0.0 if np.array_equal(x, y) else np.linalg.norm(x - y) / np.linalg.norm(y) if np.isfinite(x).all() else np.inf
    )


def check(case: Case, seed: int, interpret: bool):
    p = problem(case, seed)
    out, gradients, tangent = exact(p, case)
    (our_out, lse), our_gradients, (same, our_tangent) = ours(p, case, interpret)
    forward, backward = TOLERANCES[case.dtype]
    assert our_out.dtype == same.dtype == our_tangent.dtype == case.dtype and lse.dtype == jnp.float32
    assert error(our_out, out) <= forward and error(same, out) <= forward
    assert error(our_tangent, tangent) <= backward
    assert (our_gradients[3] is None) == (our_gradients[4] is None) == (not case.tail)
    for mine, theirs in zip(our_gradients, gradients, strict=False):
        assert mine.dtype == case.dtype and error(mine, theirs) <= backward
    dead = ~np.asarray(jnp.isfinite(p.main[1]))
    for gradient in our_gradients[1:3]:
        np.testing.assert_array_equal(np.asarray(gradient, np.float32)[dead], 0.0)
    unread = np.isneginf(lse)
    assert unread[0, :, case.block : 2 * case.block].all() and not unread.all()
    np.testing.assert_array_equal(np.asarray(our_out, np.float32)[unread], 0.0)


@pytest.mark.parametrize("case", CASES, ids=name)
@settings(deadline=None, max_examples=3)
@given(seed=st.integers(0, 30))
def test_values_gradients_and_tangents_are_the_oracles(quick_compile, case, seed):
    check(case, seed, interpret=True)


def test_empty_lists_give_zeros_and_no_gradient(quick_compile):
    results = ours(problem(CASES[0], seed=0, density=0.0), CASES[0], interpret=True)
    (out, lse), gradients, tangents = results
    for x in (out, *gradients[:3], *tangents):
        np.testing.assert_array_equal(x, 0.0)
    assert np.isneginf(lse).all()


@pytest.mark.parametrize("case", CASES[:1] + [dataclasses.replace(CASES[0], dim=256, tail=True)], ids=name)
def test_without_a_bound_large_scores_do_not_overflow(quick_compile, case):
    p = problem(case, seed=1, size=9.0)
    out, gradients, tangent = exact(p, case)
    (our_out, lse), our_gradients, (_, our_tangent) = ours(p, case, interpret=True)
    assert np.max(lse) > 100
    for mine, theirs in zip((our_out, our_tangent, *our_gradients), (out, tangent, *gradients), strict=False):
        assert error(mine, theirs) < 1e-3


def test_logarithms_are_those_of_the_denominators(quick_compile):
    """Of all read keys in plain numpy."""
    case = CASES[0]
    p = problem(case, seed=2)
    (_, lse), _, _ = ours(p, case, interpret=True)
    mask = np.asarray(reference.dense_mask(p.lists, p.valid, case.queries, case.block))[:, 0]
    q, k = (np.nan_to_num(np.asarray(x, np.float64)) for x in p.main[:2])
    powers = np.exp(case.dim**-0.5 * np.einsum("bhqd,bhkd->bhqk", q, k))
    with np.errstate(divide="ignore"):
        expected = np.log((powers * np.repeat(mask, case.block, axis=1)[:, None]).sum(-1))
    np.testing.assert_allclose(lse, expected, atol=2e-6)


def test_under_shard_map_outputs_vary_as_inputs_do():
    """Heads over two devices; traced, since the interpreter of kernels knows no varying axes."""
    case = Case(lists=2, tail=True)
    p = jax.eval_shape(lambda: problem(case, 0))
    over_heads = jax.sharding.PartitionSpec(None, "heads")
    specs = dataclasses.replace(jax.tree.map(lambda _: over_heads, p), valid=jax.sharding.PartitionSpec())
    mesh = jax.make_mesh((2,), ("heads",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    kernels = functools.partial(ours.__wrapped__, case=case, interpret=False)
    run = jax.shard_map(kernels, mesh=mesh, in_specs=(specs,), out_specs=over_heads)
    (out, lse), gradients, tangents = jax.eval_shape(run, p)
    assert out.shape == p.main[0].shape and lse.shape == out.shape[:3]
    assert [x.shape for x in gradients] == [x.shape for x in (*p.main, p.tail.key, p.tail.value)]
    assert tangents[1].shape == out.shape


HOPPER = jax.sharding.AbstractDevice("NVIDIA H200", None, "gpu")
BIG = [
    Case(dtype=dtype, block=block, dim=dim, tail=tail, still=still, tile=tile, bound=bound, queries=4)
    for dtype, block, dim, tail, still, tile, bound in [
        ("bfloat16", 128, 64, False, 0, 1, None),
        ("bfloat16", 128, 128, True, 2, 2, 30.0),
        ("bfloat16", 128, 256, True, 2, 2, 30.0),
        ("bfloat16", 48, 128, True, 2, 1, None),
        ("bfloat16", 16, 256, False, 0, 1, None),
        ("float32", 64, 128, True, 2, 2, None),
    ]
]


@pytest.mark.parametrize("case", BIG, ids=name)
def test_kernels_lower_for_cuda_without_a_gpu(case):
    p = jax.eval_shape(lambda: problem(dataclasses.replace(case, batch=1), 0))
    mesh = jax.sharding.AbstractMesh((), (), axis_types=(), abstract_device=HOPPER)
    with jax.sharding.use_abstract_mesh(mesh):
        text = ours.trace(p, case, interpret=False).lower(lowering_platforms=("cuda",)).as_text()
    kernels = (
        {"forward", "dq", "tangent"}
        | ({"dk", "dv"} if case.dim > 128 else {"dkv"})
        | ({"dtail"} if case.tail else set())
    )
    for kernel in kernels:
        assert f'"block_list_{kernel}"' in text


@pytest.mark.gpu
@pytest.mark.skipif(
    jax.default_backend() != "gpu", reason="needs an NVIDIA GPU: PIXR1_TEST_PLATFORMS=cuda,cpu pytest -m gpu"
)
@pytest.mark.parametrize("case", CASES + BIG, ids=name)
def test_on_a_gpu_they_are_the_oracles(case):
    check(case, seed=0, interpret=False)
