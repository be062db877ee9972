"""Does this picture show what the caption says?

The world of `shapes` is simple enough that classical image analysis decides: colours are named by
the nearest entry of the palette, objects are the connected regions that are not background, and a
shape is recognised by laying ideal shapes over the object and asking which one covers it. The
judge knows nothing of a network, sees the picture and the caption alone, and says what is wrong.

Generated pictures are a little soft: edges are blurred over two pixels. So an object is measured
by coverage, how far each pixel has gone from the background's colour to the object's, and the
ideal shapes are antialiased too; softness then cancels and a wrong outline does not.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .matching import fit
from .shapes import BACKGROUNDS, COLORS, Caption, Item, parse_caption

# Colour distances are Euclidean in RGB. The two nearest backgrounds, gray and beige, are 103
# apart, and the nearest object and background, black on navy, 80.
BACKGROUND_TOLERANCE = 40.0
CONTRAST = 36.0  # of an object to the background: under half of 80
COLOR_TOLERANCE = 60.0  # of an object's colour to the palette's
UNEVEN_SHARE = 0.1  # of an object that may be neither its colour, nor ground, nor a blend of them
MIN_AREA = 16  # pixels; the smallest object, a star of radius 13, has 240
SIZE_LIMIT = 19.5  # pixels of radius: half way between the largest small and the smallest large
# Least distance along a relation over the distance aside. Drawn pictures have 1.7 and more, and
# 0.6 at most when held against a wrong relation (`shapes.MAX_ASIDE`).
DIAGONAL = 0.75
MIN_OVERLAP = 0.81  # with the ideal shape. Drawn shapes reach 0.94, the crookedest generated ones
# that a person still calls right 0.84; a star of four arms 0.77, of six 0.70, a doubled ring 0.51.


@dataclass(frozen=True)
class Thing:
    """An object as it was seen: names of the nearest palette entry and shape, and how near."""

    color: str | None
    shape: str | None
    radius: float
    center: tuple[float, float]
    overlap: float

    @property
    def size(self) -> str:
        return "small" if self.radius < SIZE_LIMIT else "large"


@dataclass(frozen=True)
class Scene:
    """All that the judge sees in a picture; `background` is None where it is of no known colour."""

    background: str | None
    things: tuple[Thing, ...]


@dataclass(frozen=True)
class Verdict:
    """`ok`, or what is wrong, in words."""

    ok: bool
    problems: tuple[str, ...]


# ------------------------------------------------------------------------------------ regions


def _eroded(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask all of whose eight neighbours belong to it too."""
    padded = np.pad(mask, 1)
    height, width = mask.shape
    shifts = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return np.logical_and.reduce(shifts)


