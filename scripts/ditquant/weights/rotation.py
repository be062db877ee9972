"""Rotated linears: outliers of single channels are spread over their neighbours before rounding.

A linear computes W x = (W H^T) (H x) for any orthonormal H. With

    H = diag(D, D, ...) S,    D the Hadamard matrix of `size` / sqrt(size),    S = diag(+-1)

each channel of H x is a sum of `size` adjacent channels of x with signs: a value that is alone in
its group is divided by sqrt(size), and what a linear reads becomes nearly normal whatever it was,
as Ashkboos et al. (QuaRot, 2024, arXiv 2404.00456) found for language models and Federici et al.
(HadaNorm, 2025, arXiv 2506.09932) for diffusion transformers. Its range shrinks and its energy does
not, so that as many bits have smaller steps. The signs, a fixed draw, keep what all channels have
in common (behind GELU, a mean) from gathering in the first channel of a group; QuIP# (Tseng et al.
2024, arXiv 2402.04396) has them for weights.

Weights are rotated once, (W H^T), and quantized there. The inputs are rotated in front of each
linear, since modulation and GELU let no rotation through: log2(size) additions a value, which a
W4A8 kernel does while it rounds. `size` is a power of two that divides the linears' inputs.

A rotated model has the modules, names and shapes of the original, and computes the same. What taps
(`blocks.tapped`) see and replace is H x, so statistics, ranges and codes are those of the rotated
inputs and weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from ..backend import backend_name, compiled, device_arrays, mx, nn
from ..errors import UserError
from ..kernels.cuda.rotation import rotation_of_size
from ..network.blocks import Network, shared_input


@cache
def signs(channels: int) -> np.ndarray:
    """(channels,) float32 of 1 and -1: the diagonal of S, the same for all inputs of a width."""
    drawn = np.random.default_rng(channels).integers(0, 2, channels)
    return (2 * drawn - 1).astype(np.float32)


@cache
def _signs_of(channels: int, dtype: mx.Dtype) -> mx.array:
    (array,) = device_arrays([signs(channels)])
    array = array.astype(dtype)
    mx.eval(array)
    return array


def _hadamard(x: mx.array, size: int) -> mx.array:
    parts = x.reshape(*x.shape[:-1], x.shape[-1] // size, size)
    return mx.hadamard_transform(parts).reshape(x.shape)


@cache
def _rotation(size: int) -> Callable[[mx.array, mx.array], mx.array]:
    """Of (x, signs); compiled, because a forward pass calls it for hundreds of arrays."""
    return compiled(lambda x, signs: _hadamard(x * signs, size))


def rotated(x: mx.array, size: int) -> mx.array:
    """H x along the last axis, in the dtype of x.

    Args:
        x: (..., channels), a multiple of `size`.
    """
    if backend_name() == "cuda":
        return rotation_of_size(size, unrotated)(x, _signs_of(x.shape[-1], mx.float32))
    return _rotation(size)(x, _signs_of(x.shape[-1], x.dtype))


def unrotated(y: mx.array, size: int) -> mx.array:
    """H^T y: what `rotated` was given."""
    return _hadamard(y, size) * _signs_of(y.shape[-1], y.dtype)


class InputRotation:
    """`rotated` for linears that read one array: it is rotated once, and they get one result.

    Called by each of its `readers` linears in turn, as query, key and value are; behind the last
    the array is let go.
    """

    def __init__(self, size: int, readers: int = 1):
        self.size = size
        self._readers = readers
        self._calls = 0
        self._last: tuple[mx.array, mx.array] | None = None

    def __call__(self, x: mx.array) -> mx.array:
        if self._last is None or self._last[0] is not x:
            self._last, self._calls = (x, rotated(x, self.size)), 0
        self._calls += 1
        result = self._last[1]
        if self._calls >= self._readers:
            self._last = None
        return result


class RotatedLinear(nn.Linear):
    """A linear whose weight is W H^T, in the place of one whose weight is W.

    Attributes:
        rotation: what happens to its input first.
    """

    rotation: InputRotation

    def product(self, x: mx.array) -> mx.array:
        """Of an input that is rotated already."""
        result: mx.array = super().__call__(x)
        return result

    def __call__(self, x: mx.array) -> mx.array:
        return self.product(self.rotation(x))


def mark_rotated(model: Network, size: int | None) -> None:
    """Makes every block linear of a model a `RotatedLinear`, and leaves the weights as they are.

    For weights that are rotated already, as those of a checkpoint; see `rotate`.

    Args:
        size: None: nothing is done.

    Raises:
        UserError: `size` does not divide the inputs of a linear.
    """
    if size is None:
        return
    for block in model.blocks:
        linears = block.linears
        names = [shared_input(linear) for linear in linears]
        rotations = {name: InputRotation(size, names.count(name)) for name in names}
        for linear, name in zip(linears, names, strict=True):
            channels = linear.module.weight.shape[1]
            if size < 2 or size & (size - 1) or channels % size:
                raise UserError(
                    f"rotation: {size} does not divide the {channels} inputs of {linear.name}: use "
                    "a power of two that does, such as 64."
                )
            # The module stays where it is, with its parameters: only what it computes changes.
            linear.module.__class__ = RotatedLinear
            linear.module.rotation = rotations[name]


def rotate(model: Network, size: int | None) -> None:
    """Rotates the block linears of a full-precision model in place; it computes what it did before.

    The weights are lazy: a job that needs one block of the model neither reads nor rotates others.

    Args:
        model: an MMDiT with plain linears.
        size: of the Hadamard matrix, a recipe's `rotation`; None: nothing is done.

    Raises:
        UserError: see `mark_rotated`.
    """
    mark_rotated(model, size)
    _turn_weights(model, size, rotated)


def unrotate_weights(model: Network, size: int | None) -> None:
    """Turns the weights of a rotated model back, for linears that read x itself.

    Args:
        model: its block linears have weights W H^T of any floating dtype.
    """
    _turn_weights(model, size, unrotated)


def _turn_weights(model: Network, size: int | None, turn: Callable[..., mx.array]) -> None:
    if size is None:
        return
    for block in model.blocks:
        for linear in block.linears:
            weight = linear.module.weight
            linear.module.weight = turn(weight.astype(mx.float32), size).astype(weight.dtype)
