"""Rule train_demo_pictures: one shard of captioned pictures."""

from demo_model.data import draw_shard, save_shard
from ditquant.job import job
from ditquant.planning.prompt_files import read_prompts


def main(*, output: str, held_out: str, seed: int, shard: int, count: int) -> None:
    """Draws `count` pictures whose captions are not in the prompt file `held_out`."""
    pictures, captions = draw_shard(
        seed, shard, count, frozenset(read_prompts(held_out, "held-out captions"))
    )
    save_shard(output, pictures, captions)


if "snakemake" in globals():
    with job(snakemake):
        main(
            output=snakemake.output.shard,
            held_out=snakemake.input.held_out,
            seed=snakemake.params.seed,
            shard=int(snakemake.wildcards.pictures),
            count=snakemake.params.drawn,
        )
