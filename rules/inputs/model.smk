"""Shards of prompts, and what a job must know of its prompt."""

# What a shard's content depends on beside its prompts is part of its name: a shard file never has to
# be made again for another model, and Snakemake plans what follows from the name.
ENCODING = settings.short_digest(
    text_identity(SPEC),
    config["model"]["dtype"],
    config["text"]["t5"],
    config["calibration"]["negative_prompt"],
    code("encode_prompts.py"),
)


def shard_set(wildcards):
    """The prompts of a shard are parameters, so that appended prompts redo no earlier shard."""
    name = known("set of prompts", wildcards.shard.rsplit("-", 1)[0], PROMPTS)
    return PROMPTS[name].shard_prompts(wildcards.shard)


def conditioning_of(name, index, product=None):
    """The shard file that holds a prompt's conditioning.

    A shard that grew by appended prompts holds the same rows for the old ones. So where `product`,
    the file that is made from the row, exists and records the same prompt, the shard's date does
    not count (`ancient`). Where it does not, the shard must be a plain input: Snakemake plans
    nothing behind an existing `ancient` input that is itself about to be made.
    """
    shard = f"{PROMPTS[name].shard_of(index)}-{ENCODING}"
    path = f"{RESULTS}/conditioning/{shard}.safetensors"
    if product and settings.recorded_prompt(product) == PROMPTS[name].prompts[index]:
        return ancient(path)
    return path


def prompt_params(name, index):
    """What a job must know of its prompt: text, row in the shard, and the negative prompt."""
    return {
        "text": PROMPTS[name].prompts[index],
        "row": PROMPTS[name].row_of(index),
        "negative": config["calibration"]["negative_prompt"],
    }
