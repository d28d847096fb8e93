"""All tests run on eight CPU devices, with flax nnx in tree mode; PIXR1_TEST_PLATFORMS names others, as jax does."""

import gc
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


def pytest_addoption(parser):
    parser.addoption("--compile", action="store_true", help="also compile the steps of shipped configs, minutes each")
    parser.addoption("--update-goldens", action="store_true", help="write tests/golden anew; review what changed")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--compile"):
        for item in items:
            if item.get_closest_marker("compiles"):
                item.add_marker(pytest.mark.skip(reason="compiles for minutes; runs with --compile"))


@pytest.fixture
def golden(request):
    """`golden(name, text)` compares a text with tests/golden/name, or writes it under --update-goldens."""
    folder = pathlib.Path(__file__).with_name("golden")

    def compare(name: str, text: str) -> None:
        path = folder / name
        if request.config.getoption("--update-goldens"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        wanted = path.read_text() if path.exists() else ""
        assert text.splitlines() == wanted.splitlines(), (
            f"{path} differs; if the change is meant, run pytest --update-goldens and commit it"
        )

    return compare


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


@pytest.fixture(scope="session")
def processes() -> types.ModuleType:
    """The helpers of tests/processes.py."""
    return _load("processes")


@pytest.fixture(scope="module", autouse=True)
def forget_compiled():
    """Drops a module's compiled programs: each maps memory, and Linux allows a process 65530 maps, then it crashes."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="module")
def quick_compile():
    """Compiles with few optimisations: tiny programs are compiled longer than they run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def _export(tiny, directory: pathlib.Path, config, steps: tuple[int, ...]):
    from pixr1_jax.engine.export import export
    from pixr1_jax.engine.step import Stream

    stream, model = Stream(config, tiny.HEIGHT, tiny.WIDTH), tiny.model(config)
    facts = {"frame_rate": "10/1", "sample_rate": 100, "action_names": ["left", "right"]}
    manifest = export(stream, model, directory, steps=steps, platforms=("cpu",), facts=facts)
    return stream, model, directory, manifest


@pytest.fixture(scope="session")
def tiny_artifact(tiny, tmp_path_factory):
    """An exported artifact: (stream, model, directory, manifest)."""
    return _export(tiny, tmp_path_factory.mktemp("export") / "artifact", tiny.config(), (1, 2, 4))


@pytest.fixture(scope="session")
def sparse_artifact(tiny, tmp_path_factory):
    """As `tiny_artifact`, of a model with a budget that reads by `gather`."""
    config = tiny.config(attention=tiny.attention("gather", 2, clean=(1,), noisy=(2,), group=2))
    return _export(tiny, tmp_path_factory.mktemp("export") / "artifact", config, (2,))
