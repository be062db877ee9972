r"""What a run of the demo shows and what it takes, from the files that the run left.

    make demo
    .venv/bin/python benchmarks/demo_run.py --wall-seconds 420 \
        --output benchmarks/results/demo_run.md

Prints the errors of each recipe's blocks against round-to-nearest, the table of the evaluation with
the ratios that the project promises, and the seconds of every stage. The wall time of `make demo`
is not in the run's files: give what `time` printed, without the set-up.
"""

from __future__ import annotations

import argparse
import os
import sys
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "scripts"))

from ditquant.artifacts import read_json  # noqa: E402
from ditquant.backend import describe_device  # noqa: E402
from ditquant.evaluation.table import read_summary  # noqa: E402
from ditquant.files import write_text  # noqa: E402
from ditquant.report.report_data import stage_times  # noqa: E402
from ditquant.weights.divergence import kept_text  # noqa: E402


def block_lines(run: Path, recipe: str) -> list[str]:
    """A row a block: held-out hard errors, ratio, share binarised, what was kept."""
    lines = [
        "| block | RTN | result | ratio | binarised | kept |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted((run / "weights" / recipe / "blocks").glob("*.json")):
        document = read_json(path, "ditquant.block_result")
        rtn = document["hard_error"]["rtn"]["held_out"]
        result = document["kept_error"]["held_out"]
        share = document["binary_share"] or 0.0
        lines.append(
            f"| {document['block']} | {rtn:.5f} | {result:.5f} | {result / rtn:.2f} "
            f"| {share:.2%} | {kept_text(document)} |"
        )
    return lines


def evaluation_lines(run: Path) -> list[str]:
    """The evaluation's table, and each variant's errors against what it is built on."""
    rows = {row["variant"]: row for row in read_summary(run / "evaluation" / "summary.csv")}
    captions = int(rows["full"]["captions"])
    lines = [
        f"{captions} held-out captions, 28 steps, guidance 4.",
        "",
        "| variant | latent error, median | mean | PSNR, median | velocity error | judge |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        judge = "" if row["judge_accuracy"] is None else f"{row['judge_accuracy']:.0%}"
        lines.append(
            f"| {name} | {row['latent_relative_error_median']:.3g} "
            f"| {row['latent_relative_error_mean']:.3g} | {row['psnr_median']:.1f} dB "
            f"| {row['velocity_error_mean']:.3g} | {judge} |"
        )
    lines += ["", "| ratio | median | mean |", "| --- | --- | --- |"]
    for name, base in (
        ("adaround-weights", "rtn-weights"),
        ("adaround-a8", "adaround-weights"),
        ("adaround-multitier", "adaround-weights"),
    ):
        if name in rows and base in rows:
            ratios = [
                rows[name][column] / rows[base][column]
                for column in ("latent_relative_error_median", "latent_relative_error_mean")
            ]
            lines.append(f"| {name} / {base} | {ratios[0]:.2f} | {ratios[1]:.2f} |")
    return lines


def stage_lines(run: Path) -> list[str]:
    """Jobs and seconds of every stage; jobs of several stages run beside each other."""
    lines = ["| stage | jobs | seconds together | longest |", "| --- | --- | --- | --- |"]
    for stage in stage_times(run / "benchmarks"):
        seconds = f"{stage['seconds']:.0f} | {stage['longest']:.0f}"
        lines.append(f"| {stage['rule']} | {stage['jobs']} | {seconds} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=ROOT / "results" / "demo")
    parser.add_argument("--wall-seconds", type=float, required=True)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    lines = [
        "# A run of the demo",
        "",
        f"`make demo`, then `benchmarks/demo_run.py`, on {date.today()}; {describe_device()}, "
        f"{os.cpu_count()} cores. **{arguments.wall_seconds:.0f} s** after the set-up.",
        "",
        "## Blocks: `adaround` against round-to-nearest",
        "",
        "Hard output error on a held-out image, in units of the block's update energy.",
        "",
        *block_lines(arguments.run, "adaround"),
        "",
        "## Captions",
        "",
        *evaluation_lines(arguments.run),
        "",
        "## Stages",
        "",
        *stage_lines(arguments.run),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.output:
        write_text(arguments.output, text)


if __name__ == "__main__":
    main()
