"""A contact sheet: for each of some clips a film strip, its waveform and its actions on one time axis."""

from __future__ import annotations

import pathlib
import textwrap
from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_pipelines import files
from data_pipelines.clip import Clip
from data_pipelines.index import ClipInfo
from data_pipelines.shards import Dataset

# Inches, and the longest window of a clip that is drawn.
_STRIP_WIDTH, _STRIP_HEIGHT, _WAVE_HEIGHT, _ACTION_HEIGHT = 6.4, 0.8, 0.55, 0.16
_MARGIN_LEFT, _MARGIN_RIGHT, _TITLE_HEIGHT, _GAP, _AXIS_HEIGHT = 0.85, 0.25, 0.42, 0.06, 0.42
_MAX_SECONDS = 10.0
_MAX_BYTES = 512 * 2**20
_COLORS = ("#2a6f97", "#e07a5f")
_INK = "#333333"


def write(dataset: Dataset, png: pathlib.Path, clips: int) -> None:
    """Writes the sheet of `clips` clips, spread evenly over all splits, as a PNG file."""
    png.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(png, draw(dataset, clips))


def draw(dataset: Dataset, clips: int) -> bytes:
    """Returns the sheet as the bytes of a PNG file."""
    infos = [info for split in dataset.splits for info in dataset.clips(split)]
    picks = np.unique(np.linspace(0, len(infos) - 1, clips).round().astype(int))
    chosen = [(infos[pick], dataset.read(infos[pick], 0, _window(infos[pick]))) for pick in picks]
    columns = 1 if len(chosen) == 1 else 2
    rows = [chosen[at : at + columns] for at in range(0, len(chosen), columns)]
    heights = [max(sum(_heights(clip)) for _, clip in row) for row in rows]
    width = columns * (_MARGIN_LEFT + _STRIP_WIDTH + _MARGIN_RIGHT)
    figure = Figure(figsize=(width, sum(heights)), dpi=110, facecolor="white")
    top = sum(heights)
    for row, height in zip(rows, heights, strict=True):
        for column, (info, clip) in enumerate(row):
            _draw_clip(figure, info, clip, column * width / columns, top)
        top -= height
    file = BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _window(info: ClipInfo) -> int:
    """Returns how many frames to draw: at most `_MAX_SECONDS`, or what memory allows of large ones."""
    room = _MAX_BYTES // (info.height * info.width * 3)
    return min(info.frames, max(1, min(int(_MAX_SECONDS * info.frame_rate), room)))


def _heights(clip: Clip) -> tuple[float, float, float, float, float]:
    """Returns the heights of title, strip, waveform, actions and time axis, gaps included, in inches."""
    height, width = clip.video.shape[1:3]
    strip = _STRIP_WIDTH * height / (_strip_frames(clip) * width)
    actions = max(1, len(clip.action_names)) * _ACTION_HEIGHT
    return _TITLE_HEIGHT, strip + _GAP, _WAVE_HEIGHT + _GAP, actions, _AXIS_HEIGHT


def _strip_frames(clip: Clip) -> int:
    """Returns how many frames of the clip's shape fill the strip."""
    height, width = clip.video.shape[1:3]
    return max(1, round(_STRIP_WIDTH / _STRIP_HEIGHT * height / width))


def _draw_clip(figure: Figure, info: ClipInfo, clip: Clip, left: float, top: float) -> None:
    """Draws one clip with its top left corner at a place in inches from the figure's bottom left."""
    seconds = float(clip.frames / clip.frame_rate)
    title, strip, wave, actions, _ = _heights(clip)
    total_width, total_height = figure.get_size_inches()

    def axes(above: float, height: float) -> Axes:
        corner = ((left + _MARGIN_LEFT) / total_width, (top - above - height) / total_height)
        return figure.add_axes((*corner, _STRIP_WIDTH / total_width, height / total_height))

    film = axes(title, strip - _GAP)
    sound = axes(title + strip, wave - _GAP)
    action = axes(title + strip + wave, actions)
    _draw_film(film, clip, seconds)
    _draw_sound(sound, clip, seconds)
    _draw_actions(action, clip, seconds)
    for one in (film, sound, action):
        one.set_xlim(0, seconds)
        one.tick_params(labelsize=7, length=2, colors=_INK)
        for spine in one.spines.values():
            spine.set(linewidth=0.5, color="#bbbbbb")
    for one in (film, sound):
        one.set_xticks([])
    action.set_xlabel("seconds", fontsize=7, color=_INK, labelpad=1)
    _label_events(sound, clip)
    caption = clip.events[0].text if clip.events and clip.events[0].frame == 0 else "no caption"
    rate = f"{info.width}x{info.height}, {float(info.frame_rate):g} frames/s, {info.sample_rate} Hz"
    for text, across, points, size, weight, side in (
        (_plain(info.episode, 60), 0, 16, 8, "bold", "left"),
        (rate, 1, 16, 7, "normal", "right"),
        (_plain(caption, 125), 0, 4, 7, "normal", "left"),
    ):
        film.annotate(
            text,
            (across, 1),
            (0, points),
            "axes fraction",
            "offset points",
            fontsize=size,
            weight=weight,
            ha=side,
            color=_INK,
        )


