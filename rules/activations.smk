"""The activation track: statistics, quantization ranges from them, and their plots.

The wildcard `owner` is empty for the full-precision model's activations and "weights/{recipe}/" for
those of a recipe's own model.
"""


include: "inputs/activations.smk"


rule collect_activations:
    """Measures the input of every block linear along one image's stored trajectory."""
    input:
        unpack(measured_checkpoint),
        trajectory=f"{RESULTS}/calibration/{{image}}.safetensors",
    output:
        statistics=f"{RESULTS}/{{owner}}activations/stats/{{image}}.safetensors",
    log:
        f"{RESULTS}/logs/collect_activations/{{owner}}{{image}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/collect_activations/{{owner}}{{image}}.tsv"
    conda:
        "../envs/mlx.yaml"
    threads: MODEL_THREADS
    resources:
        gpu=1,
        mem_mb=8000,
    params:
        model=model_params(),
        recipe=measured_recipe,
        stride=config["activations"]["stride"],
        code=measuring_code("collect_activations.py"),
    message:
        "Measuring activations of image {wildcards.image} ({wildcards.owner}activations)"
    script:
        "../scripts/collect_activations.py"


rule merge_statistics:
    """Adds up the activation statistics of all measured images, exactly."""
    input:
        parts=expand(
            f"{RESULTS}/{{{{owner}}}}activations/stats/{{image}}.safetensors",
            image=MEASURED_IMAGES,
        ),
    output:
        statistics=f"{RESULTS}/{{owner}}activations/layer_statistics.safetensors",
        summary=f"{RESULTS}/{{owner}}activations/layer_statistics.json",
        temporal=f"{RESULTS}/{{owner}}activations/layer_temporal_analysis.json",
    log:
        f"{RESULTS}/logs/merge_statistics/{{owner}}merge.log",
    benchmark:
        f"{RESULTS}/benchmarks/merge_statistics/{{owner}}merge.tsv"
    conda:
        "../envs/mlx.yaml"
    threads: 1
    resources:
        mem_mb=4000,
    params:
        code=code("merge_statistics.py"),
    message:
        "Merging statistics ({wildcards.owner}activations)"
    script:
        "../scripts/merge_statistics.py"


rule measure_clips:
    """Measures what shorter activation ranges do to what linears compute, on one image."""
    input:
        unpack(measured_checkpoint),
        trajectory=f"{RESULTS}/calibration/{{image}}.safetensors",
        statistics=rules.merge_statistics.output.statistics,
    output:
        errors=f"{RESULTS}/{{owner}}activations/clips/{{scheme}}/{{image}}.safetensors",
    log:
        f"{RESULTS}/logs/measure_clips/{{owner}}{{scheme}}-{{image}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/measure_clips/{{owner}}{{scheme}}-{{image}}.tsv"
    conda:
        "../envs/mlx.yaml"
    threads: MODEL_THREADS
    resources:
        gpu=1,
        mem_mb=8000,
    params:
        model=model_params(),
        scheme=clipped_scheme,
        code=measuring_code("measure_clips.py"),
    message:
        "Trying shorter ranges on image {wildcards.image} ({wildcards.owner}activations, {wildcards.scheme})"
    script:
        "../scripts/measure_clips.py"


rule measure_sensitivity:
    """Measures what each input's quantization alone does to the velocity, on one image."""
    input:
        unpack(measured_checkpoint),
        unpack(learned_blocks),
        unpack(clip_files),
        trajectory=f"{RESULTS}/calibration/{{image}}.safetensors",
        statistics=rules.merge_statistics.output.statistics,
    output:
        errors=f"{RESULTS}/{{owner}}activations/sensitivity/{{scheme}}/{{image}}.safetensors",
    log:
        f"{RESULTS}/logs/measure_sensitivity/{{owner}}{{scheme}}-{{image}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/measure_sensitivity/{{owner}}{{scheme}}-{{image}}.tsv"
    conda:
        "../envs/mlx.yaml"
    threads: MODEL_THREADS
    resources:
        gpu=1,
        mem_mb=8000,
    params:
        model=model_params(),
        scheme=sensitive_scheme,
        learned_bits=learned_bits,
        code=measuring_code("measure_sensitivity.py"),
    message:
        "Measuring sensitivity on image {wildcards.image} ({wildcards.owner}activations, {wildcards.scheme})"
    script:
        "../scripts/measure_sensitivity.py"


rule analyze_activations:
    """Chooses the scales of an activation scheme from the statistics, and the tiers if it has some."""
    input:
        unpack(config_inputs),
        statistics=rules.merge_statistics.output.statistics,
    output:
        config=f"{RESULTS}/{{owner}}activations/quant_config{{suffix}}.json",
    log:
        f"{RESULTS}/logs/analyze_activations/{{owner}}quant_config{{suffix}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/analyze_activations/{{owner}}quant_config{{suffix}}.tsv"
    wildcard_constraints:
        suffix=ANALYZED,
    conda:
        "../envs/mlx.yaml"
    threads: 1
    resources:
        gpu=lambda wildcards: int(scheme_of(wildcards).needs_weights),
        mem_mb=8000,
    params:
        scheme=scheme_params,
        model=config_model,
        learned_bits=learned_bits,
        code=config_code,
    message:
        "Choosing activation scales ({wildcards.owner}activations/quant_config{wildcards.suffix}.json)"
    script:
        "../scripts/analyze_activations.py"


rule visualize_activations:
    """Draws one plot of the activation statistics or of the tiers and ranges chosen from them."""
    input:
        statistics=f"{RESULTS}/activations/layer_statistics.safetensors",
        configs=plot_configs,
    output:
        png=f"{RESULTS}/activations/plots/{{plot}}.png",
        svg=f"{RESULTS}/activations/plots/{{plot}}.svg",
    log:
        f"{RESULTS}/logs/visualize_activations/{{plot}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/visualize_activations/{{plot}}.tsv"
    wildcard_constraints:
        plot="|".join(ACTIVATION_PLOTS),
    conda:
        "../envs/plots.yaml"
    threads: 1
    resources:
        mem_mb=2000,
    params:
        snapshot_steps=config["activations"]["plots"]["snapshot_steps"],
        layers=config["activations"]["plots"]["layers"],
        code=code("visualize_activations.py"),
    message:
        "Plotting activations: {wildcards.plot}"
    script:
        "../scripts/visualize_activations.py"


use rule visualize_activations as animate_activations with:
    """Draws the drift of the activations' ranges over the schedule as a moving picture."""
    input:
        statistics=f"{RESULTS}/activations/layer_statistics.safetensors",
    output:
        gif=f"{RESULTS}/activations/plots/drift.gif",
    log:
        f"{RESULTS}/logs/animate_activations.log",
    benchmark:
        f"{RESULTS}/benchmarks/animate_activations.tsv"
    message:
        "Animating the drift of activations"


rule activations:
    """Target: activation statistics and all activation configurations."""
    input:
        expand(
            f"{RESULTS}/activations/{{file}}",
            file=[
                "layer_statistics.safetensors",
                "layer_statistics.json",
                "layer_temporal_analysis.json",
                *map(schemes.config_file, SCHEMES),
            ],
        ),


rule plots:
    """Target: all plots of the activations, and of the learning of the configuration's recipe."""
    input:
        PLOT_FILES,
        HISTORY_PLOTS,
