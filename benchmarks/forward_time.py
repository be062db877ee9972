"""Seconds and bytes of a forward pass: full precision, stock `nn.quantize`, and packed layers here.

    .venv/bin/python benchmarks/forward_time.py [--json benchmarks/results/forward_time.json]

Builds an MM-DiT of SD3-medium's size with random weights, one variant after the other and layer by
layer, so that no variant pays for another's memory, and runs it on a guided pair of 512 x 512
pixels: 2 rows of 1,024 image and 154 text tokens. Attention and MLP have 4 bits, adaLN 8 (as
`quantize: blocks+adaln` makes them). Variants:

    full         plain linears in --dtype
    stock        `nn.quantize(model)`: every linear in 4 bits, MLX's own layer
    dequantize   our layers, always unpacked into a temporary
    kernel       our layers, always `mx.quantized_matmul`, on joined rows
    table        our layers, the faster way by `KERNEL_ROWS`
    together     the same, all layers of a block unpacked at once: what the workflow runs
    rotated      `together` with inputs that are rotated, by 64 channels

`forward` is the network alone, `step` also computes the modulation from the time step, as each step
of the sampler does. `difference` is the mean squared difference of the output from that of
`dequantize`, relative: above 1e-5 a variant computes something else.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mlx.utils import tree_flatten
from records import machine, save_section

from ditquant.backend import import_diffusionkit, is_accelerated, mx, nn
from ditquant.checkpoints import quantized
from ditquant.checkpoints.packed_blocks import blocks_unpacked
from ditquant.models.load import DTYPES
from ditquant.network.blocks import Network, rotation_of, set_linear
from ditquant.network.diffusionkit import DiffusionKitNetwork
from ditquant.weights.grids import Packed
from ditquant.weights.rotation import mark_rotated

GROUP_SIZE, BLOCK_BITS, OTHER_BITS = 64, 4, 8
# Widths of the model, and the inputs of a forward pass.
SIZES: dict[str, dict[str, int]] = {
    "sd3-medium": {
        "hidden": 1536, "heads": 24, "depth": 24, "channels": 4096, "pooled": 2048,
        "latent": 64, "tokens": 154, "positions": 192,
    },
    "small": {
        "hidden": 128, "heads": 2, "depth": 2, "channels": 128, "pooled": 64,
        "latent": 16, "tokens": 10, "positions": 16,
    },
}  # fmt: skip


# Variant -> how its packed layers multiply.
PACKED: dict[str, quantized.Product] = {
    "dequantize": quantized.dequantized_product,
    "kernel": quantized.kernel_product,
    "table": quantized.packed_product,
    "together": quantized.packed_product,
}
# The layers of `together`, with rotated inputs.
ROTATED = "rotated"
VARIANTS = ("full", "stock", *PACKED, ROTATED)
ROTATION = 64
# MLX's layer takes 30 times as long on CUDA: fewer calls tell as much.
SLOW = ("stock", "kernel")


# ------------------------------------------------------------------------------------- models


def build_plain(size: dict[str, int], dtype: mx.Dtype) -> Network:
    """An MMDiT whose random weights are not computed yet; the same in every call."""
    import_diffusionkit()
    config = importlib.import_module("diffusionkit.mlx.config").MMDiTConfig(
        num_heads=size["heads"],
        depth_multimodal=size["depth"],
        hidden_size_override=size["hidden"],
        max_latent_resolution=size["positions"],
        pooled_text_embed_dim=size["pooled"],
        token_level_text_embed_dim=size["channels"],
        dtype=dtype,
        float16_dtype=dtype,
        low_memory_mode=False,
    )
    mx.random.seed(0)
    model = importlib.import_module("diffusionkit.mlx.mmdit").MMDiT(config)
    model.set_dtype(dtype)
    return DiffusionKitNetwork(model)


def pack_linears(model: Network, product: quantized.Product) -> None:
    """Packs attention, MLP and adaLN layer by layer; scales are float16, as checkpoints have."""
    bits = {linear.path: BLOCK_BITS for linear in model.linears}
    for linear in [*model.linears, *model.other_linears("blocks+adaln")]:
        size = bits.get(linear.path, OTHER_BITS)
        plain = linear.module
        codes, scales, biases = mx.quantize(plain.weight.astype(mx.float16), GROUP_SIZE, size)
        packed = Packed(codes, scales, biases, size, GROUP_SIZE)
        mx.eval(packed.weight, packed.scales, packed.biases)
        layer = quantized.PackedLinear(packed, plain.get("bias"), product, rotation_of(plain))
        set_linear(linear, layer)


def build(variant: str, size: dict[str, int], dtype: mx.Dtype) -> Network:
    """The model of a variant, with its parameters in memory and nothing else."""
    model = build_plain(size, dtype)
    if variant == "stock":
        nn.quantize(model.module, class_predicate=lambda _, module: isinstance(module, nn.Linear))
    elif variant == ROTATED:
        mark_rotated(model, ROTATION)
        pack_linears(model, quantized.packed_product)
    elif variant != "full":
        pack_linears(model, PACKED[variant])
    # One by one: a parameter's float32 random numbers are gone before the next are drawn.
    for _, parameter in tree_flatten(model.module.parameters()):
        mx.eval(parameter)
    return model


# ---------------------------------------------------------------------------------- measuring


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Of a guided pair: latents (2, h, w, 16), tokens (2, n, channels), pooled (2, channels)."""

    latents: mx.array
    tokens: mx.array
    pooled: mx.array
    timestep: mx.array


