"""The record of an evaluated run: errors of its variants over all captions, and of its blocks.

    snakemake evaluate --configfile config/demo-quality.yaml
    .venv/bin/python benchmarks/evaluation.py results/demo-quality --section quality \
        --json benchmarks/results/recipes.json

Section `quality` then has a row a variant: the median of |z - z_full|^2 / |z_full|^2 of the final
latents, the median PSNR, and the seconds of the jobs that made its weights; against the variant's
baseline (the run's own, or `--baseline`) the ratio of medians with its paired 95 % bootstrap
interval, the ratio of geometric means, and on how many captions it is better. `quality-blocks` has
a row a recipe: each block's error on held-out images over that of rounding to nearest, and the
smallest share of roundings that are decided.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from records import machine, save_section

from ditquant import metrics
from ditquant.artifacts import read_json
from ditquant.evaluation.table import FORMAT, read_summary


def comparison(errors: np.ndarray, baseline: np.ndarray) -> dict[str, Any]:
    """Paired, over the captions of both."""
    ratio, low, high = metrics.paired_ratio(errors, baseline)
    geometric = float(np.exp(np.log(errors / baseline).mean()))
    better = int(np.sum(errors < baseline))
    return {"ratio": ratio, "low": low, "high": high, "geometric": geometric, "better": better}


def seconds_of(run: Path, recipe: str) -> float:
    """Of the jobs that made a recipe's weights, together."""
    pattern = re.compile(rf"(optimize_block/{recipe}-(mm|uni)\d+|tune_weights/{recipe})\.tsv")
    seconds = 0.0
    for path in (run / "benchmarks").glob("*/*.tsv"):
        if pattern.fullmatch(f"{path.parent.name}/{path.name}"):
            with path.open(newline="", encoding="utf-8") as file:
                seconds += sum(float(row["s"]) for row in csv.DictReader(file, delimiter="\t"))
    return seconds


def variant_rows(run: Path, baseline: str | None) -> dict[str, dict[str, Any]]:
    """A row a variant, in the order of the run's table.

    Args:
        baseline: the variant that all are divided by; None: the one that the table names.
    """
    summary = read_summary(run / "evaluation" / "summary.csv")
    documents = {
        name: read_json(run / "evaluation" / f"{name}.json", FORMAT)
        for name in {row["variant"] for row in summary} | ({baseline} - {None})
    }

    def errors(name: str) -> np.ndarray:
        return np.array([one["latent_relative_error"] for one in documents[name]["captions"]])

    rows = {}
    for line in summary:
        name, base = line["variant"], baseline or line["baseline"]
        row = {"captions": int(line["captions"]), "error": line["latent_relative_error_median"]}
        row["mean"] = line["latent_relative_error_mean"]
        if name.endswith("-weights"):
            row["seconds"] = seconds_of(run, name.removesuffix("-weights"))
        if np.isfinite(line["psnr_median"]):
            row["psnr"] = line["psnr_median"]
        if line["judge_accuracy"] is not None:
            row["judge"] = line["judge_accuracy"]
        activations = documents[name].get("activations")
        if activations:
            row["bits"] = activations["average_bits"]
        if base and name != "full":
            row |= comparison(errors(name), errors(base))
        rows[name] = row
    return rows


def block_row(folder: Path) -> dict[str, Any]:
    """Of a recipe's blocks/{block}.json: kept error over rounding to nearest, by block."""
    row: dict[str, Any] = {}
    shares = []
    for path in sorted(folder.glob("*.json")):
        document = read_json(path, "ditquant.block_result")
        held_out = document["kept_error"]["held_out"]
        row[document["block"]] = held_out / document["hard_error"]["rtn"]["held_out"]
        shares.append(document["binary_share"])
    known = [share for share in shares if share is not None]
    return row | ({"binary": min(known)} if known else {})


def block_rows(run: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: block_row(path) for path in sorted(run.glob("weights/*/blocks"))}


def main(arguments: list[str] | None = None) -> Mapping[str, Mapping[str, Any]]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="results/{run}")
    parser.add_argument("--section", required=True)
    parser.add_argument("--command", help="that made the run, for the record")
    parser.add_argument("--baseline", help="the variant that all errors are divided by")
    parser.add_argument("--json", type=Path, required=True, help="the record")
    options = parser.parse_args(arguments)
    rows, blocks = variant_rows(options.run, options.baseline), block_rows(options.run)
    about = {
        "command": options.command or f"snakemake evaluate (run: {options.run.name})",
        "machine": machine(),
    }
    save_section(options.json, options.section, rows, **about)
    if blocks:
        save_section(options.json, f"{options.section}-blocks", blocks, **about)
    for name, row in rows.items():
        print(f"{name:28} {row['error']:.4g} {row.get('ratio', '')}")
    return rows


if __name__ == "__main__":
    main()
