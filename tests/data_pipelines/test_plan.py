"""The pack plan: every window once an epoch, no row too full, and each row a pure function of its index."""

import collections
import dataclasses
import fractions
import pickle
from concurrent import futures

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.clip import TextEvent, window_events
from data_pipelines.plan import PackPlan, PlanError, fill_rows
from data_pipelines.row_layout import RowSpec, TokenSpec
from data_pipelines.shards import ClipInfo

SPEC = TokenSpec(
    patch=4, chunk_frames=2, block=8, hop=4, hops=2, audio_tokens=2, channels=1, action_dim=2, text_bytes=40
)


def make_info(number: int, frames: int, height: int = 8, width: int = 8, events=(), **changes) -> ClipInfo:
    """The index entry of a clip whose clock agrees with `SPEC`."""
    info = ClipInfo(
        split="train",
        file="train-00000-of-00001.array_record",
        record=number,
        episode=f"test/{number:06d}",
        frames=frames,
        height=height,
        width=width,
        frame_rate=fractions.Fraction(2),
        sample_rate=8,
        channels=1,
        action_names=("left", "right"),
        events=tuple(TextEvent(frame, text) for frame, text in events),
        source="test",
        licence="CC0-1.0",
        seed=number,
    )
    return dataclasses.replace(info, **changes)


@st.composite
def clip_lists(draw) -> list[ClipInfo]:
    infos = []
    for number in range(draw(st.integers(1, 8))):
        frames = draw(st.integers(2, 25))
        height, width = draw(st.sampled_from([(8, 8), (12, 20), (5, 9)]))
        starts = draw(st.sets(st.integers(0, frames - 1), max_size=4))
        events = [(frame, draw(st.sampled_from(["", "rain", "a text of more than one block"]))) for frame in starts]
        infos.append(make_info(number, frames, height, width, sorted(events)))
    return infos


