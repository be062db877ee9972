"""What the report shows, read from a run's folder and shaped for the page.

Every function takes what it needs of the folder and gives plain data; a part that a run did not
make (no multi-tier configuration, no judge, another set of recipes) is empty and left out.
"""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..activations.scheme import config_file
from ..artifacts import read_file, read_json
from ..evaluation.comparison import difference
from ..evaluation.pictures import PICTURE, read_picture
from ..planning.recipes import Recipe
from ..planning.variants import Variant
from ..plots.activation_density import made_by
from ..seals import damaged
from .what_was_run import Section

EXPLANATIONS = {
    "full": "nothing quantized",
    "noise-floor": "full precision, weights and layer inputs rounded through float16",
    "weights": "quantized weights, full-precision activations",
    "a8": "quantized weights, simulated activation quantization",
    "multitier": "quantized weights, simulated A4, A6 or A8 by layer and sigma",
    "native": "quantized weights that stay packed, unpacked or multiplied by MLX's kernels, "
    "whichever is faster",
}


def explanation(variant: str) -> str:
    """One line on what a variant is."""
    if variant in EXPLANATIONS:
        return EXPLANATIONS[variant]
    parsed = Variant.parse(variant)
    if parsed.kind in EXPLANATIONS and parsed.recipe:
        return EXPLANATIONS[parsed.kind]
    weights = "quantized" if parsed.recipe else "full-precision"
    return f"{weights} weights, activations simulated by {config_file(parsed.kind)}"


# ------------------------------------------------------------------------------- pictures


