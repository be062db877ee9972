"""The activation track: statistics, quantization ranges from them, and their plots."""


include: "inputs/activations.smk"


rule collect_activations:
    """Measures the input of every block linear along one image's stored trajectory."""
    input:
        trajectory=f"{RESULTS}/calibration/{{image}}.safetensors",
    output:
        statistics=f"{RESULTS}/activations/stats/{{image}}.safetensors",
    log:
        f"{RESULTS}/logs/collect_activations/{{image}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/collect_activations/{{image}}.tsv"
    conda:
        "../envs/mlx.yaml"
    threads: MODEL_THREADS
    resources:
        gpu=1,
        mem_mb=8000,
    params:
        model=model_params(),
        stride=config["activations"]["stride"],
        code=code("collect_activations.py", ["checkpoint"]),
    message:
        "Measuring activations of image {wildcards.image}"
    script:
        "../scripts/collect_activations.py"


rule merge_statistics:
    """Adds up the activation statistics of all measured images, exactly."""
    input:
        parts=expand(
            f"{RESULTS}/activations/stats/{{image}}.safetensors", image=MEASURED_IMAGES
        ),
    output:
        statistics=f"{RESULTS}/activations/layer_statistics.safetensors",
        summary=f"{RESULTS}/activations/layer_statistics.json",
        temporal=f"{RESULTS}/activations/layer_temporal_analysis.json",
    log:
        f"{RESULTS}/logs/merge_statistics.log",
    benchmark:
        f"{RESULTS}/benchmarks/merge_statistics.tsv"
    conda:
        "../envs/mlx.yaml"
    threads: 1
    resources:
        mem_mb=4000,
    params:
        code=code("merge_statistics.py"),
    message:
        "Merging activation statistics"
    script:
        "../scripts/merge_statistics.py"


rule measure_clips:
    """Measures what shorter activation ranges do to what linears compute, on one image."""
    input:
        trajectory=f"{RESULTS}/calibration/{{image}}.safetensors",
        statistics=rules.merge_statistics.output.statistics,
    output:
        errors=f"{RESULTS}/activations/clips/{{scales}}/{{image}}.safetensors",
    log:
        f"{RESULTS}/logs/measure_clips/{{scales}}-{{image}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/measure_clips/{{scales}}-{{image}}.tsv"
    wildcard_constraints:
        scales="|".join(ACTIVATION_CONFIGS),
    conda:
        "../envs/mlx.yaml"
    threads: MODEL_THREADS
    resources:
        gpu=1,
        mem_mb=8000,
    params:
        model=model_params(),
        asked=clipped_config,
        code=code("measure_clips.py", ["checkpoint"]),
    message:
        "Trying shorter activation ranges on image {wildcards.image} ({wildcards.scales})"
    script:
        "../scripts/measure_clips.py"


rule analyze_activations:
    """Chooses the scales of the single-tier activation quantization (W4A8) from the statistics."""
    input:
        unpack(config_inputs),
        statistics=rules.merge_statistics.output.statistics,
    output:
        config=f"{RESULTS}/activations/quant_config.json",
    log:
        f"{RESULTS}/logs/analyze_activations.log",
    benchmark:
        f"{RESULTS}/benchmarks/analyze_activations.tsv"
    conda:
        "../envs/mlx.yaml"
    threads: 1
    resources:
        gpu=lambda wildcards: int(weighting(config_name(wildcards)) == "output"),
        mem_mb=8000,
    params:
        asked=asked_config,
        model=config_model,
        code=config_code,
    message:
        "Choosing activation scales"
    script:
        "../scripts/analyze_activations.py"


rule measure_sensitivity:
    """Measures what each input's quantization alone does to the velocity, on one image."""
    input:
        unpack(shared_clips),
        trajectory=f"{RESULTS}/calibration/{{image}}.safetensors",
        statistics=rules.merge_statistics.output.statistics,
    output:
        errors=f"{RESULTS}/activations/sensitivity/{{scales}}/{{image}}.safetensors",
    log:
        f"{RESULTS}/logs/measure_sensitivity/{{scales}}-{{image}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/measure_sensitivity/{{scales}}-{{image}}.tsv"
    wildcard_constraints:
        scales="|".join(ACTIVATION_CONFIGS),
    conda:
        "../envs/mlx.yaml"
    threads: MODEL_THREADS
    resources:
        gpu=1,
        mem_mb=8000,
    params:
        model=model_params(),
        asked=sensitive_config,
        code=code("measure_sensitivity.py", ["checkpoint"]),
    message:
        "Measuring the sensitivity of the velocity on image {wildcards.image} ({wildcards.scales})"
    script:
        "../scripts/measure_sensitivity.py"


use rule analyze_activations as analyze_activations_multitier with:
    """Gives every layer at every sigma a tier (A4, A6 or A8) by its range or error, and its scales."""
    input:
        unpack(config_inputs),
        statistics=rules.merge_statistics.output.statistics,
    output:
        config=f"{RESULTS}/activations/quant_config_{{scales}}.json",
    log:
        f"{RESULTS}/logs/analyze_activations_multitier/{{scales}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/analyze_activations_multitier/{{scales}}.tsv"
    wildcard_constraints:
        scales="multitier",
    message:
        "Choosing activation tiers"


use rule analyze_activations as analyze_activations_variant with:
    """Chooses the scales, or the tiers, of another activation configuration."""
    input:
        unpack(config_inputs),
        statistics=rules.merge_statistics.output.statistics,
    output:
        config=f"{RESULTS}/activations/quant_config_{{scales}}.json",
    log:
        f"{RESULTS}/logs/analyze_activations_variant/{{scales}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/analyze_activations_variant/{{scales}}.tsv"
    wildcard_constraints:
        scales=NAMED_CONFIG,
    message:
        "Choosing activation scales {wildcards.scales}"


rule visualize_activations:
    """Draws one plot of the activation statistics or of the tiers and ranges chosen from them."""
    input:
        statistics=rules.merge_statistics.output.statistics,
        configs=plot_configs,
    output:
        png=f"{RESULTS}/activations/plots/{{plot}}.png",
        svg=f"{RESULTS}/activations/plots/{{plot}}.svg",
    log:
        f"{RESULTS}/logs/visualize_activations/{{plot}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/visualize_activations/{{plot}}.tsv"
    wildcard_constraints:
        plot="|".join(PLOT_CONFIGS),
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
        statistics=rules.merge_statistics.output.statistics,
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
        rules.merge_statistics.output,
        expand(
            f"{RESULTS}/activations/{{file}}",
            file=[variant_names.config_file(name) for name in ACTIVATION_CONFIGS],
        ),


rule plots:
    """Target: all plots of the activations, and of the learning of the configuration's recipe."""
    input:
        ACTIVATION_PLOTS,
        HISTORY_PLOTS,
