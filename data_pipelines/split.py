"""How many of a row's blocks are clean and how many noisy, where windows are cut to fill it.

The more blocks are clean, the longer windows may be, so the more context a chunk has. But a row holds few chunks of
large pictures, and only some splits let them, with smaller ones, fill both halves. So splits are tried from the one
that the longest windows would want downwards, with a sample of the clips, and the first that fills rows well is taken:
as much context as full rows allow. Nothing of it is random, so all processes find the same split, and a run that is
started again finds it again.
"""

from collections.abc import Sequence

import numpy as np

from data_pipelines import cuts
from data_pipelines.cuts import PlanError
from data_pipelines.draws import Purpose, draw
from data_pipelines.fill import Blocks, Stock, fill
from data_pipelines.index import ClipInfo
from data_pipelines.row_layout import TokenSpec
from data_pipelines.windows import chunks_of

# A split is taken where this share of the sample's blocks holds something; less than half of the clean blocks that the
# longest windows want is never tried.
_FULL, _LEAST = 0.975, 0.5
_STEPS = 128  # splits that are tried are this part of a row apart
# A try is cheaper than a plan: so many clips of a dataset, and fewer attempts at a pattern.
_SAMPLE, _ATTEMPTS = 256, 2
# The clean half that is tried first, of what windows cut nowhere would need: every cut saves some.
_CUT = 0.975


def split_blocks(
    datasets: Sequence[Sequence[ClipInfo]],
    spec: TokenSpec,
    window_chunks: int,
    blocks: int,
    weights: Sequence[float] = (1.0,),
) -> Blocks:
    """Splits the blocks of a row, for windows of up to `window_chunks` that are cut to fill it.

    Args:
      datasets: The clips of each dataset; a row holds those of one.
      spec: How content becomes tokens.
      window_chunks: Chunks in the longest window.
      blocks: Blocks of a row.
      weights: Share of each dataset in the rows, in any unit.

    Raises:
      PlanError: A dataset has no clips.
    """
    samples = [_Sample(infos, spec, window_chunks) for infos in datasets]
    wanted = round(_CUT * blocks * float(np.average([one.clean_share(blocks) for one in samples], weights=weights)))
    # At least one chunk of every clip fits.
    most = blocks - max(int(one.shapes.noisy.max()) for one in samples)
    least = max(int(one.shapes.text.max()) for one in samples)
    wanted = max(min(wanted, most), least)
    best, fullest = Blocks(wanted, blocks - wanted), -1.0
    for clean in range(wanted, max(least, round(_LEAST * wanted)) - 1, -max(1, blocks // _STEPS)):
        tried = Blocks(clean, blocks - clean)
        fulls = [one.full(tried) if weight else 0.0 for one, weight in zip(samples, weights, strict=True)]
        full = float(np.average(fulls, weights=weights))
        if full > fullest:
            best, fullest = tried, full
        if full >= _FULL:
            break
    return best


class _Sample:
    """Clips of a dataset, by which splits are tried.

    Attributes:
      shapes: Of all clips.
    """

    def __init__(self, infos: Sequence[ClipInfo], spec: TokenSpec, window_chunks: int):
        infos = [info for info in infos if chunks_of(info, spec)]
        if not infos:
            raise PlanError("the plan has no clips; check the dataset's split")
        self._shape_of, self.shapes, _ = cuts.shapes_of(infos, spec, window_chunks)
        self._chunks = np.array([chunks_of(info, spec) for info in infos], np.int64)
        self._window_chunks = window_chunks
        self._chosen = np.argsort(draw(0, 0, Purpose.SPLIT, len(infos)), kind="stable")[:_SAMPLE]

    def clean_share(self, blocks: int) -> float:
        """Clean blocks of all that the clips take, cut into the longest windows that fit both halves together."""
        shapes, chunks = self.shapes, self._chunks
        longest = (blocks - shapes.text + shapes.clean) // (shapes.noisy + shapes.clean)
        longest = np.clip(longest, 1, self._window_chunks)[self._shape_of]
        windows = -(-chunks // longest)
        noisy = (chunks * shapes.noisy[self._shape_of]).sum()
        clean = ((chunks - windows) * shapes.clean[self._shape_of] + windows * shapes.text[self._shape_of]).sum()
        return float(clean / (clean + noisy))

    def full(self, blocks: Blocks) -> float:
        """Share of the blocks of the sample's rows that hold something; 0 where a clip fits no row."""
        shape_of, chunks = self._shape_of[self._chosen], self._chunks[self._chosen]
        if not self.shapes.longest(blocks, self._window_chunks)[self._shape_of].all():
            return 0.0
        stock = Stock(cuts.pieces(shape_of, self.shapes, chunks, blocks, self._window_chunks).windows)
        cost = self.shapes.costs(stock.windows.shape[1] - 1).sum(0)
        patterns = fill(self.shapes, stock, blocks, seed=0, attempts=_ATTEMPTS)
        used = sum(one.rows * int(one.counts @ cost[one.shape, one.chunks]) for one in patterns)
        return used / (sum(one.rows for one in patterns) * (blocks.clean + blocks.noisy))
