"""All tests run on eight CPU devices, with flax nnx in tree mode; PIXR1_TEST_PLATFORMS names others, as jax does."""

import importlib.util
import os
import pathlib
import types

os.environ["JAX_PLATFORMS"] = os.environ.get("PIXR1_TEST_PLATFORMS", "cpu")

import jax  # noqa: E402 (the platform is chosen before jax is imported)
import pytest  # noqa: E402
from flax import nnx  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
nnx.set_graph_mode(False)
nnx.set_graph_updates(False)


def _load(name: str) -> types.ModuleType:
    """Test folders are no packages, so a helper is loaded from its file."""
    spec = importlib.util.spec_from_file_location(f"tests_{name}", pathlib.Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny() -> types.ModuleType:
    """The helpers of tests/tiny.py."""
    return _load("tiny")


@pytest.fixture(scope="module")
def quick_compile():
    """Compiles with few optimisations: tiny programs are compiled longer than they run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def tiny_artifact(tiny, tmp_path_factory):
    """An exported artifact: (stream, model, directory, manifest)."""
    from pixr1_jax.engine.export import export
    from pixr1_jax.engine.step import Stream

    config = tiny.config()
    stream, model = Stream(config, tiny.HEIGHT, tiny.WIDTH), tiny.model(config)
    directory = tmp_path_factory.mktemp("export") / "artifact"
    facts = {"frame_rate": "10/1", "sample_rate": 100, "action_names": ["left", "right"]}
    manifest = export(stream, model, directory, steps=(1, 2, 4), platforms=("cpu",), facts=facts)
    return stream, model, directory, manifest
