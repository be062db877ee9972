"""Pictures of the variants, side by side with full precision's."""


include: "inputs/inference.smk"


rule generate_image:
    """Draws one prompt by one variant of the model, and keeps the final latents."""
    input:
        unpack(drawing_inputs),
    output:
        picture=f"{RESULTS}/images/{{variant}}/{{prompt}}.png",
        latents=f"{RESULTS}/images/{{variant}}/{{prompt}}.safetensors",
    log:
        f"{RESULTS}/logs/generate_image/{{variant}}-{{prompt}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/generate_image/{{variant}}-{{prompt}}.tsv"
    conda:
        "../envs/mlx.yaml"
    threads: MODEL_THREADS
    resources:
        gpu=1,
        mem_mb=8000,
    params:
        model=model_params(),
        prompt=drawing_prompt,
        num_steps=config["inference"]["num_steps"],
        cfg_weight=config["inference"]["cfg_weight"],
        image_size=image_size(),
        seed=drawing_seed,
        code=lambda wildcards: variant_code("generate_image.py", wildcards.variant),
    message:
        "Drawing prompt {wildcards.prompt} by {wildcards.variant}"
    script:
        "../scripts/generate_image.py"


rule compare_images:
    """Shows full precision, a variant and their difference side by side, and measures them."""
    input:
        full_picture=f"{RESULTS}/images/full/{{prompt}}.png",
        full_latents=f"{RESULTS}/images/full/{{prompt}}.safetensors",
        picture=f"{RESULTS}/images/{{variant}}/{{prompt}}.png",
        latents=f"{RESULTS}/images/{{variant}}/{{prompt}}.safetensors",
    output:
        comparison=report(
            f"{RESULTS}/compare/{{variant}}/{{prompt}}.png",
            caption="captions/comparison.rst",
            category="Pictures",
            labels={"variant": "{variant}", "prompt": "{prompt}"},
        ),
        numbers=f"{RESULTS}/compare/{{variant}}/{{prompt}}.json",
    log:
        f"{RESULTS}/logs/compare_images/{{variant}}-{{prompt}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/compare_images/{{variant}}-{{prompt}}.tsv"
    conda:
        "../envs/plots.yaml"
    threads: 1
    resources:
        mem_mb=1000,
    params:
        code=code("compare_images.py"),
    message:
        "Comparing {wildcards.variant} with full precision on {wildcards.prompt}"
    script:
        "../scripts/compare_images.py"


rule summarize_differences:
    """Collects the numbers of a variant's comparisons, of the prompts that were asked for."""
    input:
        numbers=expand(
            f"{RESULTS}/compare/{{{{variant}}}}/{{prompt}}.json", prompt=ASKED_PROMPTS
        ),
    output:
        stats=f"{RESULTS}/compare/{{variant}}/diff_stats.json",
    log:
        f"{RESULTS}/logs/summarize_differences/{{variant}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/summarize_differences/{{variant}}.tsv"
    conda:
        "../envs/plots.yaml"
    threads: 1
    resources:
        mem_mb=1000,
    params:
        code=code("summarize_differences.py"),
    message:
        "Collecting the differences of {wildcards.variant}"
    script:
        "../scripts/summarize_differences.py"


rule inference:
    """Target: the asked prompts, drawn by full precision and by the recipe's variants."""
    input:
        expand(
            f"{RESULTS}/images/{{variant}}/{{prompt}}.png",
            variant=["full", *SHOWN_VARIANTS],
            prompt=ASKED_PROMPTS,
        ),


rule diff_stats:
    """Target: the differences of the recipe's variants from full precision, in numbers."""
    input:
        expand(f"{RESULTS}/compare/{{variant}}/diff_stats.json", variant=SHOWN_VARIANTS),


rule compare:
    """Target: the comparison pictures of the recipe's variants, and their numbers."""
    input:
        expand(
            f"{RESULTS}/compare/{{variant}}/{{prompt}}.png",
            variant=SHOWN_VARIANTS,
            prompt=ASKED_PROMPTS,
        ),
        rules.diff_stats.input,
