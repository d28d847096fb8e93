"""The live playground: rows without end, each a function of its number, of the clips that a recorder would make."""

import fractions

import numpy as np
import pytest

from data_pipelines.build import write_dataset
from data_pipelines.live import LivePlayground
from data_pipelines.loader import make_iterator, row_source, skip_to
from data_pipelines.row_layout import TokenSpec
from data_pipelines.shards import open_dataset
from data_pipelines.sources import playground

WORLD = playground.World(16, 24, 12, 6000)
SPEC = TokenSpec(
    patch=8, chunk_frames=2, block=8, hop=125, hops=8, audio_tokens=4, channels=2, action_dim=3, text_bytes=16
)


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    directory = tmp_path_factory.mktemp("stored")
    clip = playground.record(WORLD, 1, "mixed", 8, split="test")
    write_dataset(directory, {"test": [clip]}, shards={"test": 1})
    return LivePlayground(open_dataset(directory), WORLD, "mixed", block=3, frames=16, seed=5)


@pytest.fixture(scope="module")
def plan(live):
    return live.plan(SPEC, window_chunks=4, rows_windows=1, seed=0)


def test_every_block_plays_other_clips_and_each_of_its_windows_once(live, plan):
    assert plan.rows_per_epoch == 6 and plan.actions == playground.ACTION_NAMES
    refs = [[ref for i in range(6) for ref in plan.row(6 * block + i)] for block in range(50)]
    for block, found in enumerate(refs):
        assert sorted((ref.info.seed, ref.start) for ref in found) == [
            (2 * (15 + 3 * block + n), start) for n in range(3) for start in (0, 8)
        ]
    ids = [ref.sample_id for found in refs for ref in found]
    assert len(set(ids)) == len(ids)


def test_a_row_is_what_a_recorder_would_have_stored(live, plan):
    (ref,) = plan.row(13)
    row = row_source(live, plan, SPEC)[13]
    clip = playground.record(WORLD, ref.info.seed, "mixed", 16, split="train")
    np.testing.assert_array_equal(row["actions"], clip.actions[ref.start : ref.start + 8])
    samples = row["waveform"][:, 125:].reshape(-1, 2)
    np.testing.assert_array_equal(samples, clip.audio[ref.start * 500 : ref.start * 500 + 4000])


def test_any_number_of_processes_and_any_start_give_the_same_rows(live, plan):
    def batches(process, count, first):
        iterator = make_iterator(
            live,
            plan,
            batch_size=2,
            threads=1,
            prefetch=1,
            rows=range(2 * process // count, 2 * (process + 1) // count),
        )
        skip_to(iterator, first)
        return [next(iterator)["patches"] for _ in range(2)]

    whole = batches(0, 1, 3)
    halves = [batches(process, 2, 3) for process in range(2)]
    for one, parts in zip(whole, zip(*halves, strict=True), strict=True):
        np.testing.assert_array_equal(one, np.concatenate(parts))


@pytest.mark.parametrize("rate", [1, 4])
def test_rows_have_room_for_all_the_texts_that_a_window_may_hold(rate):
    world = playground.World(8, 8, rate, 6000)  # a text lasts 2.5 s at least
    spec = TokenSpec(8, 1, 8, 6000 // rate // 8, 8, 4, 2, 3, 16)
    live = LivePlayground(None, world, "still", block=8, frames=24, seed=0)  # pyright: ignore[reportArgumentType]
    plan = live.plan(spec, window_chunks=6, rows_windows=1, seed=0)
    source = row_source(live, plan, spec)
    texts = [int((source[i]["block_kind"] == 0).sum()) for i in range(64)]
    assert max(texts) > 2, "rows of several texts were among them, and all fitted"


def test_other_splits_are_stored(live):
    (info,) = live.clips("test")
    assert live.read(info, 2, 6).frames == 4 and info.frame_rate == fractions.Fraction(12)
