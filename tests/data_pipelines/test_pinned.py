"""Rows of clips that need no conversion, byte for byte: what a release may not change without saying so."""

import fractions
import hashlib

import numpy as np

from data_pipelines.clip import Clip, TextEvent, cut
from data_pipelines.index import ClipInfo
from data_pipelines.loader import row_source
from data_pipelines.plan import PackPlan
from data_pipelines.row_layout import TokenSpec

# The quickstart's tokens and clips, of content that no library's random numbers can change.
SPEC = TokenSpec(
    patch=8, chunk_frames=2, block=8, hop=125, hops=8, audio_tokens=4, channels=2, action_dim=3, text_bytes=16
)
FRAMES, NAMES = 21, ("left", "right", "jump")
ARRAYS = [
    "patches",
    "patch_before",
    "patch_extent",
    "patch_slot",
    "patch_number",
    "waveform",
    "actions",
    "text",
    "chunk_sample",
    "chunk_number",
    "chunk_valid",
    "video_at",
    "audio_at",
    "kind",
    "index",
    "slot",
    "position",
    "block_segment",
    "block_chunk",
    "block_role",
    "block_kind",
    "block_valid",
    "block_until",
]


def made_up(count: int, seed: int) -> np.ndarray:
    """Whole numbers without order, int64 [count]."""
    return (np.arange(count, dtype=np.int64) + seed) * 2654435761 % 2**32 >> 16


def make_clip(number: int, height: int, width: int) -> Clip:
    frames = FRAMES + 2 * number
    return Clip(
        video=(made_up(frames * height * width * 3, number) % 256).astype(np.uint8).reshape(frames, height, width, 3),
        audio=(made_up(frames * 1000, number) - 2**15).astype(np.int16).reshape(frames * 500, 2),
        actions=(made_up(frames * 3, number) % 7).astype(np.float32).reshape(frames, 3),
        action_names=NAMES,
        events=(TextEvent(0, f"clip {number}"), TextEvent(9, "rain"), TextEvent(14, "")),
        frame_rate=fractions.Fraction(12),
        sample_rate=6000,
        source="test",
        licence="CC0-1.0",
        seed=number,
        episode=f"test/{number:06d}",
    )


def test_rows_are_the_same_bytes_for_ever():
    sizes = [(32, 48), (32, 48), (24, 40), (29, 45), (32, 48)]
    clips = {clip.episode: clip for clip in (make_clip(number, *size) for number, size in enumerate(sizes))}

    class Memory:
        def read(self, info, start=0, stop=None):
            clip = clips[info.episode]
            return cut(clip, start, clip.frames if stop is None else stop)

    fields = ("episode", "frames", "frame_rate", "sample_rate", "channels", "action_names", "events")
    infos = [
        ClipInfo(
            split="train",
            file="train-00000-of-00001.array_record",
            record=clip.seed,
            bytes=0,
            height=clip.video.shape[1],
            width=clip.video.shape[2],
            video_codec="zstd",
            source="test",
            licence="CC0-1.0",
            seed=clip.seed,
            **{name: getattr(clip, name) for name in fields},
        )
        for clip in clips.values()
    ]
    plan = PackPlan(infos, SPEC, window_chunks=4, row=None, rows_windows=2, seed=5)
    source, digest = row_source(Memory(), plan, SPEC), hashlib.sha256()
    for index in (*range(2 * plan.rows_per_epoch), 10**9):
        row = source[index]
        for name in ARRAYS:
            digest.update(f"{name} {row[name].dtype} {row[name].shape}".encode() + row[name].tobytes())
    assert digest.hexdigest() == "48016942510938e03b1f464b6979b83cf3787875da86d0fcc395ac32a3187a87"
