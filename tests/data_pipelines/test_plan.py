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
from data_pipelines.cuts import PlanError
from data_pipelines.fill import Blocks
from data_pipelines.index import ClipInfo
from data_pipelines.plan import PackPlan
from data_pipelines.row_layout import RowSpec, TokenSpec

SPEC = TokenSpec(
    patch=4, chunk_frames=2, block=8, hop=4, hops=2, audio_tokens=2, channels=1, action_dim=2, text_bytes=40
)


def make_info(number: int, frames: int, height: int = 8, width: int = 8, events=(), **changes) -> ClipInfo:
    """The index entry of a clip whose clock agrees with `SPEC`."""
    info = ClipInfo(
        split="train",
        file="train-00000-of-00001.array_record",
        record=number,
        bytes=0,
        episode=f"test/{number:06d}",
        frames=frames,
        height=height,
        width=width,
        frame_rate=fractions.Fraction(2),
        sample_rate=8,
        channels=1,
        video_codec="zstd",
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
        infos.append(make_info(number, frames, height, width, sorted(events), channels=draw(st.integers(0, 2))))
    return infos


def true_use(plan: PackPlan, refs) -> dict[str, int]:
    """Oracle: what the windows of a row really take, counted chunk by chunk from their own events."""
    spec, use = plan.spec, dict.fromkeys((field.name for field in dataclasses.fields(RowSpec)), 0)
    use["useful_tokens"] = 0
    for ref in refs:
        chunks = ref.frames // spec.chunk_frames
        count = -(-ref.info.height // spec.patch) * -(-ref.info.width // spec.patch)
        head = spec.chunk_frames + (spec.audio_tokens if ref.info.channels else 0)
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


def test_sample_ids_wrap_at_32_bits():
    plan = PackPlan([make_info(0, 8)], SPEC, window_chunks=4, row=None, seed=0)
    assert plan.windows == plan.rows_per_epoch == 1
    assert plan.row(2**32 + 7)[0].sample_id == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"events": (TextEvent(0, "é" * 30),)}, "test/000001: .*60 bytes; raise tokens.text_bytes=40"),
        (
            {"action_names": ("right", "jump")},
            r"3 actions \(left, right, jump\) but tokens.action_dim=2; raise it to 3",
        ),
    ],
)
@pytest.mark.parametrize("row", [None, Blocks(20, 20)])
def test_clips_that_the_tokens_cannot_hold_are_refused(changes, message, row):
    infos = [make_info(0, 8), dataclasses.replace(make_info(1, 8), **changes)]
    with pytest.raises(PlanError, match=message):
        PackPlan(infos, SPEC, window_chunks=4, row=row, seed=0)


@pytest.mark.parametrize("row", [None, Blocks(20, 20)])
def test_images_are_held_for_a_chunk_and_other_short_clips_left_out(row):
    spec = dataclasses.replace(SPEC, chunk_frames=3)
    infos = [make_info(0, 1), make_info(1, 2), make_info(2, 6), make_info(3, 2), make_info(4, 4)]
    plan = PackPlan(infos, spec, window_chunks=2, row=row, seed=0)
    assert plan.left_out == 2 and [info.record for info in plan.infos] == [0, 2, 4]
    refs = sorted((ref.info.record, ref.start, ref.frames) for refs in epoch_rows(plan, 0) for ref in refs)
    cut = [(2, 0, 6)] if row is None else refs[1:-1]
    assert refs == [(0, 0, 1), *cut, (4, 0, 3)] and sum(frames for _, _, frames in cut) == 6
    with pytest.raises(PlanError, match="no clips; 2 are shorter than tokens.chunk_frames=3"):
        PackPlan([infos[1], infos[3]], spec, window_chunks=2, row=row, seed=0)


def test_a_single_frame_that_is_a_chunk_is_a_clip_like_any_other():
    spec = dataclasses.replace(SPEC, chunk_frames=1)
    plan = PackPlan([make_info(0, 1)], spec, window_chunks=2, row=None, seed=0)
    assert plan.row_spec.noisy_blocks == 2 and plan.row(0)[0].frames == 1


def test_a_window_without_sound_takes_fewer_blocks():
    spec = dataclasses.replace(SPEC, block=2)
    heard, silent = (
        PackPlan([make_info(0, 8, channels=channels)], spec, window_chunks=4, row=None, seed=0) for channels in (1, 0)
    )
    assert (heard.row_spec.noisy_blocks, silent.row_spec.noisy_blocks) == (4 * (2 + 2), 4 * (1 + 2))
    assert silent.efficiency().tokens == 1.0 and heard.efficiency().tokens == 1.0


@settings(deadline=None, max_examples=40)
@given(infos=clip_lists(), window_chunks=st.integers(1, 5), room=st.integers(1, 4), epoch=st.integers(0, 2))
def test_filled_rows_hold_every_chunk_once_an_epoch_and_none_is_too_full(infos, window_chunks, room, epoch):
    # A chunk of the largest picture takes 3 noisy blocks, its texts at most 4 x 4 clean ones.
    plan = PackPlan(infos, SPEC, window_chunks=window_chunks, row=Blocks(16 + 5 * room, 3 + 4 * room), seed=5)
    assert plan.rows_per_epoch == sum(group.rows for group in plan._groups)
    seen, ids = collections.defaultdict(list), set()
    for refs in epoch_rows(plan, epoch):
        assert refs
        use = true_use(plan, refs)
        assert all(use[field.name] <= getattr(plan.row_spec, field.name) for field in dataclasses.fields(RowSpec))
        for ref in refs:
            assert ref.frames <= window_chunks * SPEC.chunk_frames
            first, chunks = ref.start // SPEC.chunk_frames, ref.frames // SPEC.chunk_frames
            seen[ref.info.episode] += range(first, first + chunks)
            ids.add(ref.sample_id)
    assert ids == set(range(epoch * plan.windows, (epoch + 1) * plan.windows))
    assert {episode: sorted(chunks) for episode, chunks in seen.items()} == {
        info.episode: list(range(info.frames // SPEC.chunk_frames)) for info in infos
    }


def test_filled_rows_move_their_cuts_from_epoch_to_epoch():
    plan = PackPlan([make_info(n, 46) for n in range(9)], SPEC, window_chunks=4, row=Blocks(17, 13), seed=0)
    again = pickle.loads(pickle.dumps(plan))
    cuts = [{(ref.info.record, ref.start) for refs in epoch_rows(again, epoch) for ref in refs} for epoch in range(3)]
    assert cuts[0] != cuts[1] != cuts[2] and len(set(map(len, cuts))) == 1
    assert epoch_rows(plan, 2) == epoch_rows(again, 2)


def test_a_chunk_that_fits_no_filled_row_is_named():
    infos = [make_info(0, 8), make_info(1, 8, 40, 40)]
    with pytest.raises(PlanError, match="test/000001: a chunk of 40x40 takes 14 noisy .* a row has 13 and 9; raise"):
        PackPlan(infos, SPEC, window_chunks=4, row=Blocks(9, 13), seed=0)


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
