"""Training of the embedded demo model: a workflow of its own, never part of `all`.

    snakemake --cores all train_demo                          the shipped model, on a GPU
    snakemake --cores all results/train-demo/tiny/model       the same path in seconds, anywhere
    snakemake --cores all install_demo                        copies the trained model to resources/demo

Trainings are the entries of config/train-demo.yaml.
"""


include: "inputs/train_demo.smk"


localrules:
    train_demo,
    install_demo,


rule train_demo:
    """The shipped demo model, trained from scratch."""
    input:
        f"{TRAIN_DEMO}/model".format(training="demo"),


rule train_demo_pictures:
    """Draws one shard of captioned pictures; the evaluation captions are held out."""
    input:
        held_out=HELD_OUT,
    output:
        shard=f"{TRAIN_DEMO}/pictures/{{pictures}}.npz",
    log:
        f"{TRAIN_DEMO}/logs/pictures/{{pictures}}.log",
    benchmark:
        f"{TRAIN_DEMO}/benchmarks/pictures/{{pictures}}.tsv"
    wildcard_constraints:
        training="|".join(TRAININGS),
        pictures=r"\d{3}",
    conda:
        "../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=2000,
    params:
        seed=training_option("seed"),
        drawn=training_option("pictures_per_shard"),
        code=code("train_demo_pictures.py"),
    message:
        "Drawing pictures {wildcards.pictures}"
    script:
        "../scripts/train_demo_pictures.py"


rule train_demo_vae:
    """Trains the VAE on the first picture shards."""
    input:
        shards=picture_shards("vae_shards"),
    output:
        weights=f"{TRAIN_DEMO}/vae.safetensors",
    log:
        f"{TRAIN_DEMO}/logs/vae.log",
    benchmark:
        f"{TRAIN_DEMO}/benchmarks/vae.tsv"
    wildcard_constraints:
        training="|".join(TRAININGS),
    conda:
        "../envs/train.yaml"
    threads: MODEL_THREADS
    resources:
        gpu=1,
        mem_mb=16000,
    params:
        size=training_option("size"),
        options=training_option("vae"),
        checkpoint=f"{TRAIN_DEMO}/checkpoints/vae.safetensors",
        code=code("train_demo_vae.py"),
    message:
        "Training the demo model's VAE"
    script:
        "../scripts/train_demo_vae.py"


rule train_demo_latents:
    """Encodes all pictures with the trained VAE, and their captions with a new vocabulary."""
    input:
        shards=picture_shards("shards"),
        weights=f"{TRAIN_DEMO}/vae.safetensors",
    output:
        latents=f"{TRAIN_DEMO}/latents.safetensors",
        tokenizer=directory(f"{TRAIN_DEMO}/tokenizer"),
    log:
        f"{TRAIN_DEMO}/logs/latents.log",
    benchmark:
        f"{TRAIN_DEMO}/benchmarks/latents.tsv"
    wildcard_constraints:
        training="|".join(TRAININGS),
    conda:
        "../envs/train.yaml"
    threads: MODEL_THREADS
    resources:
        gpu=1,
        mem_mb=16000,
    params:
        size=training_option("size"),
        code=code("train_demo_latents.py"),
    message:
        "Encoding the demo model's training pictures"
    script:
        "../scripts/train_demo_latents.py"


rule train_demo_mmdit:
    """Trains MM-DiT and text encoder on the latents."""
    input:
        latents=f"{TRAIN_DEMO}/latents.safetensors",
        tokenizer=f"{TRAIN_DEMO}/tokenizer",
    output:
        weights=f"{TRAIN_DEMO}/mmdit.safetensors",
    log:
        f"{TRAIN_DEMO}/logs/mmdit.log",
    benchmark:
        f"{TRAIN_DEMO}/benchmarks/mmdit.tsv"
    wildcard_constraints:
        training="|".join(TRAININGS),
    conda:
        "../envs/train.yaml"
    threads: MODEL_THREADS
    resources:
        gpu=1,
        mem_mb=16000,
    params:
        size=training_option("size"),
        stages=training_option("mmdit"),
        checkpoints=f"{TRAIN_DEMO}/checkpoints",
        code=code("train_demo_mmdit.py"),
    message:
        "Training the demo model's MM-DiT and text encoder"
    script:
        "../scripts/train_demo_mmdit.py"


rule train_demo_export:
    """Joins the trained weights to a model folder in the layout of resources/demo."""
    input:
        vae=f"{TRAIN_DEMO}/vae.safetensors",
        mmdit=f"{TRAIN_DEMO}/mmdit.safetensors",
    output:
        folder=directory(f"{TRAIN_DEMO}/model"),
    log:
        f"{TRAIN_DEMO}/logs/export.log",
    benchmark:
        f"{TRAIN_DEMO}/benchmarks/export.tsv"
    wildcard_constraints:
        training="|".join(TRAININGS),
    conda:
        "../envs/train.yaml"
    threads: 1
    resources:
        gpu=1,
        mem_mb=4000,
    params:
        size=training_option("size"),
        pictures=lambda wildcards: TRAININGS[wildcards.training]["shards"]
        * TRAININGS[wildcards.training]["pictures_per_shard"],
        code=code("train_demo_export.py"),
    message:
        "Exporting the demo model"
    script:
        "../scripts/train_demo_export.py"


rule install_demo:
    """Copies the trained demo model over the one that ships, in resources/demo."""
    input:
        folder=f"{TRAIN_DEMO}/model".format(training="demo"),
    output:
        done=touch("results/train-demo/demo/installed"),
    log:
        "results/train-demo/demo/logs/install.log",
    benchmark:
        "results/train-demo/demo/benchmarks/install.tsv"
    conda:
        "../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=500,
    params:
        target=str(ROOT / "resources" / "demo"),
    message:
        "Replacing resources/demo"
    shell:
        "cp -R {input.folder:q}/. {params.target:q}/ 2> {log:q}"
