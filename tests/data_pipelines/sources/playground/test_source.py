"""The playground as a source: clips of the recorder, whatever they are recorded together with."""

import dataclasses
import pickle

import numpy as np
import pytest

from data_pipelines.sources.playground import PlaygroundSource, World, record_many

WORLD = World(height=24, width=40, frame_rate=12, sample_rate=6000)
SOURCE = PlaygroundSource(WORLD, {"train": range(0, 70, 2), "test": range(1, 5, 2)}, frames=12)


def test_items_are_the_seeds_of_the_splits():
    items = SOURCE.items()
    assert [(item.split, item.name) for item in items[34:]] == [
        ("train", "playground/train/000068"),
        ("test", "playground/test/000001"),
        ("test", "playground/test/000003"),
    ]
    assert len({item.name for item in items}) == len(items) == 37


def test_clips_are_those_of_the_recorder_whatever_the_company():
    items = SOURCE.items()
    found = list(SOURCE.record(items))
    assert [item for item, _ in found] == items
    alone = dict(
        (item.name, clip)
        for some in (items[36:], items[3:5])
        for item, clip in pickle.loads(pickle.dumps(SOURCE)).record(some)
    )
    recorded = {clip.episode: clip for clip in record_many(WORLD, SOURCE.seeds["test"], "mixed", 12, split="test")}
    assert len(alone) == 3 and len(recorded) == 2
    for item, clip in found:
        clip.validate()
        assert clip.episode == item.name and clip.seed == item.what
        for other in (alone.get(item.name, clip), recorded.get(item.name, clip)):
            np.testing.assert_array_equal(clip.video, other.video)
            np.testing.assert_array_equal(clip.audio, other.audio)
            np.testing.assert_array_equal(clip.actions, other.actions)
            assert clip.events == other.events


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("policy", "fly", "policy is 'fly'; use one of wander"),
        ("frames", 0, "frames is 0"),
        ("seeds", {"train": [2**31]}, "seeds has 2147483648"),
        ("seeds", {"train": [3], "test": [3]}, "seeds has 3 in 'train' and 'test'"),
    ],
)
def test_bad_fields_are_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SOURCE, **{field: value})
