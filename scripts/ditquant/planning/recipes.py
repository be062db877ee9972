"""Recipes: how weights are quantized, one dataclass for each rounding.

A recipe has only the options that its rounding uses. Their defaults are in config/schema.yaml:
`recipe_options` fills them in and refuses options that are not used. Rules pass a recipe to scripts
as plain parameters (`Recipe.params`), scripts rebuild it
(`Recipe.from_params`). Planning and block jobs both read this, so it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar, NamedTuple

from ..errors import UserError

# Inputs that share a scale in MLX's packed storage, the largest first.
MLX_GROUPS = (128, 64, 32)


@dataclass(frozen=True)
class Grid:
    """How a recipe stores the weights of one linear.

    Attributes:
        kind: "group" or "channel".
        bits: 2, 3, 4, 6 or 8.
        group_size: inputs that share a scale (32, 64, 128); the channel grid has no use for it.
    """

    kind: str
    bits: int
    group_size: int = 64

    @property
    def storage_sizes(self) -> tuple[int, ...]:
        """Group sizes that a matrix may be packed with, the first that divides its inputs.

        A row's one scale is stored for each of MLX's groups, of any size.
        """
        return (self.group_size,) if self.kind == "group" else MLX_GROUPS

    def storage_size(self, inputs: int) -> int | None:
        """Group size that a matrix of so many inputs is packed with; None: it cannot be."""
        return next((size for size in self.storage_sizes if inputs % size == 0), None)


@dataclass(frozen=True, kw_only=True)
class OtherLinears:
    """Which linears outside attention and MLP are quantized.

    Attributes:
        quantize: one of `network.blocks.SCOPES`.
        other_bits: bits of their weights.
    """

    quantize: str
    other_bits: int


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Tuning of all scales and biases together (`weights.tuning`); options `tune_...`.

    Attributes:
        iterations: optimisation steps.
        batch_size: rows a step; fewer if the training rows are fewer.
        rows_at_once: rows of one backward pass; the gradients of a batch are added up. Bounds the
            memory; None takes the whole batch.
        learning_rate: of Adam on the offsets, which count in units of a group's own scale.
        stride: every how many sampling steps of a trajectory give rows.
    """

    iterations: int
    batch_size: int
    rows_at_once: int | None
    learning_rate: float
    stride: int


class Condition(NamedTuple):
    """When an option is read: another has one of some values; without values, it is above 0."""

    option: str
    values: tuple[str, ...] = ()

    def holds(self, options: Mapping[str, Any]) -> bool:
        value = options[self.option]
        return value in self.values if self.values else bool(value > 0)

    def __str__(self) -> str:
        return f"{self.option}{': ' + ' or '.join(self.values) if self.values else ' above 0'}"


