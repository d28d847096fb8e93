"""The layout of a row: tokens in blocks, and what a row has room for (design decision D5).

A row is a sequence of blocks of `block` tokens: first the clean half, then the noisy half that shares
its content and positions (teacher forcing as one row, D7). A block belongs to one segment (clip window),
one chunk and one role, and is padded at its end, so that who sees whom is decided per pair of blocks.

    clean chunk:  [text, where an event starts] [head: actions, audio] [memory] [patches ...]
    noisy chunk:                                [head: actions, audio]          [patches ...]

The head of a clip without sound holds actions alone: silence that nobody recorded is not shown to the model.

Content (pixels, waveform, actions, bytes) is stored once a row; every token names its content by
`kind` and `index`. The last clean chunk of a window is left out: no noisy chunk ever sees it.
"""

import dataclasses
import enum
from collections.abc import Sequence

import numpy as np

from data_pipelines import patches as patch_lib

FOREVER = 2**30  # `until` of a text that no later event replaces


class TokenKind(enum.IntEnum):
    """What a token carries."""

    PAD = 0
    TEXT = 1
    ACTION = 2
    AUDIO = 3
    MEMORY = 4
    VIDEO = 5


class BlockKind(enum.IntEnum):
    """What a block holds; a head block holds actions and audio."""

    TEXT = 0
    HEAD = 1
    MEMORY = 2
    PATCH = 3


class Role(enum.IntEnum):
    """Clean blocks are context; noisy blocks are denoised and carry the loss."""

    CLEAN = 0
    NOISY = 1


@dataclasses.dataclass(frozen=True)
class TokenSpec:
    """How content becomes tokens: the part of the layout that training and serving share.

    Attributes:
      patch: Patch side in pixels.
      chunk_frames: Pixel frames in a chunk, the unit of autoregression.
      block: Tokens in a block.
      hop: Audio samples in one MDCT hop; `hops` hops make a chunk.
      hops: MDCT hops in a chunk.
      audio_tokens: Audio tokens in a chunk; each carries `hops // audio_tokens` hops of every channel.
      channels: Audio channels.
      action_dim: Length of the action vector, one vector a frame.
      text_bytes: Longest text event, in UTF-8 bytes.
    """

    patch: int
    chunk_frames: int
    block: int
    hop: int
    hops: int
    audio_tokens: int
    channels: int
    action_dim: int
    text_bytes: int

    def __post_init__(self):
        if self.audio_tokens and self.hops % self.audio_tokens:
            raise ValueError(f"tokens.hops={self.hops} must be a multiple of tokens.audio_tokens={self.audio_tokens}")

    @property
    def patch_dim(self) -> int:
        """Values in one patch row."""
        return self.chunk_frames * self.patch * self.patch * 3

    @property
    def audio_dim(self) -> int:
        """MDCT coefficients in one audio token; 1 without sound, for the width of arrays that hold no token."""
        return self.hop * self.channels * self.hops // self.audio_tokens if self.audio_tokens else 1

    @property
    def chunk_samples(self) -> int:
        """Audio samples in a chunk, per channel."""
        return self.hop * self.hops

    @property
    def head_tokens(self) -> int:
        """Action and audio tokens at the head of a chunk with sound."""
        return self.head(sound=True)

    def head(self, sound: bool) -> int:
        """Action and audio tokens at the head of a chunk, with or without sound."""
        return self.chunk_frames + (self.audio_tokens if sound else 0)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold `tokens` tokens."""
        return -(-tokens // self.block)


@dataclasses.dataclass(frozen=True)
class RowSpec:
    """Static capacities of a packed row.

    Attributes:
      chunks: Chunk slots.
      patches: Video patches.
      text: Text bytes.
      clean_blocks: Blocks of the clean half.
      noisy_blocks: Blocks of the noisy half.
    """

    chunks: int
    patches: int
    text: int
    clean_blocks: int
    noisy_blocks: int

    @property
    def blocks(self) -> int:
        """Blocks in the whole row."""
        return self.clean_blocks + self.noisy_blocks


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a window takes of a row's capacities (fields as in `RowSpec`)."""

    chunks: int
    patches: int
    text: int
    clean_blocks: int
    noisy_blocks: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def fits(self, row: RowSpec) -> bool:
        """Whether this cost is within every capacity of `row`."""
        return all(getattr(self, f.name) <= getattr(row, f.name) for f in dataclasses.fields(Cost))


def window_cost(
    spec: TokenSpec, height: int, width: int, chunks: int, text_lengths: Sequence[int], *, sound: bool = True
) -> Cost:
    """Cost of `chunks` chunks of `height x width` video with text events of the given byte lengths."""
    rows, columns = patch_lib.grid_shape(height, width, spec.patch)
    picture = spec.blocks_for(rows * columns)
    head = spec.blocks_for(spec.head(sound))
    text = sum(spec.blocks_for(n) for n in text_lengths)
    return Cost(
        chunks=chunks,
        patches=chunks * rows * columns,
        text=sum(text_lengths),
        clean_blocks=text + (chunks - 1) * (head + 1 + picture),
        noisy_blocks=chunks * (head + picture),
    )


