"""The animation has a frame a step, shows the measured ranges and is the same each time."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from ditquant.plots.activation_animation import Film, animate_drift
from support.sd3_statistics import sd3_statistics


@pytest.fixture(scope="module")
def made():
    return sd3_statistics(steps=4, channels=16, blocks=3)


@pytest.fixture(scope="module")
def film(made):
    return animate_drift(made)


def test_it_has_a_frame_for_every_measured_step_and_goes_on_for_ever(film):
    with Image.open(io.BytesIO(film)) as picture:
        assert picture.n_frames == 4
        assert picture.info["loop"] == 0
        durations = []
        frames = []
        for position in range(4):
            picture.seek(position)
            durations.append(picture.info["duration"])
            frames.append(np.asarray(picture.convert("RGB")).astype(int))
    assert durations[-1] > durations[0] > 100
    assert all((one != other).any() for one, other in pairwise(frames))
    # Paper stays white: the palette has every colour that is drawn.
    assert (frames[-1][0, 0] == 255).all()


def test_the_same_statistics_give_the_same_bytes(made, film):
    assert animate_drift(made) == film


def test_a_frame_shows_the_ranges_of_its_step(made):
    film = Film(made)
    film.show(2)
    names = [f"mm{block:02d}.img.attn.q_proj" for block in range(3)]
    panel = next(a for a in film.figure.axes if a.get_title() == "image stream: q, k, v")
    before, now = panel.get_lines()
    np.testing.assert_array_equal(now.get_ydata(), [made.inputs[n].absmax[2] for n in names])
    np.testing.assert_array_equal(before.get_ydata(), [made.inputs[n].absmax[1] for n in names])
    assert film.figure.axes[0].get_title() == f"σ = {made.sigmas[2]:.3f}, step {made.steps[2]}"
