"""Seconds of a forward pass with and without collecting activation statistics.

    .venv/bin/python benchmarks/collection_time.py [--json benchmarks/results/collection_time.json]

The embedded demo model at full precision (or one of SD3-medium's size with random weights) runs a
guided pair on random latents and texts:

    plain       a forward pass alone, evaluated
    collecting  the same by `observe.measure_image`, which the rule collect_activations calls: with
                the statistics of all linear inputs, and for each step its share of what follows
                the last one, up to what is written to the file

After each step that is measured the same step runs plain, on a second model of the same weights, so
that whatever slows the machine down meets both. `ratio` is the median over steps of collecting /
plain, with the quartiles; `processor` the same of processor seconds, which other jobs on a CPU
disturb less. The parts of a measurement are then timed by themselves, in nanoseconds a value (the
fastest of several passes), on the inputs of one forward pass:

    extremes     minimum and maximum of each channel
    sums         sum of each channel, and the sum of all squares
    tokens       the bin of each token's largest |x|; takes the bins' numbers, as `bins` does
    bins         the histogram of |x|
    bins by .at  the same by an ordinary scatter
    all          what is collected, as this backend does it
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from forward_time import SIZES, build, random_inputs  # puts ditquant on the path

from ditquant.activations.histogram import NUM_BINS, bin_numbers, count_numbers
from ditquant.activations.measuring import sum_of_squares
from ditquant.activations.observe import backend_measuring, measure_image
from ditquant.backend import compiled, describe_device, is_accelerated, mx
from ditquant.models.load import DTYPES
from ditquant.models.spec import read_spec
from ditquant.network.blocks import Linear, Network, tapped
from ditquant.network.calibration import Conditioning, Trajectory
from ditquant.network.diffusionkit import load_network
from ditquant.network.sampling import predict, sigma_schedule

CFG_WEIGHT = 4.0
# The inputs of the embedded model, as `forward_time.SIZES` has them.
DEMO = {"latent": 16, "tokens": 20, "channels": 128, "pooled": 128}


def random_trajectory(size: dict[str, int], dtype: mx.Dtype, steps: int) -> Trajectory:
    """Noise in the place of latents and texts: the seconds are the same."""
    inputs = random_inputs(size, dtype)
    sigmas = sigma_schedule(steps, 3.0)
    latents = mx.random.normal((steps + 1, *inputs.latents.shape[1:]), key=mx.random.key(2))
    mx.eval(latents, sigmas)
    return Trajectory(
        latents=latents,
        sigmas=sigmas,
        timesteps=(sigmas[:-1] * 1000).astype(dtype),
        conditioning=Conditioning(inputs.tokens, inputs.pooled),
        cfg_weight=CFG_WEIGHT,
        prompt="",
    )


def forward(model: Network, trajectory: Trajectory, step: int) -> mx.array:
    return predict(model, *trajectory.at(step))


class Times(NamedTuple):
    """Seconds on the clock, and of all this process's threads together."""

    wall: float
    processor: float

    def since(self, earlier: Times) -> Times:
        return Times(self.wall - earlier.wall, self.processor - earlier.processor)


def now() -> Times:
    mx.synchronize()
    return Times(time.perf_counter(), time.process_time())


class Alternation:
    """Times the steps of `measure_image`, and after each the same step alone."""

    def __init__(self, twin: Network, trajectory: Trajectory):
        self.twin, self.trajectory = twin, trajectory
        self.plain: list[Times] = []
        self.collecting: list[Times] = []
        self._start = now()

    def tick(self) -> None:
        measured = now()
        self.collecting.append(measured.since(self._start))
        step = len(self.plain) % self.trajectory.num_steps
        mx.eval(forward(self.twin, self.trajectory, step))
        self._start = now()
        self.plain.append(self._start.since(measured))

    def measure(self, model: Network) -> None:
        """One image; what comes after its last step is spread over its steps."""
        steps = range(self.trajectory.num_steps)
        self._start = now()
        measure_image(model, self.trajectory, steps, "benchmark", "0000", self.tick)
        rest = now().since(self._start)
        self.collecting[-len(steps) :] = [
            Times(*(spent + more / len(steps) for spent, more in zip(step, rest, strict=True)))
            for step in self.collecting[-len(steps) :]
        ]


def compare(model: Network, twin: Network, trajectory: Trajectory, images: int) -> dict[str, Any]:
    """Seconds a forward pass of either way, and their ratio; an uncounted image comes first."""
    Alternation(twin, trajectory).measure(model)
    found = Alternation(twin, trajectory)
    for _ in range(images):
        found.measure(model)
    row: dict[str, Any] = {}
    for kind in Times._fields:
        alone = [getattr(times, kind) for times in found.plain]
        collected = [getattr(times, kind) for times in found.collecting]
        row[kind] = {
            "plain_seconds": statistics.median(alone),
            "collecting_seconds": statistics.median(collected),
            "ratio_quartiles": quartiles([c / p for p, c in zip(alone, collected, strict=True)]),
        }
    steps = range(trajectory.num_steps)
    for name, call in {
        "plain": lambda: [mx.eval(forward(twin, trajectory, step)) for step in steps],
        "collecting": lambda: measure_image(model, trajectory, steps, "benchmark", "0000"),
    }.items():
        mx.clear_cache()
        mx.reset_peak_memory()
        call()
        row[f"{name}_peak_bytes"] = mx.get_peak_memory()
    return row


def quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4) if len(values) > 1 else values * 3


# -------------------------------------------------------------------------------------- parts


def inputs_of(model: Network, trajectory: Trajectory) -> list[mx.array]:
    """What the linears read in one forward pass, each array once, as rows."""
    seen: list[mx.array] = []

    def see(linear: Linear, x: mx.array) -> None:
        if not seen or seen[-1] is not x:
            seen.append(x)

    with tapped(model.linears, see):
        output = forward(model, trajectory, trajectory.num_steps // 2)
    mx.eval(output, seen)
    return [x.reshape(-1, x.shape[-1]) for x in seen]


def bins_by_at(x: mx.array) -> mx.array:
    """`count_numbers` by MLX's scatter of any shape."""
    counts = mx.zeros((NUM_BINS,), dtype=mx.int32)
    return counts.at[bin_numbers(x).reshape(-1)].add(1)


PARTS: dict[str, Callable[[mx.array], Any]] = {
    "extremes": lambda x: [x.min(axis=0), x.max(axis=0)],
    "sums": lambda x: [x.sum(axis=0), sum_of_squares(x.astype(mx.float32))],
    "tokens": lambda x: bin_numbers(x).max(axis=1),
    "bins": lambda x: count_numbers(bin_numbers(x)),
    "bins by .at": bins_by_at,
    "all": lambda x: backend_measuring().measure(x).arrays,
}


def parts(arrays: list[mx.array], repeat: int) -> dict[str, float]:
    """Nanoseconds a value of each part: the fastest of `repeat` passes over all inputs."""
    values = sum(array.size for array in arrays)
    found = {}
    for name, part in PARTS.items():
        function = compiled(part)
        times = []
        for _ in range(repeat + 1):
            start = now()
            mx.eval([function(array) for array in arrays])
            times.append(now().since(start).wall)
        found[name] = min(times[1:]) / values * 1e9
    return found


def model_of(size: str, dtype: mx.Dtype) -> Network:
    if size == "demo":
        return load_network(read_spec("demo", None), dtype)
    return build("full", SIZES[size], dtype)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description="Seconds of a pass that collects statistics.")
    parser.add_argument("--size", choices=["demo", *SIZES], default="demo")
    parser.add_argument("--dtype", choices=DTYPES, help="float16; float32 on a CPU")
    parser.add_argument("--steps", type=int, default=25, help="measured steps of an image")
    parser.add_argument("--images", type=int, default=8, help="images that are counted")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args(arguments)

    name = options.dtype or ("float16" if is_accelerated() else "float32")
    dtype = DTYPES[name]
    print(describe_device())
    model, twin = model_of(options.size, dtype), model_of(options.size, dtype)
    twin.module.update(model.module.parameters())
    size = {"demo": DEMO, **SIZES}[options.size]
    trajectory = random_trajectory(size, dtype, options.steps)
    row = compare(model, twin, trajectory, options.images)
    print(f"{options.size}, {name}, {options.images} images of {options.steps} steps")
    print(f"{'':10} {'plain':>10} {'collecting':>13} {'ratio':>6}  quartiles")
    for kind in Times._fields:
        low, middle, high = row[kind]["ratio_quartiles"]
        alone, collected = (row[kind][f"{call}_seconds"] for call in ("plain", "collecting"))
        print(
            f"{kind:10} {alone * 1e3:7.2f} ms {collected * 1e3:10.2f} ms {middle:6.3f}  "
            f"{low:.3f} to {high:.3f}"
        )
    alone, collected = (row[f"{call}_peak_bytes"] / 1e9 for call in ("plain", "collecting"))
    print(f"{'peak':10} {alone:7.3f} GB {collected:10.3f} GB", flush=True)
    arrays = inputs_of(model, trajectory)
    row["inputs"], row["values"] = len(arrays), sum(array.size for array in arrays)
    print(f"{row['inputs']} inputs of {row['values']:,} values; nanoseconds a value:")
    row["nanoseconds_a_value"] = parts(arrays, 10)
    for part, nanoseconds in row["nanoseconds_a_value"].items():
        print(f"  {part:12} {nanoseconds:6.2f}")
    record = {
        "device": describe_device(),
        "size": options.size,
        "dtype": name,
        "steps": options.steps,
        "images": options.images,
        **row,
    }
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    return record


if __name__ == "__main__":
    main()
