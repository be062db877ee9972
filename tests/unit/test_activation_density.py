"""Signed distributions, codes and scales as the plots of configured ranges show them."""

from __future__ import annotations

import numpy as np
import pytest

from ditquant.activations.granularity import GRANULARITIES
from ditquant.activations.quant_config import parse_quant_config
from ditquant.activations.quant_params import QuantParams
from ditquant.plots.activation_distributions import codes_of, distribution, entropy
from ditquant.plots.activation_plots import draw
from ditquant.plots.activation_scales import scales_at
from ditquant.plots.layout import PlotOptions
from support.activations import input_statistics, statistics
from support.schemes import DYNAMIC, params_at, single_tier

OPTIONS = PlotOptions(snapshot_steps=[0], layers=4)
STEPS = 8


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x**3)))


def values(after_gelu: bool, seed: int = 0) -> np.ndarray:
    """(STEPS, tokens, channels) whose spread grows from step to step."""
    random = np.random.default_rng(seed)
    spread = np.linspace(1, 2, STEPS)[:, None, None]
    made = spread * random.standard_normal((STEPS, 200, 64))
    return np.float32(_gelu(made) if after_gelu else made)


@pytest.fixture(scope="module")
def made():
    names = [f"mm{block:02d}.img.{place}" for block in range(2) for place in ("mlp.fc1", "mlp.fc2")]
    arrays = {name: values(name.endswith("fc2"), seed) for seed, name in enumerate(names)}
    return statistics(arrays, post_gelu=tuple(name for name in names if name.endswith("fc2")))


def document(made, granularity: str = "step", **options) -> dict:
    chosen = dict(groups=3, degree=2, **options)
    return single_tier(made, 8, granularity, "absmax", **chosen)


@pytest.mark.parametrize("after_gelu", [False, True])
def test_a_distribution_holds_all_values_where_they_are(after_gelu):
    array = values(after_gelu)
    shown = distribution(input_statistics(array), 3)
    assert shown.below[0] == 0
    assert shown.below[-1] == pytest.approx(1)
    assert shown.points[0] == pytest.approx(array[3].min())
    assert shown.points[-1] == pytest.approx(array[3].max())
    edges = np.array([-10, -2, -0.171, 0.2, 0.5, 1, 2, 10.0])
    expected = np.histogram(array[3], edges)[0] / array[3].size
    np.testing.assert_allclose(shown.between(edges), expected, atol=0.015)


def test_values_of_one_sign_do_not_pile_up_where_the_other_ends():
    array = np.float32(np.linspace(-8, 1, 9000)).reshape(1, 90, 100)
    shown = distribution(input_statistics(array), 0)
    tail = shown.between(np.array([-8, -4, -2, -1, 1.0]))
    np.testing.assert_allclose(tail, np.array([4, 2, 1, 2]) / 9, atol=0.01)


def test_zeros_alone_are_a_distribution():
    shown = distribution(input_statistics(np.zeros((1, 4, 4), np.float32)), 0)
    np.testing.assert_allclose(shown.between(np.array([-1.0, 1.0])), 1)


@pytest.mark.parametrize("after_gelu", [False, True])
def test_codes_take_the_share_of_values_that_rounding_gives_them(after_gelu):
    array = values(after_gelu)
    measured = input_statistics(array)
    largest = float(np.abs(array[2]).max())
    numbers = QuantParams(4, largest / 7, 0.5 if after_gelu else 0.0)
    codes = codes_of(numbers, measured, 2)
    assert (codes.low, codes.high) == (-8, 7)
    assert codes.interval[1] == pytest.approx(largest + codes.shift)
    assert len(codes.levels()) == 16
    rounded = np.rint((array[2] - codes.shift) / codes.scale).ravel()
    expected = [(rounded == code).mean() for code in range(-8, 8)]
    np.testing.assert_allclose(codes.shares(distribution(measured, 2)), expected, atol=0.02)


def test_dynamic_ranges_have_the_codes_of_what_was_measured():
    array = values(after_gelu=True)
    codes = codes_of(QuantParams(8, None, -0.171875, unsigned=True), input_statistics(array), 1)
    assert (codes.low, codes.high) == (0, 255)
    assert codes.interval == pytest.approx((-0.171875, float(array[1].max())))


