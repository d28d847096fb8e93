"""Artifacts: complete or not at all, true to their manifest, and free of model code."""

import hashlib
import json
import shutil
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from pixr1_jax.core import tree
from pixr1_jax.engine import runner
from pixr1_jax.engine.export import export
from pixr1_jax.engine.step import Stream

FACTS = {"frame_rate": "10/1", "sample_rate": 100, "action_names": ["left", "right"]}

# Runs an artifact with nothing importable of this project or its model libraries.
ALONE = textwrap.dedent(
    """
    import sys

    class Block:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in {"pixr1_jax", "data_pipelines", "flax", "ml_collections", "optax", "orbax"}:
                raise ImportError(name + " is not for runners")

    sys.meta_path.insert(0, Block())
    import numpy as np
    import runner

    stream = runner.Artifact.load(".").start(seed=3)
    stream.prompt("day")
    zeros = np.zeros((2, 2), np.float32)
    heard = stream.observe(np.full((2, 8, 12, 3), 9, np.uint8), np.zeros((25, 2), np.int16), zeros)
    frames, sound = stream.step(zeros + 1, steps=2, guidance=1.5)
    np.savez(sys.argv[1], heard=heard, frames=frames, sound=sound)
    """
)


def test_the_manifest_says_what_is_there(tiny_artifact):
    stream, model, directory, manifest = tiny_artifact
    assert json.loads((directory / "manifest.json").read_text()) == manifest
    spec = stream.config.tokens
    expected = FACTS | {
        "format": 1,
        "height": 8,
        "width": 12,
        "chunk_frames": 2,
        "chunk_samples": 20,
        "hop": spec.hop,
        "channels": 2,
        "text_bytes": 6,
        "steps": [1, 2, 4],
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model)),
    }
    assert {name: manifest[name] for name in expected} == expected
    assert set(manifest["programs"]["cpu"]) == {"start", "prompt", "observe", "step1", "step2", "step4"}
    files = {"manifest.json", "runner.py", "weights.npz", *manifest["programs"]["cpu"].values()}
    assert {path.name for path in directory.iterdir()} == files
    assert hashlib.sha256((directory / "weights.npz").read_bytes()).hexdigest() == manifest["weights_sha256"]
    assert [path.name for path in directory.parent.iterdir()] == ["artifact"]


def test_weights_have_readable_names(tiny_artifact):
    _, model, directory, _ = tiny_artifact
    named = tree.named_leaves(model)
    with np.load(directory / "weights.npz") as file:
        assert set(file.files) == set(named)
        for name in file.files:
            np.testing.assert_array_equal(file[name], named[name])


def test_the_artifact_runs_without_the_project(tiny_artifact, tmp_path):
    _, _, directory, _ = tiny_artifact
    out = tmp_path / "out.npz"
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(out)], cwd=directory, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    stream = runner.Artifact.load(directory).start(seed=3)
    stream.prompt("day")
    zeros = np.zeros((2, 2), np.float32)
    heard = stream.observe(np.full((2, 8, 12, 3), 9, np.uint8), np.zeros((25, 2), np.int16), zeros)
    frames, sound = stream.step(zeros + 1, steps=2, guidance=1.5)
    with np.load(out) as file:
        np.testing.assert_array_equal(file["frames"], frames)
        np.testing.assert_allclose(file["sound"], sound, atol=1e-6)
        np.testing.assert_allclose(file["heard"], heard, atol=1e-6)


class Stop(Exception):
    pass


def stopping(after):
    """A progress callback that fails at the `after`-th program."""
    seen = []

    def progress(name):
        seen.append(name)
        if len(seen) == after:
            raise Stop

    return progress


@pytest.fixture(scope="module")
def small(tiny):
    config = tiny.config(layers=1)
    return Stream(config, 4, 4), tiny.model(config)


def test_an_export_that_fails_leaves_the_old_artifact(small, tiny_artifact, tmp_path):
    stream, model = small
    target = tmp_path / "artifact"
    shutil.copytree(tiny_artifact[2], target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    with pytest.raises(Stop):
        export(stream, model, target, steps=(1,), platforms=("cpu",), facts=FACTS, progress=stopping(2))
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
    with pytest.raises(Stop):
        export(stream, model, tmp_path / "new", steps=(1,), platforms=("cpu",), facts=FACTS, progress=stopping(1))
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_a_complete_export_replaces_the_old_artifact(small, tmp_path):
    stream, model = small
    target = tmp_path / "folder" / "artifact"
    target.mkdir(parents=True)
    (target / "old.txt").write_text("old")
    names = []
    export(stream, model, target, steps=(1,), platforms=("cpu",), facts=FACTS, progress=names.append)
    assert not (target / "old.txt").exists() and [path.name for path in target.parent.iterdir()] == ["artifact"]
    assert names == ["start.cpu.jaxexp", "prompt.cpu.jaxexp", "observe.cpu.jaxexp", "step1.cpu.jaxexp"]
    assert target.stat().st_mode & 0o777 == 0o755
    frames, _ = runner.Artifact.load(target).start(seed=0).step(np.zeros((2, 2), np.float32), steps=1)
    assert frames.shape == (2, 4, 4, 3)


def test_programs_for_absent_platforms(small, tmp_path):
    stream, model = small
    manifest = export(stream, model, tmp_path / "a", steps=(1,), platforms=("tpu", "cuda"), facts=FACTS)
    assert set(manifest["programs"]) == {"tpu", "cuda"}
    exported = jax.export.deserialize(bytearray((tmp_path / "a" / "step1.cuda.jaxexp").read_bytes()))
    assert exported.platforms == ("cuda",)
    with pytest.raises(runner.ArtifactError, match="this device is 'cpu'.*export for this platform"):
        runner.Artifact.load(tmp_path / "a")


def test_each_platform_gets_its_own_attention(tiny, tmp_path):
    """Under "auto" a program holds the kernels of its platform, and that of the CPU none."""
    config = tiny.config(tiny.token_spec(block=16), layers=1, attention=tiny.attention("auto", tile=8))
    platforms = ("cpu", "tpu", "cuda")
    export(Stream(config, 4, 4), tiny.model(config), tmp_path / "a", steps=(1,), platforms=platforms, facts=FACTS)
    program = lambda platform: (tmp_path / "a" / f"step1.{platform}.jaxexp").read_bytes()
    texts = {platform: jax.export.deserialize(bytearray(program(platform))).mlir_module() for platform in platforms}
    kernels = {"tpu": "tpu_custom_call", "cuda": "triton"}
    found = {platform: {name for name, call in kernels.items() if call in text} for platform, text in texts.items()}
    assert found == {"cpu": set(), "tpu": {"tpu"}, "cuda": {"cuda"}}
