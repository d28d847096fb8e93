"""Inspection: totals against plain sums, the printed report, the contact sheet, and progress lines."""

import dataclasses
import fractions
import io
import json
import time

import matplotlib.image
import numpy as np
import pytest

from data_pipelines import page, sheet
from data_pipelines.build import write_dataset
from data_pipelines.clip import Clip, TextEvent
from data_pipelines.facts import Fact
from data_pipelines.inspect import inspect, summarise, write_json
from data_pipelines.shards import ShardError, open_dataset
from pixr1_jax.core import progress


def make_clip(episode, frames=20, height=16, width=24, rate=(10, 8000), channels=1, **changes) -> Clip:
    rng = np.random.default_rng(frames)
    frame_rate = fractions.Fraction(rate[0])
    clip = Clip(
        video=np.broadcast_to(np.array([200, 30, 30], np.uint8), (frames, height, width, 3)).copy(),
        audio=rng.integers(-20000, 20000, (int(frames * rate[1] / frame_rate), channels), np.int16),
        actions=rng.integers(-1, 2, (frames, 2)).astype(np.float32),
        action_names=("left", "right"),
        events=(TextEvent(0, "a $5 red field [day] \\frac"), TextEvent(frames // 2, "night")),
        frame_rate=frame_rate,
        sample_rate=rate[1],
        source="paint",
        licence="CC0-1.0",
        seed=0,
        episode=episode,
    )
    return dataclasses.replace(clip, **changes)


STATE = Fact(np.arange(100, dtype=np.float32).reshape(50, 2), ("health", "ammo"))


@pytest.fixture
def directory(tmp_path):
    train = [
        make_clip("a"),
        make_clip("b", frames=50, height=32, width=16, channels=2, facts={"state": STATE}),
        make_clip("c", frames=30, rate=(24, 44100), channels=0, source="camera", events=()),
    ]
    write_dataset(
        tmp_path / "data",
        {"train": train, "test": [make_clip("d", frames=1, height=1, width=1, events=())]},
        shards={"train": 2, "test": 1},
        spec={"kind": "paint"},
    )
    return tmp_path / "data"


def test_summarise(directory):
    summary = summarise(open_dataset(directory))
    assert json.loads(json.dumps(summary)) == summary
    assert summary["spec"] == {"kind": "paint"} and summary["action_names"] == ["left", "right"]
    train, test = summary["splits"]["train"], summary["splits"]["test"]
    assert (train["clips"], train["frames"], train["shards"]) == (3, 100, 2)
    assert train["seconds"] == pytest.approx(2 + 5 + 1.25)
    assert train["bytes"] == sum(path.stat().st_size for path in directory.glob("train-*"))
    assert train["sizes"] == {"24x16": 2, "16x32": 1}
    assert train["frame_rates"] == {"10": 2, "24": 1}
    assert train["sample_rates"] == {"8000": 2} and (train["silent"], train["uncaptioned"]) == (1, 1)
    assert train["durations"] == {"up to 2": 2, "up to 5": 1} and train["video_codecs"] == {"zstd": 3}
    assert train["facts"] == {"state": 1} and test["facts"] == {}
    assert summary["facts"] == {"state": {"shape": [2], "columns": ["health", "ammo"]}}
    assert train["channels"] == {"1": 1, "2": 1, "0": 1}
    assert train["sources"] == {"paint": 2, "camera": 1} and train["licences"] == {"CC0-1.0": 3}
    assert (test["clips"], test["seconds"]) == (1, pytest.approx(0.1))


def test_report_verification_and_sheet(directory, tmp_path, capsys):
    png = tmp_path / "new" / "sheet.png"
    dataset, summary = inspect(directory, verify=True)
    assert summary == summarise(dataset)
    sheet.write(dataset, png, 4)
    printed = capsys.readouterr()
    for text in (
        "train",
        "24x16 (2)",
        "camera (1)",
        "0:00:08.2",
        "facts: state, 2 a frame (health, ammo)",
        "all 4 records are good",
    ):
        assert text in printed.out
    assert "verifying: 4/4" in printed.err
    image = (matplotlib.image.imread(png)[..., :3] * 255).round().astype(int)
    assert 1000 < image.shape[1] < 3000 and 400 < image.shape[0] < 3000
    # The sheet is on white, and the red of the clips' frames is there unchanged.
    assert (image == 255).all(-1).mean() > 0.3
    assert (image == [200, 30, 30]).all(-1).sum() > 10_000
    assert [path.name for path in png.parent.iterdir()] == ["sheet.png"]


def test_json_and_page(directory, tmp_path):
    dataset, summary = inspect(directory, verify=False)
    write_json(summary, tmp_path / "new" / "summary.json")
    assert json.loads((tmp_path / "new" / "summary.json").read_text()) == summary
    page.write(dataset, summary, tmp_path / "new" / "page.html", clips=2)
    text = (tmp_path / "new" / "page.html").read_text()
    for part in (
        "<th>train</th>",
        "<td>24x16 (2)",
        "clips without sound</td><td>1</td><td>0</td>",
        "image/png;base64,",
    ):
        assert part in text


def test_no_actions_and_one_clip(tmp_path):
    clip = make_clip("a", actions=np.zeros((20, 0), np.float32), action_names=())
    write_dataset(tmp_path / "data", {"train": [clip]}, shards={"train": 1})
    sheet.write(open_dataset(tmp_path / "data"), tmp_path / "sheet.png", 6)
    assert matplotlib.image.imread(tmp_path / "sheet.png").shape[1] < 1000


def test_a_long_clip_is_drawn_from_its_first_seconds(tmp_path):
    clip = make_clip("a", frames=300, rate=(25, 22050), height=2, width=2)
    write_dataset(tmp_path / "data", {"train": [clip]}, shards={"train": 1})
    sheet.write(open_dataset(tmp_path / "data"), tmp_path / "sheet.png", 1)


def test_errors(directory, tmp_path):
    with pytest.raises(ShardError, match="manifest.json is missing"):
        inspect(tmp_path / "none", verify=False)
    shard = next(directory.glob("train-*"))
    data = bytearray(shard.read_bytes())
    data[70_000 % len(data)] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ShardError, match="sha256 differs"):
        inspect(directory, verify=True)


def test_plain_progress_lines():
    file = io.StringIO()
    with progress.track(4, "counting", file=file, interval=0.0) as tracker:
        for loss in (0.5, 0.25):
            time.sleep(0.01)
            tracker.advance(2, loss=loss)
    lines = file.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("counting: 2/4, ") and " s left, loss=0.5" in lines[0]
    assert lines[-1].startswith("counting: 4/4, ") and lines[-1].endswith("/s, loss=0.25")


def test_quiet_progress_and_unknown_total():
    file = io.StringIO()
    with progress.track(None, "counting", file=file) as tracker:
        for _ in range(100):
            tracker.advance()
    (line,) = file.getvalue().splitlines()
    assert line.startswith("counting: 100, ") and "left" not in line


def test_terminal_progress():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    file = Terminal()
    with progress.track(3, "counting", file=file) as tracker:
        for number in range(3):
            tracker.advance(split=f"part {number}")
    assert "3/3" in file.getvalue() and "split=part 2" in file.getvalue()