def random_inputs(size: dict[str, int], dtype: mx.Dtype) -> Inputs:
    keys = mx.random.split(mx.random.key(1), 3)
    latent = size["latent"]
    inputs = Inputs(
        mx.random.normal((2, latent, latent, 16), dtype=dtype, key=keys[0]),
        mx.random.normal((2, size["tokens"], size["channels"]), dtype=dtype, key=keys[1]),
        mx.random.normal((2, size["pooled"]), dtype=dtype, key=keys[2]),
        mx.array(500.0, dtype=dtype),
    )
    mx.eval(inputs.latents, inputs.tokens, inputs.pooled, inputs.timestep)
    return inputs


def seconds(call: Callable[[], Any], repeat: int) -> float:
    """Median of `repeat` calls after two that are not counted."""
    times = []
    for _ in range(repeat + 2):
        start = time.perf_counter()
        mx.eval(call())
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def measure(
    variant: str, size: dict[str, int], dtype: mx.Dtype, repeat: int
) -> tuple[dict[str, Any], mx.array]:
    """One row of the table, and the network's output in float32."""
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    inputs = random_inputs(size, dtype)
    model = build(variant, size, dtype)

    def forward() -> mx.array:
        return model.forward(inputs.latents, inputs.tokens)

    def step() -> mx.array:
        model.modulate(model.modulation_inputs(inputs.pooled, inputs.timestep))
        return forward()

    with blocks_unpacked(model) if variant in ("together", ROTATED) else nullcontext():
        return measured(forward, step, before, repeat if variant not in SLOW else min(repeat, 3))


def measured(
    forward: Callable[[], mx.array], step: Callable[[], mx.array], before: int, repeat: int
) -> tuple[dict[str, Any], mx.array]:
    """See `measure`; `before`: bytes that were in use without the model."""
    mx.eval(step())
    row = {"forward_ms": 1e3 * seconds(forward, repeat), "step_ms": 1e3 * seconds(step, repeat)}
    gc.collect()
    mx.clear_cache()
    row["active_gb"] = (mx.get_active_memory() - before) / 1e9
    mx.reset_peak_memory()
    output = step().astype(mx.float32)
    mx.eval(output)
    row["peak_gb"] = (mx.get_peak_memory() - before) / 1e9
    return row, output


def relative_difference(output: mx.array, expected: mx.array) -> float:
    return (mx.mean((output - expected) ** 2) / mx.mean(expected**2)).item()


def table(variants: list[str], size: dict[str, int], dtype: mx.Dtype, repeat: int) -> dict:
    """Variant -> its row; ratios are to `full`, differences to `dequantize`."""
    rows: dict[str, dict[str, Any]] = {}
    reference = None
    for variant in variants:
        try:
            row, output = measure(variant, size, dtype, repeat)
        except RuntimeError as error:
            print(f"{variant:12} does not run here: {str(error).splitlines()[0][:100]}", flush=True)
            continue
        rows[variant] = row
        if "full" in rows:
            for name, of in (("forward", "ms"), ("step", "ms"), ("active", "gb")):
                row[f"{name}_ratio"] = row[f"{name}_{of}"] / rows["full"][f"{name}_{of}"]
        if variant == "dequantize":
            reference = output
        if variant in PACKED and reference is not None:
            row["difference"] = relative_difference(output, reference)
        print(f"{variant:12} " + ", ".join(f"{name} {row[name]:.3g}" for name in row), flush=True)
    return rows


def main(arguments: list[str] | None = None) -> dict[str, dict[str, Any]]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--size", choices=SIZES, default="sd3-medium")
    parser.add_argument("--depth", type=int, help="blocks, instead of the size's own")
    parser.add_argument("--dtype", choices=DTYPES, help="float16; float32 on a CPU")
    parser.add_argument("--repeat", type=int, default=10, help="calls; the median counts")
    parser.add_argument("--json", type=Path, help="the record")
    parser.add_argument("--section", default="packed", help="of the record")
    options = parser.parse_args(arguments)

    dtype = options.dtype or ("float16" if is_accelerated() else "float32")
    size = {**SIZES[options.size], **({"depth": options.depth} if options.depth else {})}
    print(f"{machine()}; {options.size}, {size['depth']} blocks, {dtype}")
    rows = table(options.variants, size, DTYPES[dtype], options.repeat)
    if options.json:
        command = (
            f"benchmarks/forward_time.py --size {options.size} --repeat {options.repeat} "
            f"--variants {' '.join(options.variants)}"
        )
        save_section(
            options.json, options.section, rows, command=command, machine=f"{machine()}, {dtype}"
        )
    return rows


if __name__ == "__main__":
    main()
