"""The index of a dataset: a Parquet table with one row a clip, all that planning needs without opening a shard."""

from __future__ import annotations

import dataclasses
import fractions
import io
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines import patches
from data_pipelines.clip import TextEvent, one_line
from data_pipelines.record import Record

INDEX = "index.parquet"
# Side of the patches of the column `patches`; a model may use others.
_PATCH = 16


class IndexDamagedError(ValueError):
    """The bytes are no index, or one with other columns."""


@dataclasses.dataclass(frozen=True)
class FactInfo:
    """A fact of a clip without its values: its name, the shape of a frame's row, and names of the last axis."""

    name: str
    shape: tuple[int, ...]
    columns: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ClipInfo:
    """One row of the index: where a clip is, and its shape, clock, schema, texts and facts."""

    split: str
    file: str
    record: int
    bytes: int
    episode: str
    frames: int
    height: int
    width: int
    frame_rate: fractions.Fraction
    sample_rate: int
    channels: int
    video_codec: str
    action_names: tuple[str, ...]
    events: tuple[TextEvent, ...]
    source: str
    licence: str
    seed: int
    facts: tuple[FactInfo, ...] = ()

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return float(self.frames / self.frame_rate)


def describe(record: Record, split: str, file: str, number: int, size: int) -> ClipInfo:
    """Returns the row of a record of `size` bytes that is number `number` of a file."""
    return ClipInfo(
        split=split,
        file=file,
        record=number,
        bytes=size,
        episode=record.episode,
        frames=record.frames,
        height=record.height,
        width=record.width,
        frame_rate=record.frame_rate,
        sample_rate=record.sample_rate,
        channels=record.channels,
        video_codec=record.video_codec,
        action_names=record.action_names,
        events=record.events,
        source=record.source,
        licence=record.licence,
        seed=record.seed,
        facts=tuple(FactInfo(name, fact.values.shape[1:], fact.columns) for name, fact in record.facts.items()),
    )


_EVENTS = pa.list_(pa.struct([("frame", pa.int32()), ("text", pa.string())]))
_FACTS = pa.list_(
    pa.struct([("name", pa.string()), ("shape", pa.list_(pa.int32())), ("columns", pa.list_(pa.string()))])
)
_STORED = pa.schema(
    [
        ("split", pa.string()),
        ("file", pa.string()),
        ("record", pa.int64()),
        ("bytes", pa.int64()),
        ("episode", pa.string()),
        ("frames", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("frame_rate", pa.string()),
        ("sample_rate", pa.int32()),
        ("channels", pa.int8()),
        ("video_codec", pa.string()),
        ("action_names", pa.list_(pa.string())),
        ("events", _EVENTS),
        ("source", pa.string()),
        ("licence", pa.string()),
        ("seed", pa.int64()),
        ("facts", _FACTS),
    ]
)
# For those who query the table; not read back.
_DERIVED = pa.schema(
    [("seconds", pa.float64()), ("samples", pa.int64()), ("patches", pa.int64()), ("text_bytes", pa.int64())]
)
_SCHEMA = pa.schema([*_STORED, *_DERIVED], {"patches": f"of {_PATCH} x {_PATCH} pixels, over all frames"})


def to_parquet(infos: Iterable[ClipInfo]) -> bytes:
    """Returns the table as a Parquet file; equal rows give equal bytes."""
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([_row(info) for info in infos], _SCHEMA), file, compression="zstd")
    return file.getvalue()


def from_parquet(data: bytes) -> list[ClipInfo]:
    """Reads the table again.

    Raises:
        IndexDamagedError: the bytes are no such table.
    """
    try:
        table = pq.read_table(io.BytesIO(data), columns=_STORED.names)
        return [_info(row) for row in table.to_pylist()]
    except (pa.ArrowException, ValueError, LookupError, TypeError) as error:
        raise IndexDamagedError(one_line(error)) from error


def _row(info: ClipInfo) -> dict[str, Any]:
    rows, columns = patches.grid_shape(info.height, info.width, _PATCH)
    return {field.name: getattr(info, field.name) for field in dataclasses.fields(info)} | {
        "frame_rate": f"{info.frame_rate.numerator}/{info.frame_rate.denominator}",
        "events": [dataclasses.asdict(event) for event in info.events],
        "action_names": list(info.action_names),
        "facts": [dataclasses.asdict(fact) for fact in info.facts],
        "seconds": info.seconds,
        "samples": int(info.frames * info.sample_rate / info.frame_rate) if info.channels else 0,
        "patches": info.frames * rows * columns,
        "text_bytes": sum(len(event.text.encode()) for event in info.events),
    }


def _info(row: dict[str, Any]) -> ClipInfo:
    row["frame_rate"] = fractions.Fraction(row["frame_rate"])
    row["action_names"] = tuple(row["action_names"])
    row["facts"] = tuple(FactInfo(fact["name"], tuple(fact["shape"]), tuple(fact["columns"])) for fact in row["facts"])
    row["events"] = tuple(TextEvent(**event) for event in row["events"])
    return ClipInfo(**row)
