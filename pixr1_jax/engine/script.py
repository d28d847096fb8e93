"""Action scripts: a text file that says which keys are held, and which prompt is in force, from when on.

    # seconds  what is held from then on
    0.0 right
    1.5 right+jump
    2.0 -                   (nothing)
    2.5 turn=-0.5+forward   (an axis takes a value, a button is held: 1)
    3.0 prompt: night

Times never fall. Held keys and prompts are independent: a prompt line leaves the keys as they are.
"""

from __future__ import annotations

import dataclasses
import fractions
import math
import os
import pathlib
from collections.abc import Sequence

import numpy as np

_NOTHING = "-"
_PROMPT = "prompt:"


class ScriptError(ValueError):
    """An action script has a bad line; the message names the file, the line and what is wrong."""


@dataclasses.dataclass(frozen=True)
class Script:
    """What is pressed and said, and when.

    Attributes:
        action_names: the schema of the actions.
        holds: (seconds, value of each action), by time; in force until the next. Nothing is held before the first.
        prompts: (seconds, text), by time.
    """

    action_names: tuple[str, ...]
    holds: tuple[tuple[fractions.Fraction, tuple[float, ...]], ...] = ()
    prompts: tuple[tuple[fractions.Fraction, str], ...] = ()

    def actions(self, frame_count: int, frame_rate: fractions.Fraction) -> np.ndarray:
        """Returns what is held during each frame, float32 `[frames, actions]`.

        A hold begins with the first frame that starts at or after its time. Times are exact fractions, so 0.1 s
        is frame 3 of a 30 Hz clock, and never frame 4.
        """
        actions = np.zeros((frame_count, len(self.action_names)), np.float32)
        for seconds, values in self.holds:
            actions[math.ceil(seconds * frame_rate) :] = values
        return actions

    def prompts_by_chunk(self, chunk_frames: int, frame_rate: fractions.Fraction) -> dict[int, str]:
        """Returns {chunk: text}: each prompt at the first chunk that starts at or after its time.

        Of several prompts at one chunk the last one stays.
        """
        return {math.ceil(seconds * frame_rate / chunk_frames): text for seconds, text in self.prompts}


def parse(path: str | os.PathLike[str], action_names: Sequence[str]) -> Script:
    """Reads an action script.

    Args:
        path: a UTF-8 text file; blank lines and lines that start with # mean nothing.
        action_names: the keys that a line may name.

    Raises:
        ScriptError: a line is bad, or the file is no text.
        FileNotFoundError: there is no such file.
    """
    path = pathlib.Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ScriptError(f"{path} is no UTF-8 text; give lines such as '1.5 right+jump'") from error
    names = tuple(action_names)
    holds, prompts = [], []
    previous = fractions.Fraction(0)
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"{path} line {number}"
        first, _, rest = line.strip().partition(" ")
        seconds, rest = _seconds(where, first), rest.strip()
        if seconds < previous:
            raise ScriptError(f"{where}: time {first} is before the line above it; sort the lines by time")
        previous = seconds
        if rest.startswith(_PROMPT):
            prompts.append((seconds, rest.removeprefix(_PROMPT).strip()))
        else:
            holds.append((seconds, _held(where, rest, names)))
    return Script(names, tuple(holds), tuple(prompts))


def _seconds(where: str, text: str) -> fractions.Fraction:
    try:
        seconds = fractions.Fraction(text)
    except (ValueError, ZeroDivisionError):
        seconds = fractions.Fraction(-1)
    if seconds < 0:
        raise ScriptError(f"{where}: {text!r} is no time; begin with seconds from 0 on, as in '1.5 right+jump'")
    return seconds


def _held(where: str, text: str, names: tuple[str, ...]) -> tuple[float, ...]:
    values = dict.fromkeys(names, 0.0)
    if text == _NOTHING:
        return tuple(values.values())
    if not text:
        raise ScriptError(f"{where}: nothing after the time; name keys, or write '{_NOTHING}' to hold none")
    seen = set()
    for part in text.split("+"):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if name not in values:
            known = ", ".join(names) or "none"
            raise ScriptError(f"{where}: unknown key {name!r}; use {known}, or '{_PROMPT} TEXT'")
        if name in seen:
            raise ScriptError(f"{where}: key {name!r} occurs twice; name it once")
        seen.add(name)
        values[name] = _value(where, name, value) if equals else 1.0
    return tuple(values.values())


def _value(where: str, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ScriptError(f"{where}: {name}={text} is no number; write for example {name}=0.5")
    return value
