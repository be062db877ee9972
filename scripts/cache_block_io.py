"""Rule cache_block_io: a trajectory -> the streams at every block boundary."""

from ditquant.artifacts import save_tensors
from ditquant.backend import mx
from ditquant.job import run_script
from ditquant.models.load import DTYPES
from ditquant.models.spec import Model
from ditquant.network.calibration import load_trajectory
from ditquant.network.diffusionkit import load_network
from ditquant.network.sampling import strided_steps
from ditquant.progress import track
from ditquant.weights.block_io import BLOCK_IO, boundary_streams, join_steps


def main(*, trajectory: str, output: str, model: Model, stride: int) -> None:
    """Writes "mm00.img" (rows, tokens, 1, hidden), ..., `modulation`, `sigmas` and `steps`.

    Rows are (prompt, negative prompt) at every `stride`-th step.
    """
    network = load_network(model.spec, DTYPES[model.dtype])
    path = load_trajectory(trajectory)
    steps = strided_steps(path.num_steps, stride)
    passes = (boundary_streams(network, path, step) for step in steps)
    tensors = join_steps(track(passes, "block inputs and outputs", len(steps)))
    tensors["sigmas"] = path.sigmas[mx.array(steps)]
    tensors["steps"] = mx.array(steps, dtype=mx.int32)
    metadata = {
        "prompt": path.prompt, "cfg_weight": path.cfg_weight,
        "model": model.name, "dtype": model.dtype, "stride": stride,
        "latent_size": list(path.latents.shape[1:3]),
        "text_tokens": path.conditioning.tokens.shape[1],
    }  # fmt: skip
    save_tensors(output, tensors, BLOCK_IO, metadata)


run_script(main, globals(), output="output.block_io")
