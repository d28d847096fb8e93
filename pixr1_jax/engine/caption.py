"""The strip under a film's picture: the prompt in force, a note, and the keys, lit while they are held."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_MARGIN, _GAP, _PAD = 10, 6, 8
_TEXT_SIZE, _KEY_SIZE = 16, 14
_TEXT_ROW, _KEY_ROW = 24, 24
_BACKGROUND, _INK, _DIM = (18, 20, 24), (236, 238, 242), (128, 134, 144)
_KEY, _LIT = (44, 48, 56), (255, 183, 77)


@dataclasses.dataclass(frozen=True)
class Caption:
    """What the strip says.

    Attributes:
        keys: (name, value) of each action; 0 is dark, 1 lit, between them lit in part, from the right if negative.
        prompt: the text in force.
        note: small text at the right, such as "dream".
    """

    keys: tuple[tuple[str, float], ...] = ()
    prompt: str = ""
    note: str = ""


@functools.lru_cache(maxsize=256)
def draw(caption: Caption, width: int) -> np.ndarray:
    """Draws the strip, uint8 RGB `[height, width, 3]`; its height follows from the names of the keys alone.

    The array is shared between calls: read it only.
    """
    places, rows = _place([name for name, _ in caption.keys], width)
    height = 2 * _GAP + _TEXT_ROW + rows * (_KEY_ROW + _GAP)
    image = Image.new("RGB", (width, height), _BACKGROUND)
    pen = ImageDraw.Draw(image)
    note_width = int(pen.textlength(caption.note, font=_font(_KEY_SIZE)))
    room = width - 2 * _MARGIN - (note_width + _PAD if caption.note else 0)
    middle = _GAP + _TEXT_ROW // 2
    pen.text((_MARGIN, middle), _fit(caption.prompt, room), _INK, _font(_TEXT_SIZE), anchor="lm")
    pen.text((width - _MARGIN, middle), caption.note, _DIM, _font(_KEY_SIZE), anchor="rm")
    for (name, value), (left, row, size) in zip(caption.keys, places, strict=True):
        top = 2 * _GAP + _TEXT_ROW + row * (_KEY_ROW + _GAP)
        _draw_key(image, name, value, (left, top, left + size, top + _KEY_ROW))
    strip = np.asarray(image)
    strip.setflags(write=False)
    return strip


def _place(names: list[str], width: int) -> tuple[list[tuple[int, int, int]], int]:
    """Returns (left, row, width) of each key, rows filled from the left, and the number of rows."""
    places, left, row = [], _MARGIN, 0
    for name in names:
        size = int(_font(_KEY_SIZE).getlength(name)) + 2 * _PAD
        if left > _MARGIN and left + size > width - _MARGIN:
            left, row = _MARGIN, row + 1
        places.append((left, row, size))
        left += size + _GAP
    return places, row + 1 if names else 0


def _draw_key(image: Image.Image, name: str, value: float, box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    lit = round(min(1.0, abs(value)) * width)
    whole = _key_face(name, width, height, _KEY, _DIM)
    light = _key_face(name, width, height, _LIT, _BACKGROUND)
    start = width - lit if value < 0 else 0
    whole.paste(light.crop((start, 0, start + lit, height)), (start, 0))
    image.paste(whole, (left, top))


def _key_face(name: str, width: int, height: int, fill: tuple[int, int, int], ink: tuple[int, int, int]) -> Image.Image:
    face = Image.new("RGB", (width, height), _BACKGROUND)
    pen = ImageDraw.Draw(face)
    pen.rounded_rectangle((0, 0, width - 1, height - 1), radius=5, fill=fill)
    pen.text((width // 2, height // 2), name, ink, _font(_KEY_SIZE), anchor="mm")
    return face


def _fit(text: str, room: int) -> str:
    """Shortens a text to the room there is, in pixels."""
    text = " ".join(text.split())
    font = _font(_TEXT_SIZE)
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1]
    return text + "…"


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise ValueError("Pillow has no FreeType, so film captions cannot be drawn; install a Pillow wheel")
    return font
