"""The words that a config's `sweep()` is written with: sets of changes to its fields, and names for them.

A change is a mapping of fields ("train.optimizer.learning_rate") to values, a sweep a list of changes:

    def sweep():
        return product(values("train.optimizer.learning_rate", 1e-3, 2e-3), values("model.width", 64, 96))

`sweep` may also be a generator that yields changes.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Change = Mapping[str, Any]


class SweepError(ValueError):
    """A sweep is not one; the message names the field or the trial."""


def values(field: str, *choices: Any) -> list[Change]:
    """Returns one change for each value of a field.

    Raises:
        SweepError: no value is given.
    """
    if not choices:
        raise SweepError(f"the sweep gives {field} no value; give one or more")
    return [{field: choice} for choice in choices]


def product(*sweeps: Iterable[Change]) -> list[Change]:
    """Returns every combination of a change of each sweep; the last sweep varies fastest.

    Raises:
        SweepError: two of the sweeps change the same field.
    """
    return [_joined(changes) for changes in itertools.product(*sweeps)]


def zipped(*sweeps: Iterable[Change]) -> list[Change]:
    """Returns the first changes of all sweeps as one, then the second ones, and so on.

    Raises:
        SweepError: the sweeps have different lengths, or two change the same field.
    """
    lists = [list(sweep) for sweep in sweeps]
    if len({len(one) for one in lists}) > 1:
        raise SweepError(f"zipped sweeps have {', '.join(str(len(one)) for one in lists)} changes; give all as many")
    return [_joined(changes) for changes in zip(*lists, strict=True)]


def chain(*sweeps: Iterable[Change]) -> list[Change]:
    """Returns the changes of one sweep after those of another."""
    return list(itertools.chain(*sweeps))


def names(sweep: Sequence[Change]) -> list[str]:
    """Returns a name for each change, as in "learning_rate=0.001,width=64"; {} is "base".

    A field is called by as much of its path's end as tells it from the other fields of the sweep.

    Raises:
        SweepError: two changes have one name, being the same or differing only in what a name cannot hold.
    """
    short = _short([field for change in sweep for field in change])
    found: list[str] = []
    for change in sweep:
        name = ",".join(f"{short[field]}={_text(value)}" for field, value in change.items()) or "base"
        if name in found:
            raise SweepError(f"the sweep has two trials {name}; leave one out, or make their values differ more")
        found.append(name)
    return found


def _joined(changes: Iterable[Change]) -> Change:
    joined: dict[str, Any] = {}
    for change in changes:
        for field, value in change.items():
            if field in joined:
                raise SweepError(f"two sweeps that are combined change {field}; let one of them do it")
            joined[field] = value
    return joined


def _short(fields: Iterable[str]) -> dict[str, str]:
    fields = list(dict.fromkeys(fields))
    found = {}
    for field in fields:
        parts = field.split(".")
        ends = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        alone = lambda end: sum(f".{other}".endswith(f".{end}") for other in fields) == 1
        found[field] = next((end for end in ends if alone(end)), field)
    return found


def _text(value: Any) -> str:
    """A value as a part of a file name."""
    text = "x".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-") or "none"
