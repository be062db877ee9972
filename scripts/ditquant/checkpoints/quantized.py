"""Linear layers that run on packed weights.

A packed weight can be multiplied in two ways, which agree to rounding:

    kernel        `mx.quantized_matmul` reads the packed codes. Best for a few rows, where reading
                  the weight is all the work: the modulation of a guided pair has two.
    dequantizing  the weight is unpacked into a temporary of the activations' dtype and multiplied
                  by the matrix units. Best for the thousands of rows of a stream: one more pass
                  over the weight, and then the full speed of float16.

Which one is faster depends on the backend, so `KERNEL_ROWS` says up to how many rows the kernel is
used. It is a table and not a measurement at run time: the two ways differ in their last bits, and a
run must give the same bits again. `benchmarks/kernel_rows.py` measures the table anew.

`packed_blocks` unpacks all layers of a block at once. (Stacking query, key and value of a stream
into one packed weight, unpacking by fused shifts and by an own CUDA kernel were slower on an H200:
benchmarks/results/forward_time.md.)
"""

from __future__ import annotations

from collections.abc import Callable

from ..backend import backend_name, mx, nn
from ..weights.grids import Packed
from ..weights.rotation import InputRotation

Product = Callable[[mx.array, Packed, mx.array | None], mx.array]

# Rows of activations up to which the kernel is the faster way, by backend and by whether the
# activations are float32 (on a CPU half precision has no vector units and the kernel is never it).
KERNEL_ROWS = {
    ("cpu", "float32"): 16,
    ("cpu", "half"): 0,
    # CUDA: for a few rows the kernel is as fast or faster, but its variants are compiled on first
    # use, which takes minutes and more than it can save; benchmarks/results/forward_time.md.
    ("cuda", "float32"): 0,
    ("cuda", "half"): 0,
    # MLX's Metal kernels unpack inside the product at every size; there is nothing to gain.
    ("metal", "float32"): 2**31,
    ("metal", "half"): 2**31,
}


def kernel_product(x: mx.array, packed: Packed, bias: mx.array | None) -> mx.array:
    """x W^T + bias by MLX's kernel for packed weights; see `packed_product`."""
    y = mx.quantized_matmul(
        x,
        packed.weight,
        packed.scales,
        packed.biases,
        transpose=True,
        group_size=packed.group_size,
        bits=packed.bits,
    )
    return y if bias is None else y + bias


def unpack(packed: Packed) -> mx.array:
    """The values, (rows, columns) in the dtype of the scales."""
    return mx.dequantize(
        packed.weight, packed.scales, packed.biases, packed.group_size, packed.bits
    )


def dequantized_product(x: mx.array, packed: Packed, bias: mx.array | None) -> mx.array:
    """x W^T + bias with W unpacked into the dtype of x; see `packed_product`."""
    weight = unpack(packed)
    if weight.dtype != x.dtype:
        weight = weight.astype(x.dtype)
    return x @ weight.T if bias is None else mx.addmm(bias, x, weight.T)


def takes_kernel(x: mx.array) -> bool:
    """Whether MLX's kernel is the faster way for x (rows, inputs)."""
    kind = "float32" if x.dtype == mx.float32 else "half"
    return bool(x.shape[0] <= KERNEL_ROWS[backend_name(), kind])


def packed_product(x: mx.array, packed: Packed, bias: mx.array | None = None) -> mx.array:
    """x W^T + bias for a packed W, by the way that is faster here for as many rows.

    Args:
        x: (rows, inputs), floating point.
        packed: of (outputs, inputs).
        bias: (outputs,) in the dtype of x, or None.

    Returns:
        (rows, outputs), in the dtype of x unless scales or bias promote it.
    """
    product = kernel_product if takes_kernel(x) else dequantized_product
    return product(x, packed, bias)


def _on_rows(x: mx.array, product: Callable[[mx.array], mx.array]) -> mx.array:
    """Applies `product` to (..., inputs) as (rows, inputs), keeping the dtype of x.

    Rows are joined because CUDA makes one small product of each row of a (B, tokens, 1, inputs)
    stream; float16 scales would promote bfloat16 to float32.
    """
    y = product(x.reshape(-1, x.shape[-1]))
    y = y.reshape(*x.shape[:-1], y.shape[-1])
    return y if y.dtype == x.dtype else y.astype(x.dtype)


class PackedLinear(nn.QuantizedLinear):
    """A linear layer with a packed weight, for streams (B, tokens, 1, inputs) of any float dtype.

    Parameters and names are those of `nn.QuantizedLinear`; what differs is how it multiplies.

    Args:
        packed: of (outputs, inputs).
        bias: (outputs,) in the dtype of the activations, or None.
        product: how to multiply.
        rotation: of the input, for a weight that was rotated before it was packed, or None.
    """

    def __init__(
        self,
        packed: Packed,
        bias: mx.array | None = None,
        product: Product = packed_product,
        rotation: InputRotation | None = None,
    ):
        # `nn.QuantizedLinear` would draw a random weight to quantize.
        nn.Module.__init__(self)
        self.group_size, self.bits, self.mode = packed.group_size, packed.bits, "affine"
        self.weight, self.scales, self.biases = packed.weight, packed.scales, packed.biases
        if bias is not None:
            self.bias = bias
        self._multiply = product
        self.rotation = rotation
        self.freeze()

    @property
    def packed(self) -> Packed:
        return Packed(self.weight, self.scales, self.biases, self.bits, self.group_size)

    def product(self, x: mx.array) -> mx.array:
        """Of an input that is rotated already, if it has to be."""
        bias = self.bias if "bias" in self else None
        return _on_rows(x, lambda rows: self._multiply(rows, self.packed, bias))

    def __call__(self, x: mx.array) -> mx.array:
        return self.product(x if self.rotation is None else self.rotation(x))