def true_use(plan: PackPlan, refs) -> dict[str, int]:
    """Oracle: what the windows of a row really take, counted chunk by chunk from their own events."""
    spec, use = plan.spec, dict.fromkeys((field.name for field in dataclasses.fields(RowSpec)), 0)
    use["useful_tokens"] = 0
    for ref in refs:
        chunks = ref.frames // spec.chunk_frames
        count = -(-ref.info.height // spec.patch) * -(-ref.info.width // spec.patch)
        head = spec.chunk_frames + spec.audio_tokens
        blocks = -(-head // spec.block) - (-count // spec.block)
        use["chunks"] += chunks
        use["patches"] += chunks * count
        use["noisy_blocks"] += chunks * blocks
        use["clean_blocks"] += (chunks - 1) * (blocks + 1)
        use["useful_tokens"] += chunks * (head + count) + (chunks - 1) * (head + spec.block + count)
        by_chunk = {}  # the last text that begins in a chunk is the one that stays
        for event in window_events(ref.info.events, ref.start, ref.start + ref.frames):
            by_chunk[event.frame // spec.chunk_frames] = event.text
        for text in by_chunk.values():
            use["text"] += len(text)
            use["clean_blocks"] += -(-len(text) // spec.block)
            use["useful_tokens"] += len(text)
    return use


def epoch_rows(plan: PackPlan, epoch: int):
    rows = range(epoch * plan.rows_per_epoch, (epoch + 1) * plan.rows_per_epoch)
    return [plan.row(index) for index in rows]


@settings(deadline=None, max_examples=60)
@given(
    infos=clip_lists(),
    window_chunks=st.integers(1, 5),
    rows_windows=st.integers(1, 3),
    epoch=st.integers(0, 3),
)
def test_an_epoch_holds_every_window_once_and_no_row_is_too_full(infos, window_chunks, rows_windows, epoch):
    plan = PackPlan(infos, SPEC, window_chunks=window_chunks, row=None, rows_windows=rows_windows, seed=5)
    windows = collections.defaultdict(list)
    ids = set()
    for refs in epoch_rows(plan, epoch):
        assert refs
        use = true_use(plan, refs)
        assert all(use[field.name] <= getattr(plan.row_spec, field.name) for field in dataclasses.fields(RowSpec))
        for ref in refs:
            windows[ref.info.episode].append((ref.start, ref.frames))
            ids.add(ref.sample_id)
    assert ids == set(range(epoch * plan.windows, (epoch + 1) * plan.windows))
    for info in infos:
        chunks = info.frames // SPEC.chunk_frames
        found = sorted(windows[info.episode])
        length = min(chunks, window_chunks)
        assert len(found) == chunks // length and {frames for _, frames in found} == {length * SPEC.chunk_frames}
        assert all(later[0] - earlier[0] == earlier[1] for earlier, later in zip(found, found[1:], strict=False))
        assert found[0][0] % SPEC.chunk_frames == 0 and found[0][0] >= 0 and sum(found[-1]) <= info.frames


@settings(deadline=None, max_examples=30)
@given(infos=clip_lists(), seed=st.integers(-3, 2**64))
def test_a_row_depends_on_seed_and_index_alone(infos, seed):
    def make():
        return PackPlan(infos, SPEC, window_chunks=3, row=None, rows_windows=2, seed=seed)

    first, second = make(), pickle.loads(pickle.dumps(make()))
    indices = list(range(5 * first.rows_per_epoch))
    expected = [first.row(index) for index in indices]
    assert [second.row(index) for index in reversed(indices)] == expected[::-1]
    with futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(make().row, indices)) == expected


def test_epochs_and_seeds_differ_in_order_company_and_cut():
    infos = [make_info(number, 30) for number in range(40)]
    plan = PackPlan(infos, SPEC, window_chunks=4, row=None, rows_windows=2, seed=0)
    other = PackPlan(infos, SPEC, window_chunks=4, row=None, rows_windows=2, seed=1)

    def order(rows):
        return [ref.info.episode for refs in rows for ref in refs]

    def company(rows):
        return {frozenset(ref.info.episode for ref in refs) for refs in rows}

    def cuts(rows):
        return {(ref.info.episode, ref.start) for refs in rows for ref in refs}

    zero, one, elsewhere = epoch_rows(plan, 0), epoch_rows(plan, 1), epoch_rows(other, 0)
    for rows in (one, elsewhere):
        assert order(rows) != order(zero) and cuts(rows) != cuts(zero)
        assert len(company(rows) & company(zero)) < len(zero) / 2
    assert sorted(order(one)) == sorted(order(zero))


def test_every_phase_occurs():
    plan = PackPlan([make_info(0, 22)], SPEC, window_chunks=4, row=None, seed=3)  # 11 chunks: 2 windows, 3 to spare
    starts = {min(ref.start for refs in epoch_rows(plan, epoch) for ref in refs) for epoch in range(40)}
    assert starts == {0, 2, 4, 6}


def test_a_shuffle_has_no_favourite_place():
    infos = [make_info(number, 8) for number in range(6)]
    plan = PackPlan(infos, SPEC, window_chunks=4, row=None, rows_windows=1, seed=11)
    counts = np.zeros((6, 6))
    for epoch in range(600):
        for place, (ref,) in enumerate(epoch_rows(plan, epoch)):
            counts[place, ref.info.record] += 1
    assert np.abs(counts - 100).max() < 50  # five standard deviations


def test_mixed_resolutions_share_rows_within_given_capacities():
    infos = [make_info(n, 24, 16, 16) for n in range(10)] + [make_info(n, 24, 8, 8) for n in range(10, 40)]
    row = RowSpec(chunks=24, patches=150, text=8, clean_blocks=90, noisy_blocks=60)
    plan = PackPlan(infos, SPEC, window_chunks=4, row=row, seed=0)
    assert plan.row_spec == row
    sizes = [collections.Counter(ref.info.height for ref in refs) for refs in epoch_rows(plan, 2)]
    assert any(len(size) == 2 for size in sizes)
    assert sum(sizes, collections.Counter()) == {16: 30, 8: 90}
    assert all(16 * 4 * size[16] + 4 * 4 * size[8] <= 150 for size in sizes)


def test_blocks_alone_limit_how_many_small_windows_share_a_row():
    # 24 patches are 3 blocks and 4 patches 1, beside head and memory: two large windows, or three small ones.
    small = [make_info(n, 8, 8, 8, [(0, "rain")]) for n in range(6)]
    large = [make_info(n, 8, 24, 16, [(0, "rain")]) for n in range(6, 10)]
    plan = PackPlan(small + large, SPEC, window_chunks=4, row=None, rows_windows=2, seed=0)
    sizes = [collections.Counter(ref.info.height for ref in refs) for refs in epoch_rows(plan, 0)]
    assert sorted(sizes, key=lambda size: size[8]) == [{24: 2}, {24: 2}, {8: 3}, {8: 3}]
    assert (plan.row_spec.chunks, plan.row_spec.text, plan.row_spec.noisy_blocks) == (12, 12, 32)
    assert plan.chunks_per_row == (2 * 8 + 2 * 12) / 4


def test_efficiency_is_the_average_over_epochs():
    events = [(0, "a caption of some length"), (9, ""), (14, "rain")]
    infos = [make_info(n, 23, 12, 20, events) for n in range(3)] + [make_info(n, 9, 5, 9) for n in range(3, 9)]
    plan = PackPlan(infos, SPEC, window_chunks=3, row=None, rows_windows=2, seed=0)
    epochs = 300
    uses = [true_use(plan, refs) for epoch in range(epochs) for refs in epoch_rows(plan, epoch)]
    tokens = np.mean([use["useful_tokens"] for use in uses]) / (plan.row_spec.blocks * SPEC.block)
    blocks = np.mean([use["clean_blocks"] + use["noisy_blocks"] for use in uses]) / plan.row_spec.blocks
    np.testing.assert_allclose(plan.efficiency().tokens, tokens, rtol=0.01)
    np.testing.assert_allclose(plan.efficiency().blocks, blocks, rtol=0.01)
    assert 0 < plan.efficiency().tokens < plan.efficiency().blocks <= 1


def test_a_row_is_sized_by_the_worst_text_that_a_cut_can_meet():
    # Chunks of 2 frames: windows of 2 chunks can hold the texts of frames 0 and 2, or 2 and 6, or 6 alone.
    info = make_info(0, 10, events=[(0, "ab"), (2, "cde"), (6, "fghij")])
    plan = PackPlan([info], SPEC, window_chunks=2, row=None, seed=0)
    assert plan.row_spec.text == 8
    assert plan.row_spec.clean_blocks == 2 + (1 + 1 + 1)


def test_a_row_is_not_sized_by_cuts_that_never_happen():
    # 4 chunks are two windows of 2 with nothing to spare, so none holds both texts, of chunks 1 and 2.
    info = make_info(0, 8, events=[(2, "abc"), (4, "de"), (6, "")])
    assert PackPlan([info], SPEC, window_chunks=2, row=None, seed=0).row_spec.text == 3


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_fill_rows_equals_best_fit_decreasing_one_window_at_a_time(data):
    classes = data.draw(st.integers(1, 4))
    numbers = st.lists(st.integers(0, 9), min_size=2, max_size=2).filter(any)
    costs = np.array(data.draw(st.lists(numbers, min_size=classes, max_size=classes)))
    sizes = np.array(data.draw(st.lists(st.integers(1, 20), min_size=classes, max_size=classes)))
    capacity = costs.max(0) + np.array(data.draw(st.lists(st.integers(0, 9), min_size=2, max_size=2)))
    groups = fill_rows(costs, sizes, capacity)
    np.testing.assert_array_equal(sum(group.rows * group.counts for group in groups), sizes)
    assert all((group.counts @ costs <= capacity).all() and group.counts.any() for group in groups)

    scale = np.maximum(capacity, 1)
    free: list[np.ndarray] = []
    for kind in sorted(range(classes), key=lambda kind: -(costs[kind] / scale).max()):
        for _ in range(sizes[kind]):
            fitting = [row for row in range(len(free)) if (costs[kind] <= free[row]).all()]
            if not fitting:
                free.append(capacity.copy())
            best = min(fitting, key=lambda row: (free[row] / scale).sum()) if fitting else -1
            free[best] -= costs[kind]
    # Ties may be broken either way, so the number of rows may differ by a little where they occur.
    assert abs(sum(group.rows for group in groups) - len(free)) <= classes


def test_a_million_windows_are_planned_and_addressed_quickly():
    costs = np.array([[16, 40], [16, 90], [7, 31]])
    groups = fill_rows(costs, np.array([10**6, 10**6, 10**5]), np.array([64, 200]))
    assert sum(group.rows for group in groups) < 10**6 and len(groups) < 10


def test_sample_ids_wrap_at_32_bits():
    plan = PackPlan([make_info(0, 8)], SPEC, window_chunks=4, row=None, seed=0)
    assert plan.windows == plan.rows_per_epoch == 1
    assert plan.row(2**32 + 7)[0].sample_id == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 1}, "1 frames are less than a chunk of tokens.chunk_frames=2"),
        ({"channels": 2}, "2 channels.* tokens.channels is 1"),
        ({"sample_rate": 16}, "16 samples a chunk .* is 8"),
        ({"action_names": ("left",)}, "1 action values but tokens.action_dim=2"),
        ({"events": (TextEvent(0, "é" * 30),)}, "60 bytes; raise tokens.text_bytes=40"),
    ],
)
def test_a_clip_that_disagrees_with_the_tokens_is_named(changes, message):
    infos = [make_info(0, 8), dataclasses.replace(make_info(1, 8), **changes)]
    with pytest.raises(PlanError, match="test/000001: .*" + message):
        PackPlan(infos, SPEC, window_chunks=4, row=None, seed=0)


