"""Which image a calibration job draws, and from what."""


def image_index(wildcards):
    index = int(wildcards.image)
    if index >= config["num_images"]:
        raise WorkflowError(
            f"There is no image {wildcards.image}: the configuration has {config['num_images']} "
            f"calibration images, 0000 to {IMAGES[-1]} (num_images)."
        )
    return index


def image_conditioning(wildcards):
    shard = conditioning_of("calibration", image_index(wildcards))
    trajectory = f"{RESULTS}/calibration/{wildcards.image}.safetensors"
    return unless_made(shard, "generate_calibration", wildcards, trajectory)


def image_params(wildcards):
    return prompt_params("calibration", image_index(wildcards))


def image_seed(wildcards):
    return config["seed"] + image_index(wildcards)
