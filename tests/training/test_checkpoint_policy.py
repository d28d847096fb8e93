"""When a save is due, and settings that make no sense."""

import pytest

from pixr1_jax.training.checkpoint_policy import CheckpointPolicy, SaveClock


def test_a_save_is_due_by_steps_and_by_time():
    now = [0.0]
    clock = SaveClock(CheckpointPolicy(10, keep=1, every_seconds=60.0), lambda: now[0])
    due = []
    for step in range(25):
        now[0] = 8.0 * step
        if clock.due(step):
            due.append(step)
            clock.saved()
    # 60 s after the start comes with step 8 (64 s); after the save at step 10 (80 s) with step 18 (144 s).
    assert due == [8, 10, 18, 20]


def test_without_a_time_only_steps_count():
    clock = SaveClock(CheckpointPolicy(3, keep=1), lambda: 1e9)
    assert [step for step in range(8) if clock.due(step)] == [3, 6]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"every_steps": 0}, "every_steps is 0; it must be 1 or more"),
        ({"keep": 0}, "keep is 0; it must be 1 or more"),
        ({"every_seconds": -1.0}, "every_seconds is -1.0; it must be 0 or more"),
        ({"keep_best": -1}, "keep_best is -1"),
        ({"keep_every": 15}, "keep_every=15 must be a multiple of every_steps=10"),
    ],
)
def test_settings_that_make_no_sense_are_named(fields, text):
    with pytest.raises(ValueError, match=text):
        CheckpointPolicy(**({"every_steps": 10, "keep": 2} | fields))
