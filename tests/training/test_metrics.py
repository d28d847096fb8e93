"""The metrics file is one clean sequence that reads back bit for bit."""

import json
import math
import struct
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboardX.proto import event_pb2

from pixr1_jax.training.metrics import MetricsError, MetricWriter, read_metrics


def write_run(directory, steps, *, first_step=0, offset=0.0):
    writer = MetricWriter(directory, first_step=first_step)
    for step in steps:
        writer.write(step, {"train/loss": step + offset})
    writer.close()


def tensorboard_events(directory):
    """Reads the record format of TensorBoard: length, its checksum, the event, its checksum."""
    event: Any = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]
    events = []
    for path in sorted(directory.glob("events.out.tfevents.*")):
        data, position = path.read_bytes(), 0
        while position < len(data):
            (length,) = struct.unpack_from("<Q", data, position)
            events.append(event.FromString(data[position + 12 : position + 12 + length]))
            position += length + 16
    return events


def test_a_line_is_plain_json_and_there_at_once(tmp_path):
    writer = MetricWriter(tmp_path / "run")
    writer.write(3, {"train/loss": np.float32(0.1), "train/loss/video": jnp.float32(2.5), "count": 7})
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    assert json.loads(text) == {
        "step": 3,
        "train/loss": float(np.float32(0.1)),
        "train/loss/video": 2.5,
        "count": 7,
    }
    writer.close()
    writer.write(4, {"train/loss": 1.0})
    assert len(read_metrics(tmp_path / "run")) == 1


@settings(max_examples=20, deadline=None)
@given(values=st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_floats_read_back_bit_for_bit(tmp_path_factory, values):
    directory = tmp_path_factory.mktemp("metrics")
    writer = MetricWriter(directory)
    for step, value in enumerate(values):
        writer.write(step, {"train/loss": value})
    writer.close()
    records = read_metrics(directory)
    assert [record["step"] for record in records] == list(range(len(values)))
    for record, value in zip(records, values, strict=True):
        if math.isnan(value):
            assert math.isnan(record["train/loss"])
        else:
            assert struct.pack("<d", record["train/loss"]) == struct.pack("<d", value)


def test_non_finite_values_stay_valid_json(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write(0, {"a": float("nan"), "b": float("inf"), "c": -float("inf")})
    writer.close()
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {"step": 0, "a": "nan", "b": "inf", "c": "-inf"}
    (record,) = read_metrics(tmp_path)
    assert math.isnan(record["a"])
    assert (record["b"], record["c"]) == (math.inf, -math.inf)


def test_a_resumed_run_leaves_one_sequence(tmp_path):
    write_run(tmp_path, range(10))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 10, "train/lo')
    write_run(tmp_path, range(6, 9), first_step=6, offset=0.5)
    assert [(record["step"], record["train/loss"]) for record in read_metrics(tmp_path)] == [
        *((step, float(step)) for step in range(6)),
        *((step, step + 0.5) for step in range(6, 9)),
    ]
    assert sorted(path.name for path in tmp_path.iterdir() if "tfevents" not in path.name) == ["metrics.jsonl"]


def test_a_torn_line_without_a_resume_point_below_it_goes_too(tmp_path):
    write_run(tmp_path, range(3))
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().rstrip("\n"))
    write_run(tmp_path, [3], first_step=3)
    assert [record["step"] for record in read_metrics(tmp_path)] == [0, 1, 3]


def test_damage_in_the_middle_is_named(tmp_path):
    write_run(tmp_path, range(3))
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "???", lines[2]]) + "\n")
    with pytest.raises(MetricsError, match=r"metrics\.jsonl: line 2 "):
        MetricWriter(tmp_path, first_step=2)
    assert "???" in path.read_text()


def test_bad_writes_are_refused_before_anything_is_written(tmp_path):
    writer = MetricWriter(tmp_path, first_step=5)
    for step, scalars, text in [
        (4, {"a": 1.0}, "step 4 after step 5"),
        (5, {"step": 1.0}, "reserved"),
        (5, {"": 1.0}, "reserved"),
        (5, {"a": 1.0, "b": np.zeros(3)}, "b is not a scalar"),
    ]:
        with pytest.raises(MetricsError, match=text):
            writer.write(step, scalars)
    writer.close()
    assert read_metrics(tmp_path) == []


def test_an_unwritable_folder_and_a_missing_file_are_clear(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MetricsError, match="cannot be written"):
        MetricWriter(tmp_path / "file" / "run")
    with pytest.raises(MetricsError, match="no such file"):
        read_metrics(tmp_path)


def test_tensorboard_has_the_same_scalars(tmp_path):
    write_run(tmp_path, [0, 1])
    write_run(tmp_path, [1, 2], first_step=1, offset=0.25)
    scalars = [
        (event.step, value.tag, value.simple_value)
        for event in tensorboard_events(tmp_path)
        for value in event.summary.value
    ]
    assert scalars == [
        (0, "train/loss", 0.0),
        (1, "train/loss", 1.0),
        (1, "train/loss", 1.25),
        (2, "train/loss", 2.25),
    ]
    # The restart says from which step on the older events are void.
    starts = [event.step for event in tensorboard_events(tmp_path) if event.HasField("session_log")]
    assert starts == [1]


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    write_run(tmp_path / "run", range(3))
    assert not (tmp_path / "run").exists()
