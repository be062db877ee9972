"""Rule draw_reference: the full-precision run that every variant is compared with."""

from collections.abc import Mapping
from typing import Any

from ditquant.artifacts import save_tensors, write_json
from ditquant.evaluation.block_errors import REFERENCE_BLOCKS, output_streams, stacked
from ditquant.evaluation.table import TIMING
from ditquant.evaluation.trajectories import (
    count_parameters,
    kept_steps,
    read_setting,
    run_captions,
    save_run,
)
from ditquant.job import run_script
from ditquant.models.load import DTYPES, load_vae_decoder
from ditquant.models.spec import Model
from ditquant.network.diffusionkit import load_network
from ditquant.network.sampling import leave_alone


def main(
    *,
    conditioning: list[str],
    shards: list[str],
    plan: Mapping[str, Any],
    reference: str,
    blocks: str,
    timing: str,
    model: Model,
) -> None:
    """Writes final latents, latents and velocities at the kept steps, pictures and sigmas.

    What the blocks give at these steps, of a few captions and tokens, goes to `blocks`.

    Args:
        conditioning, shards, plan: see `trajectories.read_setting`.
    """
    spec, dtype = model.spec, DTYPES[model.dtype]
    setting = read_setting(plan, conditioning, shards)
    network, decoder = load_network(spec, dtype), load_vae_decoder(spec, dtype)
    run, took = run_captions(network, leave_alone, decoder, spec, setting, dtype)
    metadata = {
        "captions": setting.captions,
        "seeds": setting.seeds, "cfg_weight": setting.cfg_weight,
        "num_steps": setting.num_steps, "measured_steps": kept_steps(setting.num_steps),
        "image_size": list(setting.image_size), "batch_size": setting.batch_size,
        "model": model.name, "dtype": model.dtype, "parameters": count_parameters(network),
    }  # fmt: skip
    save_run(reference, run, metadata)
    write_json(timing, TIMING, {"variant": "full", **took})
    outputs = output_streams(network, leave_alone, setting, run.latents, run.sigmas, dtype)
    save_tensors(blocks, stacked(outputs), REFERENCE_BLOCKS)


run_script(main, globals())
