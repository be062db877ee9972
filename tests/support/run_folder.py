"""The folder of a run that never was, for the report: made-up numbers and random pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ditquant.artifacts import write_file, write_json, write_text
from ditquant.evaluation import table as evaluation
from ditquant.evaluation.pictures import PICTURE, png_bytes
from ditquant.plots.charts import as_svg
from ditquant.plots.evaluation_charts import CHARTS

PLOT = "ditquant.plot"
SHOWN = ["adaround-weights", "adaround-a8", "adaround-multitier"]
EVALUATED = ["full", "noise-floor", "rtn-weights", *SHOWN]
PROMPTS = {
    "p00": "a small red star on a navy background",
    "p01": '<script>alert("&")</script>\nновая строка 星空 ' + "x" * 2000,
}
ERRORS = {
    "full": 0.0,
    "noise-floor": 2e-7,
    "rtn-weights": 4e-3,
    "adaround-weights": 1e-3,
    "adaround-a8": 1.1e-3,
    "adaround-multitier": 9e-3,
}


def picture(path: Path, seed: int, kind: str = PICTURE) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    write_file(path, png_bytes(Image.fromarray(pixels)), kind)


def caption_entry(row: int, error: float) -> dict:
    error *= 1 + row
    return {
        "caption": f"caption {row}",
        "latent_relative_error": error,
        "psnr": None if error == 0 else float(-10 * np.log10(error)),
        "ssim": 1 - error,
        "velocity_error": error,
        "velocity_errors": [error, 2 * error],
        "divergence": [0.0, error],
        "judge": {"ok": row != 1, "problems": []},
    }


def block_sqnr(error: float) -> dict | None:
    if error == 0:
        return None
    level = float(-10 * np.log10(error))
    streams = {"mm00.img": [level, level - 2], "mm00.txt": [level, None], "mm01.img": [level] * 2}
    return {"captions": 4, "tokens": 64, "streams": streams}


def write_evaluation(folder: Path, config: dict) -> None:
    documents = []
    for variant in EVALUATED:
        document = {
            "variant": variant,
            "model_bytes": 8_000_000 if variant.startswith(("rtn", "ada")) else 28_000_000,
            "measured_sigmas": [1.0, 0.5],
            "captions": [caption_entry(row, ERRORS[variant]) for row in range(4)],
            "block_sqnr": block_sqnr(ERRORS[variant]),
        }
        write_json(folder / f"{variant}.json", evaluation.FORMAT, document)
        documents.append(document)
    timings = {"step_seconds": 0.031, "peak_bytes": 250_000_000}
    baseline = documents[EVALUATED.index("rtn-weights")]
    rows = [
        evaluation.summary_row(
            document, timings, baseline if document["variant"] in SHOWN else None
        )
        for document in documents
    ]
    write_text(folder / "summary.csv", evaluation.summary_csv(rows))
    for name, chart in CHARTS.items():
        write_file(folder / "plots" / f"{name}.svg", as_svg(chart.draw(documents)).encode(), PLOT)


def write_weights(folder: Path, recipe: str, options: dict) -> None:
    for index in range(2):
        block = f"mm{index:02d}"
        learned = recipe != "rtn"
        rtn = 0.02 * (1 + index)
        accepted = index == 0 or not learned
        errors = {"rtn": {"held_out": rtn}, "result": {"held_out": 0.4 * rtn if accepted else 9.0}}
        layers = {
            f"{block}.img.attn.q_proj": {"weight_sqnr_db": 20.5 + index},
            f"{block}.txt.mlp.fc2": {"weight_sqnr_db": 18.25},
        }
        if index == 1:
            del layers[f"{block}.txt.mlp.fc2"]  # SD3's last text block has none
        document = {
            "block": block,
            "recipe": options,
            "hard_error": errors if learned else {"rtn": errors["rtn"], "result": errors["rtn"]},
            "binary_share": 0.987 - 0.01 * index if learned else None,
            "accepted": accepted,
            "diverged": None,
            "kept": recipe if accepted else "rtn",
            "kept_error": {"held_out": 0.4 * rtn if learned and accepted else rtn},
            "linears": layers,
        }
        write_json(folder / "blocks" / f"{block}.json", "ditquant.block_result", document)
    sizes = {
        "quantized_bytes": 4500, "float16_bytes_of_quantized": 16000,
        "quantized_ratio": 4500 / 16000, "total_bytes": 6000,
    }  # fmt: skip
    write_json(folder / "model" / "config.json", "ditquant.checkpoint", sizes)


def write_activations(folder: Path) -> None:
    names = ["mm00.img.attn.q_proj", "mm01.img.attn.q_proj"]
    measured = {"images": ["0000", "0001"], "steps": [0, 10, 20]}
    layers = {name: {"absmax": [1.0, 5.0 + index, 2.0]} for index, name in enumerate(names)}
    write_json(
        folder / "layer_statistics.json",
        "ditquant.layer_statistics",
        {**measured, "layers": layers},
    )
    write_json(
        folder / "layer_temporal_analysis.json",
        "ditquant.layer_temporal_analysis",
        {
            **measured,
            "summary": {
                "median_drift": 1.5,
                "largest_drift": 2.62,
                "post_gelu_shift_error": 0.31,
            },
        },
    )
    configuration = {"bits": 8, "granularity": "step", "range": "absmax"}
    write_json(
        folder / "quant_config.json", "ditquant.quant_config", {"configuration": configuration}
    )
    tiers = {"shares": {"A4": 0.25, "A6": 0.35, "A8": 0.4}, "average_bits": 6.3}
    write_json(folder / "quant_config_multitier.json", "ditquant.quant_config", {"summary": tiers})
    picture(folder / "plots" / "absmax.png", 99, PLOT)
    picture(folder / "plots" / "drift.png", 98, PLOT)
    write_file(folder / "plots" / "drift.svg", b"<svg/>", PLOT)
    write_file(folder / "plots" / "drift.gif", b"GIF89a;", PLOT)


def benchmark(path: Path, seconds: float, rss: str) -> None:
    write_text(path, f"s\th:m:s\tmax_rss\n{seconds}\t0:00:01\t{rss}\n")


def write_run(folder: Path, config: dict) -> Path:
    """Everything that the report reads, of the configuration's recipes."""
    for seed, prompt in enumerate(PROMPTS):
        for number, variant in enumerate(["full", *SHOWN]):
            picture(folder / "images" / variant / f"{prompt}.png", 10 * seed + number)
        for variant in SHOWN:
            numbers = {
                "seed": 42, "amplification": 8, "psnr": 36.25, "ssim": 0.98765,
                "latent_relative_error": 1e-3, "max_absolute_difference": 40,
            }  # fmt: skip
            write_json(
                folder / "compare" / variant / f"{prompt}.json",
                "ditquant.image_difference",
                numbers,
            )
    write_evaluation(folder / "evaluation", config)
    for recipe, options in config["recipes"].items():
        write_weights(folder / "weights" / recipe, recipe, options)
    write_activations(folder / "activations")
    benchmark(folder / "benchmarks" / "generate_image" / "full-p00.tsv", 4.5, "300.0")
    benchmark(folder / "benchmarks" / "generate_image" / "full-p01.tsv", 6.5, "NA")
    benchmark(folder / "benchmarks" / "merge_statistics.tsv", 130.25, "100.0")
    return folder
