"""What simulated activation quantization costs: a sampler's step with it over one without.

    .venv/bin/python benchmarks/activation_time.py [--size sd3-medium]
        [--json benchmarks/results/activation_time.json --section sd3-medium]

A step is what each step of the sampler does: the numbers of its sigma are selected, the modulation
is computed, and the network runs on a guided pair. Sizes: `demo` is the demo model, and
`sd3-medium` one of that size with random weights (512 x 512 pixels; see `forward_time.py`). Weights
are full precision, so every second that is added is the simulation's. Steps without and with it
alternate, so that a machine that is slower for a while is so for both. Numbers are those of a
calibration at every second of 50 steps. Of each granularity:

    plain_ms, simulated_ms   medians over later steps, where numbers are those of the first picture
    ratio, ratio_of_fastest  of these medians, and what is left where a host is sometimes slow
    first_ratio              of the means over the 28 steps of a process's first picture, with the
                             time of making numbers, which a process does once: for all sigmas, at
                             each sigma group, at each measured sigma or, for polynomials, at every
                             step
    numbers_ms               of making all numbers of a first picture, by itself
    differing                values that the backend's own kernel rounds unlike the portable one
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forward_time import SIZES, build, random_inputs
from records import machine, save_section

from ditquant.activations.fake_quantization import PortableQuantizer, quantizer_of
from ditquant.activations.granularity import granularity_of
from ditquant.activations.quant_config import LayerConfig, QuantConfig
from ditquant.activations.sigma_lookup import SigmaLookup
from ditquant.activations.simulate import Simulation
from ditquant.backend import is_accelerated, mx
from ditquant.models.load import DTYPES
from ditquant.models.spec import read_spec
from ditquant.network.blocks import Network, tapped
from ditquant.network.diffusionkit import load_network
from ditquant.network.sampling import sigma_schedule

# Granularity and channels of a group.
CONFIGS: dict[str, tuple[str, int | None]] = {
    "static": ("static", None),
    "group": ("group", None),
    "step": ("step", None),
    "step, groups of 64": ("step", 64),
    "polynomial": ("polynomial", None),
    "dynamic-tensor": ("dynamic-tensor", None),
    "dynamic-token": ("dynamic-token", None),
    "dynamic-token, groups of 64": ("dynamic-token", 64),
}
# Linears of the first block, whose inputs have every width.
DIFFERING = 12
WARM_UP = 3
STEPS = 28
SHIFT = 3.0
SIGMAS = tuple(sigma_schedule(STEPS, SHIFT).tolist()[:-1])
MEASURED = tuple(sigma_schedule(50, SHIFT).tolist()[:-1:2])
SIGMA_GROUPS = 5
# Widths of the demo model, as `forward_time.SIZES` has them.
DEMO = {"latent": 16, "tokens": 24, "channels": 128, "pooled": 128}


def configuration(model: Network, granularity: str, group: int | None) -> QuantConfig:
    """Eight bits for every input; the numbers in it do not count for the time."""
    kind = granularity_of(
        {"granularity": granularity, "groups": SIGMA_GROUPS, "degree": 3, "variable": "sigma"}
    )
    row_of = tuple(range(len(MEASURED)))
    if granularity == "group":
        row_of = tuple(row * SIGMA_GROUPS // len(MEASURED) for row in row_of)
    elif granularity not in ("step", "polynomial"):
        row_of = (0,) * len(MEASURED)
    rows = 1 if granularity == "polynomial" else max(row_of) + 1
    layers = {}
    for linear in model.linears:
        name = linear.name.replace("k_proj", "q_proj").replace("v_proj", "q_proj")
        channels = linear.module.weight.shape[1]
        is_fitted, ordinary = granularity == "polynomial", not linear.is_post_gelu
        is_static = not kind.is_dynamic and not is_fitted
        factors = ((0.5,) * (channels // group),) * rows if group and is_static else ()
        layers[linear.name] = LayerConfig(
            input=name,
            channels=channels,
            bits=(8,) * rows,
            scales=(0.05,) * rows if is_static else (),
            shifts=(0.0,) * rows if ordinary else (-0.17,) * rows,
            log_range=(1.0, 0.5, -0.2, 0.1) if is_fitted else (),
            shift_polynomial=(0.0, 0.5, -0.2, 0.1) if is_fitted and not ordinary else (0.0,),
            unsigned=linear.is_post_gelu and kind.is_dynamic,
            multipliers=factors if ordinary else (),
            channel_shift=(0.01,) * channels if group and ordinary else (),
        )
    return QuantConfig("benchmark", MEASURED, layers, kind, row_of, channel_group=group)


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    mx.eval(call())
    return time.perf_counter() - start


def measure(model: Network, inputs: Any, config: QuantConfig, repeat: int) -> dict[str, float]:
    """One row of the table; see the module's docstring."""
    linears = model.linears

    def step() -> mx.array:
        model.modulate(model.modulation_inputs(inputs.pooled, inputs.timestep))
        return model.forward(inputs.latents, inputs.tokens)

    def pairs(simulation: Simulation, count: int) -> list[tuple[float, ...]]:
        """Seconds of (plain steps, steps with simulated activations), alternating."""
        found = []
        for index in range(count):

            def selected(index: int = index) -> mx.array:
                simulation(index, SIGMAS[index % STEPS])
                return step()

            plain = timed(step)
            with tapped(linears, simulation.see):
                found.append((plain, timed(selected)))
        return list(zip(*found, strict=True))

    # What is compiled on first use is not counted.
    pairs(Simulation(config), WARM_UP)
    simulation = Simulation(config)
    start = time.perf_counter()
    for index, sigma in enumerate(SIGMAS):
        simulation(index, sigma)
    mx.synchronize()
    numbers = time.perf_counter() - start
    simulation = Simulation(config)
    first = [statistics.mean(times) for times in pairs(simulation, STEPS)]
    later = pairs(simulation, repeat)
    plain, quantized = map(statistics.median, later)
    fastest = [min(times) for times in later]
    return {
        "plain_ms": 1e3 * plain,
        "simulated_ms": 1e3 * quantized,
        "ratio": quantized / plain,
        "ratio_of_fastest": fastest[1] / fastest[0],
        "first_ratio": first[1] / first[0],
        "numbers_ms": 1e3 * numbers,
    }


