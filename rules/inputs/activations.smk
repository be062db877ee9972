"""Measured images, recipes with activations of their own, and plots of the activation track."""

MEASURED_IMAGES = IMAGES[: config["activations"]["num_images"]]
ACTIVATION_CONFIGS = variant_names.activation_configs(config)
# Those with names of their own; the pattern of none matches nothing.
NAMED_CONFIGS = [name for name in ACTIVATION_CONFIGS if name not in ("a8", "multitier")]
NAMED_CONFIG = "|".join(NAMED_CONFIGS) or "(?!)"


def own_checkpoint(wildcards):
    """The checkpoint of a recipe that has activations of its own to measure."""
    recipe = wildcards.recipe
    files = checkpoint_files(recipe)
    if not RECIPES[recipe].has_own_activations:
        raise WorkflowError(
            f"Recipe {recipe!r} balances no channels, rotates nothing and learns no activation "
            "ranges, so its activations are those of the full-precision model: ask for "
            f"{RESULTS}/activations/quant_config.json, or set recipes.{recipe}.balance."
        )
    return files


def weighting(name):
    """What a configuration's tiers are chosen by; None where they need no error."""
    tiers = ACTIVATION_CONFIGS[name].get("tiers", {})
    return tiers["weighting"] if tiers.get("mode") == "sensitivity" else None


def is_measured(name):
    """Whether a configuration's tiers are chosen by forward passes of single inputs."""
    tiers = ACTIVATION_CONFIGS[name].get("tiers")
    return tiers is not None and variant_names.measures_tiers(tiers)


def config_name(wildcards):
    """The configuration that is made: of the wildcard, or `a8`."""
    return wildcards.get("scales", "a8")


def sensitivity_files(wildcards, folder):
    """What single inputs do on the measured images, of a configuration that `is_measured`."""
    name = config_name(wildcards)
    images = MEASURED_IMAGES[: ACTIVATION_CONFIGS[name]["tiers"]["images"]]
    return [f"{folder}/sensitivity/{name}/{image}.safetensors" for image in images]


def clip_files(wildcards, folder):
    """What shorter ranges do, on the held-out images of a configuration that tries them."""
    name = config_name(wildcards)
    if "clips" not in ACTIVATION_CONFIGS[name]:
        return {}
    count = ACTIVATION_CONFIGS[name]["clips"]["images"]
    first = max(0, min(len(MEASURED_IMAGES), len(IMAGES) - count))
    images = IMAGES[first : first + count]
    return {"clips": [f"{folder}/clips/{name}/{image}.safetensors" for image in images]}


def shared_clips(wildcards):
    return clip_files(wildcards, f"{RESULTS}/activations")


def own_clips(wildcards):
    return clip_files(wildcards, f"{RESULTS}/weights/{wildcards.recipe}/activations")


def clipped_config(wildcards):
    """A configuration that tries shorter ranges."""
    if "clips" not in ACTIVATION_CONFIGS[wildcards.scales]:
        raise WorkflowError(
            f"Activation configuration {wildcards.scales!r} tries no ranges: its range is not measured."
        )
    return ACTIVATION_CONFIGS[wildcards.scales]


def check_channels(name):
    """Ends the plan where a configuration's groups of channels do not fill what linears read."""
    section = "activations"
    if name in config["activations"]["variants"]:
        section = f"activations.variants.{name}"
    size = ACTIVATION_CONFIGS[name]["options"]["channel_group"]
    try:
        fitting.check_channel_group(section, size, LINEARS, SPEC.name)
    except UserError as error:
        raise WorkflowError(str(error)) from None


def config_inputs(wildcards):
    """What a configuration is made by, beside the statistics."""
    check_channels(config_name(wildcards))
    inputs = shared_clips(wildcards)
    if is_measured(config_name(wildcards)):
        inputs["sensitivity"] = sensitivity_files(wildcards, f"{RESULTS}/activations")
    return inputs


def learned_blocks(wildcards):
    """A recipe's blocks, where a configuration takes the ranges that were learned with them."""
    recipe = known("recipe", wildcards.recipe, RECIPES)
    takes_learned = ACTIVATION_CONFIGS[config_name(wildcards)]["range"] == "learned"
    if not (takes_learned and RECIPES[recipe].learns_ranges):
        return {}
    folder = f"{RESULTS}/weights/{recipe}/blocks"
    return {"learned": expand(f"{folder}/{{block}}.safetensors", block=BLOCKS)}


def learned_bits(wildcards):
    """Bits that the ranges of `learned_blocks` were learned for; 0 where none are taken."""
    if not learned_blocks(wildcards):
        return 0
    return RECIPES[wildcards.recipe].activation_bits


def own_config_inputs(wildcards):
    """What a configuration of a recipe's own is made by, beside the statistics."""
    check_channels(config_name(wildcards))
    by = weighting(config_name(wildcards))
    inputs = learned_blocks(wildcards) | own_clips(wildcards)
    if is_measured(config_name(wildcards)):
        folder = f"{RESULTS}/weights/{wildcards.recipe}/activations"
        inputs["sensitivity"] = sensitivity_files(wildcards, folder)
    if by == "output":
        inputs |= own_checkpoint(wildcards)
    return inputs


def sensitive_config(wildcards):
    """A configuration that `is_measured`."""
    if not is_measured(wildcards.scales):
        raise WorkflowError(
            f"Activation configuration {wildcards.scales!r} needs no measured sensitivity."
        )
    return ACTIVATION_CONFIGS[wildcards.scales]


def asked_config(wildcards):
    return ACTIVATION_CONFIGS[config_name(wildcards)]


def config_model(wildcards):
    return model_params() if weighting(config_name(wildcards)) == "output" else None


def config_code(wildcards):
    weighs = weighting(config_name(wildcards)) == "output"
    return code("analyze_activations.py", [] if weighs else ["measured_model"])


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


# In the place of quant_config.json the file of another configuration may be drawn.
PLOTTED = known(
    "activation configuration",
    config["activations"]["plots"]["configuration"],
    ACTIVATION_CONFIGS,
)


def plot_configs(wildcards):
    drawn = {"quant_config": PLOTTED, "quant_config_multitier": "multitier"}
    return [
        f"{RESULTS}/activations/{variant_names.config_file(drawn[name])}"
        for name in PLOT_CONFIGS[wildcards.plot]
    ]
