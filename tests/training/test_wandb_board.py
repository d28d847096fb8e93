"""Weights & Biases where it is asked for: a recording double of the module, and the real one offline if installed."""

import importlib.util
import sys
import time
import types

import jax
import pytest
from ml_collections import ConfigDict

from pixr1_jax.core.config import ConfigError
from pixr1_jax.training.metrics import MetricWriter, read_metrics
from pixr1_jax.training.wandb_board import open_board


def config_of(**changes):
    section = {"project": "worlds", "name": "first", "mode": "offline"} | changes
    return ConfigDict({"seed": 3, "wandb": section, "sizes": (1, 2)})


@pytest.fixture
def calls(monkeypatch):
    """What is asked of the module, in order."""
    calls = []
    run = types.SimpleNamespace(
        define_metric=lambda name, **rest: calls.append(("define_metric", name, rest)),
        log=lambda values: calls.append(("log", values)),
        finish=lambda: calls.append(("finish",)),
    )

    def init(**arguments):
        calls.append(("init", arguments))
        return run

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    return calls


def test_a_run_gets_every_line_and_restarts_continue_it(tmp_path, calls):
    for first_step in (0, 4):
        board = open_board(config_of(), "train", tmp_path)
        writer = MetricWriter(tmp_path, first_step=first_step, board=board)
        writer.write(first_step + 1, {"train/loss": 0.5})
        writer.close()
        writer.write(9, {"train/loss": 0.0})
    init = [call[1] for call in calls if call[0] == "init"]
    assert len(init) == 2 and init[0] == init[1]
    assert init[0].pop("id") == (tmp_path / "wandb_id").read_text().strip()
    assert init[0] == {
        "project": "worlds",
        "group": "first",
        "name": "first/train",
        "resume": "allow",
        "mode": "offline",
        "dir": str(tmp_path),
        "config": {"seed": 3, "wandb": config_of().wandb.to_dict(), "sizes": [1, 2]},
    }
    first = calls[1 : len(calls) // 2]
    assert first == [
        ("define_metric", "step", {}),
        ("define_metric", "*", {"step_metric": "step"}),
        ("log", {"step": 1, "train/loss": 0.5}),
        ("finish",),
    ]
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 5]


def test_another_stage_is_another_run(tmp_path, calls):
    for stage in ("train", "distill"):
        (tmp_path / stage).mkdir()
        open_board(config_of(), stage, tmp_path / stage)
    first, second = (call[1] for call in calls if call[0] == "init")
    assert first["id"] != second["id"] and first["group"] == second["group"]


def test_without_a_section_or_on_another_process_nothing_begins(tmp_path, calls, monkeypatch):
    assert open_board(ConfigDict({"seed": 3}), "train", tmp_path) is None
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert open_board(config_of(), "train", tmp_path) is None
    assert not calls and not list(tmp_path.iterdir())


def test_mistakes_are_one_line(tmp_path, calls, monkeypatch):
    for changes, text in [
        ({"mode": "maybe"}, r"config\.wandb\.mode is 'maybe'; use one of 'online', 'offline'"),
        ({"project": ""}, r"config\.wandb: project is empty"),
        ({"entity": "x"}, r"config\.wandb\.entity is unknown"),
    ]:
        with pytest.raises(ConfigError, match=text):
            open_board(config_of(**changes), "train", tmp_path)
    (tmp_path / "wandb_id").write_text("../../x\n")
    with pytest.raises(ConfigError, match="wandb_id holds no id of a W&B run"):
        open_board(config_of(), "train", tmp_path)
    (tmp_path / "wandb_id").unlink()

    def refuse(**arguments):
        raise RuntimeError("no API key\nconfigured")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(ConfigError, match=r"config\.wandb: W&B cannot begin \(no API key\)"):
        open_board(config_of(), "train", tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    with pytest.raises(ConfigError, match=r"not installed; pip install 'pixr1-jax\[wandb\]', or leave it out"):
        open_board(config_of(), "train", tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="pip install 'pixr1-jax[wandb]'")
def test_the_real_package_keeps_an_offline_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    writer = MetricWriter(tmp_path, board=open_board(config_of(), "train", tmp_path))
    writer.write(7, {"train/loss": 0.125})
    writer.close()
    (record,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    run_id = (tmp_path / "wandb_id").read_text().strip()
    assert run_id in record.name
    deadline = time.monotonic() + 30  # a process of its own writes the file
    while b"0.125" not in record.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert b"train/loss" in record.read_bytes() and b"0.125" in record.read_bytes()
