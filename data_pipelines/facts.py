"""Facts: what is known of each frame beside what is seen and heard, such as a game's variables or where things are."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import zstandard

_LEVEL = 9


@dataclasses.dataclass(frozen=True, eq=False)
class Fact:
    """An array with a row a frame, and what its numbers mean.

    Attributes:
        values: float32 `[frames, ...]`; NaN where there is nothing to say.
        columns: names of the last axis; none where they need none.
        objects: names of things. A column "object" holds their numbers; without one, the axis before the last is in
            their order.
    """

    values: np.ndarray
    columns: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()

    def problem(self, frames: int) -> str:
        """Says what is wrong with a fact of so many frames, and what to do; nothing if it is good."""
        values = self.values
        if not isinstance(values, np.ndarray) or values.dtype != np.float32 or values.ndim < 1:
            found = f"{values.dtype}{list(values.shape)}" if isinstance(values, np.ndarray) else type(values).__name__
            return f"is {found}; use a float32 array with a row a frame"
        if len(values) != frames:
            return f"has {len(values)} rows; use one for each of the {frames} frames"
        if self.columns and (values.ndim < 2 or values.shape[-1] != len(self.columns)):
            return f"has shape {values.shape} for {len(self.columns)} columns; make them the last axis"
        if len(set(self.columns)) != len(self.columns):
            return f"has columns {self.columns}; use unique names"
        in_order = bool(self.objects) and "object" not in self.columns
        if in_order and (values.ndim < 3 or values.shape[-2] != len(self.objects)):
            return f"has shape {values.shape} for {len(self.objects)} objects; make them the axis before the last"
        return ""


def cut(facts: Mapping[str, Fact], start: int, stop: int) -> dict[str, Fact]:
    """Returns the rows `start` to `stop` of facts, as views."""
    return {name: dataclasses.replace(fact, values=fact.values[start:stop]) for name, fact in facts.items()}


def to_blob(fact: Fact) -> bytes:
    """Returns a fact's values, compressed."""
    return zstandard.compress(np.ascontiguousarray(fact.values, "<f4").tobytes(), _LEVEL)


def to_header(fact: Fact) -> dict[str, Any]:
    """Returns the rest of a fact as JSON has it."""
    return {"shape": list(fact.values.shape[1:]), "columns": list(fact.columns), "objects": list(fact.objects)}


def from_blob(header: Mapping[str, Any], blob: bytes | memoryview, frames: int) -> Fact:
    """Reads a fact of so many frames again.

    Raises:
        zstandard.ZstdError, ValueError, LookupError, TypeError: the blob is damaged or does not fit the header.
    """
    shape = (frames, *map(operator.index, header["shape"]))
    size = 4 * math.prod(shape)
    data = zstandard.ZstdDecompressor().decompress(blob, max_output_size=size)
    values = np.frombuffer(data, "<f4").reshape(shape).astype(np.float32)
    return Fact(values, tuple(header["columns"]), tuple(header["objects"]))
