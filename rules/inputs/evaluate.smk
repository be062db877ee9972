"""Captions, variants and recipes that are evaluated and reported."""

from ditquant.planning.baselines import baseline_variants

CAPTIONS = range(config["evaluation"]["captions"])
EVALUATED_VARIANTS = variant_names.evaluated_variants(config)
# The charts of `evaluation_charts.CHARTS`, which is not imported here: planning needs no matplotlib.
EVALUATION_PLOTS = [
    "errors",
    "psnr",
    "velocity",
    "divergence",
    "blocks",
    "block-sigma",
    "bits",
    "inputs",
    "size",
]
# Every recipe that something is shown of, in the order of the table.
REPORTED_RECIPES = [
    recipe
    for recipe in dict.fromkeys(
        variants.Variant.parse(variant).recipe
        for variant in [*EVALUATED_VARIANTS, *SHOWN_VARIANTS]
    )
    if recipe in RECIPES
]
# How each of them went, block by block and in the tuning at the end.
REPORTED_RESULTS = [
    f"{RESULTS}/weights/{recipe}/{name}.json"
    for recipe in REPORTED_RECIPES
    for name in (
        *(f"blocks/{block}" for block in BLOCKS),
        *(["tuned"] if recipe in TUNED_RECIPES else []),
    )
]
CAPTION_SHARDS = [conditioning_of("evaluation", index) for index in CAPTIONS]
EVALUATION_PLAN = {
    "prompts": [prompt_params("evaluation", index) for index in CAPTIONS],
    "seed": config["inference"]["seed"],
    "num_steps": config["inference"]["num_steps"],
    "cfg_weight": config["inference"]["cfg_weight"],
    "image_size": image_size(),
    "batch_size": config["evaluation"]["batch_size"],
}


def evaluation_inputs(wildcards):
    return variant_files(wildcards.variant)


# The activation configurations of all that is shown.
REPORTED_CONFIGS = list(
    dict.fromkeys(
        files["quant_config"]
        for files in map(variant_files, [*EVALUATED_VARIANTS, *SHOWN_VARIANTS])
        if "quant_config" in files
    )
)
