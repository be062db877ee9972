"""A4, A6 and A8 side by side: a tier for each layer and sigma, by its range or by its error.

The classic rule gives a layer four bits where its range is small, six where it is larger and eight
above: what a range costs at a number of bits grows with the range. By sensitivity, layers get bits
where they lower the error most, under a budget. Four ways to say what an input's quantization to b
bits costs at one sigma:

    latents    measured: what it makes of the final latents (`velocity_sensitivity`)
    velocity   measured: the same as it enters the latents, before later steps act on it
    output     predicted: x with W x behind it, quantized with an error of mean square e_b, disturbs
               the output by e_b ||W||_F^2 for each token, since the errors of single values are
               small, of mean zero and unrelated; e_b is what the histogram predicts
               (`intervals.predicted_error`); summed over tokens, steps and the linears that read x
    relative   the same divided by the output's own energy, about ||W||_F^2 mean(x^2), so that W
               cancels: the sum of noise-to-signal ratios of the inputs over linears and steps

The sum over all inputs and rows is made least under a budget of average bits (`budget`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..backend import mx
from ..network.blocks import Network
from .budget import allocate
from .fit import Fit
from .input_statistics import Statistics
from .intervals import SMALLEST_RANGE, predicted_error
from .scheme import TIER_BITS, Tiers
from .segments import grouped
from .summary import rounded


def tier_of(half: np.ndarray, limits: Sequence[float]) -> np.ndarray:
    """(S,) bits: 4 up to limits[0], 6 up to limits[1], 8 above; `half` is (S,) half ranges."""
    return np.array(TIER_BITS)[np.searchsorted(np.asarray(limits), half)]


def tiers_by_range(fit: Fit, tiers: Tiers) -> dict[str, Any]:
    """The document `ditquant.quant_config` with tiers by the limits on ranges at 8 bits."""
    bits_of = {}
    for name in fit.statistics.input_of:
        limits = tiers.post_gelu if name in fit.statistics.post_gelu else tiers.linear
        bits_of[name] = tier_of(fit.ranges(name, TIER_BITS[-1])[0], limits)
    layers = fit.layers(bits_of)
    used = {"linear": list(tiers.linear), "post_gelu": list(tiers.post_gelu)}
    return {
        **fit.header,
        "configuration": {"tiers": used, **fit.record},
        "summary": tier_summary(fit.statistics, layers, fit.row_of),
        "layers": layers,
    }


def input_gains(model: Network) -> dict[str, float]:
    """Linear name -> ||W||_F^2 / input channels: output error for each squared error of a value."""
    gains = {
        linear.name: mx.square(linear.module.weight.astype(mx.float32)).sum(axis=0).mean()
        for linear in model.linears
    }
    mx.eval(gains)
    return {name: float(gain) for name, gain in gains.items()}


def predicted_errors(fit: Fit, gains: Mapping[str, float] | None) -> dict[str, np.ndarray]:
    """Input name -> (rows, tiers) predicted error, over the steps of each row and all its linears.

    With `polynomial` and dynamic ranges, and with groups of channels, the errors are those of one
    scale for each measured sigma.

    Args:
        gains: of `input_gains`, for `output`; None: `relative`.
    """
    return {name: _predicted(fit, name, gains) for name in fit.statistics.inputs}


def _predicted(fit: Fit, name: str, gains: Mapping[str, float] | None) -> np.ndarray:
    statistics, measured = fit.statistics, fit.measured(name)
    per_value = np.stack(
        [predicted_error(measured, *fit.ranges(name, bits), bits) for bits in TIER_BITS], axis=1
    )
    readers = [linear for linear, read in statistics.input_of.items() if read == name]
    if gains is not None:
        return per_value * measured.count[:, None] * sum(gains[linear] for linear in readers)
    steps = np.bincount(fit.row_of)
    mean_square = statistics.mean(measured.sum_mean_square) / steps
    relative = per_value / np.maximum(mean_square, SMALLEST_RANGE**2)[:, None]
    return np.asarray(relative * steps[:, None] * len(readers))


def tiers_by_error(fit: Fit, tiers: Tiers, errors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The document `ditquant.quant_config` with tiers by sensitivity under a budget.

    The average weighs an input by its values in all linears and steps that read it, as
    `average_bits` of the summary does.

    Args:
        errors: input name -> (rows, tiers), of `predicted_errors` or
            `velocity_errors.latent_errors`.
    """
    statistics, rows = fit.statistics, fit.rows
    names, readers = list(statistics.inputs), list(statistics.input_of.values())
    sizes = np.concatenate(
        [grouped(statistics.inputs[name], fit.row_of).count * readers.count(name) for name in names]
    )
    stacked = np.concatenate([errors[name] for name in names])
    chosen = allocate(stacked, sizes, TIER_BITS, tiers.average_bits)
    bits_of = {
        name: np.array(TIER_BITS)[chosen[start : start + rows]]
        for name, start in zip(names, range(0, len(chosen), rows), strict=True)
    }
    layers = fit.layers({linear: bits_of[name] for linear, name in statistics.input_of.items()})
    for linear, name in statistics.input_of.items():
        layers[linear]["predicted_error"] = {
            f"A{bits}": rounded(column)
            for bits, column in zip(TIER_BITS, errors[name].T, strict=True)
        }
    asked = {"mode": tiers.mode, "average_bits": tiers.average_bits, "weighting": tiers.weighting}
    return {
        **fit.header,
        "configuration": {"tiers": asked, **fit.record},
        "summary": {
            **tier_summary(statistics, layers, fit.row_of),
            **_schedule(layers, fit.row_of),
            "predicted_error": {
                "chosen": rounded(stacked[np.arange(len(chosen)), chosen].sum())[0],
                **{
                    f"A{bits}": rounded(total)[0]
                    for bits, total in zip(TIER_BITS, stacked.sum(axis=0), strict=True)
                },
            },
        },
        "layers": layers,
    }