def data_uri(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def pictures(results: Path, prompts: Sequence[str], variants: Sequence[str]) -> list[Section]:
    """One entry a prompt: its text, the full-precision picture, and each variant's with numbers.

    Args:
        prompts: their ids.
        variants: as in the comparisons that exist.
    """
    rows = []
    for name in prompts:
        full = results / "images" / "full" / f"{name}.png"
        reference = read_picture(full)
        shown = []
        for variant in variants:
            path = results / "images" / variant / f"{name}.png"
            numbers = read_json(
                results / "compare" / variant / f"{name}.json", "ditquant.image_difference"
            )
            changed = difference(read_picture(path), reference, numbers["amplification"])
            shown.append(
                {
                    "variant": variant,
                    "picture": data_uri(read_file(path, PICTURE)),
                    "difference": data_uri(_png(changed)),
                    **numbers,
                }
            )
        rows.append(
            {
                "id": name,
                "text": shown[0]["prompt"] if shown else name,
                "full": data_uri(read_file(full, PICTURE)),
                "seed": shown[0]["seed"] if shown else None,
                "factor": shown[0]["amplification"] if shown else None,
                "pixelated": reference.shape[1] < 256,
                "variants": shown,
            }
        )
    return rows


# ---------------------------------------------------------------------------------- sizes


def checkpoint_sizes(config: Path) -> Section:
    """What a native checkpoint takes, from its config.json.

    Returns:
        Bytes as `quantized` (codes, scales, biases), `rest` and `total`, and `quantized_ratio`: the
        quantized bytes over those of the same weights in float16.
    """
    sizes = read_json(config, "ditquant.checkpoint")
    quantized, total = sizes["quantized_bytes"], sizes["total_bytes"]
    return {
        "quantized": quantized,
        "rest": total - quantized,
        "total": total,
        "quantized_ratio": sizes["quantized_ratio"],
    }


# ---------------------------------------------------------------------------------- times


def stage_times(benchmarks: Path) -> list[Section]:
    """One entry a rule, the longest first: jobs, seconds (sum and longest), peak memory in bytes.

    The files are those that Snakemake's `benchmark:` wrote; a job that was not run again keeps the
    time of the run that made its result. That of an earlier report is left out, and an empty file:
    Snakemake does not sync what it writes, so that a power cut may leave one.

    Raises:
        UserError: a file that holds something else than jobs' seconds.
    """
    rules: dict[str, list[tuple[float, float]]] = {}
    for path in sorted(benchmarks.rglob("*.tsv")):
        relative = path.relative_to(benchmarks)
        rule = relative.parts[0] if len(relative.parts) > 1 else relative.stem
        if rule != "render_report" and path.stat().st_size:
            rules.setdefault(rule, []).extend(_jobs(path))
    stages = [
        {
            "rule": rule,
            "jobs": len(jobs),
            "seconds": sum(seconds for seconds, _ in jobs),
            "longest": max(seconds for seconds, _ in jobs),
            "peak_bytes": max(megabytes for _, megabytes in jobs) * 2**20,
        }
        for rule, jobs in rules.items()
    ]
    return sorted(stages, key=lambda stage: (-stage["seconds"], stage["rule"]))


def _jobs(path: Path) -> list[tuple[float, float]]:
    """Seconds and peak megabytes of the jobs in a file of Snakemake's, which carries no seal."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file, delimiter="\t"))
        jobs = [(float(line["s"]), _number(line["max_rss"])) for line in lines]
    except (KeyError, TypeError, ValueError, csv.Error):
        jobs = []
    if not jobs or not all(math.isfinite(seconds) for seconds, _ in jobs):
        raise damaged(path, "it holds no job's seconds")
    return jobs


def _number(text: str | None) -> float:
    """Snakemake writes "-" or "NA" where a job was too short to be measured."""
    try:
        return float(text or 0)
    except ValueError:
        return 0.0


# ------------------------------------------------------------------------------ activations


_KINDS = {".png": "image/png", ".svg": "image/svg+xml", ".gif": "image/gif"}


def activation_plots(folder: Path, notes: Mapping[str, str]) -> list[Section]:
    """The plots of the activation track that there are, the smaller of PNG and SVG of each.

    Args:
        notes: name of a plot -> what there is to see, in the order of the page. A plot that moves
            comes behind the still one of its name.
    """
    plots = []
    for name, note in notes.items():
        still = [folder / f"{name}{suffix}" for suffix in (".svg", ".png")]
        found = [path for path in still if path.is_file()]
        moving = folder / f"{name}.gif"
        shown = [(min(found, key=lambda path: path.stat().st_size), note)] if found else []
        if moving.is_file():
            shown.append((moving, "The same as a moving picture, from noise to image."))
        plots += [
            {
                "name": name,
                "note": text,
                "picture": data_uri(read_file(path, "ditquant.plot"), _KINDS[path.suffix]),
            }
            for path, text in shown
        ]
    return plots


def activation_ranges(results: Path) -> dict[str, float]:
    """Linear name -> the largest |input| of all measured steps and images; empty if none was."""
    path = results / "activations" / "layer_statistics.json"
    if not path.is_file():
        return {}
    layers = read_json(path, "ditquant.layer_statistics")["layers"]
    return {name: max(layer["absmax"]) for name, layer in layers.items()}


def _chosen(folder: Path) -> Section:
    """Of the configurations in a folder: `single` (bits, how ranges are made) and `tiers`."""
    chosen: Section = {"single": None, "tiers": None}
    single = folder / "quant_config.json"
    if single.is_file():
        document = read_json(single, "ditquant.quant_config")
        chosen["single"] = {**document["configuration"], "made_by": made_by(document)}
    tiers = folder / "quant_config_multitier.json"
    if tiers.is_file():
        chosen["tiers"] = read_json(tiers, "ditquant.quant_config")["summary"]
    return chosen


def activation_bits(results: Path, recipe: str, options: Section) -> int | None:
    """Bits of the single-tier activations that a recipe's variants have."""
    own = results / "weights" / recipe / "activations"
    has_own = Recipe.from_params(options).has_own_activations
    single = _chosen(own if has_own else results / "activations")["single"]
    return single["bits"] if single else None


def own_activations(results: Path, recipes: Mapping[str, Section]) -> list[Section]:
    """Of each recipe with activations of its own: `recipe`, `why`, and what `_chosen` says.

    Args:
        recipes: name -> options; those whose configurations were not made are left out.
    """
    rows = []
    for name, options in recipes.items():
        recipe = Recipe.from_params(options)
        if not recipe.has_own_activations:
            continue
        chosen = _chosen(results / "weights" / name / "activations")
        if any(chosen.values()):
            rows.append({"recipe": name, "why": why_own_activations(recipe), **chosen})
    return rows


def why_own_activations(recipe: Recipe) -> str:
    """What a recipe with activations of its own does, in two words."""
    if recipe.rotation:
        return "inputs rotated"
    return "channels balanced" if recipe.balance_kind != "none" else "ranges learned"


def activation_summary(
    results: Path, notes: Mapping[str, str], recipes: Mapping[str, Section]
) -> Section | None:
    """What was measured, how ranges drift, the shares of the tiers, and the plots.

    An absent part is None, an absent track is None altogether.

    Args:
        notes: see `activation_plots`.
        recipes: see `own_activations`.
    """
    folder = results / "activations"
    own = own_activations(results, recipes)
    if not folder.is_dir() and not own:
        return None
    summary: Section = dict.fromkeys(("drift", "measured"))
    temporal = folder / "layer_temporal_analysis.json"
    if temporal.is_file():
        document = read_json(temporal, "ditquant.layer_temporal_analysis")
        summary["drift"] = document["summary"]
        summary["measured"] = {"images": len(document["images"]), "steps": len(document["steps"])}
    plots = activation_plots(folder / "plots", notes)
    return {**summary, **_chosen(folder), "own": own, "plots": plots}


# --------------------------------------------------------------------------------- heat maps


def layer_grid(values: Mapping[str, float]) -> Section:
    """Per-layer numbers as a table: one row a place in the block, one column a block.

    Args:
        values: linear name ("mm03.img.attn.q_proj") -> number.

    Returns:
        columns (block names), rows (place -> numbers, None where a block lacks the layer), and the
        smallest and largest number.
    """
    columns = list(dict.fromkeys(name.split(".", 1)[0] for name in values))
    places = list(dict.fromkeys(name.split(".", 1)[1] for name in values))
    rows = {place: [values.get(f"{block}.{place}") for block in columns] for place in places}
    return {
        "columns": columns,
        "rows": rows,
        "low": min(values.values()),
        "high": max(values.values()),
    }
