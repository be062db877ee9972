"""Measured images, balanced models and plots of the activation track."""

MEASURED_IMAGES = IMAGES[: config["activations"]["num_images"]]
# `ranges.ScaleOptions`: what single granularities ask for.
SCALE_OPTIONS = {
    "groups": config["activations"]["groups"],
    **config["activations"]["polynomial"],
    "shift": config["activations"]["shift"],
}


def balanced_checkpoint(wildcards):
    """The checkpoint of a recipe that has activations of its own to measure."""
    recipe = wildcards.recipe
    files = checkpoint_files(recipe)
    if not settings.balances_channels(config["recipes"][recipe]):
        raise WorkflowError(
            f"Recipe {recipe!r} balances no channels, so its activations are those of the "
            f"full-precision model: ask for {RESULTS}/activations/quant_config.json, or set "
            f"recipes.{recipe}.balance."
        )
    return files


# Only errors that are weighted by the weights need the model.
WEIGHTED_TIERS = (
    config["activations"]["tiers"]["mode"] == "sensitivity"
    and config["activations"]["tiers"]["weighting"] == "output"
)
TIER_CODE = code(
    "analyze_activations_multitier.py",
    [] if WEIGHTED_TIERS else ["checkpoint", "load", "blocks"],
)


def weights_behind(wildcards):
    """The checkpoint whose weights the measured inputs meet, where tiers are weighted by them."""
    return balanced_checkpoint(wildcards) if WEIGHTED_TIERS else {}


# What each plot needs beside the statistics.
PLOT_CONFIGS = {
    "absmax": [],
    "drift": [],
    "heatmap": [],
    "tiers": ["quant_config_multitier"],
    "distributions": ["quant_config"],
}
PLOTS = [
    plot
    for plot in PLOT_CONFIGS
    if plot != "distributions" or config["activations"]["plots"]["distributions"]
]


def plot_configs(wildcards):
    return [
        f"{RESULTS}/activations/{name}.json" for name in PLOT_CONFIGS[wildcards.plot]
    ]
