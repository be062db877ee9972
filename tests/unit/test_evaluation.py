"""The evaluation's numbers, table and plots, on runs whose errors are known."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from ditquant.artifacts import save_tensors, stored_bytes
from ditquant.backend import mx
from ditquant.evaluation import table as evaluation
from ditquant.evaluation.trajectories import Run
from ditquant.plots.charts import as_png, as_svg, figure, for_page, line_styles, log_axis
from ditquant.plots.evaluation_charts import CHARTS

ROOT = Path(__file__).parents[2]

CONTRACT = (
    "variant,captions,latent_relative_error_median,latent_relative_error_mean,psnr_median,"
    "ssim_median,velocity_error_mean,judge_accuracy,model_bytes,step_seconds,peak_bytes"
)


def run(scale: float = 1.0, velocity_scale: float = 1.0, level: int = 100) -> Run:
    """Three captions, two measured steps; everything that is compared is a multiple of one run."""
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(3, 2, 4, 4, 2)).astype(np.float32)
    return Run(
        final=scale * latents[:, 1],
        latents=scale * latents,
        velocities=velocity_scale * latents[:, ::-1],
        images=np.full((3, 16, 16, 3), level, dtype=np.uint8),
        sigmas=np.array([1, 0.5, 0], dtype=np.float32),
    )


def sqnr_of(variant: str, error: float) -> dict | None:
    """Of two blocks: the second is 10 dB worse, and the text stream of the first lost nothing."""
    if variant == "full":
        return None
    level = 200.0 if error == 0 else float(-10 * np.log10(error))
    streams = {"mm00.img": [level, level - 2], "mm00.txt": [None, None]}
    return {"captions": 2, "tokens": 64, "streams": {**streams, "mm01.img": [level - 10] * 2}}


def document(variant: str, errors: list[float], ok: list[bool] | None = None) -> dict:
    captions = [
        {
            "caption": f"caption {row}",
            "latent_relative_error": error,
            "psnr": None if error == 0 else -10 * np.log10(error) + 20,
            "ssim": 1 - error,
            "velocity_error": 2 * error,
            "velocity_errors": [error, 3 * error],
            "divergence": [0.0, error],
            "judge": None if ok is None else {"ok": ok[row], "problems": []},
        }
        for row, error in enumerate(errors)
    ]
    return {
        "variant": variant,
        "model_bytes": 1000,
        "measured_sigmas": [1.0, 0.5],
        "captions": captions,
        "block_sqnr": sqnr_of(variant, errors[0]),
    }


TIMINGS = {"step_seconds": 0.25, "peak_bytes": 4096}


def test_caption_scores_of_scaled_runs():
    scores = evaluation.caption_scores(run(), run(1.1, velocity_scale=0.8, level=105), row=1)
    assert scores["latent_relative_error"] == pytest.approx(0.01, rel=1e-5)
    assert scores["velocity_errors"] == pytest.approx([0.04, 0.04], rel=1e-5)
    assert scores["velocity_error"] == pytest.approx(0.04, rel=1e-5)
    assert scores["divergence"] == pytest.approx([0.01, 0.01], rel=1e-5)
    assert scores["psnr"] == pytest.approx(20 * np.log10(255 / 5))
    assert 0.99 < scores["ssim"] < 1


def test_the_reference_against_itself_has_no_error():
    scores = evaluation.caption_scores(run(), run(), row=0)
    assert scores["latent_relative_error"] == scores["velocity_error"] == 0
    assert scores["psnr"] is None
    assert scores["ssim"] == pytest.approx(1, abs=1e-12)


def test_summary_has_the_contracts_columns_first_then_intervals():
    rows = [
        evaluation.summary_row(document("full", [0, 0, 0], [True, True, True]), TIMINGS),
        evaluation.summary_row(document("rtn-a8", [0.1, 0.2, 0.6], [True, False, True]), TIMINGS),
        evaluation.summary_row(document("rtn-weights", [0.1, 0.2, 0.6]), TIMINGS),
    ]
    text = evaluation.summary_csv(rows)
    header, full, a8, weights = text.splitlines()
    assert header.startswith(CONTRACT + ",")
    extra = header[len(CONTRACT) + 1 :].split(",")
    assert all(re.fullmatch(r".+_(median|mean)_(low|high)", name) for name in extra[:10])
    assert extra[10:] == list(evaluation.RATIO_COLUMNS)
    assert full.startswith("full,3,0,0,inf,1,0,1,1000,0.25,4096,")
    assert a8.startswith("rtn-a8,3,0.2,0.3,26.9897,0.8,0.6,0.666667,1000,0.25,4096,")
    assert weights.split(",")[7] == ""


def test_summary_reads_back(tmp_path):
    row = evaluation.summary_row(document("rtn-a8", [0.1, 0.2, 0.6]), TIMINGS)
    path = tmp_path / "summary.csv"
    path.write_text(evaluation.summary_csv([row]))
    (read,) = evaluation.read_summary(path)
    assert read["variant"] == "rtn-a8"
    assert read["judge_accuracy"] is None
    assert read["latent_relative_error_mean"] == pytest.approx(0.3)
    assert read["latent_relative_error_median_low"] == pytest.approx(0.1)
    assert read["latent_relative_error_median_high"] == pytest.approx(0.6)


def test_rows_name_their_baseline(tmp_path):
    baseline = document("rtn-weights", [0.1, 0.2, 0.6])
    rows = [
        evaluation.summary_row(baseline, TIMINGS),
        evaluation.summary_row(document("b-weights", [0.05, 0.1, 0.3]), TIMINGS, baseline),
    ]
    path = tmp_path / "summary.csv"
    path.write_text(evaluation.summary_csv(rows))
    assert path.read_text().splitlines()[1].endswith(",,,,")
    first, second = evaluation.read_summary(path)
    assert first["baseline"] is first["latent_error_ratio"] is None
    assert second["baseline"] == "rtn-weights"
    # Every caption's error is half the baseline's, so every resample's median is, too.
    assert [second[name] for name in evaluation.RATIO_COLUMNS[1:]] == [0.5, 0.5, 0.5]


def test_error_ratio_is_paired():
    ratio = evaluation.error_ratio(document("a", [0.2, 0.4, 1.2]), document("b", [0.1, 0.2, 0.6]))
    assert ratio == pytest.approx((2, 2, 2))


def test_stored_bytes_counts_tensors_and_not_the_header(tmp_path):
    path = tmp_path / "model.safetensors"
    save_tensors(
        path,
        {"a.weight": mx.zeros((4, 8), dtype=mx.uint32), "b": mx.zeros((3,))},
        "ditquant.checkpoint_weights",
    )
    assert stored_bytes(path, "ditquant.checkpoint_weights") == 4 * 8 * 4 + 3 * 4
    assert evaluation.float16_bytes(21) == 42


DOCUMENTS = [
    document("full", [0, 0, 0]),
    document("noise-floor", [0, 0, 1e-7]),  # equal pictures have no PSNR
    document("rtn-a8", [0.1, 0.2, 0.6]),
]


@pytest.mark.parametrize("name", CHARTS)
def test_charts_name_every_variant_but_full(name):
    of_activations = name in ("bits", "inputs")
    documents = QUANTIZED if of_activations else DOCUMENTS
    svg = as_svg(CHARTS[name].draw(documents))
    assert svg.startswith("<svg")
    assert ">rtn-a8<" in svg
    # These are of quantized models, the others have the noise floor too.
    floor = bool(re.search(">noise.floor[<:]|noise floor:", svg))
    assert floor == (name != "size" and not of_activations)
    assert ">full<" not in svg
    assert svg == as_svg(CHARTS[name].draw(documents))


@pytest.mark.parametrize("name", CHARTS)
def test_charts_as_pictures_and_on_a_page(name):
    chart = CHARTS[name].draw(DOCUMENTS)
    png = as_png(chart)
    assert png.startswith(b"\x89PNG")
    assert png == as_png(CHARTS[name].draw(DOCUMENTS))
    page = for_page(as_svg(chart))
    assert "currentColor" in page
    assert "DejaVu" not in page


def lines(chart) -> dict[str, list[list[float]]]:
    """Label -> the heights of its line in every panel."""
    found: dict[str, list[list[float]]] = {}
    for axes in chart.axes:
        for line in axes.lines:
            found.setdefault(line.get_label(), []).append(list(line.get_ydata()))
    return found


def test_block_charts_show_medians_over_steps_and_the_last_image_stream():
    level = 10.0  # of an error of 0.1
    (image, text) = lines(CHARTS["blocks"].draw(DOCUMENTS))["rtn-a8"]
    assert image == pytest.approx([level - 1, level - 10])
    assert np.isnan(text).all()
    assert lines(CHARTS["block-sigma"].draw(DOCUMENTS))["rtn-a8"] == [[level - 10] * 2]


@pytest.mark.parametrize("name", ["errors", "psnr", "velocity", "divergence", "block-sigma"])
def test_a_far_noise_floor_is_stated_and_a_near_one_drawn(name):
    far, near = document("noise-floor", [1e-9] * 3), document("noise-floor", [0.05] * 3)
    if name == "psnr":  # 10 dB are as far as a decade
        far = document("noise-floor", [1e-15] * 3)
    drawn = [
        sum(len(axes.lines) for axes in CHARTS[name].draw([floor, DOCUMENTS[2]]).axes)
        for floor in (far, near)
    ]
    assert drawn[0] < drawn[1]
    svg = as_svg(CHARTS[name].draw([far, DOCUMENTS[2]]))
    stated = {"errors": "← 1.0 × 10⁻⁹", "psnr": "170.0 dB →", "block-sigma": "80.0 dB"}
    assert stated.get(name, "noise floor: ") in svg


def test_a_noise_floor_without_any_error_is_stated(recwarn):
    assert "← 0" in as_svg(CHARTS["errors"].draw([document("noise-floor", [0] * 3), DOCUMENTS[2]]))
    assert not recwarn.list


def test_logarithmic_axes_have_a_few_short_labels():
    def labels(low: float, high: float) -> list[str]:
        chart, axes = figure(4, 3)
        axes.plot([0, 1], [low, high])
        log_axis(axes, "y")
        axes.set_ylim(low, high)
        chart.draw_without_rendering()
        ticks = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
        return [label.get_text() for value, label in ticks if low <= value <= high]

    assert labels(0.004, 0.06) == ["0.005", "0.01", "0.02", "0.05"]
    assert labels(3e-8, 0.2)[:4] == ["10⁻⁷", "10⁻⁶", "10⁻⁵", "0.0001"]
    assert labels(4e-7, 3e-6) == ["5 × 10⁻⁷", "10⁻⁶", "2 × 10⁻⁶"]


def test_equal_sizes_stand_beside_each_other():
    shown = [document(f"r{index}-weights", [0.1, 0.2, 0.6]) for index in range(3)]
    (axes,) = CHARTS["size"].draw(shown).axes
    points = {
        line.get_label(): (line.get_xdata()[0], line.get_ydata()[0])
        for line in axes.lines
        if not line.get_label().startswith("_")
    }
    places = [place for place, _ in points.values()]
    assert len(set(places)) == 3
    assert sum(places) / 3 == pytest.approx(1000 / 1e6)
    assert {error for _, error in points.values()} == {0.2}


@pytest.mark.parametrize("name", ["blocks", "block-sigma"])
def test_block_charts_of_evaluations_without_blocks_are_empty(name):
    shown = [{**document("rtn-a8", [0.1]), "block_sqnr": None}]
    assert as_svg(CHARTS[name].draw(shown)).startswith("<svg")


def test_unified_blocks_have_a_panel_of_their_own():
    shown = document("rtn-a8", [0.1])
    shown["block_sqnr"]["streams"]["uni00.uni"] = [3.0, 4.0]
    assert len(CHARTS["blocks"].draw([shown]).axes) == 3
    assert lines(CHARTS["block-sigma"].draw([shown]))["rtn-a8"] == [[3.0, 4.0]]


def test_twelve_variants_look_different():
    styles = line_styles([f"recipe{index}-weights" for index in range(12)])
    assert len({str(style) for style in styles.values()}) == 13  # and the noise floor
    colored = [(style["color"], str(style["linestyle"])) for style in styles.values()]
    assert len(set(colored)) == 13


@pytest.mark.parametrize("name", ["velocity", "divergence"])
def test_curves_survive_a_first_step_without_error(name):
    found = lines(CHARTS[name].draw(DOCUMENTS))["rtn-a8"]
    assert len(found[0]) == 2


def test_the_workflow_makes_every_chart():
    text = (ROOT / "rules" / "inputs" / "evaluate.smk").read_text()
    listed = re.search(r"EVALUATION_PLOTS = \[(.*?)\]", text, re.DOTALL)[1]
    assert re.findall(r'"([\w-]+)"', listed) == list(CHARTS)


# ----------------------------------------------------------------------- activation quantization


def quantized(variant: str, errors: list[float], bits: float, decibels: float) -> dict:
    """An evaluation of a variant whose activations are quantized."""
    inputs = {
        f"mm{block:02d}.{stream}.{place}": [decibels + block, decibels - block]
        for block in range(3)
        for stream in ("img", "txt")
        for place in ("attn.q_proj", "attn.o_proj", "mlp.fc1", "mlp.fc2")
    }
    return {
        **document(variant, errors),
        "activations": {"granularity": "step", "average_bits": bits},
        "input_sqnr": inputs,
    }


QUANTIZED = [
    document("full", [0.0, 0.0]),
    document("rtn-weights", [0.02, 0.03]),
    quantized("rtn-a8", [0.03, 0.05], 8, 40.0),
    quantized("rtn-a6", [0.2, 0.3], 6, 28.0),
    quantized("full-t65", [0.1, 0.2], 6.5, 31.0),
]


def test_errors_stand_over_the_average_bits():
    (axes,) = CHARTS["bits"].draw(QUANTIZED).axes
    points = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert points["rtn-a8"] == [[8, 0.04]]
    assert points["full-t65"] == [[6.5, pytest.approx(0.15)]]
    # The weights alone are a line across at their own error; `full` has none.
    assert [text.get_text() for text in axes.texts] == ["rtn-weights"]


def test_inputs_are_medians_over_blocks_by_kind():
    chart = CHARTS["inputs"].draw(QUANTIZED)
    assert len(chart.axes) == 4
    for axes in chart.axes:
        shown = {line.get_label(): line.get_ydata().tolist() for line in axes.lines}
        assert shown == {"rtn-a8": [41, 39], "rtn-a6": [29, 27], "full-t65": [32, 30]}


@pytest.mark.parametrize("name", ["bits", "inputs"])
def test_charts_of_activations_say_that_there_are_none(name):
    assert "no evaluated variant quantizes" in as_svg(CHARTS[name].draw(DOCUMENTS[:1]))