def _label_events(axes: Axes, clip: Clip) -> None:
    """Marks on the waveform where a new text comes into force."""
    for event in clip.events:
        if event.frame > 0:
            at = float(event.frame / clip.frame_rate)
            axes.axvline(at, color=_INK, linewidth=0.6, linestyle=":")
            axes.annotate(
                _plain(event.text, 30),
                (at, 1),
                (3, -7),
                ("data", "axes fraction"),
                "offset points",
                fontsize=6,
                color=_INK,
                bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
            )


def _draw_film(axes: Axes, clip: Clip, seconds: float) -> None:
    """Draws frames side by side, each the one at the middle of the time it covers."""
    count = _strip_frames(clip)
    middles = ((np.arange(count) + 0.5) / count * clip.frames).astype(int)
    strip = np.concatenate(list(clip.video[middles]), axis=1)
    axes.imshow(strip, extent=(0, seconds, 0, 1), aspect="auto")
    for at in np.arange(1, count) / count * seconds:
        axes.axvline(float(at), color="white", linewidth=1)
    axes.set_yticks([])


def _draw_sound(axes: Axes, clip: Clip, seconds: float, columns: int = 700) -> None:
    """Draws the waveform as the range of the samples in each of some columns, one band a channel."""
    axes.set_ylim(-1.05, 1.05)
    axes.set_yticks([])
    axes.set_ylabel("sound", fontsize=7, rotation=0, ha="right", va="center", color=_INK)
    if clip.channels == 0:
        axes.text(
            0.5,
            0.5,
            "no sound",
            fontsize=7,
            ha="center",
            va="center",
            transform=axes.transAxes,
            color="#999999",
        )
        return
    samples = len(clip.audio)
    starts = np.unique(np.linspace(0, samples, min(columns, samples), endpoint=False).astype(int))
    times = starts / clip.sample_rate
    for channel in range(clip.channels):
        # Two channels share the height, the left one above.
        center, scale = (0.0, 1.0) if clip.channels == 1 else (0.5 - channel, 0.5)
        wave = clip.audio[:, channel].astype(np.float32) / 2**15
        low, high = np.minimum.reduceat(wave, starts), np.maximum.reduceat(wave, starts)
        axes.fill_between(
            times,
            center + scale * low,
            center + scale * high,
            color=_COLORS[channel],
            linewidth=0.5,
            step="post",
        )


def _draw_actions(axes: Axes, clip: Clip, seconds: float) -> None:
    """Draws one line an action: white is 0, blue positive, red negative."""
    if not clip.action_names:
        axes.set_yticks([])
        axes.text(
            0.5,
            0.5,
            "no actions",
            fontsize=7,
            ha="center",
            va="center",
            transform=axes.transAxes,
            color="#999999",
        )
        return
    limit = float(np.abs(clip.actions).max()) or 1.0
    count = len(clip.action_names)
    axes.imshow(
        clip.actions.T,
        extent=(0, seconds, count, 0),
        aspect="auto",
        interpolation="nearest",
        cmap="RdBu",
        vmin=-1.3 * limit,
        vmax=1.3 * limit,
    )
    axes.set_yticks(np.arange(count) + 0.5, [_plain(name, 14) for name in clip.action_names])
    for line in range(1, count):
        axes.axhline(line, color="#dddddd", linewidth=0.5)


def _plain(text: str, width: int) -> str:
    """Returns a text on one line, shortened, its dollar signs no start of a formula."""
    return textwrap.shorten(text, width, placeholder="…").replace("$", r"\$")
