"""The comparison picture shows the right pixels, and any caption fits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditquant.evaluation import comparison


def test_difference_is_amplified_and_does_not_wrap_around():
    reference = np.full((2, 2, 3), 200, dtype=np.uint8)
    image = reference.copy()
    image[0, 0, 1] = 210  # ten levels up
    image[0, 1, 2] = 190  # ten levels down
    image[1, 0] = 0
    shown = comparison.difference(image, reference, factor=8)
    expected = comparison.colors(np.array([[80, 80], [255, 0]]))
    assert np.array_equal(shown, expected)


def test_the_colour_scale_grows_lighter():
    scale = comparison.colors(np.arange(256)[None])[0].astype(float)
    luminance = scale @ np.array([0.2126, 0.7152, 0.0722])
    assert np.all(np.diff(luminance) >= 0)
    assert luminance[0] < 1 < 240 < luminance[-1]


CAPTIONS = [
    "a small red star on a navy background",
    'he said "draw\na star"\tnow',
    "星空の下の猫 ← звезда ★ 🐈",
    "x" * 2000,
    "a word " * 300,
    "",
    "\x00\x07",
]


@pytest.mark.parametrize("caption", CAPTIONS)
@pytest.mark.parametrize("size", [(16, 16), (512, 256)])
def test_side_by_side_has_the_pixels_of_both_pictures(caption, size):
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    shown = np.asarray(comparison.side_by_side(reference, image, caption, "rtn-a8", "PSNR 9 dB"))
    zoom = max(1, comparison.PANEL // size[1])
    width = size[1] * zoom
    for column, panel in enumerate([reference, image, comparison.difference(image, reference)]):
        left = comparison.MARGIN + column * (width + comparison.GAP)
        enlarged = panel.repeat(zoom, axis=0).repeat(zoom, axis=1)
        tops = [
            top
            for top in range(shown.shape[0] - enlarged.shape[0])
            if np.array_equal(shown[top, left : left + width], enlarged[0])
        ]
        assert any(
            np.array_equal(shown[top : top + len(enlarged), left : left + width], enlarged)
            for top in tops
        )


@given(st.text(max_size=300), st.integers(20, 400), st.integers(1, 4))
def test_wrapped_lines_fit_and_keep_the_text(text, width, lines):
    face = comparison.font(16)
    result = comparison.wrapped(text, face, width, lines)
    assert 1 <= len(result) <= lines
    for line in result:
        assert face.getlength(line) <= width or len(line) <= 2
    joined = "".join("".join(result).split())
    whole = "".join(comparison.printable(text).split())
    if joined.endswith("…") and not whole.startswith(joined):
        assert whole.startswith(joined[:-1])
    else:
        assert joined == whole


def test_wrapped_breaks_between_words_and_marks_what_is_left_out():
    face = comparison.font(16)
    width = face.getlength("a small red")
    assert comparison.wrapped("a small red star", face, width, 2) == ["a small red", "star"]
    cut = comparison.wrapped("a small red star " * 9, face, width, 2)
    assert cut[0] == "a small red"
    assert cut[1].endswith("…")
