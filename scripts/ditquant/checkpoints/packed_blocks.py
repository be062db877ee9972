"""Blocks of packed linears that unpack all their weights at once.

On an H200 the host prepares a forward pass of SD3-medium more slowly than the device computes it,
and unpacking layer by layer adds an operation for each of its 285 layers. Here the codes of all
layers of a block are in one array, and one operation for each number of bits unpacks them into a
temporary that is freed after the block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..backend import backend_name, mx, nn
from ..kernels.cuda.unpacking import can_unpack, unpack_parts
from ..network.blocks import Block, Linear, Network, Streams, set_linear
from ..weights.grids import Packed
from ..weights.rotation import RotatedLinear
from .quantized import PackedLinear, unpack

_NO_WEIGHT = mx.array(0.0)


def _plain(packed: PackedLinear) -> nn.Linear:
    """A linear with the bias of `packed` and no weight yet."""
    layer = nn.Linear(1, 1, bias="bias" in packed)
    if packed.rotation is not None:
        layer = RotatedLinear(1, 1, bias="bias" in packed)
        layer.rotation = packed.rotation
    layer.weight = _NO_WEIGHT
    if "bias" in packed:
        layer.bias = packed.bias
    return layer


class _Joint:
    """Weights of the same bits and group size, one after the other as rows of one group each.

    Attributes:
        layers: plain linears, which have weights from `unpack` to `forget`.
    """

    def __init__(self, packed: Sequence[PackedLinear]):
        bits, group_size = packed[0].bits, packed[0].group_size
        words = group_size * bits // 32
        self._packed = Packed(
            weight=mx.concatenate([layer.weight.reshape(-1, words) for layer in packed]),
            scales=mx.concatenate([layer.scales.reshape(-1, 1) for layer in packed]),
            biases=mx.concatenate([layer.biases.reshape(-1, 1) for layer in packed]),
            bits=bits,
            group_size=group_size,
        )
        self._ends = np.cumsum([layer.scales.size for layer in packed]).tolist()
        self._shapes = [
            (rows, groups * group_size) for rows, groups in (layer.scales.shape for layer in packed)
        ]
        self.layers = [_plain(layer) for layer in packed]
        mx.eval(self._packed.weight, self._packed.scales, self._packed.biases)
        for layer, end in zip(packed, self._ends, strict=True):
            self._share(layer, slice(end - layer.scales.size, end))

    def _share(self, layer: PackedLinear, part: slice) -> None:
        """Makes the layer's own arrays views of the joint ones, so that there is one copy."""
        for name in ("weight", "scales", "biases"):
            layer[name] = getattr(self._packed, name)[part].reshape(layer[name].shape)
            mx.eval(layer[name])

    def unpack(self, dtype: mx.Dtype) -> None:
        """Gives the layers their weights, lazily."""
        if backend_name() == "cuda" and can_unpack(self._packed.bits):
            weights = unpack_parts(self._packed, self._ends, self._shapes, dtype)
        else:
            parts = mx.split(unpack(self._packed).astype(dtype), self._ends[:-1])
            weights = [part.reshape(shape) for part, shape in zip(parts, self._shapes, strict=True)]
        for layer, weight in zip(self.layers, weights, strict=True):
            layer["weight"] = weight

    def forget(self) -> None:
        """The graph holds the weights as long as it needs them, the layers hold none."""
        for layer in self.layers:
            layer["weight"] = _NO_WEIGHT


class _UnpackedBlock:
    """Has weights while it computes.

    Attributes:
        packed, plain: of each packed linear, what stands in its place outside and inside.
    """

    def __init__(self, block: Block):
        self._block = block
        kinds: dict[tuple[Any, ...], list[Linear]] = {}
        for linear in block.linears:
            layer = linear.module
            if isinstance(layer, PackedLinear):
                kind = (layer.bits, layer.group_size, layer.scales.dtype)
                kinds.setdefault(kind, []).append(linear)
        linears = [linear for of_kind in kinds.values() for linear in of_kind]
        self._joints = [_Joint([one.module for one in of_kind]) for of_kind in kinds.values()]
        self.packed = [(linear, linear.module) for linear in linears]
        layers = [layer for joint in self._joints for layer in joint.layers]
        self.plain = list(zip(linears, layers, strict=True))

    def __call__(self, streams: Streams, positions: mx.array | None) -> tuple[mx.array, ...]:
        for joint in self._joints:
            joint.unpack(streams[0].dtype)
        try:
            return self._block(streams, positions)
        finally:
            for joint in self._joints:
                joint.forget()


def _put(layers: Sequence[tuple[Linear, nn.Module]]) -> None:
    for linear, layer in layers:
        set_linear(linear, layer)


@contextmanager
def blocks_unpacked(model: Network) -> Iterator[None]:
    """Within the context, the `PackedLinear`s of each block are unpacked together when it runs.

    Their packed weights are moved into joint storage, of the same size, and stay there. On Metal,
    whose kernels read packed weights themselves, everything is left as it is.
    """
    if backend_name() == "metal":
        yield
        return
    replaced: list[_UnpackedBlock] = []

    def replace(block: Block) -> _UnpackedBlock:
        replaced.append(_UnpackedBlock(block))
        _put(replaced[-1].plain)
        return replaced[-1]

    try:
        with model.blocks_replaced(replace):
            yield
    finally:
        for block in replaced:
            _put(block.packed)
