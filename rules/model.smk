"""Prompts to conditioning: the only jobs that load text encoders."""


include: "inputs/model.smk"


rule encode_prompts:
    """Encodes a shard of prompts, and the negative prompt, with the model's text encoders."""
    output:
        conditioning=f"{RESULTS}/conditioning/{{shard}}-{ENCODING}.safetensors",
    log:
        f"{RESULTS}/logs/encode_prompts/{{shard}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/encode_prompts/{{shard}}.tsv"
    conda:
        "../envs/text.yaml"
    threads: MODEL_THREADS
    resources:
        gpu=1,
        mem_mb=4000,
    params:
        model=model_params(TEXT_IDENTITY),
        prompts=shard_set,
        negative=config["calibration"]["negative_prompt"],
        t5=config["text"]["t5"],
        code=code("encode_prompts.py"),
    message:
        "Encoding prompts of {wildcards.shard}"
    script:
        "../scripts/encode_prompts.py"
