"""Mixtures: given shares, every row of every dataset in turn, and a past that no change of shares moves."""

import collections
import dataclasses
import fractions
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.cuts import PlanError
from data_pipelines.fill import Blocks
from data_pipelines.index import ClipInfo
from data_pipelines.mix import PERIOD, Mixture, Shares, mix
from data_pipelines.plan import PackPlan
from data_pipelines.row_layout import RowSpec, TokenSpec

SPEC = TokenSpec(
    patch=4, chunk_frames=2, block=8, hop=4, hops=2, audio_tokens=2, channels=1, action_dim=3, text_bytes=40
)
NAMES = ("games", "videos", "images")


def make_infos(name: str, count: int, frames: int, size: int = 8, actions=("left",)) -> list[ClipInfo]:
    return [
        ClipInfo(
            split="train",
            file=f"{name}-00000-of-00001.array_record",
            record=number,
            bytes=0,
            episode=f"{name}/{number:06d}",
            frames=frames,
            height=size,
            width=size,
            frame_rate=fractions.Fraction(2),
            sample_rate=8,
            channels=1,
            video_codec="zstd",
            action_names=actions,
            events=(),
            source=name,
            licence="CC0-1.0",
            seed=number,
        )
        for number in range(count)
    ]


HALVES = Blocks(26, 34)
CLIPS = {
    "games": make_infos("games", 7, 20, 12, ("left", "right")),
    "videos": make_infos("videos", 5, 9, 8, ()),
    "images": make_infos("images", 3, 1, 16, ("jump", "left")),
}


def make(*shares: Shares, seed=0, row_blocks=HALVES, **changes) -> Mixture:
    return mix(CLIPS, SPEC, shares, window_chunks=4, row_blocks=row_blocks, seed=seed, **changes)


def weights(*values: float, from_row: int = 0) -> Shares:
    return Shares(from_row, tuple(zip(NAMES, values, strict=True)))


values = st.lists(st.sampled_from([0.0, 0.001, 0.2, 1.0, 5.0]), min_size=3, max_size=3).filter(any)


@settings(deadline=None, max_examples=40)
@given(stretches=st.lists(st.tuples(st.integers(1, 2500), values), min_size=1, max_size=4), seed=st.integers(0, 9))
def test_every_dataset_gives_its_rows_in_turn_in_the_given_shares(stretches, seed):
    starts = np.cumsum([0, *(length for length, _ in stretches)])
    shares = [weights(*each, from_row=int(start)) for start, (_, each) in zip(starts, stretches, strict=False)]
    mixture = make(*shares, seed=seed)
    places = [mixture.place(index) for index in range(starts[-1] + 100)]
    counts = collections.Counter()
    for name, own in places:
        assert own == counts[name]
        counts[name] += 1
    for start, end, (_, each) in zip(starts, starts[1:], stretches, strict=False):
        whole = (end - start) // PERIOD * PERIOD  # shares are exact in whole periods
        found = collections.Counter(name for name, _ in places[start : start + whole])
        for name, value in zip(NAMES, each, strict=True):
            assert abs(found[name] - value / sum(each) * whole) <= 2 * whole / PERIOD
            assert (found[name] > 0) == (value > 0 and whole > 0)


