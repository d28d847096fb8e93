"""The TPU kernels under the TPU compiler: they compile as shipped, and are no slower than the checked-in estimates."""

import json
import pathlib
import runpy

import jax
import pytest

from pixr1_jax.benchmarks import aot, estimates
from pixr1_jax.core.chips import CHIPS
from pixr1_jax.core.config import to_plain

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "kernels-aot.json"
RENEW = "pixr1 bench kernels --aot=v5e,v5p,v6e --out=benchmarks/results"
TOLERANCE = 0.03

pytestmark = [
    pytest.mark.skipif(aot.libtpu_version() is None, reason="libtpu is not installed (extra tpu)"),
]

# Few and short: every kernel once a chip at its sparsest, and the wide head where the matrix unit is widest.
GATED = [(chip, "streaming", variant, 128) for chip in CHIPS for variant in ("forward", "forward_streamed")]
GATED += [(chip, "training", variant, 128) for chip in CHIPS for variant in ("backward", "tangent_still")]
GATED.append(("v6e", "streaming", "forward", 256))

# Every kernel that a model of kernel-sized blocks can ask for: a training row, and a chunk of 1080p over its cache. Few
# listed blocks of many are fetched; many keys come in windows.
PASSES = ("forward", "backward", "tangent", "tangent_still")
COMPILED = [
    *[{"variant": v, "dim": d, "queries": 2048, "keys": 8192, "listed": 32} for v in PASSES for d in (64, 128, 256)],
    *[{"variant": v, "dim": 128, "queries": 2048, "keys": 65536, "listed": 128} for v in PASSES],
    *[{"variant": v, "dim": 128, "queries": 2048, "keys": 8192, "listed": 32, "bounded": False} for v in PASSES],
    *[{"variant": "forward", "dim": d, "queries": 1536, "keys": 32768, "listed": 32} for d in (64, 128, 256)],
    {"variant": "forward", "dim": 128, "queries": 1536, "keys": 32768, "listed": 32, "bounded": False},
    {"variant": "backward", "dim": 128, "queries": 2048, "keys": 8192, "listed": 32, "dtype": "float32"},
]


@pytest.fixture(scope="module")
def compiler():
    with aot.Compiler(timeout=600) as compiler:
        yield compiler


@pytest.fixture(scope="module")
def checked_in():
    assert RESULTS.exists(), f"{RESULTS} is missing; make it: {RENEW}"
    table = json.loads(RESULTS.read_text())
    have = {"libtpu": aot.libtpu_version(), "jax": jax.__version__}
    if any(table[name] != version for name, version in have.items()):
        pytest.skip(f"the estimates are of jax {table['jax']} and libtpu {table['libtpu']}; here are {have}")
    return table


@pytest.mark.parametrize(("chip", "shape", "variant", "dim"), GATED)
def test_no_slower_than_checked_in(compiler, checked_in, chip, shape, variant, dim):
    key = {"chip": chip, "kernel": "ours", "shape": shape, "variant": variant, "dim": dim}
    key |= {"density": 0.125, "tail": False}
    (old,) = [row for row in checked_in["rows"] if key.items() <= row.items()]
    new = estimates.estimate(compiler, {**key, "queries": old["queries"], "keys": old["keys"]})
    assert "error" not in new, new["error"]
    assert "us" in old, f"the checked-in row has no figure: {old['error']}"
    for name, change in (
        ("us", new["us"] / old["us"] - 1),
        ("marginal_mxu_percent", old["marginal_mxu_percent"] / new["marginal_mxu_percent"] - 1),
    ):
        facts = f"{name} was {old[name]}, is {new[name]}"
        assert change <= TOLERANCE, f"slower by {change:.1%}: {facts}"
        assert change >= -TOLERANCE, f"faster by {-change:.1%}: {facts}; renew the file: {RENEW}"


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("sizes", COMPILED, ids=lambda sizes: "-".join(map(str, sizes.values())))
def test_compiles_as_shipped(compiler, chip, sizes):
    """With a tail and lists of each head, as a budget makes them."""
    build = "pixr1_jax.benchmarks.cases:attend"
    assert compiler.check(chip, build, {"implementation": "pallas_tpu", "tail": True, **sizes}) >= 0


SHIPPED = [
    (path, variant, step)
    for path in sorted((ROOT / "configs").glob("omni_*.py"))
    for variant in (("", "v6e") if path.stem == "omni_8b" else ("",))
    for step in ("train", "distill", "stream")
    if step != "stream" or not variant  # one chip is one chip
]


@pytest.mark.parametrize(("path", "variant", "step"), SHIPPED, ids=lambda x: getattr(x, "stem", x))
def test_kernels_of_shipped_configs_compile(compiler, path, variant, step):
    """Traced from the real step on the config's mesh; what two configs share is compiled once."""
    config = to_plain(runpy.run_path(str(path))["get_config"](variant))
    found = compiler.kernels(config, step, list(CHIPS))
    assert not found["errors"]
    assert len(found["kernels"]) >= {"train": 2, "distill": 4, "stream": 1}[step], found["kernels"]
