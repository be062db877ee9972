"""Rule encode_prompts: a shard of prompts -> conditioning."""

from ditquant.artifacts import save_tensors
from ditquant.job import job
from ditquant.models.load import DTYPES
from ditquant.models.spec import read_spec
from ditquant.models.text import encode_texts
from ditquant.network.calibration import CONDITIONING


def main(output: str, model: dict, prompts: list[str], negative: str, t5: bool) -> None:
    """Writes `conditioning` (n, tokens, channels) and `pooled` (n, channels), and both for the
    negative prompt, with the prompts as metadata."""
    spec = read_spec(model["name"], model["checkpoint"])
    dtype = DTYPES[model["dtype"]]
    conditioning, pooled = encode_texts(spec, [*prompts, negative], dtype, use_t5=t5)
    tensors = {
        "conditioning": conditioning[:-1],
        "pooled": pooled[:-1],
        "negative_conditioning": conditioning[-1:],
        "negative_pooled": pooled[-1:],
    }
    metadata = {
        "prompts": prompts, "negative_prompt": negative,
        "model": model["name"], "t5": t5,
    }  # fmt: skip
    save_tensors(output, tensors, CONDITIONING, metadata)


if "snakemake" in globals():
    with job(snakemake):
        params = snakemake.params
        main(
            snakemake.output.conditioning,
            params.model,
            params.prompts,
            params.negative,
            params.t5,
        )
