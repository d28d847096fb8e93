"""The report of a sweep whose trials were written by hand."""

import csv
import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from PIL import Image

from launch import report, trials
from launch.trials import SweepError, Trial

STEPS = 40


@pytest.fixture
def sweep(tmp_path):
    """Two rates by two widths: the loss is rate + width / step, one trial is short, one was not started."""
    config = ConfigDict({"train": {"steps": STEPS, "rate": 0.0}, "model": {"width": 0}})
    listed = [
        Trial(f"rate={rate},width={width}", {"train.rate": rate, "model.width": width})
        for rate in (0.5, 0.1)
        for width in (4, 8)
    ]
    trials.record(tmp_path, config, listed)
    for trial, steps in zip(listed, (STEPS, STEPS, STEPS // 2, 0), strict=True):
        folder = tmp_path / trial.name / "train"
        if not steps:
            continue
        folder.mkdir(parents=True)
        rate, width = trial.changes.values()
        lines = [
            {"step": step, "train/loss": rate + width / step, "perf/step_seconds": 2.0 if step == 1 else 0.25}
            for step in range(1, steps + 1)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if steps == STEPS:
            saved = folder / "checkpoints" / str(steps)
            saved.mkdir(parents=True)
            (saved / "commit_success.txt").touch()
    return tmp_path


def expected(rate, width, steps):
    last = np.arange(steps - steps // 10 + 1, steps + 1)
    return float(np.mean(rate + width / last))


def test_the_table_has_all_trials_the_best_first(sweep):
    found = report.results(sweep, "train", "train/loss")
    text = report.write(found, "train/loss", sweep)
    table = json.loads((sweep / "report.json").read_text())
    assert table["metric"] == "train/loss"
    assert [row["trial"] for row in table["trials"]] == [
        "rate=0.1,width=4",
        "rate=0.5,width=4",
        "rate=0.5,width=8",
        "rate=0.1,width=8",
    ]
    short, full, _, missing = table["trials"]
    assert short == {
        "trial": "rate=0.1,width=4",
        "train.rate": 0.1,
        "model.width": 4,
        "state": "unfinished",
        "step": STEPS // 2,
        "train/loss": pytest.approx(expected(0.1, 4, STEPS // 2)),
        "step_seconds": 0.25,
    }
    assert full["train/loss"] == pytest.approx(expected(0.5, 4, STEPS)) and full["state"] == "finished"
    assert (missing["state"], missing["train/loss"], missing["step"]) == ("new", None, None)
    with open(sweep / "report.csv", newline="") as file:
        sheet = list(csv.DictReader(file))
    assert [row["trial"] for row in sheet] == [row["trial"] for row in table["trials"]]
    assert float(sheet[1]["train/loss"]) == full["train/loss"] and sheet[3]["train/loss"] == ""
    assert (sweep / "report.txt").read_text() == text
    assert text.splitlines()[2].split() == ["rate=0.1,width=4", "0.1", "4", "unfinished", "20", "0.3053", "0.25"]
    assert not list(sweep.glob("*.partial"))


def test_the_picture_shows_curves_and_ends(sweep):
    found = report.results(sweep, "train", "train/loss")
    figure = report.draw(found, "train/loss")
    assert isinstance(figure, Figure)
    curves, ends = figure.axes
    assert sorted(line.get_label() for line in curves.lines) == [
        "rate=0.1,width=4 (unfinished)",
        "rate=0.5,width=4",
        "rate=0.5,width=8",
    ]
    # One line a width, over the rates in their order.
    lines = {line.get_label(): line.get_xydata() for line in ends.lines}
    np.testing.assert_allclose(lines["width=4"], [[0.1, expected(0.1, 4, STEPS // 2)], [0.5, expected(0.5, 4, STEPS)]])
    np.testing.assert_allclose(lines["width=8"], [[0.5, expected(0.5, 8, STEPS)]])
    report.write(found, "train/loss", sweep)
    with Image.open(sweep / "report.png") as picture:
        assert picture.size == (1320, 506)


def test_words_and_no_number_come_out_too(tmp_path):
    config = ConfigDict({"train": {"steps": 3, "schedule": "cosine"}})
    trials.record(tmp_path, config, [Trial("schedule=cosine", {"train.schedule": "cosine"}), Trial("base", {})])
    for name in ("schedule=cosine", "base"):
        (tmp_path / name / "train").mkdir(parents=True)
        line = {"step": 1, "train/loss": "nan" if name == "base" else 1.0}
        (tmp_path / name / "train" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    table = report.rows(report.results(tmp_path, "train", "train/loss"), "train/loss")
    assert [(row["trial"], row["train.schedule"], row["train/loss"]) for row in table] == [
        ("schedule=cosine", "cosine", 1.0),
        ("base", None, None),
    ]
    report.draw(report.results(tmp_path, "train", "train/loss"), "train/loss")


def test_a_metric_that_no_trial_has_is_one_line(sweep):
    with pytest.raises(SweepError, match="no trial has --metric=train/los; they have perf/step_seconds, train/loss"):
        report.results(sweep, "train", "train/los")
    with pytest.raises(SweepError, match="metrics of 'distill' yet"):
        report.results(sweep, "distill", "distill/loss")