_TUNING = tuple(f"tune_{one.name}" for one in fields(Tuning))
_OTHERS = tuple(one.name for one in fields(OtherLinears))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What recipes of every rounding read; config/schema.yaml says what each option means.

    Attributes:
        activation_bits: None where nothing reads it.
        others: None for a block's job, which does not depend on it.
        tuning: None where the blocks are not tuned together, and for a block's job.
    """

    rounding: ClassVar[str]
    is_learned: ClassVar[bool] = False
    # Whether activation ranges are learned together with the weights (`ranges.learned_ranges`).
    learns_ranges: ClassVar[bool] = False
    # Option -> when it is read, for those that are not always.
    conditions: ClassVar[Mapping[str, Condition]] = {
        "activation_bits": Condition("balance", ("smoothquant", "csb")),
        **dict.fromkeys(_TUNING, Condition("tune_iterations")),
    }

    grid: str
    group_size: int
    bits: int
    layers: Mapping[str, int | str]
    balance: str
    activation_bits: int | None
    rotation: int | None
    holdout: float
    others: OtherLinears | None
    tuning: Tuning | None

    @classmethod
    def option_names(cls) -> list[str]:
        """Every option that a recipe of this rounding may read, as the configuration has it."""
        nested = {"others": _OTHERS, "tuning": _TUNING}
        names = (nested.get(one.name, (one.name,)) for one in fields(cls))
        return ["rounding", *(name for group in names for name in group)]

    @classmethod
    def read_of(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Those of a complete set of options that a recipe of this rounding reads."""
        return {
            name: options[name]
            for name in cls.option_names()
            if (name not in cls.conditions or cls.conditions[name].holds(options))
            and not (name == "rotation" and options[name] is None)
        }

    @staticmethod
    def from_params(params: Mapping[str, Any]) -> Recipe:
        """Rebuilds a recipe from `params`, or from a file that has them.

        Raises:
            UserError: it has an option that its rounding does not read.
        """
        kind = ROUNDINGS[params["rounding"]]
        unknown = params.keys() - set(kind.option_names())
        if unknown:
            raise UserError(f"A recipe has {min(unknown)}, which {kind.rounding} does not read.")
        may_lack = {*kind.conditions, "rotation", "others", "tuning"}
        own: dict[str, Any] = {
            one.name: params.get(one.name) if one.name in may_lack else params[one.name]
            for one in fields(kind)
        }
        if "quantize" in params:
            own["others"] = OtherLinears(**{name: params[name] for name in _OTHERS})
        if "tune_iterations" in params:
            own["tuning"] = Tuning(**{name.removeprefix("tune_"): params[name] for name in _TUNING})
        return kind(**own)

    def params(self) -> dict[str, Any]:
        """Plain parameters: the options that are read, by their names in the configuration."""
        flat: dict[str, Any] = {"rounding": self.rounding}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, OtherLinears):
                flat |= vars(value)
            elif isinstance(value, Tuning):
                flat |= {f"tune_{name}": inner for name, inner in vars(value).items()}
            elif value is not None or one.name == "rows_at_once":
                flat[one.name] = dict(value) if one.name == "layers" else value
        return flat

    def of_block(self) -> Recipe:
        """The recipe of one block: what is done when all blocks are finished redoes none."""
        return replace(self, others=None, tuning=None)

    def grid_of(self, linear: str) -> Grid | None:
        """The grid of a block linear, or None for one that the recipe leaves alone.

        `layers` maps patterns ("*.txt.*", "mm23.*.fc2") to bits or "full"; the last that fits
        counts.
        """
        bits = [bits for pattern, bits in self.layers.items() if fnmatchcase(linear, pattern)]
        last = bits[-1] if bits else self.bits
        return None if last == "full" else Grid(self.grid, int(last), self.group_size)

    @property
    def balance_kind(self) -> str:
        """How channels are scaled before the weights are quantized, or "none"."""
        return self.balance

    @property
    def has_own_activations(self) -> bool:
        """Whether activations are measured on the recipe's own model, for scales of its own."""
        is_changed = self.balance_kind != "none" or self.rotation is not None
        return is_changed or self.learns_ranges

    @property
    def is_chained(self) -> bool:
        """Whether a block is quantized behind the quantized blocks before it."""
        return False


@dataclass(frozen=True, kw_only=True)
class Rtn(Recipe):
    """Round to nearest."""

    rounding = "rtn"


@dataclass(frozen=True, kw_only=True)
class _Calibrated(Recipe):
    """Recipes whose rounding reads what enters the block."""

    inputs: str

    @property
    def is_chained(self) -> bool:
        return self.inputs != "full"


@dataclass(frozen=True, kw_only=True)
class Gptq(_Calibrated):
    """Columns that make up for each other's errors (`weights.gptq`)."""

    rounding = "gptq"

    damping: float


@dataclass(frozen=True, kw_only=True)
class Awq(_Calibrated):
    """Round to nearest behind searches for scales of channels and ranges of grids."""

    rounding = "awq"

    @property
    def balance_kind(self) -> str:
        """AWQ is a search for scales by definition."""
        return "awq" if self.balance == "none" else self.balance


@dataclass(frozen=True, kw_only=True)
class Learned(_Calibrated):
    """Recipes whose rounding is learned (`weights.adaround`)."""

    is_learned = True
    conditions: ClassVar = {**Recipe.conditions, "damping": Condition("start", ("gptq",))}

    iterations: int
    batch_size: int
    learning_rate: float
    regularizer: float
    warmup: float
    rows_at_once: int | None
    step_weights: str
    start: str
    damping: float | None


@dataclass(frozen=True, kw_only=True)
class AdaRound(Learned):
    """Learned rounding."""

    rounding = "adaround"

    clip: bool


@dataclass(frozen=True, kw_only=True)
class TaqDit(Learned):
    """Rounding that is learned together with the step sizes of activation quantizers."""

    rounding = "taqdit"
    learns_ranges = True
    conditions: ClassVar = {
        key: one for key, one in Learned.conditions.items() if key != "activation_bits"
    }

    activation_bits: int
    activation_learning_rate: float
    drop: float


ROUNDINGS: dict[str, type[Recipe]] = {
    kind.rounding: kind for kind in (Rtn, Gptq, Awq, AdaRound, TaqDit)
}
