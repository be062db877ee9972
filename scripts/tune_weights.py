"""Rule tune_weights: all blocks of a recipe -> their scales and biases, tuned together."""

from pathlib import Path
from typing import Any

from ditquant.artifacts import write_json
from ditquant.job import LOG, run_script
from ditquant.models.load import DTYPES
from ditquant.models.spec import read_spec
from ditquant.network.calibration import load_trajectory
from ditquant.network.diffusionkit import load_network
from ditquant.planning.recipes import Recipe
from ditquant.provenance import check_alike, check_options
from ditquant.weights.block_files import read_packed, read_parameters, write_tuned
from ditquant.weights.divergence import told
from ditquant.weights.learning import Resume, resume_key
from ditquant.weights.rotation import rotate
from ditquant.weights.tuning import FORMAT, tune_recipe


def main(*, files: dict[str, list[str]], weights: str, result: str, params: dict[str, Any]) -> None:
    """Writes "mm03.img.attn.q_proj.scales", .biases, ... and the result.

    Args:
        files: "blocks", all of the recipe, and "trajectories".
        params: of the rule.

    What an interrupted run had learned lies in a hidden file beside the output until it is done.
    """
    model, blocks, recipe = params["model"], files["blocks"], Recipe.from_params(params["recipe"])
    check_alike(files["trajectories"], "num_steps", "cfg_weight", "image_size")
    for path in blocks:
        check_options(path, "the recipe that is tuned", recipe=recipe.of_block().params())
    spec = read_spec(model["name"], model["checkpoint"])
    network = load_network(spec, DTYPES[model["dtype"]])
    rotate(network, recipe.rotation)
    resume = Resume(Path(weights).with_name(".tuned.resume.safetensors"), resume_key(files, params))
    tuned = tune_recipe(
        network,
        read_packed(blocks),
        read_parameters(blocks),
        [load_trajectory(path) for path in files["trajectories"]],
        recipe,
        params["seed"],
        resume,
    )
    log_result(tuned.document)
    write_tuned(weights, tuned.packed)
    write_json(result, FORMAT, tuned.document)
    resume.discard()


def log_result(document: dict[str, Any]) -> None:
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


run_script(main, globals(), files="input", params="params")
