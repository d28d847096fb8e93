"""The loader: equal global batches for any number of processes and after interruptions, true to the clips."""

import fractions
import itertools
import pickle
import subprocess
import sys
from concurrent import futures

import numpy as np
import pytest

from data_pipelines import patches
from data_pipelines.clip import Clip, TextEvent
from data_pipelines.loader import ClipCache, cut, make_iterator, row_source, skip_to
from data_pipelines.plan import PackPlan
from data_pipelines.row_layout import Role, TokenKind, TokenSpec
from data_pipelines.build import write_dataset
from data_pipelines.shards import open_dataset

SPEC = TokenSpec(
    patch=4, chunk_frames=2, block=8, hop=5, hops=2, audio_tokens=2, channels=2, action_dim=2, text_bytes=24
)
SIZES = [(8, 8), (8, 8), (6, 11), (8, 8), (6, 11)]


def make_clip(number: int) -> Clip:
    """A clip of 13 to 17 frames, of random content, whose text changes twice."""
    rng = np.random.default_rng(number)
    frames, (height, width) = 13 + number, SIZES[number]
    return Clip(
        video=rng.integers(0, 256, (frames, height, width, 3), np.uint8),
        audio=rng.integers(-(2**15), 2**15, (frames * 5, 2)).astype(np.int16),
        actions=rng.random((frames, 2), np.float32),
        action_names=("left", "right"),
        events=(TextEvent(0, f"clip {number}"), TextEvent(5, "rain"), TextEvent(10, "")),
        frame_rate=fractions.Fraction(4),
        sample_rate=20,
        source="test",
        licence="CC0-1.0",
        seed=number,
        episode=f"test/{number:06d}",
    )


CLIPS = {clip.episode: clip for clip in map(make_clip, range(len(SIZES)))}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    directory = tmp_path_factory.mktemp("dataset")
    write_dataset(directory, {"train": list(CLIPS.values())}, shards={"train": 2})
    return open_dataset(directory)


@pytest.fixture
def plan(dataset):
    return PackPlan(dataset.clips("train"), SPEC, window_chunks=3, row=None, rows_windows=2, seed=4)


