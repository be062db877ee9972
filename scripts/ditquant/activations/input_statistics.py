"""What is known about the inputs of every linear, by step, and how to add it up exactly.

One job measures one image, so statistics of several images must merge: whatever images a job took
and in whatever order files are merged, the result has the same bits. Extremes and counts merge
exactly by themselves. Sums of floats do not (addition of floats is not associative), so averages
are kept as sums of integers in units of 2^-20, exact for values below 2^30 and up to 2^13 images.

q, k and v read one input; it is kept once, under the name of the first linear that reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..artifacts import load_metadata, load_tensors, save_tensors
from ..backend import mx, to_numpy
from ..errors import UserError

KIND = "ditquant.activation_statistics"

_UNIT = 2.0**-20
_LARGEST = 2.0**30


def to_fixed(values: np.ndarray) -> np.ndarray:
    """Rounds to int64 multiples of 2^-20, so that sums do not depend on their order.

    Raises:
        UserError: a value that is not below 2^30.
    """
    scaled = np.multiply(values, 1 / _UNIT, dtype=np.float64)
    largest = max(scaled.max(), -scaled.min())
    if not largest < _LARGEST / _UNIT:
        raise UserError(
            f"A linear reads values of about {largest * _UNIT:.3g}; statistics end at 2^30. The "
            "checkpoint may be damaged: get it again."
        )
    return np.rint(scaled, out=scaled).astype(np.int64)


# How a field of two measurements becomes that of both; sums and counts add up.
_EXTREMES = {"channel_min": np.minimum, "channel_max": np.maximum}


@dataclass(frozen=True)
class InputStatistics:
    """One linear input over S measured steps, all images together.

    What is called a sum adds up one number (or one of each channel) a forward pass, that is, an
    image at a step, in units of 2^-20; `average` divides it again.

    Attributes:
        forwards: (S,) int64, the forward passes that entered the sums.
        channel_min, channel_max: (S, channels) float32, the extremes over images and tokens.
        sum_channel_min, sum_channel_max: (S, channels) int64, the channels' extremes over tokens.
        sum_absmax: (S,) int64, the largest |x|.
        sum_mean_square: (S,) int64, the mean of x^2.
        histogram: (S, NUM_BINS) int64 counts of |x|, see `histogram`.
        token_histogram: (S, NUM_BINS) int64 counts of each token's largest |x|.
    """

    forwards: np.ndarray
    channel_min: np.ndarray
    channel_max: np.ndarray
    sum_channel_min: np.ndarray
    sum_channel_max: np.ndarray
    sum_absmax: np.ndarray
    sum_mean_square: np.ndarray
    histogram: np.ndarray
    token_histogram: np.ndarray

    @property
    def minimum(self) -> np.ndarray:
        """(S,) the smallest value."""
        return self.channel_min.min(axis=1)

    @property
    def maximum(self) -> np.ndarray:
        """(S,) the largest value."""
        return self.channel_max.max(axis=1)

    @property
    def absmax(self) -> np.ndarray:
        """(S,) the largest absolute value."""
        return np.maximum(np.abs(self.minimum), np.abs(self.maximum))

    @property
    def count(self) -> np.ndarray:
        """(S,) values seen."""
        return self.histogram.sum(axis=1)

    def average(self, sums: np.ndarray) -> np.ndarray:
        """A field of sums (S, ...) -> its average over forward passes, float64 of that shape."""
        forwards = self.forwards.reshape(-1, *(1,) * (sums.ndim - 1))
        return sums * _UNIT / forwards

    def merged(self, other: InputStatistics) -> InputStatistics:
        """Both together; the order does not matter."""
        return InputStatistics(
            **{
                name: _EXTREMES.get(name, np.add)(values, getattr(other, name))
                for name, values in vars(self).items()
            }
        )

    def pooled(self) -> InputStatistics:
        """All steps as one (S = 1): what a static scale is made from."""
        return InputStatistics(
            **{
                name: _EXTREMES.get(name, np.add).reduce(values, axis=0, keepdims=True)
                for name, values in vars(self).items()
            }
        )


def of_one_image(
    *,
    channel_min: np.ndarray,
    channel_max: np.ndarray,
    sum_mean_square: np.ndarray,
    histogram: np.ndarray,
    token_histogram: np.ndarray,
) -> InputStatistics:
    """Statistics of one image from what its forward passes gave, in the attributes' shapes."""
    # Adding zero turns -0.0 into 0.0: which of the two a minimum returns depends on the order.
    channel_min, channel_max = channel_min + np.float32(0), channel_max + np.float32(0)
    absmax = np.maximum(np.abs(channel_min), np.abs(channel_max)).max(axis=1)
    return InputStatistics(
        forwards=np.ones(len(channel_min), dtype=np.int64),
        channel_min=channel_min,
        channel_max=channel_max,
        sum_channel_min=to_fixed(channel_min),
        sum_channel_max=to_fixed(channel_max),
        sum_absmax=to_fixed(absmax),
        sum_mean_square=sum_mean_square,
        histogram=histogram,
        token_histogram=token_histogram,
    )


