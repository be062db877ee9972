"""Measured images, whose activations they are, and plots of the activation track.

The linears of a recipe that balances channels read x / b instead of x, those of one that rotates read
H x, and taqdit learns ranges for what the linears of its model read: such a recipe's own model is
measured. The wildcard `owner` says whose activations are: nothing for the full-precision model's,
"weights/{recipe}/" for a recipe's.
"""

from ditquant.activations import scheme as schemes
from ditquant.plots.activation_names import ACTIVATION_PLOTS, plot_files

MEASURED_IMAGES = IMAGES[: config["activations"]["num_images"]]
SCHEMES = schemes.activation_schemes(config)
ANALYZED = "|".join(
    schemes.config_file(name).removesuffix(".json").removeprefix("quant_config")
    for name in SCHEMES
)


def measured_recipe(wildcards):
    """The recipe whose own model is measured; None: the full-precision model is."""
    if not wildcards.owner:
        return None
    recipe = known("recipe", wildcards.owner.split("/")[1], RECIPES)
    if not RECIPES[recipe].has_own_activations:
        raise WorkflowError(
            f"Recipe {recipe!r} balances no channels, rotates nothing and learns no activation "
            "ranges, so its activations are those of the full-precision model: ask for "
            f"{RESULTS}/activations/quant_config.json, or set recipes.{recipe}.balance."
        )
    return recipe


def measured_checkpoint(wildcards):
    """The checkpoint of the recipe whose model is measured, if it is a recipe's."""
    recipe = measured_recipe(wildcards)
    return {} if recipe is None else checkpoint_files(recipe)


def measuring_code(script):
    """Digest of a script that measures; the full-precision model has no checkpoint of a recipe."""
    return lambda wildcards: code(script, [] if wildcards.owner else ["checkpoint"])


def scheme_name(wildcards):
    """The scheme that a job is about: of the wildcard, or of the name of its file."""
    if "scheme" in wildcards.keys():
        return wildcards.scheme
    return wildcards.suffix.removeprefix("_") or schemes.SINGLE_TIER


def scheme_of(wildcards):
    return SCHEMES[scheme_name(wildcards)]


def scheme_params(wildcards):
    return scheme_of(wildcards).params


def clip_files(wildcards):
    """What shorter ranges do, on the held-out images of a scheme that tries them."""
    clips = scheme_of(wildcards).clips
    if clips is None:
        return {}
    first = max(0, min(len(MEASURED_IMAGES), len(IMAGES) - clips.images))
    images = IMAGES[first : first + clips.images]
    folder = f"{RESULTS}/{wildcards.owner}activations/clips/{scheme_name(wildcards)}"
    return {"clips": [f"{folder}/{image}.safetensors" for image in images]}


def clipped_scheme(wildcards):
    """A scheme that tries shorter ranges."""
    if scheme_of(wildcards).clips is None:
        raise WorkflowError(
            f"Activation configuration {wildcards.scheme!r} tries no ranges: its range is not measured."
        )
    return scheme_params(wildcards)


def sensitive_scheme(wildcards):
    """A scheme whose tiers are chosen by forward passes of single inputs."""
    if not scheme_of(wildcards).needs_sensitivity:
        raise WorkflowError(
            f"Activation configuration {wildcards.scheme!r} needs no measured sensitivity."
        )
    return scheme_params(wildcards)


def learned_blocks(wildcards):
    """A recipe's blocks, where a scheme takes the ranges that were learned with them."""
    recipe = measured_recipe(wildcards)
    takes = recipe is not None and scheme_of(wildcards).takes_learned
    if not (takes and RECIPES[recipe].learns_ranges):
        return {}
    folder = f"{RESULTS}/weights/{recipe}/blocks"
    return {"learned": expand(f"{folder}/{{block}}.safetensors", block=BLOCKS)}


def learned_bits(wildcards):
    """Bits that the ranges of `learned_blocks` were learned for; 0 where none are taken."""
    if not learned_blocks(wildcards):
        return 0
    return RECIPES[measured_recipe(wildcards)].activation_bits


def config_inputs(wildcards):
    """What a configuration is made by, beside the statistics."""
    name, scheme = scheme_name(wildcards), scheme_of(wildcards)
    try:
        section = schemes.section_of(name, config)
        fitting.check_channel_group(section, scheme.channel_group, LINEARS, SPEC.name)
    except UserError as error:
        raise WorkflowError(str(error)) from None
    measured_recipe(wildcards)
    inputs = learned_blocks(wildcards) | clip_files(wildcards)
    if scheme.needs_sensitivity:
        folder = f"{RESULTS}/{wildcards.owner}activations/sensitivity/{name}"
        images = MEASURED_IMAGES[: scheme.tiers.images]
        inputs["sensitivity"] = [f"{folder}/{image}.safetensors" for image in images]
    if scheme.needs_weights:
        inputs |= measured_checkpoint(wildcards)
    return inputs


def config_model(wildcards):
    return model_params() if scheme_of(wildcards).needs_weights else None


def config_code(wildcards):
    unused = [] if scheme_of(wildcards).needs_weights else ["measured_model"]
    return code("analyze_activations.py", unused)


# In the place of quant_config.json the file of another configuration may be drawn.
PLOTTED = known(
    "activation configuration",
    config["activations"]["plots"]["configuration"],
    SCHEMES,
)
PLOT_FILES = [
    f"{RESULTS}/activations/plots/{file}"
    for file in plot_files(
        config["activations"]["plots"]["distributions"],
        config["activations"]["plots"]["animate"],
    )
]


def plot_configs(wildcards):
    """The configuration that a plot shows, if it shows one."""
    drawn = {schemes.SINGLE_TIER: PLOTTED, schemes.MULTI_TIER: schemes.MULTI_TIER}
    scheme = ACTIVATION_PLOTS[wildcards.plot].scheme
    if scheme is None:
        return []
    return [f"{RESULTS}/activations/{schemes.config_file(drawn[scheme])}"]
