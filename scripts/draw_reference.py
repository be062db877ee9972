"""Rule draw_reference: the full-precision run that every variant is compared with."""

from pathlib import Path

from ditquant.artifacts import save_tensors, write_json
from ditquant.evaluation.block_errors import REFERENCE_BLOCKS, output_streams, stacked
from ditquant.evaluation.table import TIMING
from ditquant.evaluation.trajectories import (
    count_parameters,
    measured_steps,
    read_setting,
    run_captions,
    save_run,
)
from ditquant.job import job
from ditquant.models.load import DTYPES, load_vae_decoder
from ditquant.models.spec import read_spec
from ditquant.network.diffusionkit import load_network


def _leave_alone(index: int, sigma: float) -> None:
    """Full precision: nothing is done to activations before a step."""


def main(
    shards: list[Path], reference: str, blocks: str, timing: str, model: dict, plan: dict
) -> None:
    """Writes final latents, latents and velocities at the measured steps, pictures and sigmas.

    What the blocks give at these steps, of a few captions and tokens, goes to `blocks`.

    Args:
        shards: file of each caption's conditioning.
        plan: see `trajectories.read_setting`.
    """
    spec = read_spec(model["name"], model["checkpoint"])
    dtype = DTYPES[model["dtype"]]
    setting = read_setting(plan, shards)
    network, decoder = load_network(spec, dtype), load_vae_decoder(spec, dtype)
    run, took = run_captions(network, _leave_alone, decoder, spec, setting, dtype)
    metadata = {
        "captions": list(setting.captions),
        "seeds": list(setting.seeds), "cfg_weight": setting.cfg_weight,
        "num_steps": setting.num_steps, "measured_steps": measured_steps(setting.num_steps),
        "image_size": list(setting.image_size), "batch_size": setting.batch_size,
        "model": model["name"], "dtype": model["dtype"], "parameters": count_parameters(network),
    }  # fmt: skip
    save_run(reference, run, metadata)
    write_json(timing, TIMING, {"variant": "full", **took})
    outputs = output_streams(network, _leave_alone, setting, run.latents, run.sigmas, dtype)
    save_tensors(blocks, stacked(outputs), REFERENCE_BLOCKS)


if "snakemake" in globals():
    with job(snakemake):
        params = snakemake.params
        folder = Path(snakemake.input.conditioning[0]).parent
        main(
            [folder / name for name in params.shards],
            snakemake.output.reference,
            snakemake.output.blocks,
            snakemake.output.timing,
            params.model,
            params.plan,
        )
