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
    if variant == variants.NOISE_FLOOR:
        return {}
    try:
        variant_names.check_variant(variant, config)
    except UserError as error:
        raise WorkflowError(str(error)) from None
    parsed = variants.Variant.parse(variant)
    files = {} if parsed.recipe is None else checkpoint_files(parsed.recipe)
    if parsed.scheme is not None:
        folder = f"{RESULTS}/activations"
        if parsed.recipe is not None:
            folder = activation_folder(parsed.recipe)
        files["quant_config"] = f"{folder}/{schemes.config_file(parsed.scheme)}"
    return files


# What a kind of variant does not run, so that a change there redoes no variant of the kind.
UNUSED_MODULES = {
    "full": ["checkpoint", "packed_blocks", "simulate", "quant_config"],
    "noise-floor": ["checkpoint", "packed_blocks", "simulate", "quant_config"],
    "weights": ["packed_blocks", "simulate", "quant_config"],
    "native": ["simulate", "quant_config"],
}


def variant_code(script, variant):
    kind = variants.Variant.parse(variant).kind
    judge = [] if config["model"]["name"] == "demo" else ["judge"]
    return code(script, [*UNUSED_MODULES.get(kind, ["packed_blocks"]), *judge])


def asked_prompt(wildcards):
    return INFERENCE_PROMPTS[known("prompt", wildcards.prompt, INFERENCE_PROMPTS)]


def drawing_inputs(wildcards):
    shard, files = conditioning_of(*asked_prompt(wildcards)), variant_files(
        wildcards.variant
    )
    latents = f"{RESULTS}/images/{wildcards.variant}/{wildcards.prompt}.safetensors"
    shard = unless_made(shard, "generate_image", wildcards, latents, files.values())
    return {"conditioning": shard, **files}


def drawing_prompt(wildcards):
    return prompt_params(*asked_prompt(wildcards))


def drawing_seed(wildcards):
    return config["inference"]["seed"] + asked_prompt(wildcards)[1]
