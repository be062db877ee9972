"""Plots show the right numbers, for few layers and for many, with the same bytes each time."""

from __future__ import annotations

import importlib
import io
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ditquant.activations.granularity import GRANULARITIES
from ditquant.activations.input_statistics import Statistics, save_statistics
from ditquant.activations.quant_config import CONFIG_FORMAT
from ditquant.artifacts import write_json
from ditquant.plots.activation_names import ACTIVATION_PLOTS, plot_files
from ditquant.plots.activation_plots import draw
from ditquant.plots.charts import as_png, as_svg
from ditquant.plots.layout import (
    PlotOptions,
    columns_axis,
    drift,
    most_outlying,
    most_variable,
    nearest_steps,
    outlier_ratio,
    variable_of_both_kinds,
    variation,
)
from ditquant.seals import seal_file
from support.activations import statistics
from support.schemes import multi_tier, single_tier
from support.sd3_statistics import sd3_linears, sd3_statistics

ROOT = Path(__file__).parents[2]
TIERS = {"linear": [6.0, 10.0], "post_gelu": [5.0, 8.0]}
PLACES = ("attn.q_proj", "attn.o_proj", "mlp.fc1", "mlp.fc2")
OPTIONS = PlotOptions(snapshot_steps=[0, 4, 8], layers=4)


def model_statistics(multimodal: int, unified: int = 0, steps: int = 6) -> Statistics:
    """Inputs that grow with depth and drift over the steps, for any number of blocks."""
    random = np.random.default_rng(0)
    prefixes = [f"mm{i:02d}.{stream}" for i in range(multimodal) for stream in ("img", "txt")]
    prefixes += [f"uni{i:02d}" for i in range(unified)]
    values = {}
    for depth, prefix in enumerate(prefixes):
        for place in PLACES:
            if (prefix, place) == (f"mm{multimodal - 1:02d}.txt", "mlp.fc1"):
                break
            drift = np.linspace(1, 1 + depth / 4, steps)[:, None, None]
            made = drift * random.standard_normal((steps, 16, 8))
            values[f"{prefix}.{place}"] = np.maximum(made, -0.17 if place == "mlp.fc2" else -9e9)
    post_gelu = tuple(name for name in values if name.endswith("fc2"))
    as_float32 = {name: array.astype(np.float32) for name, array in values.items()}
    return statistics(as_float32, post_gelu=post_gelu)


def documents(made: Statistics, plot: str, granularity: str = "step") -> dict:
    options = {"groups": 3, "degree": 2}
    by_name = {
        "a8": single_tier(made, 8, granularity, "absmax", **options),
        "multitier": multi_tier(made, granularity, "absmax", TIERS, **options),
    }
    drawn = ACTIVATION_PLOTS[plot].scheme
    return by_name.get(drawn, {})


def figure_of(plot: str, made: Statistics, options: PlotOptions = OPTIONS):
    return draw(plot, made, documents(made, plot), options)


def titles(figure) -> list[str]:
    return [
        text
        for axes in figure.axes
        for text in (axes.get_title(), axes.get_title(loc="left"))
        if text
    ]


@pytest.fixture(scope="module")
def small():
    return model_statistics(multimodal=3)


@pytest.fixture(scope="module")
def unified():
    return model_statistics(multimodal=2, unified=3, steps=3)


@pytest.fixture(scope="module")
def sd3():
    """As many layers as SD3-medium has, of fewer channels and steps."""
    return sd3_statistics(steps=5, channels=48)


@pytest.fixture(scope="module")
def svgs(small) -> dict[str, str]:
    """Every plot of the small model, drawn once."""
    return {plot: as_svg(figure_of(plot, small)) for plot in ACTIVATION_PLOTS}


def test_plots_have_the_same_bytes_each_time_and_no_date(small, svgs):
    for plot, svg in svgs.items():
        figure = figure_of(plot, small)
        assert as_svg(figure) == svg, plot
        assert svg.startswith("<svg"), plot
        assert "<dc:date>" not in svg, plot
    png = as_png(figure)
    assert png == as_png(figure_of(plot, small))
    assert b"Matplotlib" not in png
    with Image.open(io.BytesIO(png)) as picture:
        assert np.asarray(picture.convert("L")).std() > 5


@pytest.mark.parametrize("plot", ACTIVATION_PLOTS)
def test_285_layers_are_drawn_within_a_readable_height(plot, sd3):
    assert len(sd3.input_of) == 285
    figure = figure_of(plot, sd3)
    assert figure.get_suptitle()
    width, height = figure.get_size_inches()
    assert height < 1.2 * width
    # As large on paper as for a small model: no label shrinks as layers are added.
    sizes = [label.get_fontsize() for axes in figure.axes for label in axes.get_yticklabels()]
    assert min(sizes) >= 7


