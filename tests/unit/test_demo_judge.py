"""The judge passes right pictures and says what is wrong with the others."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from demo_model import shapes
from demo_model.judge import Scene, compare, connected_regions, judge, look

PICTURES = 500


@pytest.fixture(scope="module")
def seen() -> list[tuple[shapes.Caption, Scene]]:
    """Fresh pictures, every other one softened as a VAE does it, as the judge sees them."""
    rng = np.random.default_rng(11)
    scenes = []
    for index in range(PICTURES):
        caption = shapes.sample_caption(rng)
        picture = shapes.render(caption, rng)
        if index % 2:
            picture = softened(picture)
        scenes.append((caption, look(picture)))
    return scenes


def softened(picture: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(0.7)))


def test_right_pictures_pass(seen):
    wrong = [str(caption) for caption, scene in seen if not compare(scene, caption).ok]
    assert len(wrong) <= 0.01 * PICTURES, wrong


def other(rng, values, value):
    rest = [each for each in values if each != value]
    return rest[int(rng.integers(len(rest)))]


def change_item(rng, caption, attribute, values):
    at = int(rng.integers(len(caption.items)))
    item = caption.items[at]
    value = other(rng, values, getattr(item, attribute))
    items = list(caption.items)
    items[at] = dataclasses.replace(item, **{attribute: value})
    return dataclasses.replace(caption, items=tuple(items))


def change_count(rng, caption):
    if caption.relation is not None:
        return dataclasses.replace(caption, items=caption.items[:1], relation=None)
    return dataclasses.replace(caption, items=caption.items * 2, relation="above")


def change_background(rng, caption):
    value = other(rng, shapes.BACKGROUNDS, caption.background)
    return dataclasses.replace(caption, background=value)


def change_relation(rng, caption):
    value = other(rng, shapes.RELATIONS, caption.relation)
    return dataclasses.replace(caption, relation=value)


CHANGES = {
    "colour": lambda rng, c: change_item(rng, c, "color", shapes.COLORS),
    "shape": lambda rng, c: change_item(rng, c, "shape", shapes.SHAPES),
    "size": lambda rng, c: change_item(rng, c, "size", shapes.SIZES),
    "background": change_background,
    "relation": change_relation,
    "count": change_count,
}


@pytest.mark.parametrize("attribute", CHANGES)
def test_a_caption_with_one_wrong_attribute_is_rejected(seen, attribute):
    rng = np.random.default_rng(12)
    tried, accepted = 0, []
    for caption, scene in seen:
        if attribute == "relation" and caption.relation is None:
            continue
        changed = CHANGES[attribute](rng, caption)
        tried += 1
        if compare(scene, changed).ok:
            accepted.append((str(caption), str(changed)))
    assert tried > 300
    assert len(accepted) <= 0.01 * tried, accepted


@pytest.fixture
def canvas():
    """A pink picture at four times the size, with what draws on it and what finishes it."""
    image = Image.new("RGB", (512, 512), shapes.BACKGROUNDS["pink"])
    return ImageDraw.Draw(image), lambda: np.asarray(image.reduce(4))


def star_corners(points: int, center: float, radius: float) -> list[tuple[float, float]]:
    angles = np.pi * np.arange(2 * points) / points
    radii = np.where(np.arange(2 * points) % 2, shapes.STAR_INNER * radius, radius)
    return [(center + r * np.sin(a), center - r * np.cos(a)) for r, a in zip(radii, angles)]  # noqa: B905


@pytest.mark.parametrize("radius", [60, 100])
@pytest.mark.parametrize(("points", "right"), [(4, False), (5, True), (6, False), (7, False)])
def test_a_star_has_five_points(canvas, points, right, radius):
    draw, finish = canvas
    draw.polygon(star_corners(points, 256, radius), fill=shapes.COLORS["red"])
    size = "small" if radius == 60 else "large"
    assert judge(finish(), f"a {size} red star on a pink background").ok is right


def test_a_doubled_ring_is_no_ring(canvas):
    draw, finish = canvas
    for x in (200, 260):
        draw.circle((x, 240), 60, fill=shapes.COLORS["red"])
    for x in (200, 260):
        draw.circle((x, 240), 33, fill=shapes.BACKGROUNDS["pink"])
    verdict = judge(finish(), "a small red ring on a pink background")
    assert "its shape is" in verdict.problems[0]


def test_objects_that_touch_are_one(canvas):
    draw, finish = canvas
    draw.circle((200, 240), 60, fill=shapes.COLORS["red"])
    draw.rectangle((255, 190, 345, 290), fill=shapes.COLORS["blue"])
    caption = "a small red circle left of a small blue square on a pink background"
    assert judge(finish(), caption).problems == ("there are 1 objects, not 2",)


def test_an_extra_object_is_wrong(canvas):
    draw, finish = canvas
    draw.circle((200, 240), 60, fill=shapes.COLORS["red"])
    draw.circle((400, 400), 12, fill=shapes.COLORS["red"])
    caption = "a small red circle on a pink background"
    assert judge(finish(), caption).problems == ("there are 2 objects, not 1",)


@pytest.mark.parametrize(
    ("right", "down", "relations"),
    [
        (60, 0, {"right of"}),
        (60, 40, {"right of"}),
        (60, 55, {"right of", "below"}),
        (-50, -60, {"left of", "above"}),
        (10, -60, {"above"}),
    ],
)
def test_a_diagonal_neighbour_is_in_two_relations(right, down, relations):
    second = shapes.Placement((64 - right / 2, 64 - down / 2), 14, 0)
    first = shapes.Placement((64 + right / 2, 64 + down / 2), 14, 0)
    items = (shapes.Item("small", "red", "circle"), shapes.Item("small", "blue", "square"))
    holds = set()
    for relation in shapes.RELATIONS:
        caption = shapes.Caption(items, relation, "gray")
        verdict = judge(shapes.draw(caption, [first, second]), caption)
        holds |= {relation} if verdict.ok else set()
    assert holds == relations


def test_an_object_of_two_colours_has_none(canvas):
    draw, finish = canvas
    draw.rectangle((200, 200, 250, 300), fill=shapes.COLORS["red"])
    draw.rectangle((250, 200, 300, 300), fill=shapes.COLORS["blue"])
    verdict = judge(finish(), "a small red square on a pink background")
    assert any("its colour is none" in problem for problem in verdict.problems)


def test_the_verdict_names_every_problem():
    rng = np.random.default_rng(13)
    picture = shapes.render(shapes.parse_caption("a small red star on a navy background"), rng)
    verdict = judge(picture, "a large green ring on a pink background")
    assert not verdict.ok
    text = " | ".join(verdict.problems)
    for part in ("background is navy", "colour is red", "shape is star", "it is small"):
        assert part in text


@pytest.mark.parametrize("value", [0, 128, 255])
def test_an_empty_picture_has_no_objects(value):
    picture = np.full((128, 128, 3), value, dtype=np.uint8)
    assert not judge(picture, "a small red star on a navy background").ok


def test_noise_is_judged_and_not_a_crash():
    picture = np.random.default_rng(0).integers(0, 256, (128, 128, 3)).astype(np.uint8)
    assert not judge(picture, "a small red star on a navy background").ok


def test_a_text_that_is_no_caption_is_an_error():
    with pytest.raises(ValueError, match="does not end with"):
        judge(np.zeros((128, 128, 3), dtype=np.uint8), "a photograph of a cat")


def test_regions_hang_together_by_edges_and_corners():
    mask = np.array(
        [
            [1, 1, 0, 0, 1],
            [0, 0, 1, 0, 1],
            [0, 0, 0, 0, 0],
            [1, 0, 1, 0, 0],
            [1, 1, 1, 0, 1],
        ],
        dtype=bool,
    )
    regions = connected_regions(mask)
    assert [int(region.sum()) for region in regions] == [3, 2, 5, 1]
    assert np.array_equal(np.logical_or.reduce(regions), mask)
