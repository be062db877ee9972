"""Images, options and names of the weight track."""

WEIGHT_IMAGES = IMAGES[: config["weights"]["num_images"]]


def recipe_params(wildcards):
    """One recipe's options: changing another recipe redoes nothing of this one."""
    return config["recipes"][known("recipe", wildcards.recipe, RECIPES)]


def block_name(wildcards):
    return known("block", wildcards.block, BLOCKS)
