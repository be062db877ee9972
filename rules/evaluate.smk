"""How close the variants come on held-out captions, and the report."""


include: "inputs/evaluate.smk"


rule draw_reference:
    """Draws the held-out captions at full precision and keeps latents, velocities and pictures."""
    input:
        conditioning=list(dict.fromkeys(CAPTION_SHARDS)),
    output:
        reference=f"{RESULTS}/evaluation/reference.safetensors",
        blocks=f"{RESULTS}/evaluation/reference_blocks.safetensors",
        timing=f"{RESULTS}/benchmarks/evaluation/reference.json",
    log:
        f"{RESULTS}/logs/draw_reference.log",
    benchmark:
        f"{RESULTS}/benchmarks/draw_reference.tsv"
    conda:
        "../envs/mlx.yaml"
    threads: MODEL_THREADS
    resources:
        gpu=1,
        mem_mb=8000,
    params:
        model=model_params(),
        shards=[Path(shard).name for shard in CAPTION_SHARDS],
        plan=EVALUATION_PLAN,
        code=code("draw_reference.py"),
    message:
        "Drawing the held-out captions at full precision"
    script:
        "../scripts/draw_reference.py"


rule evaluate_variant:
    """Draws the held-out captions by a variant and measures them against full precision."""
    input:
        unpack(evaluation_inputs),
        conditioning=rules.draw_reference.input.conditioning,
        reference=rules.draw_reference.output.reference,
        reference_blocks=rules.draw_reference.output.blocks,
        reference_timing=rules.draw_reference.output.timing,
    output:
        evaluation=f"{RESULTS}/evaluation/{{variant}}.json",
        timing=f"{RESULTS}/benchmarks/evaluation/{{variant}}.json",
    log:
        f"{RESULTS}/logs/evaluate_variant/{{variant}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate_variant/{{variant}}.tsv"
    wildcard_constraints:
        variant=r"full|noise-floor|[a-z0-9]+(-[a-z0-9]+)*-[a-z0-9]+",
    conda:
        "../envs/mlx.yaml"
    threads: MODEL_THREADS
    resources:
        gpu=1,
        mem_mb=8000,
    params:
        model=model_params(),
        shards=[Path(shard).name for shard in CAPTION_SHARDS],
        plan=EVALUATION_PLAN,
        code=lambda wildcards: variant_code("evaluate_variant.py", wildcards.variant),
    message:
        "Evaluating {wildcards.variant}"
    script:
        "../scripts/evaluate_variant.py"


rule summarize_evaluation:
    """Puts every variant's errors, sizes and times into one table, with intervals and plots."""
    input:
        evaluations=expand(
            f"{RESULTS}/evaluation/{{variant}}.json", variant=EVALUATED_VARIANTS
        ),
        timings=expand(
            f"{RESULTS}/benchmarks/evaluation/{{variant}}.json",
            variant=EVALUATED_VARIANTS,
        ),
    output:
        summary=report(
            f"{RESULTS}/evaluation/summary.csv",
            caption="captions/summary.rst",
            category="Evaluation",
        ),
        plots=report(
            expand(f"{RESULTS}/evaluation/plots/{{plot}}.svg", plot=EVALUATION_PLOTS),
            caption="captions/evaluation_plots.rst",
            category="Evaluation",
        ),
        pictures=expand(
            f"{RESULTS}/evaluation/plots/{{plot}}.png", plot=EVALUATION_PLOTS
        ),
    log:
        f"{RESULTS}/logs/summarize_evaluation.log",
    benchmark:
        f"{RESULTS}/benchmarks/summarize_evaluation.tsv"
    conda:
        "../envs/plots.yaml"
    threads: 1
    resources:
        mem_mb=2000,
    params:
        baselines=baseline_variants(RECIPES, EVALUATED_VARIANTS),
        code=code("summarize_evaluation.py"),
    message:
        "Summarizing the evaluation"
    script:
        "../scripts/summarize_evaluation.py"


rule evaluate:
    """Target: the table of all evaluated variants."""
    input:
        rules.summarize_evaluation.output,


rule render_report:
    """Puts pictures, table, errors by block and layer, sizes and times into one page."""
    input:
        rules.summarize_evaluation.output,
        rules.compare.input,
        rules.inference.input,
        rules.quantize.input,
        rules.plots.input,
        rules.activations.input,
        rules.list_calibration.output,
        evaluations=rules.summarize_evaluation.input.evaluations,
        timings=rules.summarize_evaluation.input.timings,
        comparisons=expand(
            f"{RESULTS}/compare/{{variant}}/{{prompt}}.json",
            variant=SHOWN_VARIANTS,
            prompt=ASKED_PROMPTS,
        ),
        results=REPORTED_RESULTS,
        configs=REPORTED_CONFIGS,
        checkpoints=expand(
            f"{RESULTS}/weights/{{recipe}}/model/config.json", recipe=REPORTED_RECIPES
        ),
    output:
        page=report(
            f"{RESULTS}/report/index.html",
            caption="captions/report.rst",
            category="Report",
        ),
    log:
        f"{RESULTS}/logs/render_report.log",
    benchmark:
        f"{RESULTS}/benchmarks/render_report.tsv"
    conda:
        "../envs/plots.yaml"
    threads: 1
    resources:
        mem_mb=2000,
    params:
        recipe=config["recipe"],
        prompts=ASKED_PROMPTS,
        variants=SHOWN_VARIANTS,
        evaluated=EVALUATED_VARIANTS,
        recipes=REPORTED_RECIPES,
        code=code("render_report.py"),
    message:
        "Writing the report"
    script:
        "../scripts/render_report.py"


rule report:
    """Target: the report, one page that shows everything."""
    input:
        rules.render_report.output.page,
