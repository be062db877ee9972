"""Options and files of the demo model's training."""

import yaml

TRAININGS = yaml.safe_load((ROOT / "config" / "train-demo.yaml").read_text("utf-8"))
TRAIN_DEMO = "results/train-demo/{training}"
HELD_OUT = str(ROOT / "config" / "prompts" / "demo-evaluation.csv")


def training_option(name):
    """Parameter function: an option of the training that the `training` wildcard names."""
    return lambda wildcards: TRAININGS[wildcards.training][name]


def picture_shards(count):
    """Input function: the picture files of a training, as many as its option `count` says."""

    def paths(wildcards):
        numbers = range(TRAININGS[wildcards.training][count])
        return [
            f"{TRAIN_DEMO}/pictures/{number:03d}.npz".format(
                training=wildcards.training
            )
            for number in numbers
        ]

    return paths