@dataclass(frozen=True)
class Statistics:
    """Every linear input of a model, over the measured steps of a schedule.

    Attributes:
        model: name of the model.
        images: names of the images, sorted.
        steps: indices of the S measured steps in the calibration's schedule.
        sigmas: (S,) float32, descending.
        input_of: linear name -> name of its input (the first linear that reads the same array), in
            the order of `blocks.all_linears`.
        post_gelu: linears whose input has passed GELU.
        inputs: input name -> statistics.
    """

    model: str
    images: tuple[str, ...]
    steps: tuple[int, ...]
    sigmas: np.ndarray
    input_of: dict[str, str]
    post_gelu: frozenset[str]
    inputs: dict[str, InputStatistics]

    def of(self, linear: str) -> InputStatistics:
        return self.inputs[self.input_of[linear]]

    def mean(self, sums: np.ndarray) -> np.ndarray:
        """Fixed-point sums over images -> their average, float64; see `InputStatistics.average`."""
        return sums * (_UNIT / len(self.images))


def merge(parts: Sequence[Statistics]) -> Statistics:
    """Statistics of all images of `parts`; exact, so order and grouping do not matter.

    Raises:
        UserError: parts of different models or schedules, or an image that occurs twice.
    """
    first = parts[0]
    images = sorted(image for part in parts for image in part.images)
    if len(set(images)) < len(images):
        raise UserError(f"Activation statistics of an image were given twice: {images}.")
    for part in parts[1:]:
        if (
            (part.model, part.steps, part.input_of, part.post_gelu)
            != (first.model, first.steps, first.input_of, first.post_gelu)
            or not np.array_equal(part.sigmas, first.sigmas)
        ):  # fmt: skip
            raise UserError(
                f"Activation statistics of image {part.images[0]} ({part.model}, steps "
                f"{part.steps}) do not fit those of image {first.images[0]} ({first.model}, steps "
                f"{first.steps}): delete activations/stats and run again."
            )
    inputs = dict(first.inputs)
    for part in parts[1:]:
        inputs = {name: inputs[name].merged(part.inputs[name]) for name in inputs}
    return replace(first, images=tuple(images), inputs=inputs)


# What a file holds of each input; one image's other sums follow from its extremes.
_ALWAYS = ("channel_min", "channel_max", "sum_mean_square", "histogram", "token_histogram")
_SEVERAL_IMAGES = ("sum_channel_min", "sum_channel_max", "sum_absmax")


def _packed(values: np.ndarray) -> mx.array:
    """Integers in the narrowest type that holds them all: half of a file's bytes and less."""
    if np.issubdtype(values.dtype, np.integer):
        low, high = values.min(), values.max()
        values = values.astype(
            next(
                dtype
                for dtype in (np.int16, np.int32, np.int64)
                if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max
            )
        )
    return mx.array(values)


def _unpacked(values: np.ndarray) -> np.ndarray:
    return values.astype(np.int64) if np.issubdtype(values.dtype, np.integer) else values


def save_statistics(path: str | Path, statistics: Statistics) -> None:
    """Writes statistics; equal statistics give equal files."""
    fields = _ALWAYS if len(statistics.images) == 1 else _ALWAYS + _SEVERAL_IMAGES
    tensors = {
        f"{name}.{field}": _packed(getattr(measured, field))
        for name, measured in statistics.inputs.items()
        for field in fields
    }
    tensors["sigmas"] = mx.array(statistics.sigmas)
    tensors["steps"] = mx.array(statistics.steps, dtype=mx.int32)
    metadata = {
        "model": statistics.model,
        "images": list(statistics.images),
        # Pairs, since metadata sorts the keys of a mapping and the order of layers is meant.
        "input_of": list(statistics.input_of.items()),
        "post_gelu": sorted(statistics.post_gelu),
    }
    save_tensors(path, tensors, KIND, metadata)


def load_statistics(path: str | Path) -> Statistics:
    """Reads what `save_statistics` wrote.

    Raises:
        UserError: another kind of file, a truncated one, or one of another release.
    """
    metadata = load_metadata(path, KIND)
    arrays = {name: to_numpy(array) for name, array in load_tensors(path, KIND).items()}
    images = tuple(json.loads(metadata["images"]))
    input_of = dict(json.loads(metadata["input_of"]))
    names = list(dict.fromkeys(input_of.values()))
    return Statistics(
        model=metadata["model"],
        images=images,
        steps=tuple(int(step) for step in arrays["steps"]),
        sigmas=arrays["sigmas"],
        input_of=input_of,
        post_gelu=frozenset(json.loads(metadata["post_gelu"])),
        inputs={name: _input_from(arrays, name, len(images)) for name in names},
    )


def _input_from(arrays: Mapping[str, np.ndarray], name: str, images: int) -> InputStatistics:
    fields = _ALWAYS if images == 1 else _ALWAYS + _SEVERAL_IMAGES
    found = {field: _unpacked(arrays[f"{name}.{field}"]) for field in fields}
    if images == 1:
        return of_one_image(**found)
    forwards = np.full(len(found["channel_min"]), images, dtype=np.int64)
    return InputStatistics(forwards=forwards, **found)
