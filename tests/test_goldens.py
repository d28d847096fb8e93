"""What a change of a default does: every shipped configuration as flat text, and where its parameters lie on meshes."""

import importlib.util
import json
import pathlib

import jax
import pytest

from pixr1_jax.core.config import to_plain
from pixr1_jax.core.partition import MeshShape, Partition, Rules, make_mesh
from pixr1_jax.core.tree import named_leaves
from pixr1_jax.omni.model import Omni
from pixr1_jax.training import setup

CONFIGS = pathlib.Path(setup.__file__).resolve().parents[2] / "configs"
VARIANTS = {
    "doom_tiny": ("smoke",),
    "mixed_tiny": ("smoke", "videos"),
    "omni_130m": ("smoke",),
    "omni_1b": ("smoke",),
    "omni_8b": ("v6e", "smoke"),
    "quickstart": ("smoke", "sparse", "live"),
}
# slice, data, fsdp, context, tensor
MESHES = {
    "fsdp8": MeshShape(1, 1, 8, 1, 1),
    "data2-fsdp4": MeshShape(1, 2, 4, 1, 1),
    "fsdp2-context2-tensor2": MeshShape(1, 1, 2, 2, 2),
    "slice2-fsdp2-tensor2": MeshShape(2, 1, 2, 1, 2),
}


def load(name: str, variant: str = ""):
    spec = importlib.util.spec_from_file_location(f"golden_{name}", CONFIGS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)


def flat(value, path: str = ""):
    """Lines of "path = value", in the order of the names."""
    if isinstance(value, dict) and value:
        for name in sorted(value):
            yield from flat(value[name], f"{path}.{name}" if path else name)
    else:
        yield f"{path} = {json.dumps(value)}"


def test_no_configuration_is_left_out():
    assert {path.stem for path in CONFIGS.glob("*.py")} == set(VARIANTS)


@pytest.mark.parametrize(
    ("name", "variant"), [(name, variant) for name, variants in VARIANTS.items() for variant in ("", *variants)]
)
def test_configurations(golden, name, variant):
    lines = flat(to_plain(load(name, variant)))
    golden(f"configs/{name}{variant and '-' + variant}.txt", "\n".join(lines) + "\n")


@pytest.mark.parametrize("mesh", MESHES)
def test_where_the_parameters_of_omni_8b_lie(golden, mesh):
    sizes = setup.model_config(load("omni_8b"))
    model = jax.eval_shape(lambda: Omni(sizes, jax.random.key(0)))
    placed = Partition(make_mesh(MESHES[mesh], jax.devices()[:8]), Rules(), "ulysses").abstract(model)
    table = {
        name: {"shape": list(leaf.shape), "axes": list(leaf.sharding.spec), "on_a_device": list(part)}
        for name, leaf in named_leaves(placed).items()
        for part in [leaf.sharding.shard_shape(leaf.shape)]
    }
    text = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in table.items())
    golden(f"shardings/omni_8b-{mesh}.json", "{\n" + text + "\n}\n")
