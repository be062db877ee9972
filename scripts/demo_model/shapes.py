"""A small world of captioned pictures: one or two coloured shapes on a plain background.

    a small red star on a navy background
    a large purple cross left of a small green ring on a beige background

Everything a caption says can be read off the picture: a shape is inscribed in a circle whose
radius is its size, and the two ranges of radii are far apart; colours are far apart in RGB; two
shapes never come closer than `GAP` pixels, and the second one lies in the named direction by
more than it lies aside. What a caption leaves open (position, angle, exact size) is drawn at
random, so that a picture model has something to sample.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

CANVAS = 128  # pixels, both ways
SUPERSAMPLING = 4  # drawn this much larger, then averaged: antialiased edges without halos
MARGIN = 4.0  # pixels between a shape's circle and the canvas edge
GAP = 8.0  # pixels between the circles of two shapes
MAX_ASIDE = 0.6  # sideways distance of two shapes, as a share of their distance along the relation
MAX_TILT = 0.25  # radians
SINGLE_SHARE = 0.35  # captions with one shape

COLORS = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (38, 84, 214),
    "yellow": (247, 200, 40),
    "purple": (132, 60, 190),
    "orange": (247, 127, 0),
    "black": (24, 24, 27),
    "white": (250, 250, 250),
}
BACKGROUNDS = {
    "gray": (150, 150, 155),
    "pink": (250, 170, 195),
    "cyan": (140, 220, 228),
    "navy": (30, 42, 105),
    "beige": (232, 212, 170),
    "brown": (110, 72, 44),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
SIZES = {"small": (13.0, 16.0), "large": (23.0, 27.0)}  # radius of the circumscribed circle, pixels
RELATIONS = ("above", "below", "left of", "right of")

STAR_POINTS, STAR_INNER = 5, 0.45  # points; radius of the notches over the radius of the points
RING_INNER = 0.55  # radius of the hole over the radius of the ring
CROSS_WIDTH = 0.32  # half the width of an arm over the radius

Point = tuple[float, float]


@dataclass(frozen=True)
class Item:
    """One shape of a caption: a size of `SIZES`, a colour of `COLORS`, a shape of `SHAPES`."""

    size: str
    color: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.size} {self.color} {self.shape}"


@dataclass(frozen=True)
class Caption:
    """What a picture shows: one item, or two and how the first lies to the second."""

    items: tuple[Item, ...]
    relation: str | None
    background: str

    def __str__(self) -> str:
        shown = f" {self.relation} ".join(str(item) for item in self.items)
        return f"{shown} on a {self.background} background"


@dataclass(frozen=True)
class Placement:
    """Where an item is drawn: centre and circumscribed radius in pixels, tilt in radians."""

    center: Point
    radius: float
    tilt: float


def words() -> list[str]:
    """Every word a caption can contain, each once, in a fixed order."""
    relations = [word for relation in RELATIONS for word in relation.split()]
    spoken = ["a", "on", "background", *relations, *SIZES, *COLORS, *SHAPES, *BACKGROUNDS]
    return list(dict.fromkeys(spoken))


def _one_of(word: str, known: Sequence[str], what: str, text: str) -> str:
    if word not in known:
        raise ValueError(f"caption {text!r}: {word!r} is no {what} (known: {', '.join(known)})")
    return word


def _parse_item(phrase: str, text: str) -> Item:
    parts = phrase.split()
    if len(parts) != 4 or parts[0] != "a":
        raise ValueError(
            f"caption {text!r}: {phrase!r} is not of the form 'a <size> <colour> <shape>'"
        )
    return Item(
        size=_one_of(parts[1], tuple(SIZES), "size", text),
        color=_one_of(parts[2], tuple(COLORS), "colour", text),
        shape=_one_of(parts[3], SHAPES, "shape", text),
    )


def parse_caption(text: str) -> Caption:
    """Reads a caption; `str(parse_caption(text)) == text` for every caption of this world.

    Raises:
        ValueError: the text is no caption of this world; the message says which part is not.
    """
    clean = " ".join(text.lower().split())
    shown, on, tail = clean.rpartition(" on a ")
    background, _, noun = tail.rpartition(" ")
    if not on or noun != "background":
        raise ValueError(f"caption {text!r} does not end with 'on a <colour> background'")
    _one_of(background, tuple(BACKGROUNDS), "background", text)
    for relation in RELATIONS:
        first, found, second = shown.partition(f" {relation} ")
        if found:
            items = (_parse_item(first, text), _parse_item(second, text))
            return Caption(items, relation, background)
    return Caption((_parse_item(shown, text),), None, background)


def _choice(rng: np.random.Generator, values: Sequence[str]) -> str:
    return values[int(rng.integers(len(values)))]


def _sample_item(rng: np.random.Generator) -> Item:
    return Item(_choice(rng, tuple(SIZES)), _choice(rng, tuple(COLORS)), _choice(rng, SHAPES))


def sample_caption(rng: np.random.Generator, exclude: Container[str] = ()) -> Caption:
    """A random caption whose text is not in `exclude`."""
    while True:
        if rng.random() < SINGLE_SHARE:
            items: tuple[Item, ...] = (_sample_item(rng),)
            relation = None
        else:
            items = (_sample_item(rng), _sample_item(rng))
            relation = _choice(rng, RELATIONS)
        caption = Caption(items, relation, _choice(rng, tuple(BACKGROUNDS)))
        if str(caption) not in exclude:
            return caption


def _spread(rng: np.random.Generator, radius: float) -> float:
    return float(rng.uniform(MARGIN + radius, CANVAS - MARGIN - radius))


def _place_pair(rng: np.random.Generator, near: float, far: float) -> tuple[Point, Point]:
    """(along, aside) of two circles, the first one nearer to the origin of the axis."""
    slack = CANVAS - 2 * MARGIN - GAP - 2 * near - 2 * far
    before, between, _ = slack * rng.dirichlet((1.0, 1.0, 1.0))
    first = MARGIN + before + near
    second = first + near + GAP + between + far
    reach = MAX_ASIDE * (second - first)
    aside = _spread(rng, near)
    low = max(MARGIN + far, aside - reach)
    high = min(CANVAS - MARGIN - far, aside + reach)
    return (first, aside), (second, float(rng.uniform(low, high)))


def place(caption: Caption, rng: np.random.Generator) -> tuple[Placement, ...]:
    """Draws what the caption leaves open: one placement an item, in the caption's order."""
    radii = [float(rng.uniform(*SIZES[item.size])) for item in caption.items]
    if caption.relation is None:
        centers = [(_spread(rng, radii[0]), _spread(rng, radii[0]))]
    else:
        first_is_near = caption.relation in ("above", "left of")
        ordered = radii if first_is_near else radii[::-1]
        pair = _place_pair(rng, ordered[0], ordered[1])
        if caption.relation in ("above", "below"):
            pair = (pair[0][::-1], pair[1][::-1])
        centers = list(pair if first_is_near else pair[::-1])
    tilts = [float(rng.uniform(-MAX_TILT, MAX_TILT)) for _ in caption.items]
    return tuple(Placement(*values) for values in zip(centers, radii, tilts, strict=True))


