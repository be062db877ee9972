"""Rule evaluate_variant: a variant's captions against the full-precision reference."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from ditquant.activations.quant_config import CONFIG_FORMAT
from ditquant.activations.simulate import Simulation
from ditquant.artifacts import load_metadata, load_tensors, read_json, stored_bytes, write_json
from ditquant.checkpoints.checkpoint import WEIGHTS_FORMAT
from ditquant.evaluation.block_errors import (
    REFERENCE_BLOCKS,
    block_sqnr,
    num_passes,
    output_streams,
)
from ditquant.evaluation.table import FORMAT, TIMING, caption_scores, float16_bytes
from ditquant.evaluation.trajectories import (
    REFERENCE,
    Run,
    Setting,
    load_run,
    measured_steps,
    read_setting,
    run_captions,
)
from ditquant.evaluation.variants import OpenedVariant, open_variant
from ditquant.job import job
from ditquant.models.load import DTYPES, load_vae_decoder
from ditquant.models.spec import read_spec
from ditquant.progress import ticking
from ditquant.provenance import check_options


def verdict(judging: bool, image: np.ndarray, caption: str) -> dict[str, Any] | None:
    """What the demo model's judge says of a picture; None for other models."""
    if not judging:
        return None
    from demo_model.judge import judge

    result = judge(image, caption)
    return {"ok": bool(result.ok), "problems": [str(problem) for problem in result.problems]}


def activations_of(quant_config: str) -> dict[str, Any]:
    """How the variant's activations are quantized, and with how many bits on average."""
    document = read_json(quant_config, CONFIG_FORMAT)
    made_by = document["configuration"]
    bits = made_by["bits"] if "bits" in made_by else document["summary"]["average_bits"]
    return {"granularity": made_by["granularity"], "average_bits": bits, "configuration": made_by}


def measure_blocks(
    opened: OpenedVariant, reference: Run, reference_blocks: str, setting: Setting
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Errors of every block and of every quantized input, at full precision's latents.

    See `block_errors.block_sqnr` and `simulate.Simulation.measuring`.
    """
    outputs = output_streams(
        opened.network,
        opened.before_step,
        setting,
        reference.latents,
        reference.sigmas,
        opened.dtype,
    )
    simulation = opened.before_step if isinstance(opened.before_step, Simulation) else None
    with (
        ticking("forward passes for block errors", num_passes(setting)) as tick,
        simulation.measuring() if simulation else nullcontext() as inputs,
    ):
        blocks = block_sqnr(outputs, load_tensors(reference_blocks, REFERENCE_BLOCKS), tick)
    return blocks, inputs and {name: list(by_sigma.values()) for name, by_sigma in inputs.items()}


def main(
    reference_file: str,
    reference_blocks: str,
    reference_timing: str,
    shards: list[Path],
    output: str,
    timing: str,
    variant: str,
    checkpoint: str | None,
    quant_config: str | None,
    model: dict,
    plan: dict,
) -> None:
    """Writes every caption's scores and what is common to them; timings go to `timing`.

    `full` is the reference itself: its errors are zero by definition and it is only judged.
    """
    check_options(reference_file, f"the evaluation of {variant}", plan=plan)
    spec = read_spec(model["name"], model["checkpoint"])
    dtype = DTYPES[model["dtype"]]
    setting = read_setting(plan, shards)
    reference: Run = load_run(reference_file)
    blocks, inputs = None, None
    if variant == "full":
        run = reference
        took = read_json(reference_timing, TIMING)
    else:
        decoder = load_vae_decoder(spec, dtype)
        with open_variant(spec, dtype, variant, checkpoint, quant_config) as opened:
            run, took = run_captions(
                opened.network,
                opened.before_step,
                decoder,
                spec,
                setting,
                opened.dtype,
                forced_at=reference.latents,
            )
            blocks, inputs = measure_blocks(opened, reference, reference_blocks, setting)
    judging = model["name"] == "demo"
    captions = [
        {
            "caption": caption,
            "seed": setting.seeds[row],
            **caption_scores(reference, run, row),
            "judge": verdict(judging, run.images[row], caption),
        }
        for row, caption in enumerate(setting.captions)
    ]
    steps = measured_steps(setting.num_steps)
    parameters = int(load_metadata(reference_file, REFERENCE)["parameters"])
    document = {
        "variant": variant,
        "model": model["name"],
        "dtype": model["dtype"],
        "num_steps": setting.num_steps,
        "cfg_weight": setting.cfg_weight,
        "image_size": list(setting.image_size),
        "batch_size": setting.batch_size,
        "model_bytes": (
            stored_bytes(checkpoint, WEIGHTS_FORMAT) if checkpoint else float16_bytes(parameters)
        ),
        "measured_steps": steps,
        "measured_sigmas": [float(reference.sigmas[step]) for step in steps],
        "captions": captions,
        "block_sqnr": blocks,
        "input_sqnr": inputs,
        "activations": quant_config and activations_of(quant_config),
    }
    write_json(output, FORMAT, document)
    times = {key: took[key] for key in ("step_seconds", "peak_bytes")}
    write_json(timing, TIMING, {"variant": variant, **times})


if "snakemake" in globals():
    with job(snakemake):
        params = snakemake.params
        folder = Path(snakemake.input.conditioning[0]).parent
        main(
            snakemake.input.reference,
            snakemake.input.reference_blocks,
            snakemake.input.reference_timing,
            [folder / name for name in params.shards],
            snakemake.output.evaluation,
            snakemake.output.timing,
            snakemake.wildcards.variant,
            snakemake.input.get("checkpoint"),
            snakemake.input.get("quant_config"),
            params.model,
            params.plan,
        )
