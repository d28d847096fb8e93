"""The runner of an artifact: replayable streams, and errors that say what to do."""

import ast
import json
import pathlib
import shutil
import sys

import numpy as np
import pytest

from pixr1_jax.engine import runner
from pixr1_jax.engine.runner import Artifact, ArtifactError

ACTIONS = np.zeros((2, 2), np.float32)


@pytest.fixture(scope="module")
def artifact(tiny_artifact):
    return Artifact.load(tiny_artifact[2])


@pytest.fixture
def copy(tiny_artifact, tmp_path):
    """A copy of the artifact to be damaged."""
    return pathlib.Path(shutil.copytree(tiny_artifact[2], tmp_path / "artifact"))


def dream(artifact, seed, calls=3):
    stream = artifact.start(seed)
    stream.prompt("day")
    return [stream.step(ACTIONS + i, steps=1) for i in range(calls)]


def test_it_imports_jax_numpy_and_the_standard_library_only():
    source = ast.parse(pathlib.Path(runner.__file__).read_text())
    names = set()
    for node in ast.walk(source):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    assert names - {"jax", "numpy"} <= set(sys.stdlib_module_names)


def test_streams_are_replayed_by_seed_and_calls(artifact):
    first, again, other = dream(artifact, 1), dream(artifact, 1), dream(artifact, 2)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])
    assert (first[0][0] != other[0][0]).any()


def test_streams_side_by_side_do_not_mix(artifact):
    expected = [dream(artifact, seed) for seed in (1, 2)]
    streams = [artifact.start(seed) for seed in (1, 2)]
    for stream in streams:
        stream.prompt("day")
    for i in range(3):
        for stream, alone in zip(streams, expected, strict=True):
            np.testing.assert_array_equal(stream.step(ACTIONS + i, steps=1)[0], alone[i][0])


def test_what_a_step_returns(artifact):
    frames, sound = artifact.start(0).step(ACTIONS, steps=4, guidance=2.0)
    assert isinstance(frames, np.ndarray) and frames.shape == (2, 8, 12, 3) and frames.dtype == np.uint8
    assert isinstance(sound, np.ndarray) and sound.shape == (20, 2) and sound.dtype == np.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.prompt("seven b"), r"prompt of 7 bytes; the model reads at most 6: 'seven b'"),
        (lambda s: s.prompt("雪雪雪"), "prompt of 9 bytes"),
        (lambda s: s.step(ACTIONS, steps=3), r"steps=3 was not exported; the artifact has \[1, 2, 4\]"),
        (lambda s: s.step(ACTIONS[0], steps=1), r"actions: float32 \(2,\) given, float32 \(2, 2\) needed"),
        (lambda s: s.step(ACTIONS.astype(np.float64), steps=1), r"actions: float64 \(2, 2\) given, float32"),
        (lambda s: s.step(ACTIONS, steps=1, guidance=0.0), "guidance=0.0; use a number above 0, 1 for none"),
        (lambda s: s.step(ACTIONS, steps=1, guidance=float("nan")), "guidance=nan"),
        (
            lambda s: s.observe(np.zeros((1, 8, 12, 3), np.uint8), np.zeros((25, 2), np.int16), ACTIONS),
            r"frames: uint8 \(1, 8, 12, 3\) given, uint8 \(2, 8, 12, 3\) needed",
        ),
        (
            lambda s: s.observe(np.zeros((2, 8, 12, 3), np.uint8), np.zeros((20, 2), np.int16), ACTIONS),
            r"sound: int16 \(20, 2\) given, int16 \(25, 2\) needed",
        ),
    ],
)
def test_wrong_inputs_leave_the_stream_as_it_was(artifact, call, message):
    stream = artifact.start(1)
    stream.prompt("day")
    with pytest.raises(ValueError, match=message):
        call(stream)
    np.testing.assert_array_equal(stream.step(ACTIONS, steps=1)[0], dream(artifact, 1, calls=1)[0][0])


def edit(copy, **fields):
    path = copy / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_directory_that_is_no_artifact(tmp_path):
    with pytest.raises(
        ArtifactError, match="manifest.json: no such file; give the directory that `pixr1 export` wrote"
    ):
        Artifact.load(tmp_path)


def test_damaged_or_foreign_manifests(copy):
    edit(copy, format=99)
    with pytest.raises(ArtifactError, match="manifest.json: format 99, this runner reads 1; export again"):
        Artifact.load(copy)
    edit(copy, format=1, programs={"tpu": {}})
    with pytest.raises(ArtifactError, match="this device is 'cpu'.*export for this platform"):
        Artifact.load(copy)
    for text in ("{", "[]", "3"):
        (copy / "manifest.json").write_text(text)
        with pytest.raises(ArtifactError, match="manifest.json: .*export again"):
            Artifact.load(copy)


def test_missing_and_damaged_programs(copy):
    path = copy / "step1.cpu.jaxexp"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtifactError, match="step1.cpu.jaxexp: jax .* cannot read this program .*export again"):
        Artifact.load(copy)
    path.unlink()
    with pytest.raises(ArtifactError, match="step1.cpu.jaxexp: program is missing; export again"):
        Artifact.load(copy)


@pytest.mark.parametrize("damage", ["cut", "flip", "text", "missing"])
def test_missing_and_damaged_weights(copy, damage):
    path = copy / "weights.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"cut": bytes(data[:5000]), "flip": bytes(data), "text": b"weights"}[damage])
    with pytest.raises(ArtifactError, match="weights.npz: weights cannot be read .*; export again"):
        Artifact.load(copy)
