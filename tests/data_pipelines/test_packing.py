"""Packing: blocks are pure, every item of content is there once in each role, every pointer is right."""

import dataclasses
import fractions
import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import packing, patches
from data_pipelines.clip import Clip, TextEvent
from data_pipelines.packing import Window
from data_pipelines.row_layout import BlockKind, Role, RowSpec, TokenKind, TokenSpec

TEXTS = st.sampled_from(["", "rain", "night falls", "雪が降る", "a long prompt, longer than one block of tokens"])


def make_window(
    spec: TokenSpec, height: int, width: int, chunks: int, events, seed: int, silent: bool = False
) -> Window:
    """A window of random content whose clock agrees with `spec`."""
    rng = np.random.default_rng(seed)
    frames, samples = chunks * spec.chunk_frames, chunks * spec.chunk_samples
    clip = Clip(
        video=rng.integers(0, 256, (frames, height, width, 3), np.uint8),
        audio=rng.integers(-(2**15), 2**15, (samples, 0 if silent else spec.channels)).astype(np.int16),
        actions=rng.random((frames, spec.action_dim), np.float32),
        action_names=tuple(f"axis{i}" for i in range(spec.action_dim)),
        events=tuple(TextEvent(frame, text) for frame, text in events),
        frame_rate=fractions.Fraction(spec.chunk_frames),
        sample_rate=spec.chunk_samples,
        source="test",
        licence="CC0-1.0",
        seed=seed,
        episode=f"test/{seed:06d}",
    )
    lead_in = rng.integers(-(2**15), 2**15, (spec.hop, spec.channels)).astype(np.int16)
    return Window(clip, lead_in, sample_id=1000 + seed, first_chunk=7 * seed)


def ceil(a: int, b: int) -> int:
    return (a + b - 1) // b


def texts_of(window: Window, spec: TokenSpec) -> list[tuple[int, int, bytes]]:
    """Oracle: asks at every chunk which text is in force at the chunk's end, and cuts where that changes."""
    chunks = len(window.clip.video) // spec.chunk_frames
    in_force = []
    for chunk in range(chunks):
        begun = [event for event in window.clip.events if event.frame < (chunk + 1) * spec.chunk_frames]
        in_force.append(begun[-1] if begun else None)
    spans = []
    for chunk, event in enumerate(in_force):
        if event is None or not event.text or (chunk and in_force[chunk - 1] is event):
            continue
        after = [later for later in range(chunk, chunks) if in_force[later] is not event]
        spans.append((chunk, after[0] if after else 2**30, event.text.encode()))
    return spans


def row_for(spec: TokenSpec, windows: list[Window], spare: int) -> RowSpec:
    """Oracle of the cost: counts tokens chunk by chunk."""
    total = {field.name: spare for field in dataclasses.fields(RowSpec)}
    for window in windows:
        frames, height, width, _ = window.clip.video.shape
        count = ceil(height, spec.patch) * ceil(width, spec.patch)
        audio = spec.audio_tokens if window.clip.channels else 0
        blocks = ceil(spec.chunk_frames + audio, spec.block) + ceil(count, spec.block)
        chunks = frames // spec.chunk_frames
        for _ in range(chunks):
            total["chunks"] += 1
            total["patches"] += count
            total["noisy_blocks"] += blocks
            total["clean_blocks"] += blocks + 1
        total["clean_blocks"] -= blocks + 1
        for _, _, text in texts_of(window, spec):
            total["text"] += len(text)
            total["clean_blocks"] += ceil(len(text), spec.block)
    return RowSpec(**total)


@st.composite
def specs(draw) -> TokenSpec:
    audio_tokens = draw(st.integers(0, 3))
    return TokenSpec(
        patch=draw(st.integers(1, 5)),
        chunk_frames=draw(st.integers(1, 4)),
        block=draw(st.sampled_from([1, 3, 4, 8, 16])),
        hop=draw(st.integers(1, 5)),
        hops=max(audio_tokens, 1) * draw(st.integers(1, 3)),
        audio_tokens=audio_tokens,
        channels=draw(st.integers(1, 2)),
        action_dim=draw(st.integers(0, 3)),
        text_bytes=64,
    )


