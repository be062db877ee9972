"""Activation schemes and what they make of statistics, without a configuration."""

from __future__ import annotations

from typing import Any

import numpy as np

from ditquant.activations.configs import make_config
from ditquant.activations.fake_quantization import quantizer_of
from ditquant.activations.granularity import GRANULARITIES, Granularity, granularity_of
from ditquant.activations.quant_params import QuantParams, stacked
from ditquant.activations.scheme import ActivationScheme
from ditquant.activations.sigma_lookup import params_along

DYNAMIC = [name for name, kind in GRANULARITIES.items() if kind.ranges_over]
_TIERS = {
    "mode": "threshold", "average_bits": 6.5, "weighting": "latents", "images": 1, "stride": 1,
    "linear": [6.0, 10.0], "post_gelu": [5.0, 8.0],
}  # fmt: skip


def granularity(name: str, groups: int = 5, degree: int = 3, variable: str = "sigma"):
    """A granularity by name, with the schema's defaults of what it reads."""
    options = {"groups": groups, "degree": degree, "variable": variable}
    return granularity_of({"granularity": name, **options})


def scheme(
    name: str = "step",
    rule: str = "absmax",
    bits: int | None = None,
    tiers: dict[str, Any] | None = None,
    clips: dict[str, int] | None = None,
    **options: Any,
) -> ActivationScheme:
    """A scheme of a granularity by name; what is not named has the schema's default.

    Args:
        options: of scales: groups, degree, variable, shift, channel_group, channel_shift.
    """
    kept = {key: options.pop(key) for key in ("groups", "degree", "variable") if key in options}
    params = {
        "granularity": name,
        "range": rule,
        **({"bits": bits or 8} if tiers is None else {"tiers": _TIERS | tiers}),
        "options": {
            "shift": "middle", "channel_group": None, "channel_shift": False, **options,
            "groups": 5, "degree": 3, "variable": "sigma", **kept,
        },
        **({"clips": clips} if clips else {}),
    }  # fmt: skip
    return ActivationScheme.from_params(params)


def single_tier(made, bits, name, rule, learned=None, **options) -> dict[str, Any]:
    """The document of a scheme with one number of bits."""
    return make_config(made, scheme(name, rule, bits, **options), learned=learned)


def multi_tier(made, name, rule, limits, learned=None, **options) -> dict[str, Any]:
    """The document of a scheme whose tiers are chosen by limits on ranges."""
    return make_config(made, scheme(name, rule, tiers=limits, **options), learned=learned)


def params_at(config, layer, sigma) -> QuantParams:
    """What holds for one layer at one sigma."""
    return params_along(config, layer, [sigma])[0]


def _applied(x, params: QuantParams, how: Granularity, channel_group: int | None):
    quantizer = quantizer_of(how, channel_group)
    return quantizer(x, *quantizer.arguments(stacked([params]))[0])


def fake_quantize(x, scale, bits, shift=0.0):
    """clip(round((x - z) / s), -2^(b-1), 2^(b-1) - 1) s + z, in float32, in the dtype of x."""
    groups = int(np.size(scale))
    length = x.shape[-1] // groups if groups > 1 else None
    return _applied(x, QuantParams(bits, scale, shift), granularity("static"), length)


def fake_quantize_dynamic(x, name, bits, shift=0.0, unsigned=False, channel_group=None):
    """The same with s = max |x - z| / (largest code), found in the values themselves."""
    params = QuantParams(bits, None, shift, unsigned)
    return _applied(x, params, granularity(name), channel_group)
