"""What can be drawn: weights, and what is done with activations.

A variant is `full`, or what the weights are and what is done with the activations, joined by a
hyphen: "adaround-weights", "best-native", "adaround-a8", "full-a6".
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UserError

# What a variant does with a recipe's weights where it quantizes no activations.
WEIGHTS, NATIVE = "weights", "native"
WEIGHT_KINDS = (WEIGHTS, NATIVE)
# Nothing is quantized; in the place of a recipe's name: nothing is done to the weights.
FULL = "full"
# The full-precision model at another storage precision.
NOISE_FLOOR = "noise-floor"


@dataclass(frozen=True)
class Variant:
    """Weights, and what is done with activations.

    Attributes:
        recipe: whose weights; None: those of the full-precision model.
        kind: "weights" or "native" (weights stay packed), or the name of an activation scheme;
            of variants without a hyphen the whole name.
    """

    recipe: str | None
    kind: str

    @classmethod
    def parse(cls, name: str) -> Variant:
        """The variant of this name.

        Raises:
            UserError: nothing stands before or after the last hyphen.
        """
        if name in (FULL, NOISE_FLOOR):
            return cls(None, name)
        recipe, _, kind = name.rpartition("-")
        if not recipe or not kind:
            raise UserError(
                f"Unknown variant {name!r}: a variant is full, or a recipe's name followed by "
                f"-weights, -native or the name of an activation configuration such as -a8."
            )
        return cls(None if recipe == FULL else recipe, kind)

    @property
    def name(self) -> str:
        """As rules and files name it: "adaround-a8"."""
        if self.kind in (FULL, NOISE_FLOOR):
            return self.kind
        return f"{self.recipe or FULL}-{self.kind}"

    @property
    def scheme(self) -> str | None:
        """The name of the activation scheme; None: activations are left alone."""
        return None if self.kind in (*WEIGHT_KINDS, FULL, NOISE_FLOOR) else self.kind

    @property
    def is_packed(self) -> bool:
        """Whether weights are unpacked while the model runs."""
        return self.kind == NATIVE
