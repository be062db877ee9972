"""The activation track once more, for recipes with activations of their own.

The linears of a recipe that balances channels read x / b instead of x, those of one that rotates
read H x, and taqdit learns ranges for what the linears of its model read: the same rules, on the
recipe's own model.
"""


use rule collect_activations as collect_own_activations with:
    """Measures the linears' inputs in a recipe's own model along one image's trajectory."""
    input:
        unpack(own_checkpoint),
        trajectory=rules.collect_activations.input.trajectory,
    output:
        statistics=f"{RESULTS}/weights/{{recipe}}/activations/stats/{{image}}.safetensors",
    log:
        f"{RESULTS}/logs/collect_own_activations/{{recipe}}-{{image}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/collect_own_activations/{{recipe}}-{{image}}.tsv"
    params:
        code=code("collect_activations.py"),
    message:
        "Measuring activations of recipe {wildcards.recipe}, image {wildcards.image}"


use rule merge_statistics as merge_own_statistics with:
    """Adds up a recipe's own activation statistics of all measured images, exactly."""
    input:
        parts=expand(
            f"{RESULTS}/weights/{{{{recipe}}}}/activations/stats/{{image}}.safetensors",
            image=MEASURED_IMAGES,
        ),
    output:
        statistics=f"{RESULTS}/weights/{{recipe}}/activations/layer_statistics.safetensors",
        summary=f"{RESULTS}/weights/{{recipe}}/activations/layer_statistics.json",
        temporal=f"{RESULTS}/weights/{{recipe}}/activations/layer_temporal_analysis.json",
    log:
        f"{RESULTS}/logs/merge_own_statistics/{{recipe}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/merge_own_statistics/{{recipe}}.tsv"
    message:
        "Merging activation statistics of recipe {wildcards.recipe}"


use rule measure_clips as measure_own_clips with:
    """Measures what shorter ranges of a recipe's own activations do, on one image."""
    input:
        unpack(own_checkpoint),
        trajectory=rules.measure_clips.input.trajectory,
        statistics=rules.merge_own_statistics.output.statistics,
    output:
        errors=f"{RESULTS}/weights/{{recipe}}/activations/clips/{{scales}}/{{image}}.safetensors",
    log:
        f"{RESULTS}/logs/measure_own_clips/{{recipe}}-{{scales}}-{{image}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/measure_own_clips/{{recipe}}-{{scales}}-{{image}}.tsv"
    params:
        model=model_params(),
        asked=clipped_config,
        code=code("measure_clips.py"),
    message:
        "Trying shorter ranges of recipe {wildcards.recipe} on image {wildcards.image} ({wildcards.scales})"


use rule measure_sensitivity as measure_own_sensitivity with:
    """Measures the sensitivity of a recipe's own model to its inputs, on one image."""
    input:
        unpack(own_checkpoint),
        unpack(learned_blocks),
        unpack(own_clips),
        trajectory=rules.measure_sensitivity.input.trajectory,
        statistics=rules.merge_own_statistics.output.statistics,
    output:
        errors=f"{RESULTS}/weights/{{recipe}}/activations/sensitivity/{{scales}}/{{image}}.safetensors",
    log:
        f"{RESULTS}/logs/measure_own_sensitivity/{{recipe}}-{{scales}}-{{image}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/measure_own_sensitivity/{{recipe}}-{{scales}}-{{image}}.tsv"
    params:
        model=model_params(),
        asked=sensitive_config,
        learned_bits=learned_bits,
        code=code("measure_sensitivity.py"),
    message:
        "Measuring the sensitivity of recipe {wildcards.recipe} on image {wildcards.image} ({wildcards.scales})"


use rule analyze_activations as analyze_own_activations with:
    """Chooses the scales of a recipe's own single-tier activation quantization."""
    input:
        unpack(own_config_inputs),
        statistics=rules.merge_own_statistics.output.statistics,
    output:
        config=f"{RESULTS}/weights/{{recipe}}/activations/quant_config.json",
    log:
        f"{RESULTS}/logs/analyze_own_activations/{{recipe}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/analyze_own_activations/{{recipe}}.tsv"
    params:
        learned_bits=learned_bits,
    message:
        "Choosing activation scales of recipe {wildcards.recipe}"


use rule analyze_activations as analyze_own_activations_multitier with:
    """Gives every layer of a recipe's own model at every sigma a tier, and its scales."""
    input:
        unpack(own_config_inputs),
        statistics=rules.merge_own_statistics.output.statistics,
    output:
        config=f"{RESULTS}/weights/{{recipe}}/activations/quant_config_{{scales}}.json",
    log:
        f"{RESULTS}/logs/analyze_own_activations_multitier/{{recipe}}-{{scales}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/analyze_own_activations_multitier/{{recipe}}-{{scales}}.tsv"
    wildcard_constraints:
        scales="multitier",
    params:
        learned_bits=learned_bits,
    message:
        "Choosing activation tiers of recipe {wildcards.recipe}"


use rule analyze_own_activations_multitier as analyze_own_activations_variant with:
    """Chooses the scales, or the tiers, of another configuration of a recipe's own model."""
    log:
        f"{RESULTS}/logs/analyze_own_activations_variant/{{recipe}}-{{scales}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/analyze_own_activations_variant/{{recipe}}-{{scales}}.tsv"
    wildcard_constraints:
        scales=NAMED_CONFIG,
    message:
        "Choosing activation scales {wildcards.scales} of recipe {wildcards.recipe}"