@settings(deadline=None, max_examples=20)
@given(change=st.integers(1, 3000), first=values, second=values)
def test_a_change_of_shares_leaves_the_past_alone(change, first, second):
    before, after = make(weights(*first)), make(weights(*first), weights(*second, from_row=change))
    for index in {0, change // 2, change - 1}:
        assert before.place(index) == after.place(index) and before.row(index) == after.row(index)
    name, own = after.place(change)
    seen = [before.place(index) for index in range(change)]
    assert own == sum(each == name for each, _ in seen)  # and goes on where the datasets were


def test_rows_are_those_of_the_plans_wherever_one_begins():
    mixture = make(weights(3, 2, 1))
    again = pickle.loads(pickle.dumps(mixture))
    for index in (10**12, 5, 4000, 0):
        name, own = mixture.place(index)
        refs = mixture.row(index)
        assert refs == again.row(index) and {ref.dataset for ref in refs} == {name}
        strip = lambda ref: (ref.info, ref.start, ref.frames)
        assert list(map(strip, refs)) == list(map(strip, mixture.plans[name].row(own)))
    assert make(weights(3, 2, 1), seed=1).place(10**12) != mixture.place(10**12)
    with pytest.raises(IndexError, match="-1"):
        mixture.place(-1)


@pytest.mark.parametrize("row_blocks", [None, 60, HALVES])
def test_all_rows_have_one_shape_and_every_plan_fits_it(row_blocks):
    mixture = make(weights(1, 1, 1), row_blocks=row_blocks)
    for plan in mixture.plans.values():
        assert all(
            getattr(plan.row_spec, field.name) <= getattr(mixture.row_spec, field.name)
            for field in dataclasses.fields(RowSpec)
        )
        assert plan.row_spec.blocks == mixture.row_spec.blocks
    assert mixture.rows_per_epoch == sum(plan.rows_per_epoch for plan in mixture.plans.values())
    assert 0 < mixture.efficiency().tokens < mixture.efficiency().blocks <= 1


def test_the_schema_is_the_union_in_order_and_has_to_fit():
    assert make(weights(1, 1, 1)).actions == ("left", "right", "jump")
    clips = CLIPS | {"more": make_infos("more", 1, 8, actions=("duck",))}
    message = r"4 actions \(left, right, jump, duck\) but tokens.action_dim=3; raise it to 4"
    with pytest.raises(PlanError, match=message):
        mix(clips, SPEC, [weights(1, 1, 1)], window_chunks=4, row_blocks=HALVES, seed=0)


def test_samples_of_different_datasets_have_ids_of_their_own():
    infos = make_infos("same", 40, 8)
    mixture = mix(
        {"a": infos, "b": infos}, SPEC, [Shares(0, (("a", 1), ("b", 1)))], window_chunks=4, row_blocks=HALVES, seed=0
    )
    ids = [{ref.sample_id for index in range(20) for ref in mixture.row(index) if ref.dataset == name} for name in "ab"]
    assert all(ids) and not ids[0] & ids[1]


def test_a_dataset_names_its_table_of_tasks():
    mixture = make(weights(1, 1, 0), tables={"videos": 2})
    tables = {(ref.dataset, ref.table) for index in range(30) for ref in mixture.row(index)}
    assert tables == {("games", 0), ("videos", 2)}


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ([], r"shares begin at rows \[\]"),
        ([weights(1, 1, 1, from_row=4)], r"shares begin at rows \[4\]; the first at row 0"),
        ([weights(1, 1, 1), weights(1, 1, 1)], r"rows \[0, 0\]"),
        ([Shares(0, (("films", 1.0),))], "films.* must be positive, of games, videos, images"),
        ([weights(1, -1, 1)], "must be positive"),
        ([weights(0, 0, 0)], "must be positive"),
    ],
)
def test_shares_that_cannot_be_are_refused(shares, message):
    with pytest.raises(PlanError, match=message):
        make(*shares)


def test_plans_of_other_tokens_and_rows_too_small_are_refused():
    plan = PackPlan(CLIPS["games"], SPEC, window_chunks=4, row=None, seed=0)
    other = PackPlan(CLIPS["games"], dataclasses.replace(SPEC, text_bytes=8), window_chunks=4, row=None, seed=0)
    with pytest.raises(PlanError, match="b: its tokens"):
        Mixture({"a": plan, "b": other}, [Shares(0, (("a", 1),))], seed=0)
    small = dataclasses.replace(plan.row_spec, chunks=1)
    with pytest.raises(PlanError, match="raise row.chunks=1 to 4"):
        Mixture({"a": plan}, [Shares(0, (("a", 1),))], seed=0, row_spec=small)
    with pytest.raises(PlanError, match="at least one plan"):
        Mixture({}, [], seed=0)