def _dilated(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask and their eight neighbours."""
    return ~_eroded(np.pad(~mask, 1, constant_values=True))[1:-1, 1:-1]


def connected_regions(mask: np.ndarray) -> list[np.ndarray]:
    """The regions of True pixels that hang together, corners included, in reading order.

    Args:
        mask: bool (height, width).

    Returns:
        One bool (height, width) mask a region.
    """
    left, regions = mask.copy(), []
    while left.any():
        region = np.zeros_like(mask)
        region.flat[left.argmax()] = True
        while np.count_nonzero(grown := _dilated(region) & mask) > np.count_nonzero(region):
            region = grown
        regions.append(region)
        left &= ~region
    return regions


# ------------------------------------------------------------------------------------- looking


def _nearest(
    color: np.ndarray, palette: Mapping[str, tuple[int, ...]], tolerance: float
) -> str | None:
    distances = {name: float(np.linalg.norm(color - value)) for name, value in palette.items()}
    name = min(distances, key=distances.__getitem__)
    return name if distances[name] <= tolerance else None


def _background(pixels: np.ndarray) -> np.ndarray:
    """The colour of the ground: the median of the pixels near the most frequent background."""
    flat = pixels[::2, ::2].reshape(-1, 3)
    near = [
        ((flat - value) ** 2).sum(axis=1) <= BACKGROUND_TOLERANCE**2
        for value in BACKGROUNDS.values()
    ]
    widest = max(near, key=np.count_nonzero)
    return np.median(flat[widest] if widest.any() else flat, axis=0)


def _color(pixels: np.ndarray, ground: np.ndarray, region: np.ndarray) -> np.ndarray:
    """An object's colour: the median of the half of its core that is furthest from the ground."""
    core = _eroded(region)
    solid = pixels[core if core.any() else region]
    contrast = np.linalg.norm(solid - ground, axis=1)
    return np.median(solid[contrast >= np.median(contrast)], axis=0)


def _examine(pixels: np.ndarray, ground: np.ndarray, region: np.ndarray) -> Thing:
    color = _color(pixels, ground, region)
    direction = (color - ground) / max(1.0, float(((color - ground) ** 2).sum()))
    blend = np.clip((pixels - ground) @ direction, 0.0, 1.0)
    strange = np.linalg.norm(pixels - ground - blend[..., None] * (color - ground), axis=2)
    uneven = (strange[region] > COLOR_TOLERANCE).mean()
    found = fit(blend * _dilated(region))
    return Thing(
        color=_nearest(color, COLORS, COLOR_TOLERANCE) if uneven <= UNEVEN_SHARE else None,
        shape=found.shape if found.overlap >= MIN_OVERLAP else None,
        radius=found.radius,
        center=found.center,
        overlap=found.overlap,
    )


def look(picture: np.ndarray) -> Scene:
    """What a picture shows.

    Args:
        picture: uint8 (height, width, 3), sRGB.
    """
    pixels = picture.astype(np.float64)
    ground = _background(pixels)
    regions = connected_regions(np.linalg.norm(pixels - ground, axis=2) > CONTRAST)
    things = [_examine(pixels, ground, region) for region in regions if region.sum() >= MIN_AREA]
    return Scene(_nearest(ground, BACKGROUNDS, BACKGROUND_TOLERANCE), tuple(things))


def _faults(thing: Thing, item: Item) -> list[str]:
    faults = []
    if thing.color != item.color:
        faults.append(f"{item}: its colour is {thing.color or 'none of the palette'}")
    if thing.shape != item.shape:
        seen = thing.shape or f"no known one (best overlap {thing.overlap:.2f})"
        faults.append(f"{item}: its shape is {seen}")
    if thing.size != item.size:
        faults.append(f"{item}: it is {thing.size} (radius {thing.radius:.1f} pixels)")
    return faults


def _misplaced(first: Thing, second: Thing, relation: str) -> list[str]:
    """Why the first is not in that relation to the second; empty if it is.

    A diagonal neighbour is both below and right of the other: a relation holds if the distance
    along it is positive and not much shorter than the distance aside.
    """
    right = first.center[0] - second.center[0]
    down = first.center[1] - second.center[1]
    along = {"above": -down, "below": down, "left of": -right, "right of": right}[relation]
    aside = abs(right if relation in ("above", "below") else down)
    if along > 0 and along >= DIAGONAL * aside:
        return []
    across = "right of" if right > 0 else "left of"
    upright = "below" if down > 0 else "above"
    seen = f"{abs(right):.0f} pixels {across} and {abs(down):.0f} {upright}"
    return [f"the first is not {relation} the second, but {seen} it"]


def compare(scene: Scene, caption: Caption) -> Verdict:
    """Holds what was seen against what a caption says; see `judge`."""
    problems: list[str] = []
    if scene.background != caption.background:
        problems.append(f"the background is {scene.background or 'none of the palette'}")
    if len(scene.things) != len(caption.items):
        problems.append(f"there are {len(scene.things)} objects, not {len(caption.items)}")
        return Verdict(False, tuple(problems))
    # Which object is meant by which item is not known: the kinder reading counts.
    readings: list[list[str]] = []
    for things in itertools.permutations(scene.things):
        faults = [
            fault
            for thing, item in zip(things, caption.items, strict=True)
            for fault in _faults(thing, item)
        ]
        if caption.relation is not None:
            faults += _misplaced(things[0], things[1], caption.relation)
        readings.append(faults)
    readings.sort(key=len)
    problems += readings[0]
    return Verdict(not problems, tuple(problems))


def judge(picture: np.ndarray, caption: Caption | str) -> Verdict:
    """Compares a picture with its caption.

    Args:
        picture: uint8 (height, width, 3), sRGB.
        caption: a caption of `shapes`, or its text.

    Returns:
        ok if background, number of objects, and colour, shape, size and place of each are right.

    Raises:
        ValueError: the text is no caption of this world.
    """
    return compare(look(picture), parse_caption(caption) if isinstance(caption, str) else caption)
