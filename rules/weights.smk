"""The weight track: block boundaries -> learned codes -> a checkpoint."""


include: "inputs/weights.smk"


rule cache_block_io:
    """Runs the full-precision model along one trajectory and keeps the streams between its blocks."""
    input:
        trajectory=f"{RESULTS}/calibration/{{image}}.safetensors",
    output:
        block_io=f"{RESULTS}/block_io/{{image}}.safetensors",
    log:
        f"{RESULTS}/logs/cache_block_io/{{image}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/cache_block_io/{{image}}.tsv"
    conda:
        "../envs/mlx.yaml"
    threads: MODEL_THREADS
    resources:
        gpu=1,
        mem_mb=8000,
    params:
        model=model_params(),
        stride=config["weights"]["stride"],
        code=code("cache_block_io.py"),
    message:
        "Caching block inputs and outputs of image {wildcards.image}"
    script:
        "../scripts/cache_block_io.py"


rule optimize_block:
    """Chooses the codes of one block's weights by one recipe and measures the block's error."""
    input:
        unpack(block_inputs),
        block_io=expand(
            f"{RESULTS}/block_io/{{image}}.safetensors", image=WEIGHT_IMAGES
        ),
    output:
        weights=f"{RESULTS}/weights/{{recipe}}/blocks/{{block}}.safetensors",
        result=f"{RESULTS}/weights/{{recipe}}/blocks/{{block}}.json",
    log:
        f"{RESULTS}/logs/optimize_block/{{recipe}}-{{block}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/optimize_block/{{recipe}}-{{block}}.tsv"
    conda:
        "../envs/mlx.yaml"
    threads: MODEL_THREADS
    resources:
        gpu=1,
        mem_mb=8000,
    params:
        model=model_params(),
        recipe=block_recipe,
        block=block_name,
        seed=config["seed"],
        code=code("optimize_block.py"),
    message:
        "Quantizing block {wildcards.block} by recipe {wildcards.recipe}"
    script:
        "../scripts/optimize_block.py"


rule tune_weights:
    """Tunes the scales and biases of all blocks of one recipe together, by the network's velocity."""
    input:
        blocks=tuned_blocks,
        trajectories=expand(
            f"{RESULTS}/calibration/{{image}}.safetensors", image=WEIGHT_IMAGES
        ),
    output:
        weights=f"{RESULTS}/weights/{{recipe}}/tuned.safetensors",
        result=f"{RESULTS}/weights/{{recipe}}/tuned.json",
    log:
        f"{RESULTS}/logs/tune_weights/{{recipe}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/tune_weights/{{recipe}}.tsv"
    conda:
        "../envs/mlx.yaml"
    threads: MODEL_THREADS
    resources:
        gpu=1,
        mem_mb=16000,
    params:
        model=model_params(),
        recipe=recipe_params,
        seed=config["seed"],
        code=code("tune_weights.py"),
    message:
        "Tuning the blocks of recipe {wildcards.recipe} together"
    script:
        "../scripts/tune_weights.py"


rule assemble_weights:
    """Joins the blocks of one recipe and the unquantized rest into a checkpoint."""
    input:
        unpack(tuned_weights),
        weights=expand(
            f"{RESULTS}/weights/{{{{recipe}}}}/blocks/{{block}}.safetensors",
            block=BLOCKS,
        ),
        results=expand(
            f"{RESULTS}/weights/{{{{recipe}}}}/blocks/{{block}}.json", block=BLOCKS
        ),
    output:
        config=f"{RESULTS}/weights/{{recipe}}/model/config.json",
        model=f"{RESULTS}/weights/{{recipe}}/model/model.safetensors",
    log:
        f"{RESULTS}/logs/assemble_weights/{{recipe}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/assemble_weights/{{recipe}}.tsv"
    conda:
        "../envs/mlx.yaml"
    threads: MODEL_THREADS
    resources:
        gpu=1,
        mem_mb=8000,
    params:
        model=model_params(),
        recipe=recipe_params,
        code=code("assemble_weights.py"),
    message:
        "Assembling the checkpoint of recipe {wildcards.recipe}"
    script:
        "../scripts/assemble_weights.py"


rule plot_history:
    """Draws how the learning of a recipe went in every block."""
    input:
        unpack(tuned_result),
        results=learned_results,
    output:
        png=f"{RESULTS}/weights/{{recipe}}/plots/history.png",
        svg=f"{RESULTS}/weights/{{recipe}}/plots/history.svg",
    log:
        f"{RESULTS}/logs/plot_history/{{recipe}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/plot_history/{{recipe}}.tsv"
    conda:
        "../envs/plots.yaml"
    threads: 1
    resources:
        mem_mb=2000,
    params:
        code=code("plot_history.py"),
    message:
        "Plotting the learning of recipe {wildcards.recipe}"
    script:
        "../scripts/plot_history.py"


rule weights:
    """Target: the checkpoint of the configuration's recipe, every block's result, and its learning."""
    input:
        expand(
            f"{RESULTS}/weights/{{recipe}}/{{file}}",
            recipe=config["recipe"],
            file=[
                "model/config.json",
                "model/model.safetensors",
                *(f"blocks/{block}.json" for block in BLOCKS),
            ],
        ),
        HISTORY_PLOTS,


rule export_weights:
    """Writes a recipe's checkpoint and the VAE as one file that stock DiffusionKit loads."""
    input:
        config=exported_config,
        model=f"{RESULTS}/weights/{{recipe}}/model/model.safetensors",
    output:
        weights=f"{RESULTS}/weights/{{recipe}}/{{export}}.safetensors",
    log:
        f"{RESULTS}/logs/export_weights/{{recipe}}-{{export}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/export_weights/{{recipe}}-{{export}}.tsv"
    conda:
        "../envs/mlx.yaml"
    threads: MODEL_THREADS
    resources:
        gpu=1,
        mem_mb=16000,
    params:
        model=model_params(),
        code=code("export_weights.py"),
    message:
        "Exporting recipe {wildcards.recipe} as {wildcards.export}"
    script:
        "../scripts/export_weights.py"


rule export_ranges:
    """Writes the ranges of the linears' inputs beside a recipe's checkpoint, for kernels to come."""
    input:
        unpack(range_files),
    output:
        ranges=f"{RESULTS}/weights/{{recipe}}/model/activations.safetensors",
    log:
        f"{RESULTS}/logs/export_ranges/{{recipe}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/export_ranges/{{recipe}}.tsv"
    conda:
        "../envs/mlx.yaml"
    threads: 1
    resources:
        mem_mb=4000,
    params:
        rotation=lambda wildcards: fitting_recipe(wildcards.recipe).rotation,
        code=code("export_ranges.py"),
    message:
        "Exporting the activation ranges of recipe {wildcards.recipe}"
    script:
        "../scripts/export_ranges.py"


rule export:
    """Target: the checkpoint of the configuration's recipe in both layouts of stock DiffusionKit."""
    input:
        expand(
            f"{RESULTS}/weights/{{recipe}}/{{export}}.safetensors",
            recipe=config["recipe"],
            export=EXPORTS,
        ),


rule quantize:
    """Target: both tracks of the configuration's recipe, as a checkpoint and its activation ranges."""
    input:
        rules.weights.input,
        expand(
            f"{activation_folder(config['recipe'])}/{{name}}.json",
            name=["quant_config", "quant_config_multitier"],
        ),
        expand(
            f"{RESULTS}/weights/{{recipe}}/model/activations.safetensors",
            recipe=config["recipe"],
        ),
