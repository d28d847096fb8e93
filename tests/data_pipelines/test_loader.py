"""The loader: equal global batches for any number of processes and after interruptions, true to the clips."""

import dataclasses
import fractions
import itertools
import pickle
import subprocess
import sys
from concurrent import futures

import numpy as np
import pytest

from data_pipelines import patches
from data_pipelines.bad_records import BadRecordsError
from data_pipelines.build import write_dataset
from data_pipelines.clip import Clip, ClipError, TextEvent, cut
from data_pipelines.index import ClipInfo
from data_pipelines.loader import ClipCache, make_iterator, row_source, skip_to
from data_pipelines.mix import Shares, mix
from data_pipelines.plan import PackPlan
from data_pipelines.row_layout import Role, TokenKind, TokenSpec
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


SAME = ("episode", "frames", "frame_rate", "sample_rate", "channels", "action_names", "events")


def info_of(clip: Clip) -> ClipInfo:
    height, width = clip.video.shape[1:3]
    place = {"split": "train", "file": "train-00000-of-00001.array_record", "record": clip.seed, "bytes": 0}
    rest = {"video_codec": "zstd", "source": "test", "licence": "CC0-1.0", "seed": clip.seed}
    return ClipInfo(**place, height=height, width=width, **rest, **{name: getattr(clip, name) for name in SAME})


INFOS = list(map(info_of, CLIPS.values()))


class Memory:
    """Hands out clips from memory; those of `bad` are damaged from a frame on."""

    def __init__(self, clips=CLIPS, bad=()):
        self.clips, self.bad = clips, dict(bad)
        self.reads: list[tuple[str, int, int | None]] = []

    def read(self, info, start=0, stop=None) -> Clip:
        self.reads.append((info.episode, start, stop))
        clip = self.clips[info.episode]
        stop = clip.frames if stop is None else stop
        if stop > self.bad.get(info.episode, clip.frames):
            raise ClipError(f"frame {self.bad[info.episode]} is damaged")
        return cut(clip, start, stop)


@pytest.fixture
def dataset():
    return Memory()


@pytest.fixture
def plan():
    return PackPlan(INFOS, SPEC, window_chunks=3, row=None, rows_windows=2, seed=4)


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


def part(batch_size, process, processes):
    """The rows of one of several processes that share a batch equally."""
    each = batch_size // processes
    return range(process * each, (process + 1) * each)


