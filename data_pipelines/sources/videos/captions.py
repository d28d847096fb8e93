"""Captions of video files: a text file beside a file, or a table at the root of the folder.

Beside `x.mp4`, `x.jsonl` holds one object a line, `{"time": seconds, "text": "..."}`, or `x.txt` one text. At the root,
`captions.jsonl` or `captions.csv` has the columns `file` and `text`, and may have `time` and `licence`; a file may
have several rows. The nearest to a file wins: its `.jsonl`, its `.txt`, then the table.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.clip import TextEvent

SIDE_SUFFIXES = (".txt", ".jsonl", ".csv")
TABLES = ("captions.jsonl", "captions.csv")


@dataclasses.dataclass(frozen=True)
class Captions:
    """Texts of a file by rising time in seconds from its first frame, and its licence if a table has it."""

    texts: tuple[tuple[float, str], ...] = ()
    licence: str | None = None


def read_table(folder: Path) -> dict[str, Captions]:
    """Reads the table at the root of a folder, by relative path.

    Raises:
        ValueError: a line is wrong, the message names the file and the line; or there are two tables.
    """
    tables = [folder / name for name in TABLES if (folder / name).is_file()]
    if len(tables) > 1:
        raise ValueError(f"{folder} has both {' and '.join(TABLES)}; keep one")
    rows: dict[str, list[tuple[float, str]]] = {}
    licences: dict[str, str] = {}
    for table in tables:
        for where, row in _csv_rows(table) if table.suffix == ".csv" else _json_rows(table):
            name = os.path.normpath(_string(row, "file", where)).replace(os.sep, "/")
            if row.get("text") is not None:
                rows.setdefault(name, []).append((_time(row, where), _string(row, "text", where)))
            rows.setdefault(name, [])
            if row.get("licence"):
                licence = _string(row, "licence", where)
                if licences.setdefault(name, licence) != licence:
                    raise ValueError(f"{where}: {name} has another licence in an earlier line; use one a file")
    return {name: Captions(_sorted(texts), licences.get(name)) for name, texts in rows.items()}


def read_beside(file: Path) -> tuple[tuple[float, str], ...] | None:
    """Reads the texts beside a video file; None where there are none.

    Raises:
        ValueError: a line is wrong; the message names the file and the line.
    """
    timed, plain = file.with_suffix(".jsonl"), file.with_suffix(".txt")
    if timed.is_file() and timed.name not in TABLES:
        return _sorted([(_time(row, where), _string(row, "text", where)) for where, row in _json_rows(timed)])
    if not plain.is_file():
        return None
    text = _read(plain).strip()
    return ((0.0, text),) if text else ()


def events(texts: tuple[tuple[float, str], ...], start: float, frames: int, frame_rate: float) -> tuple[TextEvent, ...]:
    """Returns the texts on the clock of a piece; the one in force when it starts moves to its frame 0.

    Args:
        texts: by rising time, in seconds of the file.
        start: of the piece, in seconds of the file.
        frames: of the piece.
        frame_rate: frames a second.
    """
    by_frame = {}
    for time, text in texts:
        frame = max(0, round((time - start) * frame_rate))
        if frame < frames:
            by_frame[frame] = text
    return tuple(TextEvent(frame, by_frame[frame]) for frame in sorted(by_frame))


def _sorted(texts: list[tuple[float, str]]) -> tuple[tuple[float, str], ...]:
    return tuple(sorted(texts, key=lambda text: text[0]))


def _read(file: Path) -> str:
    try:
        # Editors of some systems begin a file with a byte order mark.
        return file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        line = file.read_bytes()[: error.start].count(b"\n") + 1
        raise ValueError(f"{file} line {line}: not UTF-8 text; save it as UTF-8") from error


def _json_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_read(file).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file} line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: no JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where}: is {type(row).__name__}; use an object such as " + '{"text": "..."}')
        yield where, row


def _csv_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(_read(file).splitlines(keepends=True), strict=True)
    try:
        missing = {"file", "text"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{file} line 1: has no column {' or '.join(sorted(missing))}; add it")
        for row in reader:
            where = f"{file} line {reader.line_num}"
            if None in row or None in row.values():
                raise ValueError(f"{where}: has {'more' if None in row else 'fewer'} cells than columns; quote commas")
            yield where, row
    except csv.Error as error:
        raise ValueError(f"{file} line {reader.reader.line_num}: no CSV ({error})") from error


def _string(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or (key != "text" and not value):
        raise ValueError(f"{where}: {key} is {value!r}; use a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: {key} is not valid Unicode") from error
    return value


def _time(row: dict[str, Any], where: str) -> float:
    value = row.get("time")
    try:
        time = float(value) if value not in (None, "") and not isinstance(value, bool) else 0.0
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: time is {value!r}; use seconds") from error
    if isinstance(value, bool) or not math.isfinite(time) or time < 0:
        raise ValueError(f"{where}: time is {value!r}; use seconds from 0 on")
    return time
