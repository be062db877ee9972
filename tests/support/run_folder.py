"""The folder of a run that never was, for the report: made-up numbers and random pictures.

Every file says what it was made from, as if the workflow's jobs had written it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ditquant.artifacts import save_tensors, write_file, write_json
from ditquant.backend import mx
from ditquant.evaluation import table as evaluation
from ditquant.evaluation.pictures import LATENTS, PICTURE, png_bytes
from ditquant.files import write_text
from ditquant.network.calibration import TRAJECTORY
from ditquant.planning.recipes import Recipe
from ditquant.plots.charts import as_svg
from ditquant.plots.evaluation_charts import CHARTS
from ditquant.provenance import making

PLOT = "ditquant.plot"
STATISTICS = "ditquant.activation_statistics"
MODEL = {"name": "demo", "checkpoint": None, "dtype": "float32", "identity": "0123"}
DRAWN = {"num_steps": 28, "cfg_weight": 4.0}
PLAN = {**DRAWN, "prompts": [f"caption {row}" for row in range(4)], "seed": 42}
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
        "seed": 10042 + row,
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


def made(folder: Path, rule: str, *inputs: str, **params: Any) -> AbstractContextManager[None]:
    """What is written within the context was made by this job of a run; see `making`."""
    return making(rule, params, [folder / name for name in inputs])


def tensors(path: Path, kind: str, value: float) -> None:
    save_tensors(path, {"a": mx.array([value])}, kind)


def write_calibration(folder: Path, num_steps: int = 50) -> None:
    names = [f"calibration/{image:04d}.safetensors" for image in range(2)]
    for seed, name in enumerate(names, start=42):
        options = {"model": MODEL, "seed": seed, "num_steps": num_steps, "cfg_weight": 4.0}
        with made(folder, "generate_calibration", **options):
            tensors(folder / name, TRAJECTORY, seed)
    images = [
        {"image": Path(name).stem, "seed": 42 + index, "num_steps": num_steps, "cfg_weight": 4.0}
        for index, name in enumerate(names)
    ]
    with made(folder, "list_calibration", *names):
        manifest = folder / "calibration" / "manifest.json"
        write_json(manifest, "ditquant.calibration_manifest", {"images": images})


def checkpoint(recipe: str) -> list[str]:
    return [f"weights/{recipe}/model/{name}" for name in ("config.json", "model.safetensors")]


def variant_inputs(variant: str) -> list[str]:
    recipe, _, kind = variant.rpartition("-")
    if variant in ("full", "noise-floor"):
        return []
    name = {"a8": "quant_config.json", "multitier": "quant_config_multitier.json"}.get(kind)
    return [*checkpoint(recipe), *([f"activations/{name}"] if name else [])]


def write_evaluation(folder: Path) -> None:
    reference, timing = "evaluation/reference.safetensors", "benchmarks/evaluation"
    with made(folder, "draw_reference", model=MODEL, plan=PLAN):
        tensors(folder / reference, "ditquant.reference", 1.0)
    documents, took = [], {"step_seconds": 0.031, "peak_bytes": 250_000_000}
    names = [f"evaluation/{variant}.json" for variant in EVALUATED]
    for variant, name in zip(EVALUATED, names, strict=True):
        document = {
            **DRAWN,
            "variant": variant,
            "image_size": [32, 32],
            "batch_size": 8,
            "model_bytes": 8_000_000 if variant.startswith(("rtn", "ada")) else 28_000_000,
            "measured_sigmas": [1.0, 0.5],
            "captions": [caption_entry(row, ERRORS[variant]) for row in range(4)],
            "block_sqnr": block_sqnr(ERRORS[variant]),
        }
        inputs = [reference, *variant_inputs(variant)]
        with made(folder, "evaluate_variant", *inputs, model=MODEL, plan=PLAN):
            write_json(folder / name, evaluation.FORMAT, document)
            write_json(folder / timing / f"{variant}.json", evaluation.TIMING, took)
        documents.append(document)
    baseline = documents[EVALUATED.index("rtn-weights")]
    rows = [
        evaluation.summary_row(document, took, baseline if document["variant"] in SHOWN else None)
        for document in documents
    ]
    write_text(folder / "evaluation" / "summary.csv", evaluation.summary_csv(rows))
    with made(folder, "summarize_evaluation", *names):
        for name, chart in CHARTS.items():
            svg = as_svg(chart.draw(documents)).encode()
            write_file(folder / "evaluation" / "plots" / f"{name}.svg", svg, PLOT)


def write_block(folder: Path, recipe: str, options: dict, index: int, **changes: Any) -> None:
    """A block's result and weights.

    Args:
        changes: of the result.
    """
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
        "streams": {"images": 2, "stride": 10},
        **changes,
    }
    place = f"weights/{recipe}/blocks/{block}"
    streams = [f"block_io/{image:04d}.safetensors" for image in range(2)]
    recipe_of_block = Recipe.from_params(options).of_block().params()
    with made(folder, "optimize_block", *streams, model=MODEL, recipe=recipe_of_block):
        tensors(folder / f"{place}.safetensors", "ditquant.block_weights", index)
        write_json(folder / f"{place}.json", "ditquant.block_result", document)


def write_tuning(folder: Path, recipe: str, options: dict, document: dict) -> None:
    with made(folder, "tune_weights", *block_places(recipe), model=MODEL, recipe=options):
        write_json(folder / "weights" / recipe / "tuned.json", "ditquant.tuning", document)


def block_places(recipe: str) -> list[str]:
    ends = ("json", "safetensors")
    return [f"weights/{recipe}/blocks/mm{index:02d}.{end}" for index in range(2) for end in ends]


def write_weights(folder: Path, recipe: str, options: dict) -> None:
    for image in range(2):
        inputs = f"calibration/{image:04d}.safetensors"
        with made(folder, "cache_block_io", inputs, model=MODEL, stride=10):
            tensors(folder / "block_io" / f"{image:04d}.safetensors", "ditquant.block_io", image)
    for index in range(2):
        write_block(folder, recipe, options, index)
    write_checkpoint(folder, recipe, options)


def write_checkpoint(folder: Path, recipe: str, options: dict) -> None:
    document = {
        "recipe": {"name": recipe, **options},
        "quantized_bytes": 4500, "float16_bytes_of_quantized": 16000,
        "quantized_ratio": 4500 / 16000, "total_bytes": 6000,
    }  # fmt: skip
    config, weights = checkpoint(recipe)
    with made(folder, "assemble_weights", *block_places(recipe), model=MODEL, recipe=options):
        tensors(folder / weights, "ditquant.checkpoint_weights", len(recipe))
        write_json(folder / config, "ditquant.checkpoint", document)


def write_activations(folder: Path) -> None:
    track = folder / "activations"
    names = ["mm00.img.attn.q_proj", "mm01.img.attn.q_proj"]
    parts = [f"activations/stats/{image:04d}.safetensors" for image in range(2)]
    for part in parts:
        trajectory = f"calibration/{Path(part).name}"
        with made(folder, "collect_activations", trajectory, model=MODEL, stride=10):
            tensors(folder / part, STATISTICS, 1.0)
    measured = {"images": ["0000", "0001"], "steps": [0, 10, 20]}
    layers = {name: {"absmax": [1.0, 5.0 + index, 2.0]} for index, name in enumerate(names)}
    drift = {"median_drift": 1.5, "largest_drift": 2.62, "post_gelu_shift_error": 0.31}
    with made(folder, "merge_statistics", *parts):
        tensors(track / "layer_statistics.safetensors", STATISTICS, 2.0)
        document = {**measured, "layers": layers}
        write_json(track / "layer_statistics.json", "ditquant.layer_statistics", document)
        document = {**measured, "summary": drift}
        temporal = track / "layer_temporal_analysis.json"
        write_json(temporal, "ditquant.layer_temporal_analysis", document)
    write_quant_configs(folder, "activations", {"bits": 8, "granularity": "step"})
    with made(folder, "visualize_activations", "activations/layer_statistics.safetensors"):
        picture(track / "plots" / "absmax.png", 99, PLOT)
        picture(track / "plots" / "drift.png", 98, PLOT)
        write_file(track / "plots" / "drift.svg", b"<svg/>", PLOT)
        write_file(track / "plots" / "drift.gif", b"GIF89a;", PLOT)


def write_quant_configs(
    folder: Path, track: str, options: dict, rule: str = "absmax", bits: float = 6.3
) -> None:
    """Both configurations of a track, of one tier and of several with `bits` on average."""
    single = {"configuration": {**options, "range": rule}}
    tiers = {"shares": {"A4": 0.25, "A6": 0.35, "A8": 0.4}, "average_bits": bits}
    with made(folder, "analyze_activations", "activations/layer_statistics.safetensors"):
        write_json(folder / track / "quant_config.json", "ditquant.quant_config", single)
        several = folder / track / "quant_config_multitier.json"
        write_json(several, "ditquant.quant_config", {"summary": tiers})


def benchmark(path: Path, seconds: float, rss: str) -> None:
    write_text(path, f"s\th:m:s\tmax_rss\n{seconds}\t0:00:01\t{rss}\n")


def write_image(folder: Path, variant: str, prompt: str, seed: int, num_steps: int = 28) -> None:
    options = {**DRAWN, "num_steps": num_steps, "seed": 42, "prompt": PROMPTS[prompt]}
    place = folder / "images" / variant
    with made(folder, "generate_image", *variant_inputs(variant), model=MODEL, **options):
        picture(place / f"{prompt}.png", seed)
        tensors(place / f"{prompt}.safetensors", LATENTS, seed)


def write_comparison(folder: Path, variant: str, prompt: str, num_steps: int = 28) -> None:
    document = {
        **DRAWN, "num_steps": num_steps, "seed": 42, "prompt": PROMPTS[prompt],
        "amplification": 8, "psnr": 36.25, "ssim": 0.98765,
        "latent_relative_error": 1e-3, "max_absolute_difference": 40,
    }  # fmt: skip
    inputs = [
        f"images/{name}/{prompt}.{end}" for name in ("full", variant)
        for end in ("png", "safetensors")
    ]  # fmt: skip
    with made(folder, "compare_images", *inputs):
        file = folder / "compare" / variant / f"{prompt}.json"
        write_json(file, "ditquant.image_difference", document)


def write_run(folder: Path, recipes: dict) -> Path:
    """Everything that the report reads of a run.

    Args:
        folder: `results/{run}` somewhere.
        recipes: name -> options.
    """
    write_calibration(folder)
    for recipe, options in recipes.items():
        write_weights(folder, recipe, options)
    write_activations(folder)
    for seed, prompt in enumerate(PROMPTS):
        for number, variant in enumerate(["full", *SHOWN]):
            write_image(folder, variant, prompt, 10 * seed + number)
        for variant in SHOWN:
            write_comparison(folder, variant, prompt)
    write_evaluation(folder)
    benchmark(folder / "benchmarks" / "generate_image" / "full-p00.tsv", 4.5, "300.0")
    benchmark(folder / "benchmarks" / "generate_image" / "full-p01.tsv", 6.5, "NA")
    benchmark(folder / "benchmarks" / "merge_statistics.tsv", 130.25, "100.0")
    return folder