def outline(shape: str, girth: float = 1.0) -> list[Point]:
    """Corners of a polygonal shape inscribed in the unit circle, first corner upwards.

    Args:
        shape: square, triangle, star or cross.
        girth: factor on the star's inner radius and on the width of the cross's arms.

    Raises:
        ValueError: the shape is round (circle, ring) or unknown.
    """
    if shape == "cross":
        w = CROSS_WIDTH * girth
        r = math.sqrt(1 - w * w)
        quarter = [(-w, -r), (w, -r), (w, -w)]
        corners = []
        for _ in range(4):
            corners += quarter
            quarter = [(-y, x) for x, y in quarter]
        return corners
    regular = {"square": (4, 1.0), "triangle": (3, 1.0), "star": (2 * STAR_POINTS, STAR_INNER)}
    if shape not in regular:
        raise ValueError(f"{shape!r} has no corners")
    count, inner = regular[shape]
    turn = math.pi / 4 if shape == "square" else 0.0
    angles = [turn - math.pi / 2 + 2 * math.pi * i / count for i in range(count)]
    radii = [inner * girth if i % 2 and inner < 1 else 1.0 for i in range(count)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def _draw(canvas: ImageDraw.ImageDraw, item: Item, placed: Placement, background: str) -> None:
    x, y = (SUPERSAMPLING * value for value in placed.center)
    radius = SUPERSAMPLING * placed.radius
    if item.shape in ("circle", "ring"):
        canvas.circle((x, y), radius, fill=COLORS[item.color])
        if item.shape == "ring":
            canvas.circle((x, y), radius * RING_INNER, fill=BACKGROUNDS[background])
        return
    cos, sin = radius * math.cos(placed.tilt), radius * math.sin(placed.tilt)
    corners = [(x + u * cos - v * sin, y + u * sin + v * cos) for u, v in outline(item.shape)]
    canvas.polygon(corners, fill=COLORS[item.color])


def draw(caption: Caption, placements: Sequence[Placement]) -> np.ndarray:
    """The picture of a caption at given placements: uint8 (128, 128, 3)."""
    side = CANVAS * SUPERSAMPLING
    image = Image.new("RGB", (side, side), BACKGROUNDS[caption.background])
    canvas = ImageDraw.Draw(image)
    for item, placed in zip(caption.items, placements, strict=True):
        _draw(canvas, item, placed, caption.background)
    return np.asarray(image.reduce(SUPERSAMPLING), dtype=np.uint8)


def render(caption: Caption, rng: np.random.Generator) -> np.ndarray:
    """A random picture of a caption: uint8 (128, 128, 3)."""
    return draw(caption, place(caption, rng))
