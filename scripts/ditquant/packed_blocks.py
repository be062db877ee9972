"""Blocks of packed linears that unpack all their weights at once.

On an H200 the host prepares a forward pass of SD3-medium more slowly than the device computes it,
and unpacking layer by layer adds an operation for each of its 285 layers. Here the codes of a
block's layers lie one after the other, and one operation for each number of bits unpacks them all,
into a temporary that is gone when the block is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .backend import mx, nn
from .blocks import Block, InPlace, blocks_replaced, walk_linears
from .grids import Packed
from .quantized import PackedLinear, unpack


class _Joint:
    """Layers whose packed weights, of the same bits and group size, lie one after the other."""

    def __init__(self, layers: Sequence[PackedLinear]):
        # As rows of one group each: the layers differ in their numbers of inputs.
        bits, group_size = layers[0].bits, layers[0].group_size
        words = group_size * bits // 32
        self._packed = Packed(
            weight=mx.concatenate([layer.weight.reshape(-1, words) for layer in layers]),
            scales=mx.concatenate([layer.scales.reshape(-1, 1) for layer in layers]),
            biases=mx.concatenate([layer.biases.reshape(-1, 1) for layer in layers]),
            bits=bits,
            group_size=group_size,
        )
        self._layers: list[tuple[PackedLinear, slice, tuple[int, int]]] = []
        start = 0
        for layer in layers:
            groups = layer.scales.size
            shape = (layer.scales.shape[0], layer.scales.shape[1] * group_size)
            self._layers.append((layer, slice(start, start + groups), shape))
            start += groups
        self._share()

    def _share(self) -> None:
        """Makes the layers' own arrays views of the joint ones, so that there is one copy."""
        mx.eval(self._packed.weight, self._packed.scales, self._packed.biases)
        for layer, part, _ in self._layers:
            layer.weight = self._packed.weight[part].reshape(layer.weight.shape)
            layer.scales = self._packed.scales[part].reshape(layer.scales.shape)
            layer.biases = self._packed.biases[part].reshape(layer.biases.shape)
            mx.eval(layer.weight, layer.scales, layer.biases)

    def lend(self) -> None:
        values = unpack(self._packed)
        for layer, part, shape in self._layers:
            layer.lend(values[part].reshape(shape))

    def end(self) -> None:
        for layer, _, _ in self._layers:
            layer.lend(None)


class _UnpackedBlock(InPlace):
    """Unpacks its layers' weights for as long as it computes."""

    def __init__(self, block: Block):
        super().__init__(block)
        kinds: dict[tuple[Any, ...], list[PackedLinear]] = {}
        for linear in walk_linears(block):
            layer = linear.module
            if isinstance(layer, PackedLinear):
                kind = (layer.bits, layer.group_size, layer.scales.dtype)
                kinds.setdefault(kind, []).append(layer)
        self._joints = [_Joint(layers) for layers in kinds.values()]

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        for joint in self._joints:
            joint.lend()
        try:
            return self._block.module(*arguments, **options)
        finally:
            for joint in self._joints:
                joint.end()


@contextmanager
def blocks_unpacked(model: nn.Module) -> Iterator[None]:
    """Within the context, the `PackedLinear`s of each block are unpacked together when it runs.

    Their packed weights are moved into joint storage, of the same size, and stay there.
    """
    with blocks_replaced(model, _UnpackedBlock):
        yield
