"""Plots show the right numbers, for few layers and for many, with the same bytes each time."""

from __future__ import annotations

import importlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ditquant.activation_plots import PLOTS, draw, nearest_steps
from ditquant.activation_statistics import Statistics, save_statistics
from ditquant.artifacts import write_json
from ditquant.ranges import CONFIG_FORMAT, GRANULARITIES, ScaleOptions, single_tier
from ditquant.tiers import multi_tier
from support.activations import statistics

TIERS = {"linear": [6.0, 10.0], "post_gelu": [5.0, 8.0]}
CONFIGS = {"tiers": ["quant_config_multitier"], "distributions": ["quant_config"]}
PLACES = ("attn.q_proj", "attn.o_proj", "mlp.fc1", "mlp.fc2")


def model_statistics(multimodal: int, unified: int = 0, steps: int = 6) -> Statistics:
    """Inputs that grow with depth and drift over the steps, for any number of blocks."""
    random = np.random.default_rng(0)
    prefixes = [f"mm{i:02d}.{stream}" for i in range(multimodal) for stream in ("img", "txt")]
    prefixes += [f"uni{i:02d}" for i in range(unified)]
    values = {}
    for depth, prefix in enumerate(prefixes):
        for place in PLACES:
            drift = np.linspace(1, 1 + depth / 4, steps)[:, None, None]
            made = drift * random.standard_normal((steps, 16, 8))
            values[f"{prefix}.{place}"] = np.maximum(made, -0.17 if place == "mlp.fc2" else -9e9)
    post_gelu = tuple(name for name in values if name.endswith("fc2"))
    as_float32 = {name: array.astype(np.float32) for name, array in values.items()}
    return statistics(as_float32, post_gelu=post_gelu)


def documents(made: Statistics, plot: str) -> list[dict]:
    by_name = {
        "quant_config": single_tier(made, 8, "step", "absmax"),
        "quant_config_multitier": multi_tier(made, "step", "absmax", TIERS),
    }
    return [by_name[name] for name in CONFIGS.get(plot, [])]


def figure_of(plot: str, made: Statistics):
    return draw(plot, made, documents(made, plot), [0, 4, 8])


def png(plot: str, made: Statistics) -> bytes:
    buffer = io.BytesIO()
    figure_of(plot, made).savefig(buffer, metadata={"Software": None})
    return buffer.getvalue()


@pytest.fixture(scope="module")
def small():
    return model_statistics(multimodal=3)


@pytest.mark.parametrize("plot", PLOTS)
def test_a_plot_is_a_picture_with_the_same_bytes_each_time(plot, small):
    first = png(plot, small)
    assert first == png(plot, small)
    with Image.open(io.BytesIO(first)) as picture:
        assert np.asarray(picture.convert("L")).std() > 5


@pytest.mark.parametrize("plot", PLOTS)
def test_many_blocks_and_unified_blocks_are_drawn_within_a_readable_height(plot):
    figure = figure_of(plot, model_statistics(multimodal=24, unified=4, steps=3))
    assert figure.get_size_inches()[1] < 18


def test_absmax_draws_one_line_a_snapshot_with_the_measured_maxima(small):
    figure = figure_of("absmax", small)
    panel = next(axes for axes in figure.axes if axes.get_title() == "text stream: o_proj")
    lines = [line for line in panel.get_lines() if len(line.get_xdata())]
    assert len(lines) == 3
    expected = [small.inputs[f"mm{i:02d}.txt.attn.o_proj"].absmax[2] for i in range(3)]
    np.testing.assert_array_equal(lines[1].get_ydata(), expected)


def test_panels_say_which_inputs_have_passed_gelu(small):
    titles = [axes.get_title() for axes in figure_of("absmax", small).axes]
    assert "image stream: fc2, after GELU" in titles
    assert "image stream: fc1" in titles


def test_drift_shows_the_inputs_that_move_most(small):
    (axes,) = figure_of("drift", small).axes
    drift = {name: s.absmax.max() / s.absmax.min() for name, s in small.inputs.items()}
    most = max(drift, key=drift.__getitem__)
    np.testing.assert_array_equal(axes.get_lines()[0].get_ydata(), small.inputs[most].absmax)
    assert f"{drift[most]:.1f}-fold" in axes.get_legend().get_texts()[0].get_text()
    # Sampling runs left to right: from noise at sigma 1.
    assert axes.get_xlim()[0] > axes.get_xlim()[1]


def test_tiers_draw_the_bits_of_every_input_and_shares_that_add_up(small):
    share, matrix = figure_of("tiers", small).axes
    layers = documents(small, "tiers")[0]["layers"]
    np.testing.assert_array_equal(
        matrix.images[0].get_array(), [layers[name]["bits"] for name in small.inputs]
    )
    heights = np.array([bar.get_height() for bar in share.patches]).reshape(3, -1)
    np.testing.assert_allclose(heights.sum(axis=0), 100)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_tiers_and_ranges_are_drawn_whatever_scales_follow(small, granularity):
    options = ScaleOptions(groups=3, degree=2)
    tiers = multi_tier(small, granularity, "absmax", TIERS, options)
    _, matrix = draw("tiers", small, [tiers], [0]).axes
    shown = np.array(matrix.images[0].get_array())
    assert shown.shape == (len(small.inputs), len(small.sigmas))
    for bits in (4, 6, 8):
        assert tiers["summary"]["shares"][f"A{bits}"] == pytest.approx((shown == bits).mean(), 1e-5)
    single = single_tier(small, 8, granularity, "absmax", options)
    panel = draw("distributions", small, [single], [0]).axes[0]
    # The first panel has the image stream's q: the span up to the largest of their limits.
    largest = max(m.absmax.max() for n, m in small.inputs.items() if n.endswith("img.attn.q_proj"))
    right = panel.patches[0].get_x() + panel.patches[0].get_width()
    assert right >= largest * (1 - 1e-6)


@pytest.mark.parametrize(
    ("wanted", "positions"),
    [([0, 12, 48], [0, 6, 24]), ([100], [24]), ([13], [6]), ([0, 1], [0])],
)
def test_snapshots_are_the_nearest_measured_steps_each_once(wanted, positions):
    assert nearest_steps(range(0, 50, 2), wanted) == positions


def test_the_script_writes_the_plot_that_the_file_is_named_after(tmp_path, small):
    script = importlib.import_module("visualize_activations")
    save_statistics(tmp_path / "s.safetensors", small)
    config = tmp_path / "quant_config_multitier.json"
    write_json(config, CONFIG_FORMAT, documents(small, "tiers")[0])
    plot = tmp_path / "plots" / "tiers.png"
    script.main(str(tmp_path / "s.safetensors"), [str(config)], str(plot), [0])
    assert plot.read_bytes() == png("tiers", small)
    assert b"Matplotlib" not in plot.read_bytes()
    assert [path.name for path in Path(plot.parent).iterdir()] == ["tiers.png"]
