"""How activations are quantized: the schemes of a configuration, parsed once.

`a8` has the bits of the section `activations`, `multitier` its tiers; each entry of
`activations.variants` changes some of their options under a name of its own. The workflow reads
this module while it plans, so it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import UserError
from .granularity import GRANULARITIES, Granularity, granularity_of, options_of

SINGLE_TIER, MULTI_TIER = "a8", "multitier"
# The tiers of a multi-tier scheme, by rising range.
TIER_BITS = (4, 6, 8)
# Rules of ranges that need more than statistics: what was measured of shorter ranges beside them,
# and what a recipe learned. The others are in `intervals`.
MEASURED, LEARNED = "measured", "learned"
# Weightings of tiers that need forward passes of single inputs; "output" needs the weights.
_MEASURED_WEIGHTINGS, _OUTPUT = ("latents", "velocity"), "output"


@dataclass(frozen=True)
class Clips:
    """On what shorter ranges are tried (`clip_search`): so many images, every `stride`-th step."""

    images: int
    stride: int


@dataclass(frozen=True)
class Tiers:
    """How each layer at each sigma gets 4, 6 or 8 bits.

    Attributes:
        mode: "threshold", by two limits on the range, or "sensitivity", by error under a budget.
        average_bits: the budget.
        weighting: of errors, see `tiers`.
        images, stride: on what errors are measured.
        linear, post_gelu: (upper limit of A4, upper limit of A6).
    """

    mode: str
    average_bits: float
    weighting: str
    images: int
    stride: int
    linear: tuple[float, float]
    post_gelu: tuple[float, float]

    @property
    def by_error(self) -> str | None:
        """The weighting of errors; None where limits choose."""
        return self.weighting if self.mode == "sensitivity" else None


@dataclass(frozen=True)
class ActivationScheme:
    """A way to quantize activations.

    Attributes:
        granularity: how scales follow sigma.
        range: where ranges end: "absmax", "p999", "mse", "measured" or "learned".
        bits: of all layers, or None.
        tiers: of a scheme of several; None: it has `bits`.
        shift: of post-GELU inputs, see `intervals`; dynamic ranges are unsigned whatever it says.
        channel_group: adjacent channels that share a scale, see `channel_ranges`; None: all do.
        channel_shift: whether channels of ordinary inputs have shifts of their own, likewise.
        clips: of the range "measured"; None where none are tried.
    """

    granularity: Granularity
    range: str
    bits: int | None
    tiers: Tiers | None
    shift: str
    channel_group: int | None
    channel_shift: bool
    clips: Clips | None

    @property
    def all_bits(self) -> tuple[int, ...]:
        """The numbers of bits that occur."""
        return TIER_BITS if self.bits is None else (self.bits,)

    @property
    def takes_learned(self) -> bool:
        """Whether ranges are those that a recipe learned together with its weights."""
        return self.range == LEARNED

    @property
    def needs_sensitivity(self) -> bool:
        """Whether tiers are chosen by forward passes of single inputs."""
        return self.tiers is not None and self.tiers.by_error in _MEASURED_WEIGHTINGS

    @property
    def needs_weights(self) -> bool:
        """Whether tiers are chosen by errors that the weights behind the inputs weigh."""
        return self.tiers is not None and self.tiers.by_error == _OUTPUT

    @property
    def params(self) -> dict[str, Any]:
        """The scheme as plain values, for parameters of jobs; `from_params` reads them.

        Options that do not count (the tiers of a scheme of one tier, the polynomial of a static
        one) are left out, so that changing them redoes nothing.
        """
        of_bits = {"bits": self.bits} if self.tiers is None else {"tiers": _plain(self.tiers)}
        options = {name: getattr(self, name) for name in _OPTIONS} | self.granularity.record
        clips = {} if self.clips is None else {"clips": _plain(self.clips)}
        return {
            "granularity": self.granularity.name, "range": self.range, **of_bits,
            "options": options, **clips,
        }  # fmt: skip

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> ActivationScheme:
        """The scheme that `params` gave.

        Raises:
            KeyError, TypeError: keys that a scheme lacks or does not know.
        """
        options = params["options"]
        tiers, clips = params.get("tiers"), params.get("clips")
        limits = {kind: tuple(tiers[kind]) for kind in _LIMITS} if tiers else {}
        return cls(
            granularity_of({"granularity": params["granularity"], **options}),
            params["range"],
            params.get("bits"),
            Tiers(**{**tiers, **limits}) if tiers else None,
            clips=Clips(**clips) if clips else None,
            **{name: options[name] for name in _OPTIONS},
        )


_OPTIONS = ("shift", "channel_group", "channel_shift")
_LIMITS = ("linear", "post_gelu")


def _plain(options: Tiers | Clips) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(options).items()
    }


def activation_schemes(config: Mapping[str, Any]) -> dict[str, ActivationScheme]:
    """The schemes of a complete configuration by name: `a8`, `multitier`, then `variants`."""
    common = config["activations"]
    own = {SINGLE_TIER: {"bits": common["bits"]}, MULTI_TIER: {"tiers": common["tiers"]}}
    return {
        name: _scheme({**common, **options}, "tiers" in options)
        for name, options in {**own, **common["variants"]}.items()
    }


def _scheme(chosen: Mapping[str, Any], has_tiers: bool) -> ActivationScheme:
    granularity = granularity_of({**chosen, **chosen["polynomial"]})
    tries_clips = chosen["range"] == MEASURED and not granularity.is_dynamic
    return ActivationScheme.from_params(
        {
            "granularity": granularity.name,
            "range": chosen["range"],
            **({"tiers": chosen["tiers"]} if has_tiers else {"bits": chosen["bits"]}),
            "options": {name: chosen[name] for name in _OPTIONS} | granularity.record,
            **({"clips": chosen["clips"]} if tries_clips else {}),
        }
    )


def config_file(name: str) -> str:
    """The file of a scheme's configuration, below `activations/`."""
    return "quant_config.json" if name == SINGLE_TIER else f"quant_config_{name}.json"


