"""Images, options and names of the weight track."""

from functools import cache

WEIGHT_IMAGES = IMAGES[: config["weights"]["num_images"]]


@cache
def fitting_recipe(name):
    """A recipe, once it is known to fit the model; those that nothing is made of need not."""
    recipe = RECIPES[known("recipe", name, RECIPES)]
    try:
        fitting.check_recipe(f"recipes.{name}", recipe, LINEARS, SPEC.name)
    except UserError as error:
        raise WorkflowError(str(error)) from None
    return recipe


def recipe_params(wildcards):
    """One recipe's options: changing another recipe redoes nothing of this one."""
    return fitting_recipe(wildcards.recipe).params()


def block_name(wildcards):
    return known("block", wildcards.block, BLOCKS)


def block_recipe(wildcards):
    """What the blocks of a recipe depend on: how its other linears are rounded redoes none."""
    return fitting_recipe(wildcards.recipe).of_block().params()


def checkpoint_files(recipe):
    """A recipe's checkpoint: name of the input -> path."""
    folder = f"{RESULTS}/weights/{known('recipe', recipe, RECIPES)}/model"
    return {
        "checkpoint_config": f"{folder}/config.json",
        "checkpoint": f"{folder}/model.safetensors",
    }


def activation_folder(recipe):
    """Where the scales of a recipe's activations lie.

    A recipe that balances channels has its own, since its linears read x / b, as one that rotates
    them has, and one that learns ranges together with its weights; all others share those of the
    full-precision model.
    """
    if RECIPES[known("recipe", recipe, RECIPES)].has_own_activations:
        return f"{RESULTS}/weights/{recipe}/activations"
    return f"{RESULTS}/activations"


def block_inputs(wildcards):
    """What a block's recipe reads beside the cached streams."""
    recipe, block, inputs = (
        fitting_recipe(wildcards.recipe),
        block_name(wildcards),
        {},
    )
    before = BLOCKS[: BLOCKS.index(block)]
    if recipe.is_chained and before:
        folder = f"{RESULTS}/weights/{wildcards.recipe}/blocks"
        inputs["before"] = expand(f"{folder}/{{block}}.safetensors", block=before)
    if recipe.balance in ("smoothquant", "csb"):
        inputs["statistics"] = f"{RESULTS}/activations/layer_statistics.safetensors"
    return inputs


TUNED_RECIPES = [name for name, recipe in RECIPES.items() if recipe.tuning]


def tuned_blocks(wildcards):
    """All blocks of a recipe that is tuned."""
    recipe = known("recipe that is tuned", wildcards.recipe, TUNED_RECIPES)
    folder = f"{RESULTS}/weights/{recipe}/blocks"
    return expand(f"{folder}/{{block}}.safetensors", block=BLOCKS)


def tuned_weights(wildcards):
    """The tuned grids, for the checkpoint of a recipe that is tuned."""
    if known("recipe", wildcards.recipe, RECIPES) not in TUNED_RECIPES:
        return {}
    return {"tuned": f"{RESULTS}/weights/{wildcards.recipe}/tuned.safetensors"}


def tuned_result(wildcards):
    """How the tuning of a recipe went, if it is tuned."""
    if wildcards.recipe not in TUNED_RECIPES:
        return {}
    return {"tuned": f"{RESULTS}/weights/{wildcards.recipe}/tuned.json"}


LEARNED_RECIPES = [
    name for name, recipe in RECIPES.items() if recipe.is_learned or recipe.tuning
]


# Of the configuration's recipe, if it learns.
HISTORY_PLOTS = [
    f"{RESULTS}/weights/{name}/plots/history.{suffix}"
    for name in LEARNED_RECIPES
    if name == config["recipe"]
    for suffix in ("png", "svg")
]


def learned_results(wildcards):
    """Every block's result of a recipe that learns; none where only the tuning does."""
    recipe = known("recipe that learns", wildcards.recipe, LEARNED_RECIPES)
    if not RECIPES[recipe].is_learned:
        return []
    return expand(f"{RESULTS}/weights/{recipe}/blocks/{{block}}.json", block=BLOCKS)


# The files for stock DiffusionKit that a checkpoint is exported to.
EXPORTS = ["diffusionkit-4bit", "diffusionkit-fp16"]


def exported_config(wildcards):
    """The checkpoint's configuration, once the export's name is known to be one."""
    known("export", wildcards.export, EXPORTS)
    return f"{RESULTS}/weights/{known('recipe', wildcards.recipe, RECIPES)}/model/config.json"


def range_files(wildcards):
    """What the activations of a recipe's linears were measured and configured to be."""
    folder = activation_folder(wildcards.recipe)
    return {
        "statistics": f"{folder}/layer_statistics.safetensors",
        "config": f"{folder}/quant_config.json",
    }
