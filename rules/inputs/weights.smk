"""Images, options and names of the weight track."""

WEIGHT_IMAGES = IMAGES[: config["weights"]["num_images"]]


def recipe_params(wildcards):
    """One recipe's options: changing another recipe redoes nothing of this one."""
    return config["recipes"][known("recipe", wildcards.recipe, RECIPES)]


def block_name(wildcards):
    return known("block", wildcards.block, BLOCKS)


def block_recipe(wildcards):
    """What the blocks of a recipe depend on: how its other linears are rounded redoes none."""
    return settings.block_options(recipe_params(wildcards))


# The files for stock DiffusionKit that a checkpoint is exported to.
EXPORTS = ["diffusionkit-4bit", "diffusionkit-fp16"]


def exported_config(wildcards):
    """The checkpoint's configuration, once the export's name is known to be one."""
    known("export", wildcards.export, EXPORTS)
    return f"{RESULTS}/weights/{known('recipe', wildcards.recipe, RECIPES)}/model/config.json"
