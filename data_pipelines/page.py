"""A dataset on one page: a self-contained HTML file with totals, pictures of clips, and what was rejected."""

from __future__ import annotations

import base64
import html
import pathlib
from typing import Any

from data_pipelines import files, sheet
from data_pipelines import inspect as inspect_lib
from data_pipelines.shards import Dataset

# Rejections that are listed; the file holds all.
_LISTED = 200

_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title><style>{style}</style></head>
<body>
{body}
</body>
</html>
"""
_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; color: #222; margin: 2rem auto; max-width: 1200px; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0 2rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid #ddd; }
td { white-space: pre-line; font-variant-numeric: tabular-nums; }
img { max-width: 100%; height: auto; }
code { font-size: 13px; }
"""


def write(dataset: Dataset, summary: dict[str, Any], path: pathlib.Path, clips: int) -> None:
    """Writes the page, with a contact sheet of `clips` clips."""
    picture = base64.b64encode(sheet.draw(dataset, clips)).decode()
    rejected = dataset.rejected()
    actions = ", ".join(summary["action_names"]) or "none"
    parts = [
        f"<h1>{_text(pathlib.Path(summary['directory']).name)}</h1>",
        f"<p>Actions: <code>{_text(actions)}</code>. Video: <code>{_text(summary['video_codec'])}</code>.</p>",
        _table(["", *summary["splits"]], [[label, *cells] for label, cells in inspect_lib.rows(summary)]),
        "<h2>Clips</h2>",
        f'<img alt="film strips, waveforms and actions of some clips" src="data:image/png;base64,{picture}">',
        "<h2>Rejected</h2>",
        f"<p>{len(rejected)} in all.</p>" if len(rejected) <= _LISTED else f"<p>{_LISTED} of {len(rejected)}.</p>",
    ]
    if rejected:
        listed = [[one["name"], one["split"], one["reason"]] for one in rejected[:_LISTED]]
        parts.append(_table(["name", "split", "reason"], listed))
    title = _text(f"dataset {summary['directory']}")
    text = _PAGE.format(title=title, style=_STYLE, body="\n".join(parts))
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, text.encode())


def _table(head: list[str], rows: list[list[str]]) -> str:
    first = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f"<table><tr>{first}</tr>\n{body}</table>"


def _text(value: str) -> str:
    return html.escape(value)