@st.composite
def rows(draw) -> tuple[TokenSpec, RowSpec, list[Window]]:
    spec = draw(specs())
    windows = []
    for seed in range(draw(st.integers(1, 3))):
        chunks = draw(st.integers(1, 4))
        frames = draw(st.sets(st.integers(0, chunks * spec.chunk_frames - 1), max_size=5))
        events = [(frame, draw(TEXTS)) for frame in sorted(frames)]
        height, width, silent = draw(st.integers(1, 12)), draw(st.integers(1, 12)), draw(st.booleans())
        windows.append(make_window(spec, height, width, chunks, events, seed, silent))
    return spec, row_for(spec, windows, spare=draw(st.integers(0, 2))), windows


def tokens_of(spec: TokenSpec, packed: dict[str, np.ndarray]) -> list[dict]:
    """Every valid token with its block's fields."""
    tokens = []
    for block, valid in enumerate(packed["block_valid"]):
        for at in range(block * spec.block, block * spec.block + valid):
            fields = {name: int(packed[f"block_{name}"][block]) for name in ("segment", "chunk", "role", "until")}
            own = {name: int(packed[name][at]) for name in ("kind", "index", "slot")}
            tokens.append({"at": at, "position": packed["position"][at], **fields, **own})
    return tokens


@settings(deadline=None, max_examples=60)
@given(rows())
def test_blocks_are_pure_and_padded_at_their_end(drawn):
    spec, row, windows = drawn
    packed = packing.pack_row(spec, row, windows)
    block_of = {
        TokenKind.TEXT: BlockKind.TEXT,
        TokenKind.ACTION: BlockKind.HEAD,
        TokenKind.AUDIO: BlockKind.HEAD,
        TokenKind.MEMORY: BlockKind.MEMORY,
        TokenKind.VIDEO: BlockKind.PATCH,
    }
    kinds = packed["kind"].reshape(-1, spec.block)
    slots = packed["slot"].reshape(-1, spec.block)
    assert len(kinds) == row.blocks
    for block in range(row.blocks):
        valid = packed["block_valid"][block]
        assert (kinds[block, :valid] != TokenKind.PAD).all() and (kinds[block, valid:] == TokenKind.PAD).all()
        assert (packed["block_segment"][block] == -1) == (valid == 0)
        if valid:
            assert {block_of[kind] for kind in kinds[block, :valid]} == {packed["block_kind"][block]}
            assert packed["block_role"][block] == (Role.NOISY if block >= row.clean_blocks else Role.CLEAN)
            first = sum(len(w.clip.video) // spec.chunk_frames for w in windows[: packed["block_segment"][block]])
            assert set(slots[block]) == {first + packed["block_chunk"][block]}


@settings(deadline=None, max_examples=60)
@given(rows())
def test_content_appears_once_noisy_and_once_clean_but_for_the_last_chunk(drawn):
    spec, row, windows = drawn
    packed = packing.pack_row(spec, row, windows)
    found = {}
    for token in tokens_of(spec, packed):
        key = token["segment"], token["chunk"], token["kind"], token["role"]
        found.setdefault(key, []).append((token["index"], tuple(token["position"])))
    expected = set()
    slot = patch = 0
    for segment, window in enumerate(windows):
        frames, height, width, _ = window.clip.video.shape
        count, chunks = ceil(height, spec.patch) * ceil(width, spec.patch), frames // spec.chunk_frames
        for chunk in range(chunks):
            items = {
                TokenKind.ACTION: range(slot * spec.chunk_frames, (slot + 1) * spec.chunk_frames),
                TokenKind.AUDIO: range(
                    slot * spec.audio_tokens, (slot + (window.clip.channels > 0)) * spec.audio_tokens
                ),
                TokenKind.VIDEO: range(patch, patch + count),
            }
            for kind, indices in items.items():
                noisy = found.get((segment, chunk, kind, Role.NOISY), [])
                clean = found.get((segment, chunk, kind, Role.CLEAN), [])
                assert [index for index, _ in noisy] == list(indices)
                assert clean == (noisy if chunk < chunks - 1 else [])
                assert len({position for _, position in noisy}) == len(noisy)
                assert all(chunk <= position[0] < chunk + 1 for _, position in noisy)
            memory = found.get((segment, chunk, TokenKind.MEMORY, Role.CLEAN), [])
            assert [index for index, _ in memory] == (list(range(spec.block)) if chunk < chunks - 1 else [])
            expected |= {(segment, chunk, kind, role) for kind in (*items, TokenKind.MEMORY) for role in Role}
            slot, patch = slot + 1, patch + count
    others = set(found) - expected
    assert {kind for _, _, kind, _ in others} <= {TokenKind.TEXT}


@settings(deadline=None, max_examples=60)
@given(rows())
def test_pointers_and_content_are_those_of_the_clips(drawn):
    spec, row, windows = drawn
    packed = packing.pack_row(spec, row, windows)
    slot = patch = 0
    for window in windows:
        frames, height, width, _ = window.clip.video.shape
        silent = window.clip.channels == 0
        wave = None if silent else np.concatenate([window.lead_in, window.clip.audio])
        for chunk in range(frames // spec.chunk_frames):
            count = ceil(height, spec.patch) * ceil(width, spec.patch)
            here = slice(patch, patch + count)
            video = patches.unpatchify(packed["patches"][None, here], height, width, spec.chunk_frames, spec.patch)
            start = chunk * spec.chunk_frames
            np.testing.assert_array_equal(video, window.clip.video[start : start + spec.chunk_frames])
            np.testing.assert_array_equal(packed["patch_extent"][here], patches.patch_extent(height, width, spec.patch))
            assert (packed["patch_slot"][here] == slot).all()
            np.testing.assert_array_equal(packed["patch_number"][here], np.arange(count))
            actions = packed["actions"][slot * spec.chunk_frames : (slot + 1) * spec.chunk_frames]
            np.testing.assert_array_equal(actions, window.clip.actions[start : start + spec.chunk_frames])
            assert packed["chunk_audio"][slot] == (spec.audio_tokens > 0 and not silent)
            if wave is None:
                assert not packed["waveform"][slot].any()
            elif spec.audio_tokens:  # one hop before the chunk, then the chunk
                first = chunk * spec.chunk_samples
                expected = wave[first : first + spec.hop + spec.chunk_samples]
                np.testing.assert_array_equal(packed["waveform"][slot], expected)
            assert packed["chunk_sample"][slot] == window.sample_id
            assert packed["chunk_number"][slot] == window.first_chunk + chunk
            assert packed["chunk_valid"][slot]
            slot, patch = slot + 1, patch + count
    assert not packed["chunk_valid"][slot:].any() and (packed["patch_slot"][patch:] == -1).all()
    assert not packed["chunk_audio"][slot:].any()
    noisy = row.clean_blocks * spec.block
    heard = np.repeat(packed["chunk_audio"], spec.audio_tokens)
    for name, kind, used in (
        ("video_at", TokenKind.VIDEO, np.arange(row.patches) < patch),
        ("audio_at", TokenKind.AUDIO, heard),
    ):
        at = packed[name][used]
        assert (packed["kind"][at] == kind).all() and (at >= noisy).all()
        np.testing.assert_array_equal(packed["index"][at], np.flatnonzero(used))
        assert (packed[name][~used] == 0).all()


@settings(deadline=None, max_examples=60)
@given(rows())
def test_text_stands_in_the_chunk_where_it_begins_until_it_is_replaced(drawn):
    spec, row, windows = drawn
    packed = packing.pack_row(spec, row, windows)
    found: dict[tuple[int, int, int], bytearray] = {}
    for token in tokens_of(spec, packed):
        if token["kind"] == TokenKind.TEXT:
            assert token["role"] == Role.CLEAN
            key = token["segment"], token["chunk"], token["until"]
            found.setdefault(key, bytearray()).append(packed["text"][token["index"]])
    expected = {
        (segment, start, end): text
        for segment, window in enumerate(windows)
        for start, end, text in texts_of(window, spec)
    }
    assert found == expected


SPEC = TokenSpec(
    patch=4, chunk_frames=2, block=8, hop=4, hops=2, audio_tokens=2, channels=1, action_dim=2, text_bytes=16
)
ROW = RowSpec(chunks=3, patches=12, text=16, clean_blocks=10, noisy_blocks=6)
window = functools.partial(make_window, SPEC, 8, 8, seed=3)


def test_the_order_within_a_row_is_text_head_memory_patches():
    packed = packing.pack_row(SPEC, ROW, [window(chunks=2, events=[(0, "sun")])])
    kinds = [BlockKind(kind).name for kind in packed["block_kind"][packed["block_valid"] > 0]]
    assert kinds == ["TEXT", "HEAD", "MEMORY", "PATCH", "HEAD", "PATCH", "HEAD", "PATCH"]
    np.testing.assert_array_equal(packed["block_valid"][[0, 1, 2, 3]], [3, 4, 8, 4])


def test_a_window_without_sound_has_no_audio_tokens():
    packed = packing.pack_row(SPEC, ROW, [window(chunks=2, events=[], silent=True)])
    assert not (packed["kind"] == TokenKind.AUDIO).any()
    np.testing.assert_array_equal(packed["block_valid"][[0, 1, 2]], [2, 8, 4])


def test_windows_name_their_table_of_tasks():
    windows = [window(chunks=1, events=[]), dataclasses.replace(window(chunks=1, events=[]), table=2)]
    packed = packing.pack_row(SPEC, ROW, windows)
    np.testing.assert_array_equal(packed["chunk_table"], [0, 2, 0])


def test_a_row_may_be_empty():
    packed = packing.pack_row(SPEC, ROW, [])
    assert not packed["chunk_valid"].any() and not packed["kind"].any() and not packed["block_valid"].any()


def test_times_within_a_chunk_follow_the_clock():
    packed = packing.pack_row(SPEC, ROW, [window(chunks=2, events=[])])
    head = packed["position"][(ROW.clean_blocks + 2) * SPEC.block :][:4]
    np.testing.assert_array_equal(head, [[1, 0, 0], [1.5, 0, 0], [1, 0, 0], [1.5, 0, 0]])


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(RowSpec)])
def test_a_full_row_names_the_episode_and_the_capacity(field):
    windows = [window(chunks=2, events=[(0, "sun")])]
    exact = row_for(SPEC, windows, spare=0)
    packing.pack_row(SPEC, exact, windows)
    short = dataclasses.replace(exact, **{field: getattr(exact, field) - 1})
    with pytest.raises(
        ValueError, match=rf"test/000003: .*row\.{field}={getattr(short, field)} to {getattr(exact, field)}"
    ):
        packing.pack_row(SPEC, short, windows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video": np.zeros((3, 8, 8, 3), np.uint8)}, "3 frames are not whole chunks of 2"),
        ({"audio": np.zeros((16, 2), np.int16)}, "tokens.channels=1"),
        ({"audio": np.zeros((15, 1), np.int16)}, "tokens.hop=4"),
        ({"actions": np.zeros((4, 1), np.float32)}, "1 action values but tokens.action_dim=2"),
        ({"events": (TextEvent(0, "é" * 9),)}, "18 bytes but tokens.text_bytes=16"),
    ],
)
def test_a_window_that_disagrees_with_the_spec_names_the_episode(change, message):
    good = window(chunks=2, events=[])
    bad = dataclasses.replace(good, clip=dataclasses.replace(good.clip, **change))
    with pytest.raises(ValueError, match="test/000003: .*" + message):
        packing.pack_row(SPEC, ROW, [bad])


def test_a_wrong_lead_in_names_the_episode():
    bad = dataclasses.replace(window(chunks=2, events=[]), lead_in=np.zeros((3, 1), np.int16))
    with pytest.raises(ValueError, match="test/000003: lead_in"):
        packing.pack_row(SPEC, ROW, [bad])


def test_audio_tokens_must_divide_the_hops():
    with pytest.raises(ValueError, match="tokens.hops=2 must be a multiple of tokens.audio_tokens=3"):
        dataclasses.replace(SPEC, audio_tokens=3)