def test_a_clock_with_no_whole_chunks_is_named_even_without_audio():
    silent = dataclasses.replace(SPEC, audio_tokens=0)
    info = make_info(0, 8, sample_rate=9, frame_rate=fractions.Fraction(4))
    with pytest.raises(PlanError, match="test/000000: 9/2 samples a chunk .* multiple of 4"):
        PackPlan([info], silent, window_chunks=4, row=None, seed=0)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(RowSpec)])
def test_a_window_that_fits_no_row_names_the_episode_and_the_capacity(field):
    infos = [make_info(0, 8), make_info(1, 8, 16, 8, [(0, "rain")])]
    enough = PackPlan(infos[1:], SPEC, window_chunks=4, row=None, seed=0).row_spec
    PackPlan(infos, SPEC, window_chunks=4, row=enough, seed=0)
    short = dataclasses.replace(enough, **{field: getattr(enough, field) - 1})
    expected = rf"row\.{field}={getattr(short, field)} to {getattr(enough, field)}"
    with pytest.raises(PlanError, match=rf"test/00000\d: a window of 4 chunks of .* raise {expected}"):
        PackPlan(infos, SPEC, window_chunks=4, row=short, seed=0)


def test_an_empty_plan_and_bad_numbers_are_refused():
    with pytest.raises(PlanError, match="no clips"):
        PackPlan([], SPEC, window_chunks=4, row=None, seed=0)
    with pytest.raises(PlanError, match="window_chunks=0"):
        PackPlan([make_info(0, 8)], SPEC, window_chunks=0, row=None, seed=0)
    with pytest.raises(IndexError, match="-1"):
        PackPlan([make_info(0, 8)], SPEC, window_chunks=4, row=None, seed=0).row(-1)
