"""A world that is played while it is read: endless rows of clips that nobody stored.

A block of clips is planned as a dataset would be, and every epoch over the block plays other seeds. So rows stay a pure
function of their index, the position is still one integer, and no clip is seen twice.
"""

from __future__ import annotations

import dataclasses
import fractions

from data_pipelines.clip import Clip, TextEvent, cut
from data_pipelines.index import ClipInfo
from data_pipelines.plan import PackPlan, WindowRef
from data_pipelines.row_layout import RowSpec, TokenSpec
from data_pipelines.shards import Dataset
from data_pipelines.sources.playground import policies, weather
from data_pipelines.sources.playground.record import LICENCE, SOURCE, episode, record
from data_pipelines.sources.playground.world import ACTION_NAMES, World

# Of the split `train`: other splits of the source have odd seeds below this.
_SEEDS = 2**30


@dataclasses.dataclass(frozen=True)
class LivePlayground:
    """What a loader and a plan need of a dataset, for the playground: the split `train` is played, others are stored.

    Attributes:
        stored: the dataset with the other splits.
        world: what is played.
        policy: who plays, a key of `POLICIES`.
        block: clips that are planned together.
        frames: length of a clip; windows of one clip come close after one another.
        seed: which clips.
    """

    stored: Dataset
    world: World
    policy: str
    block: int
    frames: int
    seed: int

    def clips(self, split: str) -> list[ClipInfo]:
        """The clips of a split; of `train` those of the first block, without their texts."""
        if split != "train":
            return self.stored.clips(split)
        return [self._info(number) for number in range(self.block)]

    def read(self, info: ClipInfo, start: int = 0, stop: int | None = None) -> Clip:
        """Plays, or reads, the frames `start` to `stop` of a clip."""
        if info.split != "train":
            return self.stored.read(info, start, stop)
        clip = record(self.world, info.seed, self.policy, self.frames, split="train")
        return cut(clip, start, self.frames if stop is None else stop)

    def plan(
        self, spec: TokenSpec, *, window_chunks: int, row: RowSpec | None = None, rows_windows: int = 1, seed: int
    ) -> LivePlan:
        """Plans endless rows; arguments as of `PackPlan`."""
        window = window_chunks * spec.chunk_frames
        apart = policies.least_between_texts(self.world)
        text = max(weather.EVENTS, key=len)
        # As many texts as any window may hold stand at the beginning of every window, so that every row has room.
        most = 1 + -(-(window - 1) // apart)  # one in force at the window's beginning, others within it
        events = tuple(
            TextEvent(frame, text)
            for first in range(0, self.frames, window)
            for frame in range(first, min(self.frames, first + most * spec.chunk_frames), spec.chunk_frames)
        )
        infos = [dataclasses.replace(info, events=events) for info in self.clips("train")]
        return LivePlan(
            PackPlan(infos, spec, window_chunks=window_chunks, row=row, rows_windows=rows_windows, seed=seed), self
        )

    def of_block(self, info: ClipInfo, block: int) -> ClipInfo:
        """The clip of another block in the place of one of the first."""
        return self._info(info.record + block * self.block)

    def _info(self, number: int) -> ClipInfo:
        seed = 2 * ((number + self.seed * self.block) % _SEEDS)
        return ClipInfo(
            split="train",
            file="",
            record=number,
            bytes=0,
            episode=episode("train", seed),
            frames=self.frames,
            height=self.world.height,
            width=self.world.width,
            frame_rate=fractions.Fraction(self.world.frame_rate),
            sample_rate=self.world.sample_rate,
            channels=2,
            video_codec="",
            action_names=ACTION_NAMES,
            events=(),
            source=SOURCE,
            licence=LICENCE,
            seed=seed,
        )


class LivePlan:
    """The rows of a `PackPlan` over a block of clips, with other clips in every epoch; attributes as there."""

    def __init__(self, block: PackPlan, world: LivePlayground):
        """Takes the plan of the first block."""
        self._block, self._world = block, world
        self.infos, self.spec, self.row_spec, self.actions = block.infos, block.spec, block.row_spec, block.actions
        self.rows_per_epoch, self.chunks_per_row = block.rows_per_epoch, block.chunks_per_row
        self.left_out = block.left_out
        self.efficiency = block.efficiency

    def row(self, index: int) -> list[WindowRef]:
        """The windows of row `index`: a pure function of the seeds and `index`."""
        block = int(index) // self.rows_per_epoch
        return [dataclasses.replace(ref, info=self._world.of_block(ref.info, block)) for ref in self._block.row(index)]
