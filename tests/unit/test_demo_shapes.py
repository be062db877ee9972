"""The world of the demo model: captions, pictures, and the lists of prompts."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from demo_model import shapes
from demo_model.prompts import prompt_lists, to_csv
from ditquant.planning.prompt_files import read_prompts

PROMPTS = Path(__file__).parents[2] / "config" / "prompts"


def sampled(count: int, seed: int = 0) -> list[shapes.Caption]:
    rng = np.random.default_rng(seed)
    return [shapes.sample_caption(rng) for _ in range(count)]


def test_every_caption_reads_back_as_itself():
    for caption in sampled(500):
        assert shapes.parse_caption(str(caption)) == caption


def test_case_and_blanks_do_not_matter():
    caption = shapes.parse_caption("  A small  RED star on a navy background ")
    assert str(caption) == "a small red star on a navy background"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a small red star", "does not end with"),
        ("a small red star on a violet background", "'violet' is no background"),
        ("a tiny red star on a navy background", "'tiny' is no size"),
        ("a small mauve star on a navy background", "'mauve' is no colour"),
        ("a small red heart on a navy background", "'heart' is no shape"),
        ("a small red star beside a small red ring on a navy background", "is not of the form"),
        ("a red star on a navy background", "is not of the form"),
        ("", "does not end with"),
    ],
)
def test_another_text_is_an_error_that_says_which_part(text, named):
    with pytest.raises(ValueError, match=named):
        shapes.parse_caption(text)


def test_excluded_captions_are_never_sampled():
    taken = {str(caption) for caption in sampled(400)}
    rng = np.random.default_rng(0)  # the same draws, which are all refused
    fresh = [str(shapes.sample_caption(rng, taken)) for _ in range(400)]
    assert not taken.intersection(fresh)


def test_placements_keep_what_the_caption_and_the_world_promise():
    rng = np.random.default_rng(1)
    for caption in sampled(1000, seed=2):
        placed = shapes.place(caption, rng)
        for item, at in zip(caption.items, placed, strict=True):
            low, high = shapes.SIZES[item.size]
            assert low <= at.radius <= high
            assert abs(at.tilt) <= shapes.MAX_TILT
            for coordinate in at.center:
                inside = shapes.CANVAS - shapes.MARGIN - at.radius
                assert shapes.MARGIN + at.radius - 1e-9 <= coordinate <= inside + 1e-9
        if caption.relation is None:
            continue
        first, second = placed
        right, down = (a - b for a, b in zip(first.center, second.center, strict=True))
        gap = math.hypot(right, down) - first.radius - second.radius
        assert gap >= shapes.GAP - 1e-9
        along = {"above": -down, "below": down, "left of": -right, "right of": right}
        aside = right if caption.relation in ("above", "below") else down
        assert abs(aside) <= shapes.MAX_ASIDE * along[caption.relation] + 1e-9


@pytest.mark.parametrize("shape", shapes.SHAPES)
def test_a_drawn_shape_fills_its_circle_and_no_more(shape):
    caption = shapes.Caption((shapes.Item("large", "red", shape),), None, "cyan")
    picture = shapes.draw(caption, [shapes.Placement((64.0, 60.0), 25.0, 0.1)])
    ground = np.array(shapes.BACKGROUNDS["cyan"])
    changed = np.argwhere(np.abs(picture.astype(int) - ground).max(axis=2) > 12)
    distances = np.hypot(changed[:, 1] + 0.5 - 64, changed[:, 0] + 0.5 - 60)
    assert 24 <= distances.max() <= 26
    assert picture.shape == (shapes.CANVAS, shapes.CANVAS, 3)
    middle = shapes.BACKGROUNDS["cyan"] if shape == "ring" else shapes.COLORS["red"]
    assert tuple(picture[60, 64]) == middle


def test_a_picture_is_the_same_for_the_same_seed():
    caption = sampled(1)[0]
    pictures = [shapes.render(caption, np.random.default_rng(3)) for _ in range(2)]
    assert np.array_equal(*pictures)
    assert not np.array_equal(pictures[0], shapes.render(caption, np.random.default_rng(4)))


def test_the_prompt_files_are_what_the_code_makes():
    calibration, evaluation = prompt_lists()
    assert (PROMPTS / "demo-calibration.csv").read_text() == to_csv(calibration)
    assert (PROMPTS / "demo-evaluation.csv").read_text() == to_csv(evaluation)


def test_calibration_and_evaluation_share_no_caption():
    calibration = read_prompts(PROMPTS / "demo-calibration.csv", "prompts")
    evaluation = read_prompts(PROMPTS / "demo-evaluation.csv", "prompts")
    assert (len(calibration), len(evaluation)) == (128, 256)
    assert len({*calibration, *evaluation}) == 128 + 256


@pytest.mark.parametrize("file", ["demo-calibration.csv", "demo-evaluation.csv"])
def test_already_the_first_ten_prompts_are_a_fair_sample(file):
    captions = [shapes.parse_caption(text) for text in read_prompts(PROMPTS / file, file)[:10]]
    items = [item for caption in captions for item in caption.items]
    assert {item.shape for item in items} == set(shapes.SHAPES)
    assert {item.color for item in items} == set(shapes.COLORS)
    assert {item.size for item in items} == set(shapes.SIZES)
    assert {caption.background for caption in captions} == set(shapes.BACKGROUNDS)
    assert {caption.relation for caption in captions} == {None, *shapes.RELATIONS}
