"""What activation quantization costs, on full-precision or on quantized weights.

    snakemake --cores all activations weights
    .venv/bin/python benchmarks/activation_track.py --recipe adaround
    .venv/bin/python benchmarks/activation_track.py --recipe none --tiers 3 10 1.5 3
    .venv/bin/python benchmarks/activation_track.py --recipe none \
        --single "A6 static absmax" "A6 group absmax error" "A6 dynamic-token absmax"
    .venv/bin/python benchmarks/activation_track.py --recipe none --tiers 2.5 6 1.2 2 --matched

Makes configurations from the statistics of a run of the embedded model, draws held-out captions
with simulated activations (28 steps, guidance 4) and compares the final latents with those of the
full-precision model: |z - z_full|^2 / |z_full|^2. The first row, without activation quantization,
is what the others are divided by.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from weight_track import CFG_WEIGHT, ROOT, STEPS, final_latents, latent_errors

from ditquant.activation_statistics import Statistics, load_statistics
from ditquant.artifacts import read_json, write_json
from ditquant.backend import mx, nn
from ditquant.checkpoint import CONFIG_FILE, FORMAT, load_quantized
from ditquant.intervals import RANGES, SHIFTS
from ditquant.models.load import load_mmdit
from ditquant.models.spec import read_spec
from ditquant.polynomials import VARIABLES
from ditquant.quant_config import QuantConfig, load_quant_config
from ditquant.ranges import CONFIG_FORMAT, GRANULARITIES, ScaleOptions, single_tier
from ditquant.sensitivity import input_gains, sensitive_tiers
from ditquant.settings import balances_channels, read_prompts
from ditquant.simulate import simulated_activations
from ditquant.tiers import multi_tier


def single_document(statistics: Statistics, name: str, options: ScaleOptions) -> dict[str, Any]:
    """The single-tier document of "A6 group absmax", or of "A6 group absmax error" with a shift."""
    bits, granularity, rule, *shift = name.split()
    options = replace(options, shift=shift[0] if shift else "middle")
    return single_tier(statistics, int(bits.removeprefix("A")), granularity, rule, options)


def single_name(text: str) -> str:
    """Checks a name of `single_document` for the command line."""
    bits, granularity, rule, *shift = [*text.split(), "", "", ""][: max(3, len(text.split()))]
    known = granularity in GRANULARITIES and rule in RANGES and len(shift) < 2
    if not known or not set(shift) <= set(SHIFTS) or bits not in {f"A{b}" for b in range(2, 17)}:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not A<bits> {{{','.join(GRANULARITIES)}}} {{{','.join(RANGES)}}} "
            f"[{','.join(SHIFTS)}]"
        )
    return text


def tier_documents(
    statistics: Statistics, model: nn.Module, arguments: argparse.Namespace, options: ScaleOptions
) -> dict[str, dict[str, Any]]:
    """Label -> multi-tier document, by limits and by budgets of average bits."""
    granularity = arguments.tier_granularity
    made: dict[str, dict[str, Any]] = {}
    averages = list(arguments.average)
    for a4, a6, post_gelu_a4, post_gelu_a6 in arguments.tiers:
        limits = {"linear": [a4, a6], "post_gelu": [post_gelu_a4, post_gelu_a6]}
        label = f"tiers linear {a4:g}/{a6:g} post-GELU {post_gelu_a4:g}/{post_gelu_a6:g}"
        made[label] = multi_tier(statistics, granularity, "absmax", limits, options)
        if arguments.matched:
            averages.append(made[label]["summary"]["average_bits"])
    for average in averages:
        for weighting, gains in (("output", input_gains(model)), ("relative", None)):
            document = sensitive_tiers(
                statistics, granularity, "absmax", average, gains, options
            )  # fmt: skip
            made[f"tiers by {weighting} error, {average:g} bits"] = document
    return made


def as_config(document: dict[str, Any]) -> QuantConfig:
    """The document as inference reads it, from a file."""
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "quant_config.json", CONFIG_FORMAT, document)
        return load_quant_config(Path(folder) / "quant_config.json")


def statistics_file(run: Path, recipe: str) -> Path:
    """The recipe's own statistics if it balances channels, else those of full precision."""
    track = run / "activations"
    if recipe != "none":
        checkpoint = read_json(run / "weights" / recipe / "model" / CONFIG_FILE, FORMAT)
        if balances_channels({"balance": "none", **checkpoint["recipe"]}):
            track = run / "weights" / recipe / "activations"
    return track / "layer_statistics.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="demo")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--captions", type=int, default=16)
    parser.add_argument("--recipe", default="adaround", help="none: full-precision weights")
    parser.add_argument("--single", nargs="*", default=["A8 step absmax"], type=single_name)
    parser.add_argument(
        "--tiers", nargs=4, type=float, action="append", default=[],
        metavar=("A4", "A6", "POST_GELU_A4", "POST_GELU_A6"),
    )  # fmt: skip
    parser.add_argument("--average", nargs="*", type=float, default=[], help="budgets of bits")
    parser.add_argument(
        "--matched", action="store_true", help="also tiers by error at the averages of --tiers"
    )
    parser.add_argument("--tier-granularity", default="step", choices=GRANULARITIES)
    parser.add_argument("--groups", type=int, default=5)
    parser.add_argument("--degree", type=int, default=3)
    parser.add_argument("--variable", default="sigma", choices=VARIABLES)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    run = arguments.results / arguments.run
    spec = read_spec("demo")
    prompts = read_prompts(ROOT / "config" / "prompts" / "demo-evaluation.csv", "prompts")
    prompts = prompts[: arguments.captions]
    model = load_mmdit(spec, mx.float32)
    reference = final_latents(model, spec, prompts)
    if arguments.recipe != "none":
        folder = run / "weights" / arguments.recipe / "model"
        model = load_quantized(spec, folder, mx.float32)
    rows: dict[str, Any] = {}
    weights_only = final_latents(model, spec, prompts)
    rows["no activation quantization"] = latent_errors(weights_only, reference)
    statistics = load_statistics(statistics_file(run, arguments.recipe))
    options = ScaleOptions(arguments.groups, arguments.degree, arguments.variable)
    documents = {name: single_document(statistics, name, options) for name in arguments.single}
    documents |= tier_documents(statistics, model, arguments, options)
    for label, document in documents.items():
        with simulated_activations(model, as_config(document)) as before_step:
            latents = final_latents(model, spec, prompts, before_step)
        rows[label] = latent_errors(latents, reference)
        summary = document.get("summary", {})
        rows[label] |= {key: summary[key] for key in ("average_bits", "shares") if key in summary}
    base = rows["no activation quantization"]
    for label, row in rows.items():
        ratios = [row[key] / base[key] if base[key] else 0.0 for key in ("median", "mean")]
        print(
            f"{label}: latent relative error {row['median']:.4g} median ({ratios[0]:.2f} x), "
            f"{row['mean']:.4g} mean ({ratios[1]:.2f} x) {row.get('average_bits', '')} "
            f"{row.get('shares', '')}"
        )
    if arguments.json:
        payload = {
            "command": "benchmarks/activation_track.py", "recipe": arguments.recipe,
            "captions": len(prompts), "steps": STEPS, "cfg_weight": CFG_WEIGHT,
            "groups": options.groups, "degree": options.degree, "variable": options.variable,
            "rows": rows,
        }  # fmt: skip
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(payload, indent=1) + "\n")


if __name__ == "__main__":
    main()
