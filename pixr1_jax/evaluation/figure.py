"""The picture of an evaluation: scores over time beside their baselines, and film strips of truth and dream."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_STRIDE = 8  # frames between two pictures of a strip
_WIDTH, _PLOT_HEIGHT, _TITLE_HEIGHT, _LABEL_HEIGHT = 15.0, 3.9, 0.75, 0.42
_LEFT, _RIGHT = 0.75, 0.25  # inches beside the strips
_INK, _PALE, _BASELINE = "#2b2d33", "#9aa0a8", "#8a8f98"
_COLORS = ("#2a6f97", "#e07a5f", "#5b8e3e", "#8e5ba6", "#c9a227")


@dataclasses.dataclass(frozen=True, eq=False)
class Strip:
    """A clip to look at.

    Attributes:
        title: what is shown above it.
        context: last frame of the context, uint8 `[height, width, 3]`.
        truth: recorded frames after it, uint8 `[frames, height, width, 3]`.
        dream: dreamed frames, the same shape.
    """

    title: str
    context: np.ndarray
    truth: np.ndarray
    dream: np.ndarray


def label(name: str) -> str:
    """Returns the words for a row of the scores: "2" is "2 steps", "copy_last" is "copy last"."""
    if not name.isdigit():
        return name.replace("_", " ")
    return f"{name} step{'s' if name != '1' else ''}"


def draw(scores: Mapping[str, Any], strips: Sequence[Strip]) -> Figure:
    """Draws the report: four plots above, one film strip a clip below (truth above dream)."""
    heights = [_strip_height(strip) for strip in strips]
    total = _TITLE_HEIGHT + _PLOT_HEIGHT + sum(heights) + 0.15
    figure = Figure(figsize=(_WIDTH, total), dpi=110, facecolor="white")
    settings = scores["settings"]
    heading = (
        f"{settings['clips']} test clips, {settings['frames']} frames after {settings['context_chunks']} chunks of "
        f"context, guidance {settings['guidance']:g}, seed {settings['seed']}"
    )
    name = f"artifact {scores['artifact']['id']}"
    edge = _LEFT / _WIDTH
    figure.text(edge, 1 - 0.28 / total, name, fontsize=13, weight="bold", color=_INK, va="center")
    figure.text(edge, 1 - 0.52 / total, heading, fontsize=9, color=_INK, va="center")

    bottom, height = 1 - (_TITLE_HEIGHT + _PLOT_HEIGHT - 0.75) / total, (_PLOT_HEIGHT - 1.15) / total
    width = (_WIDTH - _LEFT - _RIGHT) / 4
    plots = [figure.add_axes(((_LEFT + width * i) / _WIDTH, bottom, (width - 0.65) / _WIDTH, height)) for i in range(4)]
    _draw_fidelity(plots[0], scores, "psnr", "PSNR, dB")
    _draw_fidelity(plots[1], scores, "ssim", "SSIM")
    _draw_control(plots[2], scores)
    _draw_sound(plots[3], scores)

    top = total - _TITLE_HEIGHT - _PLOT_HEIGHT
    for strip, needed in zip(strips, heights, strict=True):
        _draw_strip(figure, strip, top, settings["strip_steps"])
        top -= needed
    return figure


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left", color=_INK, weight="bold")
    axes.tick_params(labelsize=8, length=3, colors=_INK)
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set(color=_PALE, linewidth=0.8)


def _look(name: str, index: int) -> dict[str, Any]:
    if not name.isdigit():
        return {"color": _BASELINE, "linestyle": "--"}
    return {"color": _COLORS[index % len(_COLORS)]}


def _draw_fidelity(axes: Axes, scores: Mapping[str, Any], kind: str, title: str) -> None:
    """Draws the mean over clips at every frame, and the interval at the horizons."""
    for index, (name, values) in enumerate(scores["fidelity"].items()):
        curve = np.mean(values["per_clip"][kind], axis=0)
        look = _look(name, index)
        axes.plot(np.arange(len(curve)) + 1, curve, label=label(name), linewidth=1.5, **look)
        _draw_intervals(axes, values[kind], look["color"])
    _style(axes, title)
    axes.set_xlabel("frames after the context", fontsize=8, color=_INK)
    axes.legend(fontsize=7.5, frameon=False, labelcolor=_INK)


def _draw_intervals(axes: Axes, estimates: Mapping[str, Any], color: str) -> None:
    for horizon, estimate in estimates.items():
        axes.plot([int(horizon)] * 2, [estimate["low"], estimate["high"]], color=color, linewidth=1, alpha=0.7)
        axes.plot(int(horizon), estimate["mean"], "o", color=color, markersize=3.5)


def _draw_control(axes: Axes, scores: Mapping[str, Any]) -> None:
    control = scores["control"]
    gain = np.mean(control["per_clip"]["gain"], axis=0)
    axes.axhline(0, color=_BASELINE, linewidth=1, linestyle="--")
    axes.plot(np.arange(len(gain)) + 1, gain, color=_COLORS[0], linewidth=1.5)
    _draw_intervals(axes, control["at_horizons"], _COLORS[0])
    _style(axes, f"control gain, dB ({label(str(control['steps']))})")
    axes.set_xlabel("frames after the context", fontsize=8, color=_INK)
    estimate = control["over_horizons"]
    words = f"{estimate['mean']:.2f} dB [{estimate['low']:.2f}, {estimate['high']:.2f}] over horizons"
    axes.text(0.98, 0.97, words, transform=axes.transAxes, fontsize=8, ha="right", va="top", color=_INK)


def _draw_sound(axes: Axes, scores: Mapping[str, Any]) -> None:
    """Draws onset F1 within the narrowest tolerance beside its chance, with the spectral distance in words."""
    if not scores["sound"]:
        _style(axes, "sound")
        axes.text(0.5, 0.5, "no sound", transform=axes.transAxes, ha="center", color=_PALE)
        axes.set_xticks([])
        axes.set_yticks([])
        return
    rows = list(scores["sound"].items())
    dreams = [(name, values) for name, values in rows if values["onsets"]]
    tolerance = list(dreams[0][1]["onsets"])[0]
    for index, (name, values) in enumerate(dreams):
        rates = values["onsets"][tolerance]
        for offset, key, color in ((-0.2, "f1", _look(name, index)["color"]), (0.2, "chance_f1", "#d3d6da")):
            estimate = rates[key]
            if estimate["mean"] is None:
                continue
            axes.bar(index + offset, estimate["mean"], 0.36, color=color)
            axes.plot([index + offset] * 2, [estimate["low"], estimate["high"]], color=_INK, linewidth=1)
    _style(axes, f"onset F1 within {tolerance.removesuffix('ms')} ms (grey: chance)")
    axes.set_ylim(0, 1.05)
    axes.set_xlim(-0.6, len(dreams) - 0.4)
    axes.set_xticks(range(len(dreams)), [label(name) for name, _ in dreams])
    distances = [
        f"{label(name)} {values['log_spectral_distance']['mean']:.1f}"
        for name, values in rows
        if values["log_spectral_distance"]["mean"] is not None
    ]
    axes.set_xlabel("log-spectral distance, dB:\n" + ", ".join(distances), fontsize=8, color=_INK)


def _picks(strip: Strip) -> list[int]:
    """Returns which frames are shown, counted from 1 after the context: 1, 8, 16, ..."""
    return [1, *range(_STRIDE, len(strip.truth) + 1, _STRIDE)]


def _row_height(strip: Strip) -> float:
    """Returns the height of one row of pictures, at most two inches, in inches."""
    height, width = strip.context.shape[:2]
    return min(2.0, (_WIDTH - _LEFT - _RIGHT) / (len(_picks(strip)) + 1) * height / width)


def _strip_height(strip: Strip) -> float:
    return _LABEL_HEIGHT + 2 * _row_height(strip) + 0.2


def _draw_strip(figure: Figure, strip: Strip, top: float, steps: int) -> None:
    """Draws one clip whose top lies `top` inches above the bottom of the figure."""
    total = figure.get_size_inches()[1]
    picks, row = _picks(strip), _row_height(strip)
    height, width = strip.context.shape[:2]
    cell = row * width / height
    figure.text(_LEFT / _WIDTH, (top - 0.1) / total, strip.title, fontsize=8, weight="bold", color=_INK, va="center")
    for line, (name, frames) in enumerate((("truth", strip.truth), (f"dream\n{label(str(steps))}", strip.dream))):
        below = top - _LABEL_HEIGHT - (line + 1) * row - 0.04 * line
        figure.text(
            (_LEFT - 0.1) / _WIDTH,
            (below + row / 2) / total,
            name,
            fontsize=8,
            ha="right",
            va="center",
            color=_INK,
        )
        for column, picture in enumerate([strip.context, *(frames[pick - 1] for pick in picks)]):
            place = ((_LEFT + column * cell) / _WIDTH, below / total, (cell - 0.04) / _WIDTH, row / total)
            axes = figure.add_axes(place)
            axes.imshow(picture, aspect="auto", interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_visible(False)
            if line == 0:
                heading = "context" if column == 0 else f"+{picks[column - 1]}"
                axes.set_title(heading, fontsize=7.5, color=_PALE if column == 0 else _INK, pad=2)
