"""What a variant and a prompt need to be drawn."""

# A prompt of one's own is drawn instead of the configuration's.
ASKED_PROMPTS = [
    name
    for name, (prompt_set, _) in INFERENCE_PROMPTS.items()
    if config["prompt"] is None or prompt_set == "own"
]
SHOWN_VARIANTS = [
    f"{config['recipe']}-{kind}" for kind in config["inference"]["variants"]
]


def variant_files(variant):
    """What a variant needs beside the model: name of the input -> path."""
    if variant in ("full", "noise-floor"):
        return {}
    recipe, kind = settings.split_variant(variant)
    files = checkpoint_files(recipe)
    quant_configs = {"a8": "quant_config", "multitier": "quant_config_multitier"}
    if kind in quant_configs:
        files["quant_config"] = (
            f"{activation_folder(recipe)}/{quant_configs[kind]}.json"
        )
    return files


# What a kind of variant does not run, so that a change there redoes no variant of the kind.
UNUSED_MODULES = {
    "full": ["checkpoint", "simulate", "quant_config"],
    "weights": ["simulate", "quant_config"],
    "native": ["simulate", "quant_config"],
}


def variant_code(script, variant):
    kind = "full" if variant in ("full", "noise-floor") else variant.rpartition("-")[2]
    judge = [] if config["model"]["name"] == "demo" else ["judge"]
    return code(script, [*UNUSED_MODULES.get(kind, []), *judge])


def asked_prompt(wildcards):
    return INFERENCE_PROMPTS[known("prompt", wildcards.prompt, INFERENCE_PROMPTS)]


def drawing_inputs(wildcards):
    latents = f"{RESULTS}/images/{wildcards.variant}/{wildcards.prompt}.safetensors"
    shard = conditioning_of(*asked_prompt(wildcards), latents)
    return {"conditioning": shard, **variant_files(wildcards.variant)}


def drawing_prompt(wildcards):
    return prompt_params(*asked_prompt(wildcards))


def drawing_seed(wildcards):
    return config["inference"]["seed"] + asked_prompt(wildcards)[1]
