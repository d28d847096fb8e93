"""Plans of several datasets as one sequence of rows, in given and changeable shares (design decision D12).

Shares are rounded to slots of a period of rows, and the slots of every period are shuffled. So the dataset of a row,
and which of the dataset's own rows it is, follow from the seed and the row's index alone: the position of a mixture is
one integer. A change of shares takes effect at a given row; all rows before it stay what they were.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from data_pipelines import cuts
from data_pipelines.cuts import PlanError
from data_pipelines.draws import Purpose, draw
from data_pipelines.fill import Blocks
from data_pipelines.index import ClipInfo
from data_pipelines.plan import Efficiency, PackPlan, WindowRef
from data_pipelines.row_layout import RowSpec, TokenSpec
from data_pipelines.split import split_blocks
from data_pipelines.windows import action_schema

PERIOD = 1024  # rows; shares are multiples of 1 / PERIOD
_PERIODS_KEPT = 8


@dataclasses.dataclass(frozen=True)
class Shares:
    """Shares of the datasets in the rows of a mixture, from a row on.

    Attributes:
      from_row: First row that they hold for; global batch k begins at row k * batch size.
      weights: (name, weight) pairs; shares are in their proportion, and a dataset without weight is not read.
    """

    from_row: int
    weights: tuple[tuple[str, float], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class _Stretch:
    """Rows of constant shares."""

    first: int  # row
    slots: np.ndarray  # int64 [members], rows of each in a period
    before: np.ndarray  # int64 [members], rows of each before `first`


class Mixture:
    """An addressable, endless sequence of rows, each of one of several plans.

    Attributes:
      plans: The plans by name.
      spec: The tokens that all of them share.
      actions: The schema of the run: the actions of all plans, in order.
      row_spec: Capacities of every row.
      rows_per_epoch: Rows in which every window of every plan would appear once.
      chunks_per_row: Chunks in an average row, by the last shares.
    """

    def __init__(
        self,
        plans: Mapping[str, PackPlan],
        shares: Sequence[Shares],
        *,
        seed: int,
        row_spec: RowSpec | None = None,
        tables: Mapping[str, int] | None = None,
    ):
        """Mixes plans.

        Args:
          plans: The plans by name, in the order in which their actions are to stand.
          shares: The first from row 0 on; to change shares at a checkpoint, add others.
          seed: Of the order of the datasets' rows.
          row_spec: Capacities of a row; None takes the most that any plan has of each.
          tables: Which table of task weights holds for a dataset, by name; 0 where it is not named.

        Raises:
          PlanError: The plans have different tokens, a row is too small, or the shares cannot be.
        """
        if not plans:
            raise PlanError("a mixture needs at least one plan")
        self.plans = dict(plans)
        self.spec = next(iter(self.plans.values())).spec
        for name, plan in self.plans.items():
            if plan.spec != self.spec:
                raise PlanError(f"{name}: its tokens {plan.spec} differ from those of the others, {self.spec}")
        self.actions = tuple(dict.fromkeys(action for plan in self.plans.values() for action in plan.actions))
        cuts.check_actions(self.actions, self.spec)
        needed = RowSpec(*np.stack([dataclasses.astuple(plan.row_spec) for plan in plans.values()]).max(0).tolist())
        self.row_spec = row_spec or needed
        short = [
            f"row.{field.name}={getattr(self.row_spec, field.name)} to {getattr(needed, field.name)}"
            for field in dataclasses.fields(RowSpec)
            if getattr(self.row_spec, field.name) < getattr(needed, field.name)
        ]
        if short:
            raise PlanError(f"a row is too small for the plans; raise {', '.join(short)}")
        _check_shares(shares, self.plans)
        self._tables, self._seed = dict(tables or {}), seed
        self._period = functools.lru_cache(_PERIODS_KEPT)(self._shuffled)
        self._stretches = self._lay_out(tuple(shares))
        self.rows_per_epoch = sum(plan.rows_per_epoch for plan in self.plans.values())
        self.chunks_per_row = self._average([plan.chunks_per_row for plan in self.plans.values()])

    @property
    def infos(self) -> tuple[ClipInfo, ...]:
        """The clips of all plans."""
        return tuple(info for plan in self.plans.values() for info in plan.infos)

    @property
    def left_out(self) -> int:
        """How many clips of all datasets are too short; see `PackPlan`."""
        return sum(plan.left_out for plan in self.plans.values())

    def place(self, index: int) -> tuple[str, int]:
        """The dataset of a row, and which of the dataset's rows it is."""
        if index < 0:
            raise IndexError(f"row {index} is before the first row")
        number = bisect.bisect_right([stretch.first for stretch in self._stretches], index) - 1
        stretch = self._stretches[number]
        period, slot = divmod(int(index) - stretch.first, PERIOD)
        members, ranks = self._period(number, period)
        member = int(members[slot])
        before = int(stretch.before[member]) + period * int(stretch.slots[member])
        return list(self.plans)[member], before + int(ranks[slot])

    def row(self, index: int) -> list[WindowRef]:
        """The windows of row `index`: a pure function of the seed, the shares up to it and `index`."""
        name, own = self.place(index)
        # Sample ids of different datasets are moved apart, since noise is keyed by them.
        shift = zlib.crc32(name.encode())
        table = self._tables.get(name, 0)
        return [
            dataclasses.replace(ref, sample_id=(ref.sample_id + shift) % 2**32, dataset=name, table=table)
            for ref in self.plans[name].row(own)
        ]

    def efficiency(self) -> Efficiency:
        """How full an average row is, by the last shares."""
        fills = [plan.efficiency() for plan in self.plans.values()]
        scales = [plan.row_spec.blocks / self.row_spec.blocks for plan in self.plans.values()]
        return Efficiency(
            tokens=self._average([fill.tokens * scale for fill, scale in zip(fills, scales, strict=True)]),
            blocks=self._average([fill.blocks * scale for fill, scale in zip(fills, scales, strict=True)]),
        )

    def _average(self, values: Sequence[float]) -> float:
        return float(np.average(values, weights=self._stretches[-1].slots))

    def _lay_out(self, shares: tuple[Shares, ...]) -> list[_Stretch]:
        starts = [each.from_row for each in shares]
        self._stretches: list[_Stretch] = []
        before = np.zeros(len(self.plans), np.int64)
        for number, each in enumerate(shares):
            self._stretches.append(_Stretch(each.from_row, self._slots(each), before))
            if number + 1 < len(shares):
                periods, rest = divmod(starts[number + 1] - each.from_row, PERIOD)
                members, _ = self._period(number, periods)
                last = np.bincount(members[:rest], minlength=len(self.plans))
                before = before + periods * self._stretches[-1].slots + last
        return self._stretches

    def _slots(self, shares: Shares) -> np.ndarray:
        """Rows of each plan in a period, by largest remainders; at least one where there is weight."""
        weights = _weights(shares, self.plans)
        if (weights > 0).sum() > PERIOD:
            raise PlanError(f"more datasets have weight than a period has rows, {PERIOD}")
        exact = weights / weights.sum() * PERIOD
        slots = np.floor(exact).astype(np.int64)
        slots[np.argsort(slots - exact, kind="stable")[: PERIOD - slots.sum()]] += 1
        for rare in np.flatnonzero((weights > 0) & (slots == 0)):
            slots[slots.argmax()] -= 1
            slots[rare] = 1
        return slots

    def _shuffled(self, number: int, period: int) -> tuple[np.ndarray, np.ndarray]:
        """Member of each slot of a period, and how many slots it has before, int64 [PERIOD] each."""
        stretch = self._stretches[number]
        keys = draw(self._seed, stretch.first + period * PERIOD, Purpose.MIXTURE, PERIOD)
        members = np.repeat(np.arange(len(self.plans)), stretch.slots)[np.argsort(keys, kind="stable")]
        ranks = np.zeros(PERIOD, np.int64)
        for member in range(len(self.plans)):
            here = members == member
            ranks[here] = np.arange(here.sum())
        return members, ranks

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name != "_period"}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._period = functools.lru_cache(_PERIODS_KEPT)(self._shuffled)


