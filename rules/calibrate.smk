"""Calibration trajectories, one image a job."""


include: "inputs/calibrate.smk"


rule generate_calibration:
    """Draws one calibration image at full precision and keeps the latents of every step."""
    input:
        conditioning=image_conditioning,
    output:
        trajectory=f"{RESULTS}/calibration/{{image}}.safetensors",
        preview=f"{RESULTS}/calibration/{{image}}.png",
    log:
        f"{RESULTS}/logs/generate_calibration/{{image}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/generate_calibration/{{image}}.tsv"
    conda:
        "../envs/mlx.yaml"
    threads: MODEL_THREADS
    resources:
        gpu=1,
        mem_mb=8000,
    params:
        model=model_params(),
        prompt=image_params,
        num_steps=config["num_steps"],
        cfg_weight=config["calibration"]["cfg_weight"],
        image_size=image_size(),
        seed=image_seed,
        code=code("generate_calibration.py"),
    message:
        "Drawing calibration image {wildcards.image}"
    script:
        "../scripts/generate_calibration.py"


rule list_calibration:
    """Lists the calibration images with prompts, seeds and checksums."""
    input:
        trajectories=expand(
            f"{RESULTS}/calibration/{{image}}.safetensors", image=IMAGES
        ),
    output:
        manifest=f"{RESULTS}/calibration/manifest.json",
    log:
        f"{RESULTS}/logs/list_calibration.log",
    benchmark:
        f"{RESULTS}/benchmarks/list_calibration.tsv"
    conda:
        "../envs/mlx.yaml"
    threads: 1
    resources:
        mem_mb=1000,
    params:
        code=code("list_calibration.py"),
    message:
        "Listing the calibration images"
    script:
        "../scripts/list_calibration.py"


rule calibrate:
    """Target: all calibration images and their manifest."""
    input:
        rules.list_calibration.output.manifest,
        expand(f"{RESULTS}/calibration/{{image}}.png", image=IMAGES),
