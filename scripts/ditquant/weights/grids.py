"""Weight grids: which values a code stands for, and how codes are stored.

A weight matrix W (rows, columns) is cut along its input axis into groups. Inside a group, code q
(0 .. 2^bits - 1) stands for the value scale * q + bias, which is what MLX's kernels compute. Two
grids use it:

    group     a scale and a zero point for each group of 32, 64 or 128 inputs
    channel   one scale for each row, value s * (q - 2^(bits - 1)): all groups of a row share the
              scale, and bias = -2^(bits - 1) * scale

MLX's `dequantize` rounds twice in the scale's dtype: scale * q, then + bias. Here a scale keeps so
few significant bits, and the bias is so exact a multiple of it, that neither rounding does
anything: with fp16 scales of 11 - bits significant bits and bias = -z * scale (integer z), products
and sums are exact in every order on every backend, for up to 6 bits. Eight bits leave no room for
that; there the values are what `dequantize` rounds them to. Scales may be negative. Grids that were
tuned have zero points with a fraction, by which products and sums stay as exact (`stored_affine`).

`mx.quantize` is not idempotent (quantizing its own result again moves a third of the codes), so
codes chosen here are packed here and never pass through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..backend import mx, to_numpy
from ..errors import UserError
from ..planning.recipes import MLX_GROUPS, Grid

SCALE_DTYPE = mx.float16
_SCALE_PRECISION = 11  # significant bits of a float16
# The smallest normal float16: smaller scales are flushed to zero by some accelerators.
_SMALLEST_SCALE = 2.0**-14


@dataclass(frozen=True)
class Scales:
    """A grid laid over one weight matrix.

    Attributes:
        scales: (rows, groups) float16, never zero.
        zeros: (rows, groups) float32 holding integers, the code of the value 0.
        bits, group_size: of the packed storage (`group_size` * groups = columns).
    """

    scales: mx.array
    zeros: mx.array
    bits: int
    group_size: int

    @property
    def biases(self) -> mx.array:
        """-zeros * scales, (rows, groups) float16; exact for up to 6 bits."""
        return (-self.zeros * self.scales.astype(mx.float32)).astype(SCALE_DTYPE)


@dataclass(frozen=True)
class Packed:
    """A quantized weight matrix as MLX stores it.

    Attributes:
        weight: (rows, columns * bits / 32) uint32.
        scales, biases: (rows, groups) float16.
        bits, group_size: as for `mx.dequantize`.
    """

    weight: mx.array
    scales: mx.array
    biases: mx.array
    bits: int
    group_size: int

    @property
    def num_weights(self) -> int:
        return int(self.scales.size) * self.group_size

    @property
    def num_bytes(self) -> int:
        return int(self.weight.nbytes + self.scales.nbytes + self.biases.nbytes)


def _unit(magnitude: mx.array, bits: int) -> mx.array:
    """The last significant bit that the storage keeps of positive scales."""
    kept = _SCALE_PRECISION - bits if bits <= 6 else _SCALE_PRECISION
    # A log2 that errs by one ulp at a power of two shifts the last kept bit by one place at most.
    return mx.power(2.0, mx.floor(mx.log2(magnitude)) - (kept - 1))


def _cut(scales: mx.array, bits: int, up: bool) -> mx.array:
    """Cuts float32 `scales` to the storage's significant bits, away from (`up`) or towards zero.

    The magnitude stays at least the smallest normal float16; its sign is kept.
    """
    magnitude = mx.maximum(mx.abs(scales), _SMALLEST_SCALE)
    unit = _unit(magnitude, bits)
    whole = mx.ceil(magnitude / unit) if up else mx.floor(magnitude / unit)
    cut = mx.maximum(whole * unit, _SMALLEST_SCALE)
    return mx.where(scales < 0, -cut, cut)


def stored_affine(
    scales: mx.array, centers: mx.array, means: mx.array, bits: int
) -> tuple[mx.array, mx.array]:
    """Scales and biases of any value, rounded to what the storage keeps.

    Up to 6 bits a scale becomes a whole multiple of a power of two u, below 2^(11 - bits) u, and
    the bias any whole multiple k u such that every value of the group stays within 2^11 u: products
    and sums are multiples of u that float16 holds, and so exact in every order, as they are with
    whole zero points. (Sums below 2^-14 are subnormal; a device that flushes them gives 0.) Eight
    bits leave no room; scale and bias are rounded to float16.

    Args:
        scales: (rows, groups) float32, s.
        centers, means: (rows, groups) float32; code `means` keeps the value `centers`, whatever
            the rounding of the scale takes away.

    Returns:
        Scales and biases, float16.
    """
    magnitude = mx.maximum(mx.abs(scales), _SMALLEST_SCALE)
    unit = _unit(magnitude, bits)
    # A scale just below a power of two is rounded up to it, which has fewer bits still.
    magnitude = mx.maximum(mx.round(magnitude / unit) * unit, _SMALLEST_SCALE)
    scales = mx.where(scales < 0, -magnitude, magnitude)
    biases = centers - scales * means
    if bits <= 6:
        limit, last = 2.0**_SCALE_PRECISION, scales / unit * (2**bits - 1)
        low = -limit - mx.minimum(last, 0.0)
        high = limit - mx.maximum(last, 0.0)
        biases = mx.clip(mx.round(biases / unit), low, high) * unit
    return scales.astype(SCALE_DTYPE), biases.astype(SCALE_DTYPE)


def _squared_error(
    groups: mx.array, scales: mx.array, zeros: mx.array, bits: int, importance: mx.array | None
) -> mx.array:
    """(rows, groups): squared error e of rounding (rows, groups, size) weights to nearest.

    Plain; weighted by `importance` (groups, size); or e^T H e with one (groups, size, size) matrix
    a group.
    """
    fractional = groups / scales[..., None] + zeros[..., None]
    error = (nearest_codes(fractional, bits) - fractional) * scales[..., None]
    if importance is None:
        return (error**2).sum(-1)
    if importance.ndim == 2:
        return (error**2 * importance).sum(-1)
    error = error.swapaxes(0, 1)
    return ((error @ importance) * error).sum(-1).swapaxes(0, 1)


def _best(
    groups: mx.array,
    candidates: list[tuple[mx.array, mx.array]],
    bits: int,
    importance: mx.array | None,
) -> tuple[mx.array, mx.array]:
    """Of (scales, zeros) candidates, group by group, the one with the smallest squared error."""
    scales, zeros = candidates[0]
    error = _squared_error(groups, scales, zeros, bits, importance)
    for other_scales, other_zeros in candidates[1:]:
        other = _squared_error(groups, other_scales, other_zeros, bits, importance)
        better = other < error
        scales = mx.where(better, other_scales, scales)
        zeros = mx.where(better, other_zeros, zeros)
        error = mx.minimum(error, other)
        mx.eval(scales, zeros, error)
    return scales, zeros


def _group_candidates(
    groups: mx.array, bits: int, shrink: Sequence[float]
) -> list[tuple[mx.array, mx.array]]:
    """Scales from the range of each group, with the zero point below and above its exact place.

    For a zero point z the lower end is on the grid with scale -low / z and the upper end with
    high / (2^bits - 1 - z). The larger scale covers the range; the smaller is finer and clips the
    other end by less than a step, which is what `mx.quantize` does and pays off at 2 and 3 bits.
    Shrunken ranges have the same zero point, so only the scale shrinks.
    """
    last = 2**bits - 1
    low = mx.minimum(groups.min(axis=-1), 0.0)
    high = mx.maximum(groups.max(axis=-1), 0.0)
    place = -low * last / mx.maximum(high - low, _SMALLEST_SCALE)
    candidates = []
    for zeros in (mx.floor(place), mx.ceil(place)):
        # An end that has no codes on its side of zero cannot ask for a scale.
        lower = mx.where(zeros > 0, -low / mx.maximum(zeros, 1.0), 0.0)
        upper = mx.where(zeros < last, high / mx.maximum(last - zeros, 1.0), 0.0)
        finer = mx.where(mx.minimum(lower, upper) > 0, mx.minimum(lower, upper), lower + upper)
        for exact in (mx.maximum(lower, upper), finer):
            candidates += [(_cut(exact, bits, up), zeros) for up in (True, False)]
        covering = mx.maximum(lower, upper)
        candidates += [(_cut(factor * covering, bits, False), zeros) for factor in shrink]
    return candidates


def _channel_candidates(
    rows: mx.array, bits: int, shrink: Sequence[float]
) -> list[tuple[mx.array, mx.array]]:
    """Scales absmax / 2^(bits - 1) of either sign: one side of the range has a level more."""
    half = 2 ** (bits - 1)
    exact = mx.abs(rows).max(axis=-1) / half
    magnitudes = [_cut(exact, bits, up) for up in (True, False)]
    magnitudes += [_cut(factor * exact, bits, False) for factor in shrink]
    return [
        (sign * magnitude, mx.full(exact.shape, half))
        for magnitude in magnitudes
        for sign in (1.0, -1.0)
    ]


def _importance_of_groups(importance: mx.array, groups: int) -> mx.array:
    """(columns,) -> (groups, size); (columns, columns) -> its diagonal blocks, or its diagonal."""
    if importance.ndim == 2 and groups == 1:
        importance = mx.diagonal(importance)
    if importance.ndim == 1:
        return importance.reshape(groups, -1)
    size = importance.shape[0] // groups
    blocks = importance.reshape(groups, size, groups, size)
    each = mx.arange(groups)
    return blocks[each, :, each, :]


def fit_scales(
    weight: mx.array,
    grid: Grid,
    name: str = "The layer",
    importance: mx.array | None = None,
    shrink: Sequence[float] = (),
) -> Scales:
    """Lays the grid over a weight matrix: the range of each group, or row, in its storage dtype.

    Of the few ways to round scale and zero point to what the storage keeps, each group takes the
    one with the smallest squared error of rounding to nearest; ranges are not clipped beyond that,
    unless `shrink` says so.

    Args:
        weight: (rows, columns), any float dtype.
        name: of the layer, for the message.
        importance: how much errors count: (columns,) weights of squared errors, or a matrix H
            (columns, columns), of which a group's error e counts as e^T H e with the group's own
            block; the channel grid uses its diagonal.
        shrink: factors below 1 by which ranges may be clipped as well.

    Raises:
        UserError: no group size that the grid may be stored with divides `columns`.
    """
    rows, columns = weight.shape
    size = grid.storage_size(columns)
    if size is None:
        raise UserError(
            f"{name} has {columns} inputs, which groups of "
            f"{', '.join(map(str, grid.storage_sizes))} do not divide: set group_size of the "
            f"recipe to a divisor among {', '.join(map(str, reversed(MLX_GROUPS)))}."
        )
    is_group = grid.kind == "group"
    groups = weight.astype(mx.float32).reshape(rows, -1, size if is_group else columns)
    if importance is not None:
        importance = _importance_of_groups(importance.astype(mx.float32), groups.shape[1])
    candidates = (_group_candidates if is_group else _channel_candidates)(groups, grid.bits, shrink)
    scales, zeros = _best(groups, candidates, grid.bits, importance)
    if not is_group:
        scales = mx.repeat(scales, columns // size, axis=1)
        zeros = mx.repeat(zeros, columns // size, axis=1)
    return Scales(scales.astype(SCALE_DTYPE), zeros, grid.bits, size)


def fractional_codes(weight: mx.array, scales: Scales) -> mx.array:
    """Where weights lie between codes: W / scale + zero, (rows, columns) float32, not clipped."""
    rows, columns = weight.shape
    groups = weight.astype(mx.float32).reshape(rows, -1, scales.group_size)
    codes = groups / scales.scales.astype(mx.float32)[..., None] + scales.zeros[..., None]
    return codes.reshape(rows, columns)


def nearest_codes(fractional: mx.array, bits: int) -> mx.array:
    """Round-to-nearest codes of `fractional_codes`, float32 integers of the same shape."""
    return mx.clip(mx.round(fractional), 0, 2**bits - 1)


def values_of(codes: mx.array, scales: Scales) -> mx.array:
    """scale * (code - zero), (rows, columns) float32; `codes` may be any real numbers.

    For integer codes and up to 6 bits this is bit for bit `dequantize`'s value.
    """
    rows, columns = codes.shape
    groups = codes.reshape(rows, -1, scales.group_size) - scales.zeros[..., None]
    return (groups * scales.scales.astype(mx.float32)[..., None]).reshape(rows, columns)


def pack_codes(codes: mx.array, bits: int) -> mx.array:
    """Integer codes (rows, columns) -> (rows, columns * bits / 32) uint32, as `mx.quantize` packs.

    A row is one stream of bits, lowest bit of the first code first.
    """
    rows, columns = codes.shape
    host = to_numpy(codes.astype(mx.uint8))
    single = np.unpackbits(host[..., None], axis=-1, bitorder="little")[..., :bits]
    packed = np.packbits(single.reshape(rows, columns * bits), axis=-1, bitorder="little")
    return mx.array(packed.view(np.uint32))


def unpack_codes(packed: mx.array, bits: int) -> mx.array:
    """The inverse of `pack_codes`: (rows, columns) uint8."""
    host = to_numpy(packed).view(np.uint8)
    rows = host.shape[0]
    single = np.unpackbits(host, axis=-1, bitorder="little").reshape(rows, -1, bits)
    return mx.array(np.packbits(single, axis=-1, bitorder="little")[..., 0])


def pack(codes: mx.array, scales: Scales) -> Packed:
    """A quantized matrix of integer `codes` (rows, columns) in 0 .. 2^bits - 1."""
    return Packed(
        pack_codes(codes, scales.bits), scales.scales, scales.biases, scales.bits, scales.group_size
    )


def round_to_nearest(weight: mx.array, grid: Grid, name: str = "The layer") -> Packed:
    """A weight (outputs, inputs) of any float dtype on the grid, each value to its nearest code."""
    scales = fit_scales(weight, grid, name)
    packed = pack(nearest_codes(fractional_codes(weight, scales), grid.bits), scales)
    mx.eval(packed.weight, packed.scales)
    return packed


def dequantize(packed: Packed, dtype: mx.Dtype = mx.float32) -> mx.array:
    """The values that MLX gives a packed matrix, (rows, columns) in `dtype`."""
    return mx.dequantize(
        packed.weight, packed.scales, packed.biases, packed.group_size, packed.bits
    ).astype(dtype)
