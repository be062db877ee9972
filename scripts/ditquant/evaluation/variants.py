"""Opens the model that a variant's name describes: its weights and its activation quantization.

    full               the full-precision model, the reference of every comparison
    {recipe}-weights   quantized weights, full-precision activations ("V1")
    {recipe}-a8        the same, and simulated activation quantization by quant_config.json ("V2")
    {recipe}-multitier the same by quant_config_multitier.json
    {recipe}-{name}    the same by any other of the configuration's `activations.variants`
    full-{name}        full-precision weights with quantized activations
    {recipe}-native    quantized weights that stay packed, see `quantized`
    noise-floor        the full-precision model at another storage precision, see `open_variant`

W4A8 is simulated: MLX has no kernel for 4-bit weights with 8-bit activations, so activations are
rounded to the 8-bit grid and the product is computed in the model's dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from ..activations.quant_config import load_quant_config
from ..activations.simulate import simulated_activations
from ..backend import mx
from ..checkpoints.checkpoint import load_quantized
from ..checkpoints.packed_blocks import blocks_unpacked
from ..errors import UserError
from ..models.spec import ModelSpec
from ..network.blocks import Linear, Network, tapped
from ..network.diffusionkit import load_network
from ..network.sampling import BeforeStep, leave_alone
from ..planning.variants import NOISE_FLOOR, Variant


@dataclass(frozen=True)
class OpenedVariant:
    """A model that is ready to sample.

    Attributes:
        network: with the variant's weights.
        dtype: of its activations; conditioning is loaded in it.
        before_step: for `sampling.sample_euler`, called with (index, sigma).
    """

    network: Network
    dtype: mx.Dtype
    before_step: BeforeStep


def _through_float16(array: mx.array) -> mx.array:
    return array.astype(mx.float16).astype(array.dtype)


def _round_input(linear: Linear, x: mx.array) -> mx.array:
    return _through_float16(x)


@contextmanager
def _noise_floor(spec: ModelSpec, dtype: mx.Dtype) -> Iterator[OpenedVariant]:
    if dtype != mx.float32:
        yield OpenedVariant(load_network(spec, mx.float32), mx.float32, leave_alone)
        return
    network = load_network(spec, dtype)
    network.module.apply(_through_float16)
    with tapped(network.linears, _round_input):
        yield OpenedVariant(network, dtype, leave_alone)


@contextmanager
def open_variant(
    spec: ModelSpec,
    dtype: mx.Dtype,
    name: str,
    checkpoint: str | Path | None = None,
    quant_config: str | Path | None = None,
) -> Iterator[OpenedVariant]:
    """The variant `name`, ready to sample within the context.

    The noise floor is the difference that float16 makes against float32, without quantization: of a
    float32 model, all weights and the inputs of all block linears are rounded through float16 and
    the products stay in float32 (float16 products are 20 to 40 times slower on a CPU); a model that
    runs in float16 or bfloat16 is computed in float32 instead.

    Args:
        dtype: of the full-precision model.
        checkpoint: model.safetensors of the recipe's checkpoint, its config.json beside it; all but
            `full` and the noise floor need it.
        quant_config: of variants that quantize activations.

    Raises:
        UserError: the variant needs a file that was not given, or the name is unknown.
    """
    if name == NOISE_FLOOR:
        with _noise_floor(spec, dtype) as variant:
            yield variant
        return
    asked = Variant.parse(name)
    if asked.recipe is None:
        network = load_network(spec, dtype)
    elif checkpoint is None:
        raise UserError(f"Variant {name} needs its recipe's checkpoint (model.safetensors).")
    else:
        network = load_quantized(spec, Path(checkpoint).parent, dtype, packed=asked.is_packed)
    if asked.scheme is None:
        with blocks_unpacked(network) if asked.is_packed else nullcontext():
            yield OpenedVariant(network, dtype, leave_alone)
        return
    if quant_config is None:
        raise UserError(f"Variant {name} needs an activation configuration (quant_config.json).")
    with simulated_activations(network, load_quant_config(quant_config)) as before_step:
        yield OpenedVariant(network, dtype, before_step)
