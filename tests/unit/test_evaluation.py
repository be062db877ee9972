"""The evaluation's numbers, table and plots, on runs whose errors are known."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ditquant import evaluation
from ditquant.artifacts import save_tensors
from ditquant.backend import mx
from ditquant.evaluation_plots import plot_scores, plot_sigma_curves
from ditquant.trajectories import Run

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
    assert len(extra) == 10
    assert all(re.fullmatch(r".+_(median|mean)_(low|high)", name) for name in extra)
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


def test_error_ratio_is_paired():
    ratio = evaluation.error_ratio(document("a", [0.2, 0.4, 1.2]), document("b", [0.1, 0.2, 0.6]))
    assert ratio == pytest.approx((2, 2, 2))


def test_stored_bytes_counts_tensors_and_not_the_header(tmp_path):
    path = tmp_path / "model.safetensors"
    save_tensors(path, {"a.weight": mx.zeros((4, 8), dtype=mx.uint32), "b": mx.zeros((3,))})
    assert evaluation.stored_bytes(path) == 4 * 8 * 4 + 3 * 4
    assert evaluation.float16_bytes(21) == 42


@pytest.mark.parametrize("key", ["latent_relative_error", "psnr"])
def test_score_plots_name_every_variant_but_full(key):
    documents = [
        document("full", [0, 0, 0]),
        document("noise-floor", [0, 0, 1e-7]),  # equal pictures have no PSNR
        document("rtn-a8", [0.1, 0.2, 0.6]),
    ]
    svg = plot_scores(documents, key)
    assert svg.startswith("<svg")
    assert ">rtn-a8<" in svg
    assert ">noise-floor<" in svg
    assert ">full<" not in svg
    assert "currentColor" in svg
    assert svg == plot_scores(documents, key)


@pytest.mark.parametrize("key", ["velocity_errors", "divergence"])
def test_curves_survive_a_first_step_without_error(key):
    svg = plot_sigma_curves([document("full", [0, 0, 0]), document("rtn-a8", [0.1, 0.2, 0.6])], key)
    assert ">rtn-a8<" in svg
    assert "sigma" in svg