@dataclasses.dataclass(frozen=True)
class TokenRun:
    """Tokens of one kind of content in order, before they are cut into blocks."""

    kind: np.ndarray  # uint8 [tokens], TokenKind
    index: np.ndarray  # int32 [tokens], into the content of that kind
    position: np.ndarray  # float32 [tokens, 3]: chunk time, patch row, patch column

    def __add__(self, other: "TokenRun") -> "TokenRun":
        return TokenRun(
            np.concatenate([self.kind, other.kind]),
            np.concatenate([self.index, other.index]),
            np.concatenate([self.position, other.position]),
        )


def _run(kind: TokenKind, first: int, time: np.ndarray, place: np.ndarray | None = None) -> TokenRun:
    position = np.zeros((len(time), 3), np.float32)
    position[:, 0] = time
    if place is not None:
        position[:, 1:] = place
    index = np.arange(first, first + len(time), dtype=np.int32)
    return TokenRun(np.full(len(time), kind, np.uint8), index, position)


def head_run(spec: TokenSpec, slot: int, chunk: int, *, sound: bool = True) -> TokenRun:
    """Action tokens of the chunk in `slot`, and its audio tokens if it has sound, on the chunk's clock."""
    actions = chunk + np.arange(spec.chunk_frames) / spec.chunk_frames
    run = _run(TokenKind.ACTION, slot * spec.chunk_frames, actions)
    if sound and spec.audio_tokens:
        audio = chunk + np.arange(spec.audio_tokens) / spec.audio_tokens
        run = run + _run(TokenKind.AUDIO, slot * spec.audio_tokens, audio)
    return run


def memory_run(spec: TokenSpec, chunk: int) -> TokenRun:
    """The block of memory tokens of a chunk."""
    place = np.stack([np.zeros(spec.block), np.arange(spec.block)], axis=-1)
    return _run(TokenKind.MEMORY, 0, np.full(spec.block, chunk), place)


def picture_run(first_patch: int, chunk: int, grid: tuple[int, int]) -> TokenRun:
    """Patch tokens of a chunk; `first_patch` is the place of its first patch in the row's content."""
    place = patch_lib.patch_coordinates(*grid)
    return _run(TokenKind.VIDEO, first_patch, np.full(len(place), chunk), place)


def text_run(first_byte: int, length: int, chunk: int) -> TokenRun:
    """Byte tokens of a text event that starts at `chunk`."""
    place = np.stack([np.zeros(length), np.arange(length)], axis=-1)
    return _run(TokenKind.TEXT, first_byte, np.full(length, chunk), place)


class RowBuilder:
    """Fills the token and block arrays of one row, block by block.

    Layout arrays of the result (`tokens = blocks * block`):
      kind uint8 [tokens], index int32 [tokens], slot int32 [tokens], position float32 [tokens, 3];
      block_segment, block_chunk, block_role, block_kind, block_valid, block_until: int32 [blocks].
    Empty blocks have segment -1 and valid 0.
    """

    def __init__(self, spec: TokenSpec, blocks: int):
        self._block = spec.block
        self._blocks = blocks
        tokens = blocks * spec.block
        self.arrays = {
            "kind": np.zeros(tokens, np.uint8),
            "index": np.zeros(tokens, np.int32),
            "slot": np.zeros(tokens, np.int32),
            "position": np.zeros((tokens, 3), np.float32),
            "block_segment": np.full(blocks, -1, np.int32),
            **{f"block_{name}": np.zeros(blocks, np.int32) for name in ("chunk", "role", "kind", "valid", "until")},
        }
        self.next_block = 0

    def add(
        self,
        run: TokenRun,
        *,
        segment: int,
        chunk: int,
        slot: int,
        role: Role,
        kind: BlockKind,
        until: int = FOREVER,
    ) -> int:
        """Appends a run as whole blocks; returns the sequence position of its first token."""
        count = len(run.kind)
        first, blocks = self.next_block, -(-count // self._block)
        if first + blocks > self._blocks:
            raise ValueError(f"row overflow: {first + blocks} blocks do not fit {self._blocks}")
        start = first * self._block
        for name in ("kind", "index", "position"):
            self.arrays[name][start : start + count] = getattr(run, name)
        self.arrays["slot"][start : start + blocks * self._block] = slot
        here = slice(first, first + blocks)
        for name, value in (
            ("segment", segment),
            ("chunk", chunk),
            ("role", role),
            ("kind", kind),
            ("until", until),
        ):
            self.arrays[f"block_{name}"][here] = value
        self.arrays["block_valid"][here] = np.clip(count - np.arange(blocks) * self._block, 0, self._block)
        self.next_block = first + blocks
        return start