def assert_same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def stack(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("cache_mb", [0, 512])
def test_rows_hold_the_clips_content(dataset, plan, cache_mb):
    source = row_source(dataset, plan, SPEC, cache_mb=cache_mb)
    lead_ins = set()
    for index in range(2 * plan.rows_per_epoch):
        row, slot = source[index], 0
        for segment, ref in enumerate(plan.row(index)):
            clip = CLIPS[ref.info.episode]
            height, width = clip.video.shape[1:3]
            for start in range(ref.start, ref.start + ref.frames, 2):
                pixels = row["patches"][row["patch_slot"] == slot][None]
                video = patches.unpatchify(pixels, height, width, 2, 4)
                np.testing.assert_array_equal(video, clip.video[start : start + 2])
                padded = np.concatenate([np.zeros((5, 2), np.int16), clip.audio])  # one hop of silence first
                expected = padded[start * 5 : start * 5 + 15]
                np.testing.assert_array_equal(row["waveform"][slot], expected)
                np.testing.assert_array_equal(row["actions"][2 * slot : 2 * slot + 2], clip.actions[start : start + 2])
                assert row["chunk_number"][slot] == start // 2
                assert row["chunk_sample"][slot] == ref.sample_id
                slot += 1
            lead_ins.add(ref.start > 0)
            mine = (row["block_segment"] == segment) & (row["block_role"] == Role.CLEAN)
            tokens = np.repeat(mine, SPEC.block) & (row["kind"] == TokenKind.TEXT)
            text = row["text"][row["index"][tokens]].tobytes().decode()
            assert text == expected_text(clip, ref.start, ref.frames)
        assert row["chunk_valid"].sum() == slot
    assert lead_ins == {False, True}


def expected_text(clip: Clip, start: int, frames: int) -> str:
    """Oracle: all texts in force at the end of some chunk, in order."""
    texts = []
    for end in range(start + 2, start + frames + 1, 2):
        text = [event.text for event in clip.events if event.frame < end][-1]
        if not texts or texts[-1] != text:
            texts.append(text)
    return "".join(texts)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_global_batches_are_plan_rows_for_any_number_of_processes(dataset, plan, processes):
    source = row_source(dataset, plan, SPEC)
    iterators = [
        make_iterator(
            dataset, plan, batch_size=4, threads=2, prefetch=2, process_index=process, process_count=processes
        )
        for process in range(processes)
    ]
    for batch in range(2 * plan.rows_per_epoch // 4 + 1):  # across the boundaries of epochs
        parts = [next(iterator) for iterator in iterators]
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        assert_same(whole, stack([source[index] for index in range(4 * batch, 4 * batch + 4)]))


@pytest.mark.parametrize("threads", [0, 3])
def test_a_saved_position_continues_with_the_same_batches(dataset, plan, threads):
    def make(processes=1, process=0):
        return make_iterator(
            dataset,
            plan,
            batch_size=4,
            threads=threads,
            prefetch=3,
            process_index=process,
            process_count=processes,
        )

    iterator = make()
    for _ in range(3):
        next(iterator)
    state = pickle.loads(pickle.dumps(iterator.get_state()))
    expected = [next(iterator) for _ in range(3)]

    resumed = make()
    next(resumed)
    resumed.set_state(state)
    for batch in expected:
        assert_same(next(resumed), batch)

    halves = [make(2, process) for process in range(2)]
    for half in halves:
        half.set_state(state)
    for batch in expected:
        parts = [next(half) for half in halves]
        assert_same({name: np.concatenate([part[name] for part in parts]) for name in batch}, batch)


def test_skip_to_gives_the_batch_of_that_number(dataset, plan):
    iterator = make_iterator(dataset, plan, batch_size=2, threads=2, prefetch=4)
    batches = list(itertools.islice(iterator, 7))
    for number in (5, 0, 6):
        skip_to(iterator, number)
        assert_same(next(iterator), batches[number])
    source = row_source(dataset, plan, SPEC)
    skip_to(iterator, 10**12)
    assert_same(next(iterator), stack([source[2 * 10**12], source[2 * 10**12 + 1]]))
    with pytest.raises(ValueError, match="global_batch=-1"):
        skip_to(iterator, -1)


def test_a_source_is_shared_by_threads_and_pickles(dataset, plan):
    source = row_source(dataset, plan, SPEC)
    indices = [index % 6 for index in range(48)]
    expected = [row_source(dataset, plan, SPEC, cache_mb=0)[index] for index in range(6)]
    with futures.ThreadPoolExecutor(8) as pool:
        for index, row in zip(indices, pool.map(source.__getitem__, indices), strict=True):
            assert_same(row, expected[index])
    assert_same(pickle.loads(pickle.dumps(source))[3], expected[3])


class CountingDataset:
    """Hands out clips from memory and notes each read."""

    def __init__(self):
        self.reads: list[tuple[str, int, int | None]] = []

    def read(self, info, start=0, stop=None) -> Clip:
        self.reads.append((info.episode, start, stop))
        clip = CLIPS[info.episode]
        return cut(clip, start, clip.frames if stop is None else stop)


def nbytes(clip: Clip) -> int:
    return clip.video.nbytes + clip.audio.nbytes + clip.actions.nbytes


def test_the_cache_reads_each_clip_once_where_all_fit(dataset):
    infos, counting = tuple(dataset.clips("train")), CountingDataset()
    cache = ClipCache(counting, infos, sum(map(nbytes, CLIPS.values())))
    for _ in range(2):
        for info in infos:
            np.testing.assert_array_equal(cache.window(info, 2, 6).video, CLIPS[info.episode].video[2:6])
    assert counting.reads == [(info.episode, 0, None) for info in infos]
    assert cache.used == sum(map(nbytes, CLIPS.values()))


def test_the_cache_drops_the_least_recently_used_clip_at_its_bound(dataset):
    infos, counting = tuple(dataset.clips("train")), CountingDataset()
    limit = sum(map(nbytes, CLIPS.values())) - 1
    cache = ClipCache(counting, infos, limit)
    for info in (*infos[:-1], infos[0], infos[-1], infos[0], infos[1]):
        cache.window(info, 0, info.frames)
        assert cache.used <= limit
    assert [episode for episode, _, _ in counting.reads] == [info.episode for info in (*infos, infos[1])]


def test_two_threads_that_miss_the_same_clip_count_it_once(dataset):
    class Overtaken(CountingDataset):
        def read(self, info, start=0, stop=None):
            if not self.reads:
                self.reads.append((info.episode, start, stop))
                cache.window(info, 0, 4)  # as another thread would, before this one is done
            return super().read(info, start, stop)

    infos, counting = tuple(dataset.clips("train")), Overtaken()
    cache = ClipCache(counting, infos, sum(map(nbytes, CLIPS.values())))
    cache.window(infos[0], 0, 4)
    assert len(counting.reads) == 3 and cache.used == nbytes(CLIPS[infos[0].episode])


def test_windows_alone_are_read_where_the_cache_is_small(dataset):
    infos, counting = tuple(dataset.clips("train")), CountingDataset()
    cache = ClipCache(counting, infos, 100)
    cache.window(infos[0], 2, 8)
    assert counting.reads == [(infos[0].episode, 2, 8)] and cache.used == 0


def test_cut_moves_sound_actions_and_texts_with_the_window():
    clip = CLIPS["test/000003"]
    window = cut(clip, 6, 12)
    window.validate()
    np.testing.assert_array_equal(window.audio, clip.audio[30:60])
    np.testing.assert_array_equal(window.actions, clip.actions[6:12])
    assert window.events == (TextEvent(0, "rain"), TextEvent(4, ""))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"batch_size": 6, "process_count": 4},
            "batch_size=6 must be a positive multiple of process_count=4",
        ),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 4, "process_count": 2, "process_index": 2}, "process_index=2 must be from 0 to 1"),
    ],
)
def test_batches_that_cannot_be_divided_are_refused(dataset, plan, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_iterator(dataset, plan, threads=0, prefetch=0, **arguments)


def test_another_token_layout_than_the_plans_is_refused(dataset, plan):
    other = TokenSpec(**{**SPEC.__dict__, "block": 16})
    with pytest.raises(ValueError, match="pass plan.spec"):
        row_source(dataset, plan, other)


def test_an_error_in_a_reading_thread_reaches_the_caller(dataset, plan):
    class Broken(CountingDataset):
        def read(self, info, start=0, stop=None):
            raise OSError(f"{info.file} record {info.record} is gone")

    iterator = make_iterator(Broken(), plan, batch_size=2, threads=2, prefetch=2)
    with pytest.raises(OSError, match="array_record record . is gone"):
        next(iterator)


def test_loading_needs_no_jax():
    code = "import sys; sys.modules['jax'] = None; import data_pipelines.loader"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