def _weights(shares: Shares, names: Iterable[str]) -> np.ndarray:
    """The weights of the datasets, float64 [members]."""
    given = dict(shares.weights)
    return np.array([given.get(name, 0.0) for name in names], np.float64)


def _check_shares(shares: Sequence[Shares], names: Collection[str]) -> None:
    starts = [each.from_row for each in shares]
    if not starts or starts[0] != 0 or any(a >= b for a, b in zip(starts, starts[1:], strict=False)):
        raise PlanError(f"shares begin at rows {starts}; the first at row 0, each later than the one before")
    for each in shares:
        weights, unknown = _weights(each, names), set(dict(each.weights)) - set(names)
        if unknown or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
            raise PlanError(
                f"the weights {dict(each.weights)} from row {each.from_row} on must be positive, of {', '.join(names)}"
            )


def mix(
    clips: Mapping[str, Sequence[ClipInfo]],
    spec: TokenSpec,
    shares: Sequence[Shares],
    *,
    window_chunks: int,
    row_blocks: int | Blocks | None,
    rows_windows: int = 1,
    seed: int,
    tables: Mapping[str, int] | None = None,
) -> Mixture:
    """Plans datasets for rows of one shape and mixes them.

    Args:
      clips: The clips of each dataset, by name.
      spec: How content becomes tokens.
      shares: As in `Mixture`.
      window_chunks: Chunks in the longest window.
      row_blocks: Blocks of a row, or of its halves, which windows are then cut to fill; None sizes rows as `PackPlan`
        does. Blocks of a row are split for the shares from row 0 on, so that later ones leave its shape alone.
      rows_windows: Windows of the largest class in a row, where `row_blocks` is None.
      seed: Of all random choices.
      tables: As in `Mixture`.

    Raises:
      PlanError: As `PackPlan` and `Mixture`.
    """
    everything = [info for infos in clips.values() for info in infos]
    actions = action_schema(everything)
    make = functools.partial(PackPlan, spec=spec, window_chunks=window_chunks, seed=seed, actions=actions)
    if row_blocks is None:
        first = [make(infos, row=None, rows_windows=rows_windows).row_spec for infos in clips.values()]
        row = RowSpec(*np.stack([dataclasses.astuple(each) for each in first]).max(0).tolist())
    elif isinstance(row_blocks, Blocks):
        row = row_blocks
    else:
        _check_shares(shares, clips)
        weights = _weights(shares[0], clips).tolist()
        row = split_blocks(list(clips.values()), spec, window_chunks, row_blocks, weights)
    plans = {name: make(infos, row=row) for name, infos in clips.items()}
    return Mixture(plans, shares, seed=seed, tables=tables)
