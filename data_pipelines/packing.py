"""Block-pure packing: windows of clips -> one row of tokens with static shapes (design decision D5)."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines import patches as patch_lib
from data_pipelines.clip import Clip
from data_pipelines.row_layout import (
    FOREVER,
    BlockKind,
    Cost,
    Role,
    RowBuilder,
    RowSpec,
    TokenSpec,
    head_run,
    memory_run,
    picture_run,
    text_run,
    window_cost,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Window:
    """A run of whole chunks of a clip, as it enters a row.

    Attributes:
      clip: Exactly the window's frames; its first event is the text in force at its start. Its actions are those of the
        run's schema, and its sound is on the clock of the tokens, or has no channels.
      lead_in: int16 [hop, channels], the samples just before the window (zeros at a clip's start): the first
        MDCT frame overlaps them.
      sample_id: Identity of this window in this epoch, for randomness keyed by sample (D11).
      first_chunk: Chunk number of the window's start within its clip.
      table: Which table of task weights holds for it.
    """

    clip: Clip
    lead_in: np.ndarray
    sample_id: int
    first_chunk: int
    table: int = 0

    @property
    def sound(self) -> bool:
        """Whether the clip has sound."""
        return self.clip.channels > 0


def text_spans(clip: Clip, chunk_frames: int, chunks: int) -> list[tuple[int, int, bytes]]:
    """(start chunk, end chunk, bytes) of every text of a window; an empty text ends the previous one."""
    starts = [event.frame // chunk_frames for event in clip.events]
    texts = [event.text.encode() for event in clip.events]
    return [
        (start, end if end < chunks else FOREVER, text)
        for (start, end), text in zip(itertools.pairwise([*starts, chunks]), texts, strict=True)
        if start < end and text
    ]


def pack_row(spec: TokenSpec, row: RowSpec, windows: Sequence[Window]) -> dict[str, np.ndarray]:
    """Packs windows into one row.

    Returns:
      The arrays of `RowBuilder` and the content:
        patches uint8 [patches, patch_dim], patch_before int32 [patches, 9] (see `patches_before`),
        patch_extent uint8 [patches, 2], patch_slot int32 [patches] (-1 where empty),
        patch_number int32 [patches] (place within its chunk), waveform int16
        [chunks, (hops + 1) * hop, channels] (one hop of look-back first),
        actions float32 [chunks * chunk_frames, action_dim], text uint8 [text],
        chunk_sample uint32 [chunks], chunk_number int32 [chunks], chunk_valid bool [chunks],
        chunk_audio bool [chunks] (whether the chunk has audio tokens),
        chunk_table int32 [chunks] (which table of task weights holds),
        video_at int32 [patches] and audio_at int32 [chunks * audio_tokens]: where the noisy token of each
        patch and audio token stands in the row (0 where empty).

    Raises:
      ValueError: A window does not fit, or disagrees with `spec`; the message names the clip's episode.
    """
    content = {
        "patches": np.zeros((row.patches, spec.patch_dim), np.uint8),
        "patch_extent": np.zeros((row.patches, 2), np.uint8),
        "patch_slot": np.full(row.patches, -1, np.int32),
        "patch_number": np.zeros(row.patches, np.int32),
        "patch_before": np.full((row.patches, 9), -1, np.int32),
        "waveform": np.zeros((row.chunks, spec.chunk_samples + spec.hop, spec.channels), np.int16),
        "actions": np.zeros((row.chunks * spec.chunk_frames, spec.action_dim), np.float32),
        "text": np.zeros(row.text, np.uint8),
        "chunk_sample": np.zeros(row.chunks, np.uint32),
        "chunk_number": np.zeros(row.chunks, np.int32),
        "chunk_valid": np.zeros(row.chunks, bool),
        "chunk_audio": np.zeros(row.chunks, bool),
        "chunk_table": np.zeros(row.chunks, np.int32),
        "video_at": np.zeros(row.patches, np.int32),
        "audio_at": np.zeros(row.chunks * spec.audio_tokens, np.int32),
    }
    clean, noisy = RowBuilder(spec, row.clean_blocks), RowBuilder(spec, row.noisy_blocks)
    used = Cost(chunks=0, patches=0, text=0, clean_blocks=0, noisy_blocks=0)
    slot = patch = byte = 0
    for segment, window in enumerate(windows):
        clip = window.clip
        _check_window(spec, window)
        frames, height, width, _ = clip.video.shape
        chunks = frames // spec.chunk_frames
        grid = patch_lib.grid_shape(height, width, spec.patch)
        count = grid[0] * grid[1]
        spans = {start: (end, text) for start, end, text in text_spans(clip, spec.chunk_frames, chunks)}
        texts = [len(text) for _, text in spans.values()]
        used = used + window_cost(spec, height, width, chunks, texts, sound=window.sound)
        _check_room(row, used, clip.episode)
        _fill_content(spec, content, window, slot, patch)
        for chunk in range(chunks):
            place = {"segment": segment, "chunk": chunk, "slot": slot}
            head = head_run(spec, slot, chunk, sound=window.sound)
            picture = picture_run(patch, chunk, grid)
            if chunk in spans:
                until, text = spans[chunk]
                content["text"][byte : byte + len(text)] = np.frombuffer(text, np.uint8)
                run = text_run(byte, len(text), chunk)
                clean.add(run, **place, role=Role.CLEAN, kind=BlockKind.TEXT, until=until)
                byte += len(text)
            if chunk < chunks - 1:
                clean.add(head, **place, role=Role.CLEAN, kind=BlockKind.HEAD)
                clean.add(memory_run(spec, chunk), **place, role=Role.CLEAN, kind=BlockKind.MEMORY)
                clean.add(picture, **place, role=Role.CLEAN, kind=BlockKind.PATCH)
            offset = row.clean_blocks * spec.block
            at = offset + noisy.add(head, **place, role=Role.NOISY, kind=BlockKind.HEAD)
            if window.sound:
                audio = slice(slot * spec.audio_tokens, (slot + 1) * spec.audio_tokens)
                content["audio_at"][audio] = at + spec.chunk_frames + np.arange(spec.audio_tokens)
            at = offset + noisy.add(picture, **place, role=Role.NOISY, kind=BlockKind.PATCH)
            content["video_at"][patch : patch + count] = at + np.arange(count)
            slot, patch = slot + 1, patch + count
    layout = {name: np.concatenate([clean.arrays[name], noisy.arrays[name]]) for name in clean.arrays}
    return content | layout


def _fill_content(spec: TokenSpec, content: Mapping[str, np.ndarray], window: Window, slot: int, patch: int) -> None:
    clip = window.clip
    height, width = clip.video.shape[1:3]
    rows = patch_lib.patchify(clip.video, spec.chunk_frames, spec.patch)
    chunks, count, _ = rows.shape
    here = slice(patch, patch + chunks * count)
    content["patches"][here] = rows.reshape(chunks * count, -1)
    content["patch_extent"][here] = np.tile(patch_lib.patch_extent(height, width, spec.patch), (chunks, 1))
    content["patch_slot"][here] = slot + np.repeat(np.arange(chunks), count)
    content["patch_number"][here] = np.tile(np.arange(count), chunks)
    grid = patch_lib.grid_shape(height, width, spec.patch)
    content["patch_before"][here] = patches_before(patch, chunks, grid)
    slots = slice(slot, slot + chunks)
    if spec.audio_tokens and window.sound:
        content["chunk_audio"][slots] = True
        wave = np.concatenate([window.lead_in, clip.audio])
        starts = np.arange(chunks)[:, None] * spec.chunk_samples
        content["waveform"][slots] = wave[starts + np.arange(spec.chunk_samples + spec.hop)]
    content["actions"][slot * spec.chunk_frames : (slot + chunks) * spec.chunk_frames] = clip.actions
    content["chunk_sample"][slots] = window.sample_id
    content["chunk_number"][slots] = window.first_chunk + np.arange(chunks)
    content["chunk_valid"][slots] = True
    content["chunk_table"][slots] = window.table


def patches_before(first: int, chunks: int, grid: tuple[int, int]) -> np.ndarray:
    """Where the 3 x 3 patches around each patch stand one chunk earlier, int32 [chunks * patches, 9], -1 for none.

    Args:
      first: Place of the first patch of these consecutive chunks in the row's content.
      chunks: How many chunks; the first has nothing before it.
      grid: Rows and columns of the patch grid.
    """
    near = patch_lib.neighbourhood(*grid)
    starts = first + len(near) * (np.arange(chunks) - 1)[:, None, None]
    before = np.where(near >= 0, near + starts, -1)
    before[0] = -1
    return before.reshape(-1, 9).astype(np.int32)


def _check_room(row: RowSpec, used: Cost, episode: str) -> None:
    for name, need in dataclasses.asdict(used).items():
        if need > getattr(row, name):
            raise ValueError(f"{episode}: the row is full; raise row.{name}={getattr(row, name)} to {need}")


def _check_window(spec: TokenSpec, window: Window) -> None:
    clip = window.clip
    frames = len(clip.video)
    samples = frames // spec.chunk_frames * spec.chunk_samples
    if frames == 0 or frames % spec.chunk_frames:
        raise ValueError(f"{clip.episode}: {frames} frames are not whole chunks of {spec.chunk_frames}")
    hears = spec.audio_tokens and window.sound
    if hears and clip.audio.shape != (samples, spec.channels):
        raise ValueError(
            f"{clip.episode}: audio {clip.audio.shape} but tokens.hop={spec.hop}, tokens.hops={spec.hops} "
            f"and tokens.channels={spec.channels} need {(samples, spec.channels)} for {frames} frames"
        )
    if hears and window.lead_in.shape != (spec.hop, spec.channels):
        raise ValueError(
            f"{clip.episode}: lead_in {window.lead_in.shape} but tokens.hop and tokens.channels need "
            f"{(spec.hop, spec.channels)}"
        )
    if clip.actions.shape[1] != spec.action_dim:
        raise ValueError(
            f"{clip.episode}: {clip.actions.shape[1]} action values but tokens.action_dim={spec.action_dim}"
        )
    longest = max((len(event.text.encode()) for event in clip.events), default=0)
    if longest > spec.text_bytes:
        raise ValueError(f"{clip.episode}: a text event has {longest} bytes but tokens.text_bytes={spec.text_bytes}")
