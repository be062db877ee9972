"""Shards of prompts, and what a job must know of its prompt."""

import os

from ditquant.planning.snakemake_records import SnakemakeRecords
from ditquant.records import recorded_params

# What a shard's content depends on beside its prompts is part of its name: a shard file never has to
# be made again for another model, and Snakemake plans what follows from the name.
TEXT_IDENTITY = text_identity(SPEC)
ENCODING = settings.short_digest(
    TEXT_IDENTITY,
    config["model"]["dtype"],
    config["text"]["t5"],
    config["calibration"]["negative_prompt"],
    code("encode_prompts.py"),
)


def shard_set(wildcards):
    """The prompts of a shard are parameters, so that appended prompts redo no earlier shard."""
    name = known("set of prompts", wildcards.shard.rsplit("-", 1)[0], PROMPTS)
    return PROMPTS[name].shard_prompts(wildcards.shard)


def conditioning_of(name, index):
    """The shard file that holds a prompt's conditioning."""
    shard = f"{PROMPTS[name].shard_of(index)}-{ENCODING}"
    return f"{RESULTS}/conditioning/{shard}.safetensors"


def unless_made(shard, rule, wildcards, product, others=()):
    """The shard as the input of a job that reads one row of it.

    A shard that grew by appended prompts holds the same rows for the old ones. So its date does not
    count (`ancient`) where `product` lies there as the job would make it now. Snakemake plans
    nothing behind an existing `ancient` input that it is about to make, whatever else has changed:
    all that could have is therefore looked at here.

    Args:
        rule: name of the job's rule; the functions of its parameters take wildcards alone.
        product: an output of the job.
        others: its other inputs.
    """
    if not os.path.exists(product):
        return shard
    values = workflow.get_rule(rule).params
    asked = [value(wildcards) if callable(value) else value for value in values]
    known = SnakemakeRecords(workflow.persistence).params(product)
    made = os.path.getmtime(product)
    newer = [
        path
        for path in others
        if not os.path.exists(path) or os.path.getmtime(path) > made
    ]
    return ancient(shard) if known == recorded_params(asked) and not newer else shard


def prompt_params(name, index):
    """What a job must know of its prompt: text, row in the shard, and the negative prompt."""
    return {
        "text": PROMPTS[name].prompts[index],
        "row": PROMPTS[name].row_of(index),
        "negative": config["calibration"]["negative_prompt"],
    }
