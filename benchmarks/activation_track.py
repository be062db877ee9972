"""What activation quantization costs, on full-precision or on quantized weights.

    snakemake --cores all activations weights
    .venv/bin/python benchmarks/activation_track.py --recipe adaround
    .venv/bin/python benchmarks/activation_track.py --recipe none --tiers 3 10 1.5 3

Makes configurations from the statistics of a run of the embedded model, draws held-out captions
with simulated activations (28 steps, guidance 4) and compares the final latents with those of the
full-precision model: |z - z_full|^2 / |z_full|^2. The first row, without activation quantization,
is what the others are divided by.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from weight_track import CFG_WEIGHT, ROOT, STEPS, final_latents, latent_errors

from ditquant.activation_statistics import Statistics, load_statistics
from ditquant.artifacts import read_json, write_json
from ditquant.backend import mx
from ditquant.checkpoint import CONFIG_FILE, FORMAT, load_quantized
from ditquant.models.load import load_mmdit
from ditquant.models.spec import read_spec
from ditquant.quant_config import QuantConfig, load_quant_config
from ditquant.ranges import CONFIG_FORMAT, single_tier
from ditquant.settings import balances_channels, read_prompts
from ditquant.simulate import simulated_activations
from ditquant.tiers import multi_tier

# Name -> bits, granularity, range.
SINGLE = {
    "A8 step absmax": (8, "step", "absmax"),
    "A8 step mse": (8, "step", "mse"),
    "A8 step p999": (8, "step", "p999"),
    "A8 static absmax": (8, "static", "absmax"),
    "A6 step absmax": (6, "step", "absmax"),
    "A6 step mse": (6, "step", "mse"),
}


def documents(
    statistics: Statistics, names: list[str], tiers: list[list[float]]
) -> dict[str, dict[str, Any]]:
    """Label -> configuration document."""
    made = {name: single_tier(statistics, *SINGLE[name]) for name in names}
    for a4, a6, post_gelu_a4, post_gelu_a6 in tiers:
        limits = {"linear": [a4, a6], "post_gelu": [post_gelu_a4, post_gelu_a6]}
        label = f"tiers linear {a4:g}/{a6:g} post-GELU {post_gelu_a4:g}/{post_gelu_a6:g}"
        made[label] = multi_tier(statistics, "step", "absmax", limits)
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
    parser.add_argument("--single", nargs="*", default=["A8 step absmax"], choices=list(SINGLE))
    parser.add_argument(
        "--tiers", nargs=4, type=float, action="append", default=[],
        metavar=("A4", "A6", "POST_GELU_A4", "POST_GELU_A6"),
    )  # fmt: skip
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
    for label, document in documents(statistics, arguments.single, arguments.tiers).items():
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
            f"{row['mean']:.4g} mean ({ratios[1]:.2f} x) {row.get('shares', '')}"
        )
    if arguments.json:
        payload = {
            "command": "benchmarks/activation_track.py", "recipe": arguments.recipe,
            "captions": len(prompts), "steps": STEPS, "cfg_weight": CFG_WEIGHT, "rows": rows,
        }  # fmt: skip
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(payload, indent=1) + "\n")


if __name__ == "__main__":
    main()