def section_of(name: str, config: Mapping[str, Any]) -> str:
    """The key of the configuration where a scheme's options stand, for messages."""
    is_variant = name in config["activations"]["variants"]
    return f"activations.variants.{name}" if is_variant else "activations"


def check_schemes(config: Mapping[str, Any]) -> None:
    """Checks what the schema cannot express of the activation schemes of a configuration.

    Raises:
        UserError: images that there are not, limits that do not rise, options that exclude each
            other, or an option of a named variant that its scheme does not read; names the key.
    """
    for name, scheme in activation_schemes(config).items():
        section = section_of(name, config)
        own = config["activations"]["variants"].get(name, {})
        _check_read(section, scheme, own)
        _check_images(section, scheme, own, config)
        _check_learned(section, scheme)
        if scheme.tiers is not None:
            for kind in _LIMITS:
                low, high = getattr(scheme.tiers, kind)
                if low >= high:
                    raise UserError(
                        f"{section}.tiers.{kind}: the A4 limit {low} must be below {high}."
                    )


def _check_read(section: str, scheme: ActivationScheme, own: Mapping[str, Any]) -> None:
    """Refuses options of a named variant that its scheme does not read."""
    granularity = scheme.granularity
    of_others = {
        key
        for kind in GRANULARITIES.values()
        if not isinstance(granularity, kind) and options_of(kind)
        for key in (kind.name, *options_of(kind))
    }
    unread = {key: f"granularity {granularity.name}" for key in own if key in of_others}
    if scheme.clips is None and "clips" in own:
        unread["clips"] = (
            f"granularity {granularity.name}" if granularity.is_dynamic else f"range {scheme.range}"
        )
    if granularity.is_dynamic and "shift" in own:
        unread["shift"] = f"granularity {granularity.name}"
    for key, by in unread.items():
        raise UserError(f"{section}.{key}: {by} does not read it. Leave it out.")


def _check_images(
    section: str, scheme: ActivationScheme, own: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    """Checks that tiers and clips ask for no more images than there are to them."""
    measured = scheme.tiers if scheme.needs_sensitivity else None
    for key, options, there, count in (
        ("tiers", measured, "activations.num_images", config["activations"]["num_images"]),
        ("clips", scheme.clips, "num_images", config["num_images"]),
    ):
        if options is not None and options.images > count:
            where = section if key in own else "activations"
            raise UserError(
                f"{where}.{key}.images is {options.images}, but {there} is {count}: lower the one "
                "or raise the other."
            )


def _check_learned(section: str, scheme: ActivationScheme) -> None:
    """Learned ranges are intervals of whole tensors, of which listed scales are made."""
    if not scheme.takes_learned:
        return
    wrong = []
    if not scheme.granularity.is_listed:
        listed = [name for name, kind in GRANULARITIES.items() if kind.is_listed]
        uses = f"{', '.join(listed[:-1])} or {listed[-1]}"
        wrong.append(f"granularity {scheme.granularity.name} (use {uses})")
    if scheme.channel_group is not None:
        wrong.append(f"channel_group {scheme.channel_group} (use null)")
    if scheme.channel_shift:
        wrong.append("channel_shift true (use false)")
    if wrong:
        raise UserError(f"{section}: range learned does not go with {', '.join(wrong)}.")
