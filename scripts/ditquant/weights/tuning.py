"""End-to-end tuning: scales and biases of a quantized network, by the velocity that it gives.

Blocks are quantized one by one, each for its own output. What their errors add up to at the end is
seen here: with all codes fixed, the offsets d and e of every group (`tuned_grids`) are learned by
Adam, with a cosine to 0, on

    mean over rows of |v_q(x, sigma, c) - v(x, sigma, c)|^2 / |v(x, sigma, c)|^2

where v is the guided velocity at a stored latent, which the sampler follows, and a row one image at
one step. (With prompt and negative prompt as rows of their own, the error of each fell by a quarter
and that of the pictures rose: their errors became less alike, which guidance multiplies.) The
gradient goes through the exact values s q + b. Rows of some images are held out: the tuned grids,
rounded as they are stored, are kept only if their error there is below that of the start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from ..backend import mx
from ..network.blocks import Network
from ..network.calibration import Trajectory
from . import learning
from .block_gradients import cheap_gradients
from .divergence import Diverged, check_error, check_finite
from .grids import Packed, dequantize
from .learning_state import Resume, State
from .other_linears import quantize_other_linears
from .tuner import Options, Tuner
from .velocity_rows import VelocityRows, velocity_rows

FORMAT = "ditquant.tuning"


@dataclass(frozen=True)
class Tuned:
    """A tuned network.

    Attributes:
        packed: linear's name -> its quantized weight, tuned or, where that did not help, the start.
        document: the JSON payload, format `FORMAT`.
    """

    packed: dict[str, Packed]
    document: dict[str, Any]


def tune(
    model: Network,
    packed: Mapping[str, Packed],
    kind: str,
    rows: VelocityRows,
    options: Options,
    seed: int,
    holdout: float,
    resume: Resume | None = None,
) -> Tuned:
    """Tunes the scales and biases of a network's packed linears.

    Args:
        model: the MMDiT with everything that is not in `packed` as it will run; the weights of the
            linears in `packed` are replaced in it.
        packed: linear's name -> its quantized weight.
        kind: of the recipe's grid; see `tuned_grids`.
        rows: what the network is to give back.
        seed: of the batches.
        holdout: share of the rows that only judge, whole images.
        resume: see `learning.run`.

    Raises:
        UserError: the error of the start is NaN or infinite.
    """
    with ExitStack() as cheap:
        for block in model.blocks:
            cheap.enter_context(cheap_gradients(block))
        tuner = Tuner(model, packed, kind, rows, options, seed, holdout)
        errors = {"start": tuner.judged(packed)}
        check_finite(errors.values(), "this recipe", "the network")
        result: dict[str, Any] = {"kept": "start", "diverged": None, "offsets": None}
        result |= {"loss_scale": None, "history": []}
        tuned: dict[str, Packed] = {}
        try:
            state, result["loss_scale"] = learning.run(
                tuner, options.iterations, "tuning of the whole network", resume
            )
            result["history"] = state.history
            errors["tuned"] = state.history[-1]["held_out"]
            result["offsets"] = _offset_sizes(state)
            learned = tuner.stored(state)
            if errors["tuned"] < errors["start"]:
                result["kept"], tuned = "tuned", learned
            else:
                check_error(tuner.judged(learned, tuner.train), tuner.judged(packed, tuner.train))
        except Diverged as error:
            result["diverged"] = error.record()
            result["history"] = result["history"] or error.history
    document = {
        "seed": seed,
        "rows": {"train": len(tuner.train), "held_out": len(tuner.held_out)},
        "error": errors,
        **result,
    }
    return Tuned({**packed, **tuned}, document)


def _offset_sizes(state: State) -> dict[str, float]:
    """Root mean squares over all groups: of a scale's change, relative, and of a value's shift."""

    def size(arrays: Sequence[mx.array]) -> float:
        total = sum(mx.sum(array**2).item() for array in arrays)
        return math.sqrt(total / sum(array.size for array in arrays))

    return {"scale": size(state.values[::2]), "shift": size(state.values[1::2])}


def tuning_options(recipe: Mapping[str, Any]) -> Options:
    return Options(
        iterations=recipe["tune_iterations"],
        batch_size=recipe["tune_batch_size"],
        learning_rate=recipe["tune_learning_rate"],
        rows_at_once=recipe["tune_rows_at_once"],
    )


def tune_recipe(
    model: Network,
    packed: Mapping[str, Packed],
    parameters: Mapping[str, mx.array],
    trajectories: Sequence[Trajectory],
    recipe: Mapping[str, Any],
    seed: int,
    resume: Resume | None = None,
) -> Tuned:
    """Tunes what a recipe made of all blocks.

    Args:
        model: the full-precision MMDiT, which gives the targets; it is changed.
        packed, parameters: of all blocks (`block_files.read_packed`, `read_parameters`).
        trajectories: full-precision ones; the last of them are held out.
        recipe: a validated entry of the configuration's `recipes`, with `tune_iterations` above 0.
    """
    rows = velocity_rows(model, trajectories, recipe["tune_stride"])
    model.module.load_weights(list(parameters.items()), strict=False)
    others = quantize_other_linears(
        model, recipe["quantize"], recipe["other_bits"], recipe["group_size"]
    )
    modules = dict(model.module.named_modules())
    for path, one in others.packed.items():
        modules[path].weight = dequantize(one, modules[path].weight.dtype)
    options = tuning_options(recipe)
    tuned = tune(model, packed, recipe["grid"], rows, options, seed, recipe["holdout"], resume)
    return Tuned(tuned.packed, {"recipe": dict(recipe), **tuned.document})
