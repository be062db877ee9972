"""Rule evaluate_variant: a variant's captions against the full-precision reference."""

from collections.abc import Mapping
from contextlib import nullcontext
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
    kept_steps,
    load_run,
    read_setting,
    run_captions,
)
from ditquant.evaluation.variants import OpenedVariant, open_variant
from ditquant.job import run_script
from ditquant.models.load import DTYPES, load_vae_decoder
from ditquant.models.spec import Model
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
    *,
    conditioning: list[str],
    shards: list[str],
    plan: Mapping[str, Any],
    reference: str,
    reference_blocks: str,
    reference_timing: str,
    evaluation: str,
    timing: str,
    variant: str,
    model: Model,
    checkpoint: str | None = None,
    quant_config: str | None = None,
) -> None:
    """Writes every caption's scores and what is common to them; timings go to `timing`.

    `full` is the reference itself: its errors are zero by definition and it is only judged.

    Args:
        conditioning, shards, plan: see `trajectories.read_setting`.
    """
    check_options(reference, f"the evaluation of {variant}", plan=plan)
    spec, dtype = model.spec, DTYPES[model.dtype]
    setting = read_setting(plan, conditioning, shards)
    full = load_run(reference)
    blocks, inputs = None, None
    if variant == "full":
        run = full
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
                forced_at=full.latents,
            )
            blocks, inputs = measure_blocks(opened, full, reference_blocks, setting)
    judging = model.name == "demo"
    captions = [
        {
            "caption": caption,
            "seed": setting.seeds[row],
            **caption_scores(full, run, row),
            "judge": verdict(judging, run.images[row], caption),
        }
        for row, caption in enumerate(setting.captions)
    ]
    steps = kept_steps(setting.num_steps)
    parameters = int(load_metadata(reference, REFERENCE)["parameters"])
    document = {
        "variant": variant,
        "model": model.name,
        "dtype": model.dtype,
        "num_steps": setting.num_steps,
        "cfg_weight": setting.cfg_weight,
        "image_size": list(setting.image_size),
        "batch_size": setting.batch_size,
        "model_bytes": (
            stored_bytes(checkpoint, WEIGHTS_FORMAT) if checkpoint else float16_bytes(parameters)
        ),
        "measured_steps": steps,
        "measured_sigmas": [float(full.sigmas[step]) for step in steps],
        "captions": captions,
        "block_sqnr": blocks,
        "input_sqnr": inputs,
        "activations": quant_config and activations_of(quant_config),
    }
    write_json(evaluation, FORMAT, document)
    times = {key: took[key] for key in ("step_seconds", "peak_bytes")}
    write_json(timing, TIMING, {"variant": variant, **times})


run_script(main, globals())