def tier_summary(
    statistics: Statistics, layers: Mapping[str, Mapping[str, Any]], row_of: Sequence[int]
) -> dict[str, Any]:
    """Share of each tier over (layer, sigma), average bits, and which layers do what.

    `average_bits` weighs a layer by the values in its input, so that it is proportional to memory.
    """
    bits = np.array([np.array(entry["bits"])[list(row_of)] for entry in layers.values()])
    values = np.array([statistics.of(name).count for name in layers])
    names = np.array(list(layers))
    tiers = {f"A{b}": bits == b for b in TIER_BITS}
    return {
        "shares": {tier: rounded(chosen.mean())[0] for tier, chosen in tiers.items()},
        "average_bits": rounded(np.average(bits, weights=values))[0],
        "layers_per_sigma": {
            tier: [int(count) for count in chosen.sum(axis=0)] for tier, chosen in tiers.items()
        },
        "switching_layers": names[bits.min(axis=1) < bits.max(axis=1)].tolist(),
        "always_a8_layers": names[bits.min(axis=1) == TIER_BITS[-1]].tolist(),
    }


def _schedule(layers: Mapping[str, Mapping[str, Any]], row_of: list[int]) -> dict[str, Any]:
    """How the tiers of the layers that switch move over the schedule.

    Returns:
        "switches": layer -> changes of tier from one measured sigma to the next; "variability":
        layer -> standard deviation over mean of its bits.
    """
    bits = {name: np.array(entry["bits"])[row_of] for name, entry in layers.items()}
    switching = {name: row for name, row in bits.items() if row.min() < row.max()}
    return {
        "switches": {name: int((np.diff(row) != 0).sum()) for name, row in switching.items()},
        "variability": {
            name: rounded(row.std() / row.mean())[0] for name, row in switching.items()
        },
    }
