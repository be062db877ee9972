"""From a variant's latents and pictures to numbers: per caption, per variant, and the table.

Everything is paired with the full-precision run of the same caption and noise. The table's columns
are a contract (`COLUMNS`); intervals are bootstrapped over captions, with the same resamples for
every variant.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import metrics
from ..errors import UserError
from .trajectories import Run

FORMAT = "ditquant.evaluation"
TIMING = "ditquant.timing"

COLUMNS = (
    "variant", "captions", "latent_relative_error_median", "latent_relative_error_mean",
    "psnr_median", "ssim_median", "velocity_error_mean", "judge_accuracy", "model_bytes",
    "step_seconds", "peak_bytes",
)  # fmt: skip

# Column -> key of a caption's scores and the statistic over captions; these get intervals.
ERROR_COLUMNS: dict[str, tuple[str, metrics.Statistic]] = {
    "latent_relative_error_median": ("latent_relative_error", np.median),
    "latent_relative_error_mean": ("latent_relative_error", np.mean),
    "psnr_median": ("psnr", np.median),
    "ssim_median": ("ssim", np.median),
    "velocity_error_mean": ("velocity_error", np.mean),
}

# The variant that the median latent error is divided by, the ratio and its paired 95 % interval.
RATIO_COLUMNS = (
    "baseline", "latent_error_ratio", "latent_error_ratio_low", "latent_error_ratio_high",
)  # fmt: skip
_TEXT_COLUMNS = ("variant", "baseline")


def caption_scores(
    reference: Run,
    run: Run,
    row: int,
) -> dict[str, Any]:
    """The numbers of caption `row` of a variant's run against the reference's.

    Returns:
        latent_relative_error, psnr (None: the pictures are equal), ssim, velocity_error (the mean
        over the measured steps), and the curves velocity_errors and divergence.
    """
    pairs = zip(run.velocities[row], reference.velocities[row], strict=True)
    velocity_errors = [metrics.relative_error(value, full) for value, full in pairs]
    pairs = zip(run.latents[row], reference.latents[row], strict=True)
    return {
        "latent_relative_error": metrics.relative_error(run.final[row], reference.final[row]),
        "psnr": metrics.finite(metrics.psnr(run.images[row], reference.images[row])),
        "ssim": metrics.ssim(run.images[row], reference.images[row]),
        "velocity_error": float(np.mean(velocity_errors)),
        "velocity_errors": velocity_errors,
        "divergence": [metrics.relative_error(value, full) for value, full in pairs],
    }


def float16_bytes(parameters: int) -> int:
    """Size of a full-precision model as it is distributed, whatever dtype it computed in here."""
    return 2 * parameters


def _values(document: Mapping[str, Any], key: str) -> np.ndarray:
    """(captions,) scores; equal pictures have infinite PSNR."""
    scores = [caption[key] for caption in document["captions"]]
    return np.array([float("inf") if score is None else score for score in scores], dtype=float)


def judge_accuracy(document: Mapping[str, Any]) -> float | None:
    """Share of captions whose picture the judge accepts; None where nobody judged."""
    verdicts = [caption["judge"] for caption in document["captions"]]
    if not verdicts or any(verdict is None for verdict in verdicts):
        return None
    return sum(verdict["ok"] for verdict in verdicts) / len(verdicts)


def summary_row(
    document: Mapping[str, Any],
    timings: Mapping[str, float],
    baseline: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One line of the table, unrounded.

    Args:
        document, timings: a variant's evaluation, and what it took.
        baseline: evaluation of the variant that its error is divided by, if there is one.
    """
    row: dict[str, Any] = {
        "variant": document["variant"],
        "captions": len(document["captions"]),
        "judge_accuracy": judge_accuracy(document),
        "model_bytes": document["model_bytes"],
        "step_seconds": timings["step_seconds"],
        "peak_bytes": timings["peak_bytes"],
    }
    for column, (key, statistic) in ERROR_COLUMNS.items():
        values = _values(document, key)
        row[column] = float(statistic(values))
        row[f"{column}_low"], row[f"{column}_high"] = metrics.bootstrap_interval(values, statistic)
    ratio = error_ratio(document, baseline) if baseline else (None, None, None)
    names = (baseline["variant"] if baseline else None, *ratio)
    return {**row, **dict(zip(RATIO_COLUMNS, names, strict=True))}


def column_names() -> list[str]:
    """The contract's columns, then the error columns' intervals, then those of the baseline."""
    intervals = [f"{name}_{end}" for name in ERROR_COLUMNS for end in ("low", "high")]
    return [*COLUMNS, *intervals, *RATIO_COLUMNS]


def summary_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as CSV: 6 significant digits, an empty field where there is no value."""
    text = io.StringIO()
    writer = csv.DictWriter(text, column_names(), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _field(row[name]) for name in column_names()})
    return text.getvalue()


def _field(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def read_summary(path: str | Path) -> list[dict[str, Any]]:
    """Rows of summary.csv: names as text, numbers as float, None where empty."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        return [
            {
                name: None if not text else text if name in _TEXT_COLUMNS else float(text)
                for name, text in row.items()
            }
            for row in csv.DictReader(file)
        ]


def checked_summary(
    path: str | Path,
    documents: Mapping[str, Mapping[str, Any]],
    timings: Mapping[str, Mapping[str, float]],
) -> list[dict[str, Any]]:
    """Rows of summary.csv, after they were found to be those of the evaluations.

    Args:
        documents, timings: evaluations and what they took, by variant, in the table's order.

    Raises:
        UserError: the file holds another table, or none.
    """
    try:
        found = read_summary(path)
        names = [row["variant"] for row in found]
        baselines = [row["baseline"] for row in found]
        expected = [
            summary_row(documents[name], timings[name], documents.get(baseline))
            for name, baseline in zip(names, baselines, strict=True)
        ]
        is_same = names == list(documents) and all(map(_is_row, found, expected))
    except (KeyError, TypeError, ValueError, csv.Error):
        is_same = False
    if not is_same:
        raise UserError(
            f"{path} is not the table of the evaluations beside it: delete it and run the "
            "same command again."
        )
    return found


def _is_row(found: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    """Whether a line of the file holds a row, to the six digits that are written."""

    def is_same(name: str) -> bool:
        value, other = found[name], expected[name]
        if isinstance(other, float) and isinstance(value, float) and math.isfinite(other):
            return math.isclose(value, other, rel_tol=1e-5)
        return _field(value) == _field(other) or bool(value == other)

    return set(found) == set(expected) and all(map(is_same, expected))


def error_ratio(
    document: Mapping[str, Any], baseline: Mapping[str, Any]
) -> tuple[float, float, float]:
    """Median latent relative error over the baseline's, with its paired 95 % interval."""
    key = "latent_relative_error"
    return metrics.paired_ratio(_values(document, key), _values(baseline, key))