def test_of_groups_of_channels_the_widest_is_drawn():
    numbers = QuantParams(8, np.array([0.1, 0.3, 0.2]), np.array([1.0, 2.0, 3.0]))
    codes = codes_of(numbers, input_statistics(values(after_gelu=False)), 0)
    assert (codes.scale, codes.shift) == (0.3, 0.0)


def test_entropy_is_that_of_equal_codes_and_of_one():
    assert entropy(np.full(16, 0.01)) == pytest.approx(4)
    assert entropy(np.array([0, 1.0, 0])) == 0


@pytest.mark.parametrize(
    ("plot", "panels"), [("distributions", 4), ("ranges", 10), ("scales", 4), ("coverage", 6)]
)
def test_configurations_of_every_granularity_are_drawn_and_named(made, plot, panels):
    named = set()
    for granularity in GRANULARITIES:
        figure = draw(plot, made, document(made, granularity), OPTIONS)
        assert len(figure.axes) == panels
        named.add(figure.get_suptitle())
    assert len(named) == len(GRANULARITIES)


def document_of_long_words(made):
    with_channels = document(made, "group", channel_group=16, channel_shift=True)
    with_channels["configuration"]["range"] = "measured"
    return with_channels


@pytest.mark.parametrize("plot", ["distributions", "ranges", "scales", "coverage"])
def test_a_long_title_stays_within_the_figure(made, plot):
    figure = draw(plot, made, document_of_long_words(made), OPTIONS)
    figure.draw_without_rendering()
    title = figure._suptitle.get_window_extent()
    assert "range by measured error" in figure._suptitle.get_text().replace("\n", " ")
    assert figure.bbox.x0 <= title.x0
    assert title.x1 <= figure.bbox.x1
    # Nothing is drawn over it.
    tops = [axes.get_tightbbox().y1 for axes in figure.axes if axes.get_visible()]
    assert max(tops) <= title.y0


@pytest.mark.parametrize("granularity", ["group", "polynomial", "dynamic-tensor"])
def test_groups_and_shifts_of_channels_are_drawn(made, granularity):
    with_channels = document(made, granularity, channel_group=16, channel_shift=True)
    for plot in ("distributions", "ranges", "scales", "coverage"):
        assert draw(plot, made, with_channels, OPTIONS).axes


def test_configured_ranges_reach_what_was_measured(made):
    panel = draw("distributions", made, document(made), OPTIONS).axes[2]
    assert panel.get_title() == "image stream: fc1"
    largest = max(made.inputs[f"mm{block:02d}.img.mlp.fc1"].absmax.max() for block in range(2))
    span = panel.patches[0]
    assert span.get_x() + span.get_width() == pytest.approx(largest, rel=1e-5)


def test_ranges_show_post_gelu_inputs_shifted_too(made):
    figure = draw("ranges", made, document(made), OPTIONS)
    shown = [axes.get_title(loc="left") for axes in figure.axes]
    assert sum(title.startswith("x − z") for title in shown) == 2
    assert sum("no shift" in title for title in shown) == 2
    assert sum(title.startswith("codes: ") for title in shown) == 4


@pytest.mark.parametrize("granularity", [name for name in GRANULARITIES if name not in DYNAMIC])
def test_scales_are_those_that_inference_looks_up(made, granularity):
    config = parse_quant_config(document(made, granularity), "test")
    panel = draw("scales", made, document(made, granularity), OPTIONS).axes[2]
    sigmas, scales = panel.get_lines()[0].get_data()
    layer = config.layers["mm00.img.mlp.fc1"]
    expected = [params_at(config, layer, float(sigma)).scale for sigma in sigmas]
    np.testing.assert_allclose(scales, expected)
    low, high = scales_at(config, "mm00.img.mlp.fc1", sigmas)
    np.testing.assert_array_equal(low, high)


def test_scales_mark_where_sigma_groups_end(made):
    figure = draw("scales", made, document(made, "group"), OPTIONS)
    assert figure.axes[2].get_lines()[-1].get_linestyle() == "--"
    # Two blocks, and the two boundaries between three groups.
    assert len(figure.axes[2].get_lines()) == 4


def test_coverage_never_falls_below_what_was_measured(made):
    figure = draw("coverage", made, document(made, "group"), OPTIONS)
    panel = figure.axes[0]
    measured, _, reached = panel.get_lines()[:3]
    sigmas, reach = reached.get_data()
    for sigma, absmax in zip(*measured.get_data(), strict=True):
        assert np.interp(-sigma, -sigmas, reach) >= absmax * (1 - 1e-5)
