"""The side-by-side picture: full precision, quantized, and where they differ.

The difference is amplified by the same factor in every picture, and the picture shows this factor,
so two comparisons can be compared. Dark means equal. The colour map is inferno, which is ordered by
lightness, so it also works in grey and for colour-blind readers.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FACTOR = 8

PANEL = 384  # shown width of a small picture, in pixels
MARGIN = 28
GAP = 20

PAPER, INK, MUTED = (250, 249, 246), (28, 28, 30), (104, 102, 98)

# Inferno (Smith and van der Walt 2015) at nine even places.
_INFERNO = np.array(
    [
        (0, 0, 4), (33, 12, 74), (87, 16, 110), (138, 34, 106), (188, 55, 84),
        (227, 89, 51), (249, 140, 10), (249, 201, 50), (252, 255, 164),
    ],
    dtype=np.float64,
)  # fmt: skip

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def colors(levels: np.ndarray) -> np.ndarray:
    """(H, W) values 0..255 -> (H, W, 3) uint8 of the inferno scale."""
    places = np.linspace(0, 255, len(_INFERNO))
    channels = [np.interp(levels, places, _INFERNO[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def difference(image: np.ndarray, reference: np.ndarray, factor: int = FACTOR) -> np.ndarray:
    """The amplified difference of two uint8 pictures (H, W, 3), as a picture of the same shape.

    A pixel's level is factor times the largest |difference| of its channels, at most 255.
    """
    levels = np.abs(image.astype(np.int64) - reference.astype(np.int64)).max(axis=-1)
    return colors(np.minimum(levels * factor, 255))


@cache
def _font_file(name: str) -> str | None:
    """DejaVu, which matplotlib brings along, without importing matplotlib."""
    found = importlib.util.find_spec("matplotlib")
    folders = found.submodule_search_locations if found else None
    for folder in folders or []:
        path = Path(folder) / "mpl-data" / "fonts" / "ttf" / f"{name}.ttf"
        if path.is_file():
            return str(path)
    return None


@cache
def font(size: int, bold: bool = False) -> Font:
    """A sans-serif at `size` pixels; Pillow's own where DejaVu is missing."""
    file = _font_file("DejaVuSans-Bold" if bold else "DejaVuSans")
    return ImageFont.truetype(file, size) if file else ImageFont.load_default(size)


def printable(text: str) -> str:
    """`text` on one line: every run of white space a blank, control characters gone."""
    return "".join(character for character in " ".join(text.split()) if character.isprintable())


def _fitting(text: str, face: Font, width: float) -> int:
    """How many leading characters of `text` fit into `width` pixels; at least one."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if face.getlength(text[:middle]) <= width:
            low = middle
        else:
            high = middle - 1
    return low


def wrapped(text: str, face: Font, width: float, lines: int) -> list[str]:
    """`text` broken into at most `lines` lines of `width` pixels.

    Breaks between words, inside a word only where it alone is too long; what does not fit ends in
    an ellipsis.
    """
    result: list[str] = []
    rest = printable(text)
    while rest:
        count = _fitting(rest, face, width)
        if count == len(rest):
            return [*result, rest]
        if len(result) == lines - 1:
            return [*result, rest[: _fitting(rest, face, width - face.getlength("…"))] + "…"]
        blank = rest.rfind(" ", 0, count + 1)
        count = blank if blank > 0 else count
        result.append(rest[:count].rstrip())
        rest = rest[count:].lstrip()
    return result or [""]


def _enlarged(pixels: np.ndarray, factor: int) -> Image.Image:
    """Whole-number enlargement without smoothing: what is compared are the pixels."""
    picture = Image.fromarray(pixels)
    size = (picture.width * factor, picture.height * factor)
    return picture.resize(size, Image.Resampling.NEAREST)


def _scale_bar(width: int, height: int) -> Image.Image:
    row = colors(np.linspace(0, 255, width)[None].repeat(height, axis=0))
    return Image.fromarray(row)


def side_by_side(
    reference: np.ndarray,
    image: np.ndarray,
    caption: str,
    label: str,
    note: str,
    factor: int = FACTOR,
) -> Image.Image:
    """The comparison as one picture.

    Args:
        reference, image: (H, W, 3) uint8, full precision and quantized.
        caption: any text; at most three lines of it are shown.
        label: over the quantized picture (the variant's name).
        note: below it (PSNR and SSIM).
    """
    height, width = reference.shape[:2]
    zoom = max(1, PANEL // width)
    panels = [reference, image, difference(image, reference, factor)]
    titles = ["full precision", label, f"|difference| × {factor}"]
    panel_width, panel_height = width * zoom, height * zoom
    full_width = 3 * panel_width + 2 * GAP + 2 * MARGIN
    size = max(13, panel_width // 24)
    head, title, small = font(round(size * 1.25), bold=True), font(size, bold=True), font(size)
    lines = wrapped(caption, head, full_width - 2 * MARGIN, lines=3)
    line_height = round(size * 1.25 * 1.45)
    top = MARGIN + len(lines) * line_height + size
    panel_top = top + round(size * 1.9)
    full_height = panel_top + panel_height + round(size * 2.2) + MARGIN // 2
    canvas = Image.new("RGB", (full_width, full_height), PAPER)
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + number * line_height), line, INK, font=head)
    note_top = panel_top + panel_height + round(size * 0.7)
    for column, (pixels, text) in enumerate(zip(panels, titles, strict=True)):
        left = MARGIN + column * (panel_width + GAP)
        draw.text((left, top), wrapped(text, title, panel_width, 1)[0], INK, font=title)
        canvas.paste(_enlarged(pixels, zoom), (left, panel_top))
    draw.text((MARGIN + panel_width + GAP, note_top), note, MUTED, font=small)
    left = MARGIN + 2 * (panel_width + GAP)
    zero, most = "0", f"≥ {-(-255 // factor)} of 255 levels"
    start = left + round(small.getlength(zero)) + size // 2
    end = left + panel_width - round(small.getlength(most)) - size // 2
    draw.text((left, note_top), zero, MUTED, font=small)
    if end > start:
        canvas.paste(_scale_bar(end - start, round(size * 0.8)), (start, note_top + size // 5))
    draw.text((end + size // 2, note_top), most, MUTED, font=small)
    return canvas
