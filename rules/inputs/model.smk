"""Shards of prompts, and what a job must know of its prompt."""


def shard_set(wildcards):
    """The prompts of a shard are parameters, so that appended prompts redo no earlier shard."""
    name = known("set of prompts", wildcards.shard.rsplit("-", 1)[0], PROMPTS)
    return PROMPTS[name].shard_prompts(wildcards.shard)


def conditioning_of(name, index):
    """The shard file that holds a prompt's conditioning.

    `ancient`: a shard that grew by appended prompts holds the same rows for the old ones; what
    depends on a row carries its prompt and the encoder's code as parameters instead.
    """
    return ancient(
        f"{RESULTS}/conditioning/{PROMPTS[name].shard_of(index)}.safetensors"
    )


def prompt_params(name, index):
    """What a job must know of its prompt: text, row in the shard, and how it was encoded."""
    return {
        "text": PROMPTS[name].prompts[index],
        "row": PROMPTS[name].row_of(index),
        "negative": config["calibration"]["negative_prompt"],
        "t5": config["text"]["t5"],
        "code": code("encode_prompts.py"),
    }
