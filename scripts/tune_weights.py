"""Rule tune_weights: all blocks of a recipe -> their scales and biases, tuned together."""

from pathlib import Path

from ditquant.artifacts import remove, save_tensors, write_json
from ditquant.job import LOG, job
from ditquant.models.load import DTYPES, load_mmdit
from ditquant.models.spec import read_spec
from ditquant.network.calibration import load_trajectory
from ditquant.planning.settings import block_options
from ditquant.provenance import check_alike, check_options
from ditquant.weights.block_files import TUNED_WEIGHTS, read_packed, read_parameters
from ditquant.weights.divergence import told
from ditquant.weights.learning_state import resume_key
from ditquant.weights.rotation import rotate
from ditquant.weights.tuning import FORMAT, tune_recipe


def main(
    blocks: list[str],
    trajectories: list[str],
    weights: str,
    result: str,
    model: dict,
    recipe: dict,
    seed: int,
    code: str,
) -> None:
    """Writes "mm03.img.attn.q_proj.scales", .biases, ... and the result.

    What an interrupted run had learned lies in a hidden file beside the output until it is done.
    """
    check_alike(trajectories, "num_steps", "cfg_weight", "image_size")
    for path in blocks:
        check_options(path, "the recipe that is tuned", recipe=block_options(recipe))
    spec = read_spec(model["name"], model["checkpoint"])
    network = load_mmdit(spec, DTYPES[model["dtype"]])
    rotate(network, recipe.get("rotation"))
    resume = Path(weights).with_name(".tuned.resume.safetensors")
    settings = {"model": model, "recipe": recipe, "seed": seed, "code": code}
    tuned = tune_recipe(
        network,
        read_packed(blocks),
        read_parameters(blocks),
        [load_trajectory(path) for path in trajectories],
        recipe,
        seed,
        resume,
        resume_key([*blocks, *trajectories], settings),
    )
    log_result(tuned.document)
    tensors = {}
    for name, packed in tuned.packed.items():
        tensors[f"{name}.scales"] = packed.scales
        tensors[f"{name}.biases"] = packed.biases
    save_tensors(weights, tensors, TUNED_WEIGHTS)
    write_json(result, FORMAT, tuned.document)
    remove(resume)


def log_result(document: dict) -> None:
    if document["diverged"]:
        LOG.error(
            "The tuning diverged. %s Until then the blocks keep their own scales.", told(document)
        )
        return
    LOG.info(
        "velocity error on held-out rows: %.4g before, %.4g tuned; kept %s",
        document["error"]["start"],
        document["error"]["tuned"],
        document["kept"],
    )


if "snakemake" in globals():
    with job(snakemake):
        params = snakemake.params
        main(
            snakemake.input.blocks,
            snakemake.input.trajectories,
            snakemake.output.weights,
            snakemake.output.result,
            params.model,
            params.recipe,
            params.seed,
            params.code,
        )