def differing(model: Network, config: QuantConfig, dtype: mx.Dtype) -> int:
    """Values of random inputs that this backend's kernel rounds unlike the portable one."""
    kind = config.granularity, config.channel_group
    layers = {layer.input: layer for layer in config.layers.values()}
    numbers = SigmaLookup(config, layers.values()).at(SIGMAS[0])
    own, portable = (
        (quantizer, dict(zip(layers, quantizer.arguments(numbers), strict=True)))
        for quantizer in (quantizer_of(*kind), PortableQuantizer(*kind))
    )
    count = 0
    for linear in model.linears[:DIFFERING]:
        layer = config.layers[linear.name]
        x = mx.random.normal((2, 154, 1, layer.channels), key=mx.random.key(3)).astype(dtype)
        found, expected = (
            quantizer(x, *arguments[layer.input]) for quantizer, arguments in (own, portable)
        )
        count += mx.sum(found != expected).item()
    return int(count)


def main(arguments: list[str] | None = None) -> dict[str, dict[str, Any]]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=["demo", *SIZES], default="demo")
    parser.add_argument("--depth", type=int, help="blocks, instead of the size's own")
    parser.add_argument("--dtype", choices=DTYPES, help="float16; float32 on a CPU")
    parser.add_argument("--repeat", type=int, default=28, help="pairs of later steps")
    parser.add_argument("--json", type=Path, help="the record")
    parser.add_argument("--section", help="of the record; the size")
    options = parser.parse_args(arguments)
    dtype = options.dtype or ("float16" if is_accelerated() else "float32")
    if options.size == "demo" and options.depth:
        parser.error("--depth is for models of random weights")
    if options.size == "demo":
        model, size = load_network(read_spec("demo"), DTYPES[dtype]), DEMO
    else:
        size = SIZES[options.size] | ({"depth": options.depth} if options.depth else {})
        model = build("full", size, DTYPES[dtype])
    inputs = random_inputs(size, DTYPES[dtype])
    print(f"{machine()}; {options.size}, {dtype}, a guided pair")
    rows = {}
    for name, (granularity, group) in CONFIGS.items():
        config = configuration(model, granularity, group)
        rows[name] = measure(model, inputs, config, options.repeat)
        rows[name]["differing"] = differing(model, config, DTYPES[dtype])
        print(f"{name:28} " + ", ".join(f"{k} {v:.3g}" for k, v in rows[name].items()), flush=True)
    if options.json:
        depth = f" --depth {options.depth}" if options.depth else ""
        save_section(
            options.json,
            options.section or options.size,
            rows,
            command=f"benchmarks/activation_time.py --size {options.size}{depth} "
            f"--repeat {options.repeat}",
            machine=f"{machine()}, {dtype}",
        )
    return rows


if __name__ == "__main__":
    main()
