"""Rule train_demo_pictures: one shard of captioned pictures."""

from demo_model.data import draw_shard, save_shard
from ditquant.job import run_script
from ditquant.planning.prompt_files import read_prompts


def main(*, output: str, held_out: str, seed: int, shard: int | str, count: int) -> None:
    """Draws `count` pictures whose captions are not in the prompt file `held_out`."""
    pictures, captions = draw_shard(
        seed, int(shard), count, frozenset(read_prompts(held_out, "held-out captions"))
    )
    save_shard(output, pictures, captions)


run_script(main, globals(), output="output.shard", shard="wildcards.pictures", count="params.drawn")
