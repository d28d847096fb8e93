"""The whole evaluation on fakes whose scores are known."""

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pixr1_jax import evaluate as verb

OPTIONS: dict[str, Any] = {"clips": 4, "context_chunks": 3, "frames": 32, "guidance": 1.0, "seed": 0}


def _options(changes) -> dict[str, Any]:
    return OPTIONS | changes


def test_perfect_dream(load_fake, tiny_dataset, tmp_path, capsys):
    artifact = load_fake("world")
    scores = verb.evaluate("artifact", tiny_dataset, tmp_path / "report", **OPTIONS)
    assert scores["horizons"] == [1, 8, 32]
    for steps in ("1", "2", "4"):
        assert scores["fidelity"][steps]["psnr"]["32"]["mean"] == 60
        assert scores["fidelity"][steps]["ssim"]["1"]["mean"] == pytest.approx(1)
    assert scores["fidelity"]["copy_last"]["psnr"]["8"]["mean"] < 30
    assert scores["control"]["over_horizons"]["mean"] > 10 and scores["control"]["changed"] > 0.3
    sound = scores["sound"]["2"]
    assert sound["log_spectral_distance"]["mean"] == 0
    rates = sound["onsets"]["50ms"]
    assert rates["f1"]["mean"] == 1 and sum(rates["per_clip"]["truth"]) > 8
    assert rates["chance_f1"]["mean"] < 0.8
    assert scores["sound"]["silence"]["log_spectral_distance"]["mean"] > 5

    # One dream for each number of steps and one with other actions; those of one clip share a seed.
    assert artifact.seeds == [seed for seed in range(4) for _ in range(4)]
    written = json.loads((tmp_path / "report" / "scores.json").read_text())
    assert written["fidelity"] == scores["fidelity"] and written["artifact"]["id"] == scores["artifact"]["id"]
    assert np.shape(written["fidelity"]["1"]["per_clip"]["psnr"]) == (4, 32)
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["scores.json", "scores.png"]
    with Image.open(tmp_path / "report" / "scores.png") as picture:
        assert picture.format == "PNG" and picture.size[0] > 1000
    assert "control gain" in capsys.readouterr().out


def test_still_dream_equals_its_baselines(load_fake, tiny_dataset, tmp_path):
    load_fake("still")
    scores = verb.evaluate("artifact", tiny_dataset, tmp_path, **_options({"steps": (2,)}))
    assert scores["fidelity"]["2"] == scores["fidelity"]["copy_last"]
    assert scores["control"]["over_horizons"] == {"mean": 0, "low": 0, "high": 0, "clips": 4}
    # The sound of the context rings on in neither, so a silent dream is silence.
    assert scores["sound"]["2"]["log_spectral_distance"] == scores["sound"]["silence"]["log_spectral_distance"]
    assert scores["sound"]["2"]["onsets"]["100ms"]["recall"]["mean"] == 0
    assert scores["sound"]["2"]["onsets"]["100ms"]["precision"]["mean"] is None


def test_clips_are_spread_and_never_too_many(load_fake, tiny_dataset, tmp_path):
    load_fake("still")
    few = verb.evaluate("artifact", tiny_dataset, tmp_path, **_options({"clips": 3, "frames": 8}))
    assert few["episodes"] == ["tiny/test/000", "tiny/test/002", "tiny/test/004"]
    many = verb.evaluate("artifact", tiny_dataset, tmp_path, **_options({"clips": 99, "frames": 8}))
    assert many["settings"]["clips"] == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clips": 1}, "2 clips or more"),
        ({"frames": 4}, "dream at least 8"),
        ({"frames": 200}, "0 test clips can be used, 2 are needed: .* has 40 frames"),
        ({"steps": (3,)}, "steps is 3; the artifact has 1, 2, 4"),
        ({"steps": ()}, "name one or more"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_errors(load_fake, tiny_dataset, tmp_path, options, message):
    load_fake()
    with pytest.raises(ValueError, match=message):
        verb.evaluate("artifact", tiny_dataset, tmp_path, **_options(options))
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_without_sound(load_fake, tiny_dataset, tmp_path, monkeypatch):
    artifact = load_fake("still")
    artifact.manifest |= {"channels": 0, "chunk_samples": 0, "hop": 0}
    silent = np.zeros((0, 0), np.float32)
    start = artifact.start

    def start_silent(seed):
        stream = start(seed)
        step = stream.step
        monkeypatch.setattr(stream, "observe", lambda frames, sound, actions: silent)
        monkeypatch.setattr(stream, "step", lambda actions, **options: (step(actions, **options)[0], silent))
        return stream

    monkeypatch.setattr(artifact, "start", start_silent)
    scores = verb.evaluate("artifact", tiny_dataset, tmp_path, **_options({"frames": 8}))
    assert scores["sound"] is None and (tmp_path / "scores.png").is_file()
