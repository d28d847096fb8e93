"""The stream verb on fakes: what is in the film, when, and how it sounds."""

import re

import av
import numpy as np
import pytest

from pixr1_jax import stream as verb

OPTIONS = {"seed": 0, "steps": 2, "guidance": 1.0}


def _decode(path):
    with av.open(str(path)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        blocks = list(container.decode(audio=0))
    return np.stack(pictures), np.concatenate([block.to_ndarray() for block in blocks], axis=1), blocks[0].sample_rate


def _column(picture):
    """The place of the block in an enlarged picture of 24 columns."""
    row = picture[8 * 23 + 10, :, 0].astype(int) > 150
    lit = np.unique(np.flatnonzero(row) // 23)
    return next(place for place in lit if (place - 1) % 24 not in lit)


def test_film_shows_what_the_script_says(load_fake, tmp_path, capsys):
    artifact = load_fake("world")
    script = tmp_path / "keys.txt"
    script.write_text("0 prompt: day\n0 right\n0.5 -\n0.7 left\n0.9 prompt: night\n")
    out = tmp_path / "film.mp4"
    summary = verb.stream("artifact", out, script=script, seconds=1.1, **OPTIONS)
    # 1.1 s are 5.5 chunks of 2 frames at 10 frames/s.
    assert (summary["chunks"], summary["frames"], summary["seconds"]) == (6, 12, 1.2)
    assert summary["real_time_factor"] == pytest.approx(summary["frames_per_second"] / 10)
    assert summary["ms_p50"] <= summary["ms_p95"]
    pictures, _, _ = _decode(out)
    assert [_column(picture) for picture in pictures] == [1, 2, 3, 4, 5, 5, 5, 4, 3, 2, 1, 0]
    prompts = [entry[1] for entry in artifact.streams[0].log if entry[0] == "prompt"]
    assert prompts == ["day", "night"]
    # Six chunks and one more, for the last hop of sound.
    assert sum(entry[0] == "step" for entry in artifact.streams[0].log) == 7
    assert re.search(r"12 frames; ms per chunk p50 .* x real time", capsys.readouterr().out)


def test_sound_is_in_step(load_fake, tmp_path):
    load_fake("world")
    script = tmp_path / "keys.txt"
    script.write_text("0 right\n")
    out = tmp_path / "film.mp4"
    verb.stream("artifact", out, script=script, seconds=2, **OPTIONS)
    _, sound, rate = _decode(out)
    # The block is on place f + 1 in frame f, and strikes 25 ms into every frame whose place divides by three.
    loud = np.abs(sound[0]) > 0.05
    starts = np.flatnonzero(loud & ~np.concatenate([np.zeros(800, bool), loud[:-800]]))
    firsts = starts[np.insert(np.diff(starts) > 0.05 * rate, 0, True)] / rate
    np.testing.assert_allclose(firsts, np.arange(2, 20, 3) / 10 + 0.025, atol=0.004)
    assert 2.0 - 1e-3 <= sound.shape[1] / rate < 2.05


def test_a_recording_comes_first(load_fake, tiny_clip, tmp_path):
    artifact, clip = load_fake("still"), tiny_clip(1)
    out = tmp_path / "film.mp4"
    summary = verb.stream("a", out, script=None, seconds=0.4, context_clip=clip, context_seconds=1.0, **OPTIONS)
    pictures, sound, rate = _decode(out)
    assert summary["frames"] == 4 and len(pictures) == 14
    places = [_column(picture) for picture in pictures]
    true = (6 + np.cumsum(clip.actions[:10, 1] - clip.actions[:10, 0]).astype(int)) % 24
    np.testing.assert_array_equal(places, [*true, *[true[-1]] * 4])
    assert [entry[1] for entry in artifact.streams[0].log if entry[0] == "prompt"] == ["day", "night 1"]
    # The recorded sound is heard at its time: compare envelopes of 20 ms.
    recorded = np.abs(clip.audio[:2000, 0] / 2**15).reshape(-1, 40).max(axis=1)
    heard = np.abs(sound[0, :rate]).reshape(50, -1).max(axis=1)
    assert np.corrcoef(recorded, heard)[0, 1] > 0.95


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 0}, "seconds is 0"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"steps": 3}, "the artifact has 1, 2, 4"),
        ({"seed": 2**32}, "seed is"),
    ],
)
def test_errors(load_fake, tmp_path, options, message):
    load_fake()
    with pytest.raises(ValueError, match=message):
        verb.stream("a", tmp_path / "film.mp4", **({"script": None, "seconds": 1} | OPTIONS | options))
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_no_film(load_fake, tiny_clip, tmp_path):
    load_fake()
    script = tmp_path / "keys.txt"
    script.write_text("0.4 prompt: far too long a prompt\n")
    with pytest.raises(ValueError, match="prompt is too long"):
        verb.stream("a", tmp_path / "film.mp4", script=script, seconds=1, **OPTIONS)
    with pytest.raises(ValueError, match="context_seconds is 9; tiny/test/000 has whole chunks for 4"):
        verb.stream(
            "a", tmp_path / "film.mp4", script=None, seconds=1, context_clip=tiny_clip(0), context_seconds=9, **OPTIONS
        )
    assert [path.name for path in tmp_path.iterdir()] == ["keys.txt"]
