"""Measured images, balanced models and plots of the activation track."""

MEASURED_IMAGES = IMAGES[: config["activations"]["num_images"]]
ACTIVATION_CONFIGS = variant_names.activation_configs(config)
# Those with names of their own; the pattern of none matches nothing.
NAMED_CONFIGS = [name for name in ACTIVATION_CONFIGS if name not in ("a8", "multitier")]
NAMED_CONFIG = "|".join(NAMED_CONFIGS) or "(?!)"


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


def weighs_errors(name):
    """Whether a configuration's tiers weigh errors by the weights: only then it needs a model."""
    tiers = ACTIVATION_CONFIGS[name].get("tiers", {})
    return tiers.get("mode") == "sensitivity" and tiers["weighting"] == "output"


def config_name(wildcards):
    """The configuration that a rule makes: of its wildcard, or `a8`."""
    return wildcards.get("scales", "a8")


def weights_behind(wildcards):
    """The checkpoint whose weights the measured inputs meet, where tiers are weighted by them."""
    return (
        balanced_checkpoint(wildcards) if weighs_errors(config_name(wildcards)) else {}
    )


def asked_config(wildcards):
    return ACTIVATION_CONFIGS[config_name(wildcards)]


def config_model(wildcards):
    return model_params() if weighs_errors(config_name(wildcards)) else None


def config_code(wildcards):
    weighs = weighs_errors(config_name(wildcards))
    return code(
        "analyze_activations.py", [] if weighs else ["checkpoint", "load", "blocks"]
    )


# What each plot of `activation_plots.PLOTS` needs beside the statistics; that module is not imported
# here: planning needs no matplotlib.
PLOT_CONFIGS = {
    "absmax": [],
    "drift": [],
    "heatmap": [],
    "variability": [],
    "channels": [],
    "outliers": [],
    "distributions": ["quant_config"],
    "ranges": ["quant_config"],
    "scales": ["quant_config"],
    "coverage": ["quant_config"],
    "tiers": ["quant_config_multitier"],
}
DISTRIBUTIONS = {"channels", "outliers", "distributions", "ranges"}
ACTIVATION_PLOTS = [
    f"{RESULTS}/activations/plots/{plot}.{suffix}"
    for plot in PLOT_CONFIGS
    if plot not in DISTRIBUTIONS or config["activations"]["plots"]["distributions"]
    for suffix in ("png", "svg")
]
if config["activations"]["plots"]["animate"]:
    ACTIVATION_PLOTS.append(f"{RESULTS}/activations/plots/drift.gif")


def plot_configs(wildcards):
    return [
        f"{RESULTS}/activations/{name}.json" for name in PLOT_CONFIGS[wildcards.plot]
    ]
