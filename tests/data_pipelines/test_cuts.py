"""How full rows are on a realistic mixture of resolutions, and how the halves of a row are sized."""

import fractions
import time

import numpy as np
import pytest

from data_pipelines import cuts
from data_pipelines.clip import TextEvent
from data_pipelines.fill import Blocks
from data_pipelines.index import ClipInfo
from data_pipelines.plan import PackPlan
from data_pipelines.row_layout import TokenSpec
from data_pipelines.split import split_blocks

# Share of clips by height and width, duration and frame rate as in the packing study of the reference.
SHARES = {
    (1080, 1920): 0.22,
    (720, 1280): 0.22,
    (480, 854): 0.12,
    (360, 640): 0.12,
    (1920, 1080): 0.07,
    (1280, 720): 0.06,
    (480, 640): 0.07,
    (240, 320): 0.05,
    (120, 160): 0.03,
    (160, 210): 0.04,
}


def realistic(count: int) -> list[ClipInfo]:
    """Clips of 0.5 to 30 s, median 4 s, at 24 to 60 frames a second; some silent, some without caption."""
    rng = np.random.default_rng(0)
    share = np.array(list(SHARES.values()))
    infos = []
    for number in range(count):
        height, width = list(SHARES)[rng.choice(len(SHARES), p=share / share.sum())]
        rate = int(rng.choice([24, 25, 30, 60]))
        seconds = float(np.clip(4 * np.exp(0.8 * rng.standard_normal()), 0.5, 30))
        caption = (TextEvent(0, "x" * int(rng.integers(20, 57))),) if rng.random() < 0.7 else ()
        infos.append(
            ClipInfo(
                split="train",
                file="train-00000-of-00001.array_record",
                record=number,
                bytes=0,
                episode=f"test/{number:06d}",
                frames=int(seconds * rate),
                height=height,
                width=width,
                frame_rate=fractions.Fraction(rate),
                sample_rate=48000,
                channels=int(rng.integers(0, 3)),
                video_codec="h264_420",
                action_names=(),
                events=caption,
                source="test",
                licence="CC0-1.0",
                seed=0,
            )
        )
    return infos


def spec_of(patch: int, block: int = 8) -> TokenSpec:
    """Chunks of 8 frames, as in the study. Blocks of 8, so that what is measured is the planner, not their padding."""
    return TokenSpec(
        patch=patch,
        chunk_frames=8,
        block=block,
        hop=500,
        hops=8,
        audio_tokens=8,
        channels=1,
        action_dim=0,
        text_bytes=64,
    )


@pytest.fixture(scope="module")
def clips():
    return realistic(3000)


@pytest.mark.parametrize(
    ("tokens", "patch", "least"), [(8192, 64, 0.97), (16384, 32, 0.97), (32768, 32, 0.99), (32768, 64, 0.98)]
)
def test_rows_of_one_shape_are_filled(clips, tokens, patch, least):
    spec, started = spec_of(patch), time.process_time()
    blocks = split_blocks([clips], spec, 8, tokens // spec.block)
    plan = PackPlan(clips, spec, window_chunks=8, row=blocks, seed=0)
    took = time.process_time() - started
    assert plan.row_spec.blocks == tokens // spec.block
    fill = plan.efficiency()
    assert fill.tokens >= least and fill.blocks >= least
    assert took < 3, f"planned in {took:.1f} s"
    lengths = np.bincount(plan._chunks, weights=plan._chunks)
    assert lengths[4:].sum() > 0.5 * lengths.sum()  # most chunks stand in windows of half the greatest length or more


def test_short_rows_are_filled_by_the_split_that_fills_them(clips):
    """Where 8192 tokens hold two chunks of 1080p, the clean half is best just large enough for one of them."""
    spec = spec_of(32)
    blocks = split_blocks([clips], spec, 8, 1024)
    plan = PackPlan(clips, spec, window_chunks=8, row=blocks, seed=0)
    assert blocks.clean + blocks.noisy == 1024 and plan.efficiency().tokens >= 0.97
    longer = PackPlan(clips, spec, window_chunks=8, row=Blocks(379, 645), seed=0)  # what the longest windows want
    assert longer.efficiency().tokens < 0.95 and 0.5 * longer.context < plan.context < longer.context


def test_a_split_is_the_same_whoever_asks_and_follows_the_datasets_that_rows_are_of(clips):
    spec, few = spec_of(64), clips[:40]
    large = [info for info in few if info.height >= 720]
    small = [info for info in few if info.height < 720]
    both = lambda *weights: split_blocks([large, small], spec, 8, 2048, weights)
    assert both(1, 1) == both(3, 3)
    assert both(1, 0) == split_blocks([large], spec, 8, 2048)
    # Small pictures stand in longer windows, so they want more clean blocks.
    assert both(1, 0).clean < both(1, 3).clean <= both(0, 1).clean


def test_a_dataset_without_clips_cannot_be_split_for(clips):
    with pytest.raises(cuts.PlanError, match="the plan has no clips; check the dataset's split"):
        split_blocks([clips[:9], []], spec_of(64), 8, 512, (1, 1))


def test_more_clips_cost_hardly_more(clips):
    spec = spec_of(64)
    many = clips * 10
    started = time.process_time()
    blocks = split_blocks([many], spec, 8, 1024)
    plan = PackPlan(many, spec, window_chunks=8, row=blocks, seed=0)
    assert time.process_time() - started < 6
    assert plan.efficiency().tokens >= 0.97


@pytest.mark.parametrize("tokens", [4096, 8192, 32768])
def test_both_halves_have_room_for_a_chunk_of_every_clip(clips, tokens):
    spec = spec_of(32)
    blocks = split_blocks([clips[:200]], spec, 8, tokens // spec.block)
    assert blocks.clean + blocks.noisy == tokens // spec.block
    assert blocks.noisy >= 257 and blocks.clean >= 7  # a chunk of 1080p with its head, and the longest caption
