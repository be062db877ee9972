"""Rule encode_prompts: a shard of prompts -> conditioning."""

from ditquant.artifacts import save_tensors
from ditquant.job import run_script
from ditquant.models.load import DTYPES
from ditquant.models.spec import Model
from ditquant.models.text import encode_texts
from ditquant.network.calibration import CONDITIONING


def main(*, conditioning: str, model: Model, prompts: list[str], negative: str, t5: bool) -> None:
    """Writes `conditioning` (n, tokens, channels) and `pooled` (n, channels), and both for the
    negative prompt, with the prompts as metadata."""
    texts = [*prompts, negative]
    tokens, pooled = encode_texts(model.spec, texts, DTYPES[model.dtype], use_t5=t5)
    tensors = {
        "conditioning": tokens[:-1],
        "pooled": pooled[:-1],
        "negative_conditioning": tokens[-1:],
        "negative_pooled": pooled[-1:],
    }
    metadata = {"prompts": prompts, "negative_prompt": negative, "model": model.name, "t5": t5}
    save_tensors(conditioning, tensors, CONDITIONING, metadata)


run_script(main, globals())
