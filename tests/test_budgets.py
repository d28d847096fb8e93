"""Every shipped configuration that names hardware fits it: by the plan that is checked in, and compiled anew on demand.

    pytest tests/test_budgets.py --compile

compiles each step for its slice, two CPU minutes each, and holds the files in benchmarks/results to what comes out.
"""

import json
import pathlib
import runpy

import pytest
from ml_collections import ConfigDict

from pixr1_jax.benchmarks import aot, plans
from pixr1_jax.core import topology

ROOT = pathlib.Path(plans.__file__).resolve().parents[2]
TOLERANCE = 0.03


def load(path: pathlib.Path, variant: str) -> ConfigDict:
    return runpy.run_path(str(path))["get_config"](variant)


SHIPPED = [
    (path, variant)
    for path in sorted((ROOT / "configs").glob("*.py"))
    for variant in (("", "v6e") if path.stem == "omni_8b" else ("",))
    if "plan" in load(path, variant)
]
EVERY = pytest.mark.parametrize(
    ("path", "variant"), SHIPPED, ids=[f"{path.stem}{variant and ':' + variant}" for path, variant in SHIPPED]
)


def result(path: pathlib.Path, variant: str) -> pathlib.Path:
    return ROOT / "benchmarks" / "results" / f"plan-{path.stem}{variant and '-' + variant}.json"


def renew(path: pathlib.Path, variant: str) -> str:
    name = f"configs/{path.name}{variant and ':' + variant}"
    return f"pixr1 plan --config={name} --json={result(path, variant).relative_to(ROOT)}"


def test_the_large_configurations_have_budgets():
    assert {path.stem for path, _ in SHIPPED} == {"omni_130m", "omni_1b", "omni_8b"}


@EVERY
def test_the_checked_in_plan_is_of_this_config_and_within_its_budget(path, variant):
    config, file = load(path, variant), result(path, variant)
    assert file.exists(), f"make it: {renew(path, variant)}"
    plan = json.loads(file.read_text())
    budget = config.plan
    assert plan["config"] == plans.fingerprint(config, "train"), f"the config has changed: {renew(path, variant)}"
    assert plan["topology"] == topology.parse(budget.topology).name and plan["num_slices"] == budget.num_slices
    assert plan["step"] == "train" and plan["fits"] and plan["unknown_loops"] == 0
    assert plan["peak_hbm_gib"] <= budget.max_hbm_gib, (
        f"needs {plan['peak_hbm_gib']} GiB, may take {budget.max_hbm_gib}"
    )
    assert plan["chips"] == topology.parse(budget.topology).chips * budget.num_slices


@pytest.mark.compiles
@pytest.mark.skipif(aot.libtpu_version() is None, reason="libtpu is not installed (extra tpu)")
@EVERY
def test_the_step_compiles_within_its_budget(path, variant):
    config, old = load(path, variant), json.loads(result(path, variant).read_text())
    asked = plans.question(config, None, None, "train", quick=True)
    with aot.Compiler(plans.TIMEOUT) as compiler:
        new = plans.ask(compiler, config, asked)
    assert new["fits"] and new["peak_hbm_gib"] <= config.plan.max_hbm_gib
    for name in ("peak_hbm_gib", "executed_flops", "hbm_bytes"):
        assert new[name] == pytest.approx(old[name], rel=TOLERANCE), f"{name} has changed: {renew(path, variant)}"
