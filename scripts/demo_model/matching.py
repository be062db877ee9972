"""Which of the world's shapes covers an object best?

An object comes as coverage: how much of each pixel it fills, 0..1. It is compared with ideal
shapes by intersection over union. Centroid and area give a first place and, for each shape, the
radius; the tilt is searched coarsely; the most promising shapes are then fitted by coordinate
ascent. What captions leave open is fitted too (how wide the arms of a cross are, how deep a star's
notches), and so is the softness of the edges: a soft or slender cross is a cross. What captions
name is not: five arms, one hole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from .shapes import RING_INNER, SHAPES, outline

Window = tuple[np.ndarray, np.ndarray]  # row numbers, column numbers

ROUND = ("circle", "ring")
SLENDER = ("star", "cross", "ring")  # shapes with a width that captions leave open
TILTS = tuple(-0.3 + 0.1 * i for i in range(7))  # radians; drawn ones stay within 0.25
GIRTHS = tuple(round(0.8 + 0.05 * i, 2) for i in range(9))  # factors on that width
CANDIDATES = 3  # shapes that are fitted after the coarse search
PERFECT = 0.94  # overlap that needs no better fit: wrong shapes stay below 0.8
COARSE, FINE = 1, 3  # samples a pixel and axis
SPARSE = 2  # the coarse search looks at every second row and column
SOFTENINGS = 3  # the ideal is compared crisp, and blurred once and twice
KERNEL = (0.25, 0.5, 0.25)

TABLE_SIDE = 320  # samples across an ideal shape's table
TABLE_REACH = 1.25  # half its side, in radii; beyond the shape the table is empty
MARGIN = 4  # pixels around an object


@dataclass(frozen=True)
class Pose:
    """An ideal shape and where it lies: centre (row, column) and radius in pixels, tilt, girth."""

    shape: str
    row: float
    column: float
    radius: float
    tilt: float = 0.0
    girth: float = 1.0


@dataclass(frozen=True)
class Match:
    """The best ideal shape for an object; `center` is (x, y), `overlap` 1 for a perfect fit."""

    shape: str
    radius: float
    center: tuple[float, float]
    overlap: float


@cache
def _table(shape: str, tilt: float, girth: float) -> np.ndarray:
    """An ideal shape of radius 1 as samples, bool (side, side)."""
    middle, scale = TABLE_SIDE / 2, TABLE_SIDE / (2 * TABLE_REACH)
    image = Image.new("1", (TABLE_SIDE, TABLE_SIDE))
    canvas = ImageDraw.Draw(image)
    if shape in ROUND:
        canvas.circle((middle, middle), scale, fill=1)
        if shape == "ring":
            wall = (1 - RING_INNER) * girth
            canvas.circle((middle, middle), scale * (1 - wall), fill=0)
    else:
        cos, sin = scale * math.cos(tilt), scale * math.sin(tilt)
        corners = [
            (middle + u * cos - v * sin, middle + u * sin + v * cos)
            for u, v in outline(shape, girth)
        ]
        canvas.polygon(corners, fill=1)
    return np.asarray(image, dtype=bool)


@cache
def _unit_area(shape: str) -> float:
    """Area of a shape of radius 1."""
    cell = (2 * TABLE_REACH / TABLE_SIDE) ** 2
    return float(_table(shape, 0.0, 1.0).sum() * cell)


def _ideal(pose: Pose, window: Window, samples: int) -> np.ndarray:
    """Coverage of the pixels of a window by an ideal shape, float (rows, columns)."""
    steps = (np.arange(samples) + 0.5) / samples - 0.5
    scale = TABLE_SIDE / (2 * TABLE_REACH) / pose.radius
    indices = []
    for places, middle in zip(window, (pose.row, pose.column), strict=True):
        offsets = (places[:, None] + steps[None]).reshape(-1) - middle
        index = np.floor(offsets * scale + TABLE_SIDE / 2).astype(int)
        indices.append(np.clip(index, 0, TABLE_SIDE - 1))
    table = _table(pose.shape, round(pose.tilt, 3), pose.girth)[np.ix_(*indices)]
    rows, columns = (len(places) for places in window)
    return table.reshape(rows, samples, columns, samples).mean(axis=(1, 3))


def _softened(coverage: np.ndarray) -> np.ndarray:
    for axis in (0, 1):
        before, after = np.roll(coverage, 1, axis), np.roll(coverage, -1, axis)
        coverage = KERNEL[0] * before + KERNEL[1] * coverage + KERNEL[2] * after
    return coverage


def _overlap(covered: np.ndarray, ideal: np.ndarray) -> float:
    """Intersection over union of two coverages."""
    return float(np.minimum(covered, ideal).sum() / np.maximum(covered, ideal).sum())


def _neighbours(pose: Pose, reach: float) -> list[Pose]:
    """Poses one step away in one coordinate; `reach` scales the steps."""
    poses = [replace(pose, row=pose.row + reach * step) for step in (-0.5, 0.5)]
    poses += [replace(pose, column=pose.column + reach * step) for step in (-0.5, 0.5)]
    poses += [replace(pose, radius=pose.radius * (1 + reach * step)) for step in (-0.04, 0.04)]
    if pose.shape not in ROUND:
        poses += [replace(pose, tilt=pose.tilt + reach * step) for step in (-0.05, 0.05)]
    if pose.shape in SLENDER:
        at = GIRTHS.index(pose.girth)
        poses += [replace(pose, girth=GIRTHS[i]) for i in (at - 1, at + 1) if 0 <= i < len(GIRTHS)]
    return poses


def _ascend(inside: np.ndarray, window: Window, pose: Pose) -> tuple[float, Pose]:
    """Moves a pose to better overlap, with full and then with half steps."""

    def measure(pose: Pose) -> float:
        ideal, best = _ideal(pose, window, FINE), 0.0
        for _ in range(SOFTENINGS):
            best = max(best, _overlap(inside, ideal))
            ideal = _softened(ideal)
        return best

    best = measure(pose)
    for reach in (1.0, 1.0, 0.5, 0.5):
        if best >= PERFECT:
            break
        for other in _neighbours(pose, reach):
            overlap = measure(other)
            if overlap > best:
                best, pose = overlap, other
    return best, pose


def fit(coverage: np.ndarray) -> Match:
    """The ideal shape that covers an object best.

    Args:
        coverage: of one object, float (height, width), 0..1, not all zero.
    """
    padded = np.pad(coverage, MARGIN)
    bounds = []
    for axis in (1, 0):
        filled = np.flatnonzero(padded.any(axis=axis))
        bounds.append(slice(filled[0] - MARGIN, filled[-1] + MARGIN + 1))
    inside = padded[bounds[0], bounds[1]]
    window = (np.arange(inside.shape[0]), np.arange(inside.shape[1]))
    area = float(inside.sum())
    row = float((inside.sum(axis=1) * window[0]).sum()) / area
    column = float((inside.sum(axis=0) * window[1]).sum()) / area
    sparse, places = inside[::SPARSE, ::SPARSE], (window[0][::SPARSE], window[1][::SPARSE])
    found = []
    for shape in SHAPES:
        radius = math.sqrt(area / _unit_area(shape))
        tilts = (0.0,) if shape in ROUND else TILTS
        poses = [Pose(shape, row, column, radius, tilt) for tilt in tilts]
        overlaps = [_overlap(sparse, _ideal(pose, places, COARSE)) for pose in poses]
        best = int(np.argmax(overlaps))
        found.append((overlaps[best], poses[best]))
    found.sort(key=lambda pair: -pair[0])
    overlap, pose = 0.0, found[0][1]
    for _, candidate in found[:CANDIDATES]:
        fitted, moved = _ascend(inside, window, candidate)
        if fitted > overlap:
            overlap, pose = fitted, moved
        if overlap >= PERFECT:
            break
    x = pose.column + bounds[1].start - MARGIN
    y = pose.row + bounds[0].start - MARGIN
    return Match(pose.shape, pose.radius, (x, y), overlap)