@pytest.mark.parametrize("plot", ACTIVATION_PLOTS)
def test_unified_blocks_have_a_row_of_panels(plot, unified):
    shown = " ".join(titles(figure_of(plot, unified)))
    by_block = plot not in ("drift", "outliers", "ranges", "coverage")
    assert ("unified blocks: fc2, after GELU" in shown) == by_block


@pytest.mark.parametrize("plot", ACTIVATION_PLOTS)
def test_plots_say_what_they_show(plot, svgs):
    text = svgs[plot]
    chosen_alone = plot in ("drift", "outliers", "coverage")
    assert chosen_alone or "after GELU" in text
    assert plot in ("absmax", "channels", "distributions", "ranges") or "noise level σ" in text
    assert ACTIVATION_PLOTS[plot].note.endswith(".")


def test_files_of_plots():
    files = plot_files(distributions=True, animate=True)
    assert len(files) == 2 * len(ACTIVATION_PLOTS) + 1
    fewer = plot_files(distributions=False, animate=False)
    assert {*files} - {*fewer} == {
        "drift.gif",
        *(f"{name}.{suffix}" for name in ("channels", "outliers", "distributions", "ranges")
          for suffix in ("png", "svg")),
    }  # fmt: skip


def test_absmax_draws_one_line_a_snapshot_with_the_measured_maxima(small):
    figure = figure_of("absmax", small)
    panel = next(axes for axes in figure.axes if axes.get_title() == "text stream: o_proj")
    lines = [line for line in panel.get_lines() if len(line.get_xdata())]
    assert len(lines) == 3
    expected = [small.inputs[f"mm{i:02d}.txt.attn.o_proj"].absmax[2] for i in range(3)]
    np.testing.assert_array_equal(lines[1].get_ydata(), expected)


def test_panels_say_which_inputs_have_passed_gelu(small):
    shown = titles(figure_of("absmax", small))
    assert "image stream: fc2, after GELU" in shown
    assert "image stream: fc1" in shown


def test_ranges_that_differ_much_get_a_logarithmic_axis(sd3):
    scales = {axes.get_title(): axes.get_yscale() for axes in figure_of("absmax", sd3).axes}
    assert scales["text stream: fc1"] == "log"
    assert "linear" in scales.values()


@pytest.mark.parametrize("layers", [1, 4, 24])
def test_drift_shows_the_inputs_that_move_most(sd3, layers):
    options = PlotOptions(OPTIONS.snapshot_steps, layers)
    figure = figure_of("drift", sd3, options)
    ranges, relative = figure.axes
    most = max(sd3.inputs, key=lambda name: drift(sd3.inputs[name]))
    np.testing.assert_array_equal(ranges.get_lines()[0].get_ydata(), sd3.inputs[most].absmax)
    (legend,) = figure.legends
    assert len(legend.get_texts()) == layers
    assert f"{drift(sd3.inputs[most]):.1f}-fold" in legend.get_texts()[0].get_text()
    # All inputs in grey, and the chosen ones once more.
    assert len(relative.get_lines()) == len(sd3.inputs) + layers
    looks = {
        (h.get_color(), h.get_marker(), h._unscaled_dash_pattern) for h in legend.legend_handles
    }
    assert len(looks) == layers
    # Sampling runs left to right: from noise at sigma 1.
    assert ranges.get_xlim()[0] > ranges.get_xlim()[1]


def matrices(figure) -> dict[str, np.ndarray]:
    return {
        axes.get_title(): np.ma.filled(axes.images[0].get_array(), np.nan)
        for axes in figure.axes
        if axes.images
    }


def test_heat_maps_have_a_row_a_block_and_a_column_a_step(small):
    ranges = matrices(figure_of("heatmap", small))
    assert len(ranges) == 8
    for block in range(3):
        name = f"mm{block:02d}.img.mlp.fc1"
        shown = ranges["image stream: fc1"][block]
        np.testing.assert_allclose(shown, small.inputs[name].absmax, rtol=1e-6)
    # The last text block ends behind attention: its row stays empty.
    assert np.isnan(ranges["text stream: fc1"][-1]).all()
    assert not np.isnan(ranges["text stream: fc1"][:-1]).any()