def test_a_process_may_read_any_places_of_a_batch(dataset, plan):
    source = row_source(dataset, plan, SPEC)
    iterator = make_iterator(dataset, plan, batch_size=4, threads=2, prefetch=2, rows=(0, 3))
    for batch in range(3):
        assert_same(next(iterator), stack([source[4 * batch], source[4 * batch + 3]]))


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_global_batches_are_plan_rows_for_any_number_of_processes(dataset, plan, processes):
    source = row_source(dataset, plan, SPEC)
    iterators = [
        make_iterator(dataset, plan, batch_size=4, threads=2, prefetch=2, rows=part(4, process, processes))
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
            rows=part(4, process, processes),
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


def nbytes(clip: Clip) -> int:
    return clip.video.nbytes + clip.audio.nbytes + clip.actions.nbytes


def test_the_cache_reads_each_clip_once_where_all_fit():
    infos, counting = INFOS, Memory()
    cache = ClipCache({"": counting}, infos, sum(map(nbytes, CLIPS.values())))
    for _ in range(2):
        for info in infos:
            np.testing.assert_array_equal(cache.window(info, 2, 6).video, CLIPS[info.episode].video[2:6])
    assert counting.reads == [(info.episode, 0, None) for info in infos]
    assert cache.used == sum(map(nbytes, CLIPS.values()))


def test_the_cache_drops_the_least_recently_used_clip_at_its_bound():
    infos, counting = INFOS, Memory()
    limit = sum(map(nbytes, CLIPS.values())) - 1
    cache = ClipCache({"": counting}, infos, limit)
    for info in (*infos[:-1], infos[0], infos[-1], infos[0], infos[1]):
        cache.window(info, 0, info.frames)
        assert cache.used <= limit
    assert [episode for episode, _, _ in counting.reads] == [info.episode for info in (*infos, infos[1])]


def test_two_threads_that_miss_the_same_clip_count_it_once():
    class Overtaken(Memory):
        def read(self, info, start=0, stop=None):
            if not self.reads:
                self.reads.append((info.episode, start, stop))
                cache.window(info, 0, 4)  # as another thread would, before this one is done
            return super().read(info, start, stop)

    infos, counting = INFOS, Overtaken()
    cache = ClipCache({"": counting}, infos, sum(map(nbytes, CLIPS.values())))
    cache.window(infos[0], 0, 4)
    assert len(counting.reads) == 3 and cache.used == nbytes(CLIPS[infos[0].episode])


def test_windows_alone_are_read_where_the_cache_is_small():
    infos, counting = INFOS, Memory()
    cache = ClipCache({"": counting}, infos, 100)
    cache.window(infos[0], 2, 8)
    assert counting.reads == [(infos[0].episode, 2, 8)] and cache.used == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 4, "rows": (2, 4)}, "must be places from 0 to 3, ascending"),
        ({"batch_size": 4, "rows": (2, 1)}, "must be places from 0 to 3, ascending"),
        ({"batch_size": 4, "rows": ()}, "must be places from 0 to 3, ascending"),
    ],
)
def test_rows_that_are_no_places_of_a_batch_are_refused(dataset, plan, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_iterator(dataset, plan, threads=0, prefetch=0, **arguments)


def test_another_token_layout_than_the_plans_is_refused(dataset, plan):
    other = TokenSpec(**{**SPEC.__dict__, "block": 16})
    with pytest.raises(ValueError, match="pass plan.spec"):
        row_source(dataset, plan, other)


def test_an_error_in_a_reading_thread_reaches_the_caller(dataset, plan):
    class Broken(Memory):
        def read(self, info, start=0, stop=None):
            raise OSError(f"{info.file} record {info.record} is gone")

    iterator = make_iterator(Broken(), plan, batch_size=2, threads=2, prefetch=2)
    with pytest.raises(OSError, match="array_record record . is gone"):
        next(iterator)


# Clips of another dataset: an image, one without sound, one of other rates and actions, one of mono sound.
OTHERS = {
    clip.episode: clip
    for clip in (
        dataclasses.replace(cut(make_clip(0), 0, 1), episode="other/0"),
        dataclasses.replace(make_clip(1), episode="other/1", audio=np.zeros((70, 0), np.int16)),
        dataclasses.replace(
            make_clip(4),
            episode="other/2",
            audio=np.random.default_rng(9).integers(-(2**15), 2**15, (17 * 49, 1)).astype(np.int16),
            sample_rate=49 * 12,
            frame_rate=fractions.Fraction(12),
            action_names=("jump", "left"),
        ),
        dataclasses.replace(
            make_clip(3), episode="other/3", audio=make_clip(3).audio[:, :1], action_names=("a", "right")
        ),
    )
}
WIDE = dataclasses.replace(SPEC, action_dim=4)


def mixed(row_blocks: int | None = 150, bad=(), **changes):
    """A mixture of all clips and its readers; bad episodes are damaged from their fourth frame on."""
    clips = {"games": CLIPS, "videos": OTHERS}
    bad = dict.fromkeys(bad, 4)
    readers = {name: Memory(each, {key: at for key, at in bad.items() if key in each}) for name, each in clips.items()}
    shares = [Shares(0, (("games", 2), ("videos", 1))), Shares(9, (("games", 1), ("videos", 3)))]
    options = {"window_chunks": 3, "row_blocks": row_blocks, "seed": 4, "tables": {"videos": 1}} | changes
    infos = {name: list(map(info_of, each.values())) for name, each in clips.items()}
    return readers, mix(infos, WIDE, shares, **options)


@pytest.mark.parametrize("row_blocks", [None, 60, 150])
def test_rows_of_a_mixture_hold_the_clips_of_its_datasets(row_blocks):
    readers, mixture = mixed(row_blocks)
    assert mixture.actions == ("left", "right", "jump", "a")
    for clip in OTHERS.values():
        clip.validate()
    source, seen = row_source(readers, mixture, WIDE), set()
    for index in range(30):
        row, slot, refs = source[index], 0, mixture.row(index)
        assert len({ref.dataset for ref in refs}) == 1
        for ref in refs:
            clip = readers[ref.dataset].clips[ref.info.episode]
            seen.add(clip.episode)
            for start in range(ref.start, ref.start + ref.frames, 2):
                image = clip.frames == 1
                height, width = clip.video.shape[1:3]
                pixels = row["patches"][row["patch_slot"] == slot][None]
                expected = np.repeat(clip.video, 2, 0) if image else clip.video[start : start + 2]
                np.testing.assert_array_equal(patches.unpatchify(pixels, height, width, 2, 4), expected)
                assert row["chunk_audio"][slot] == (clip.channels > 0 and not image)
                assert row["chunk_table"][slot] == (ref.dataset == "videos")
                columns = [mixture.actions.index(name) for name in clip.action_names]
                actions = row["actions"][2 * slot : 2 * slot + 2]
                held = np.zeros((2, 2)) if image else clip.actions[start : start + 2]
                np.testing.assert_array_equal(actions[:, columns], held)
                assert not np.delete(actions, columns, axis=1).any()
                slot += 1
        assert row["chunk_valid"].sum() == slot
    assert seen == {*CLIPS, *OTHERS}


@pytest.mark.parametrize("row_blocks", [None, 150])
def test_hosts_and_restarts_see_the_same_mixture_with_its_bad_records(row_blocks):
    """1 process, then 2 from a saved position in mid-epoch, then 4: one sequence of global batches."""
    bad = ["test/000002", "other/1"]
    readers, mixture = mixed(row_blocks, bad)

    def make(processes, cache_mb):
        return [
            make_iterator(
                readers,
                pickle.loads(pickle.dumps(mixture)),
                batch_size=4,
                threads=2,
                prefetch=2,
                rows=part(4, process, processes),
                cache_mb=cache_mb,
                max_bad=0.5,
            )
            for process in range(processes)
        ]

    source = row_source(readers, mixture, WIDE, cache_mb=0, max_bad=0.5)
    expected = [stack([source[index] for index in range(4 * batch, 4 * batch + 4)]) for batch in range(9)]
    assert set(source.bad.reasons) == {("games", bad[0]), ("videos", bad[1])}
    state = None
    for processes, cache_mb, batches in ((1, 512, range(3)), (2, 0, range(3, 6)), (4, 512, range(6, 9))):
        iterators = make(processes, cache_mb)
        for iterator in iterators:
            if state is not None:
                iterator.set_state(state)
        for batch in batches:
            parts = [next(iterator) for iterator in iterators]
            assert_same({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, expected[batch])
        state = iterators[-1].get_state()
        next(iterators[0])  # what is read after the save is lost with the process


def test_a_bad_window_leaves_its_place_empty_and_is_named_once(plan, caplog):
    good = row_source(Memory(), plan, SPEC)
    source = row_source(Memory(bad={"test/000001": 6}), plan, SPEC, max_bad=0.2)
    lost = 0
    for index in range(3 * plan.rows_per_epoch):
        kept = [ref for ref in plan.row(index) if ref.info.record != 1 or ref.start + ref.frames <= 6]
        lost += len(plan.row(index)) - len(kept)
        row, whole = source[index], good[index]
        ids = [ref.sample_id for ref in kept for _ in range(ref.frames // 2)]
        assert row["chunk_sample"][row["chunk_valid"]].tolist() == ids
        for ref in kept:  # what the row keeps is what it holds anyway
            for name in ("waveform", "chunk_number", "chunk_audio"):
                here, there = (each["chunk_sample"] == ref.sample_id for each in (row, whole))
                np.testing.assert_array_equal(
                    row[name][here & row["chunk_valid"]], whole[name][there & whole["chunk_valid"]]
                )
    assert lost >= 3 and len(source.bad) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "left out a bad record: test/000001: ClipError: frame 6 is damaged"
    ]


def test_a_damaged_record_on_disk_is_left_out(tmp_path, caplog):
    write_dataset(tmp_path, {"train": list(CLIPS.values())}, shards={"train": 1})
    good = open_dataset(tmp_path)
    infos = good.clips("train")
    (path,) = {tmp_path / info.file for info in infos}
    data = bytearray(path.read_bytes())
    data[data.index(infos[2].episode.encode())] ^= 1
    path.write_bytes(data)
    plan = PackPlan(infos, SPEC, window_chunks=3, row=None, rows_windows=2, seed=4)
    source = row_source(open_dataset(tmp_path), plan, SPEC, max_bad=0.2)
    chunks = sum(int(source[index]["chunk_valid"].sum()) for index in range(plan.rows_per_epoch))
    lost = sum(ref.frames // 2 for i in range(plan.rows_per_epoch) for ref in plan.row(i) if ref.info == infos[2])
    assert chunks == plan.chunks_per_row * plan.rows_per_epoch - lost and lost
    assert len(caplog.records) == 1 and infos[2].episode in caplog.text


def test_too_many_bad_records_stop_the_run(plan):
    source = row_source(Memory(bad=dict.fromkeys(CLIPS, 0)), plan, SPEC, max_bad=0.2)
    with pytest.raises(
        BadRecordsError, match=r"2 of 5 clips cannot be read \(max_bad=0.2\): test/.*; test/.* raise max_bad"
    ):
        for index in range(plan.rows_per_epoch):
            source[index]
    strict = make_iterator(Memory(bad={"test/000001": 0}), plan, batch_size=2, threads=2, prefetch=2, max_bad=0.01)
    with pytest.raises(BadRecordsError, match="1 of 5"):
        for _ in range(plan.rows_per_epoch):
            next(strict)


def test_loading_needs_no_jax():
    code = "import sys; sys.modules['jax'] = None; import data_pipelines.loader"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