def test_variability_is_relative_to_each_layers_own_mean(small):
    figure = figure_of("variability", small)
    absmax = small.inputs["mm02.img.mlp.fc2"].absmax
    shown = matrices(figure)["image stream: fc2, after GELU"][2]
    np.testing.assert_allclose(2**shown, absmax / absmax.mean(), rtol=1e-5)
    panel = next(a for a in figure.axes if a.get_title() == "image stream: fc2, after GELU")
    percent = 100 * variation(small.inputs["mm02.img.mlp.fc2"])
    assert panel.texts[2].get_text() == f"{percent:.0f} %"


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_tiers_draw_the_bits_of_every_input_and_shares_that_add_up(small, granularity):
    document = documents(small, "tiers", granularity)
    figure = draw("tiers", small, document, OPTIONS)
    shown = np.concatenate([matrix.ravel() for matrix in matrices(figure).values()])
    shown = shown[~np.isnan(shown)]
    assert len(shown) == len(small.inputs) * len(small.sigmas)
    for bits in (4, 6, 8):
        share = document["summary"]["shares"][f"A{bits}"]
        assert share == pytest.approx((shown == bits).mean(), 1e-5)
    areas = [patch.get_data() for patch in figure.axes[0].patches]
    heights = np.array([area.values - area.baseline for area in areas])
    np.testing.assert_allclose(heights.sum(axis=0), 100)
    counts = document["summary"]["layers_per_sigma"]["A8"]
    np.testing.assert_allclose(heights[2], 100 * np.array(counts) / len(document["layers"]))


@pytest.mark.parametrize(("steps", "ticks"), [(25, 6), (10, 6), (50, 13), (2, 6), (1, 6), (14, 4)])
def test_columns_are_labelled_evenly_and_not_too_often(steps, ticks):
    sigmas = np.linspace(1, 0.1, steps)
    axes = Figure().subplots()
    columns_axis(axes, sigmas, ticks)
    shown = axes.get_xticks()
    assert len(shown) <= ticks
    assert shown[0] == 0
    assert len(set(np.diff(shown))) <= 1
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        f"{sigmas[int(index)]:.2f}" for index in shown
    ]


@pytest.mark.parametrize(
    ("wanted", "positions"),
    [([0, 12, 48], [0, 6, 24]), ([100], [24]), ([13], [6]), ([0, 1], [0])],
)
def test_snapshots_are_the_nearest_measured_steps_each_once(wanted, positions):
    assert nearest_steps(range(0, 50, 2), wanted) == positions


def test_rankings_are_ordered_and_take_both_kinds(sd3):
    drifts = [drift(sd3.inputs[name]) for name in most_variable(sd3, 10)]
    assert drifts == sorted(drifts, reverse=True)
    assert drifts[0] == max(drift(measured) for measured in sd3.inputs.values())
    worst = most_outlying(sd3, 5)
    assert all(name.endswith("fc2") for name in worst)
    assert outlier_ratio(sd3.inputs[worst[0]]) > 10
    both = variable_of_both_kinds(sd3, 6)
    assert sum(name in sd3.post_gelu for name in both) == 3
    assert both == [name for name in sd3.inputs if name in both]
    assert len(variable_of_both_kinds(sd3, 500)) == len(sd3.inputs)


def test_the_synthetic_model_has_the_layers_of_sd3_medium():
    linears = sd3_linears()
    assert len(linears) == 285
    assert len(set(linears.values())) == 189
    assert "mm23.txt.attn.v_proj" in linears
    assert "mm23.txt.attn.o_proj" not in linears


def test_the_script_writes_the_plot_that_the_files_are_named_after(tmp_path, small):
    script = importlib.import_module("visualize_activations")
    save_statistics(tmp_path / "s.safetensors", small)
    config = tmp_path / "quant_config_multitier.json"
    write_json(config, CONFIG_FORMAT, documents(small, "tiers"))
    plots = [tmp_path / "plots" / f"tiers.{suffix}" for suffix in ("png", "svg")]
    files = {path.suffix: str(path) for path in plots}
    script.main(str(tmp_path / "s.safetensors"), files, [0], 4, [str(config)])
    figure = figure_of("tiers", small)
    for path, content in zip(plots, (as_png(figure), as_svg(figure).encode()), strict=True):
        assert path.read_bytes() == seal_file(path, content, "ditquant.plot")
    assert sorted(path.name for path in plots[0].parent.iterdir()) == ["tiers.png", "tiers.svg"]


def test_the_script_writes_the_animation(tmp_path, small):
    script = importlib.import_module("visualize_activations")
    save_statistics(tmp_path / "s.safetensors", small)
    film = tmp_path / "plots" / "drift.gif"
    script.main(str(tmp_path / "s.safetensors"), {"gif": str(film)}, [0], 4)
    assert film.read_bytes().startswith(b"GIF89a")
