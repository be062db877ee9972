"""GELU and attention whose gradients cost less, for a block that is learned on.

While MLX differentiates, its compiled functions run operation by operation, and what a gradient may
read stays in memory. Two places of a block pay for that most:

* GELU on the Linux CPU, where `erf`, `exp` and powers are computed one by one: 50 ns an element
  for value and gradient. Rational functions and polynomials take a third of that.
* Attention on CUDA: MLX has a fused gradient only for a multiple of 128 queries. SD3's 1,024 image
  and 154 text tokens are none, and the gradient of the plain products keeps matrices of
  1178 x 1178 for every head and row. Here tokens that no query looks at fill the last tile.

Results differ from DiffusionKit's own by float rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

from ..backend import backend_name, is_accelerated, mx, nn, normal_cdf, normal_density
from ..network.blocks import Block, Stream

# ---------------------------------------------------------------------------------------- GELU


@mx.custom_function
def _gelu_and_cdf(x: mx.array) -> tuple[mx.array, mx.array]:
    cdf = normal_cdf(x)
    return x * cdf, cdf


@_gelu_and_cdf.vjp
def _gelu_vjp(x: mx.array, slopes: Sequence[mx.array], outputs: Sequence[mx.array]) -> mx.array:
    return slopes[0] * (outputs[1] + x * normal_density(x))


def gelu(x: mx.array) -> mx.array:
    """x Phi(x), like `nn.gelu`; float32, for the CPU."""
    return _gelu_and_cdf(x)[0]


# ----------------------------------------------------------------------------------- attention

# What a query that is filled up adds to a score: exp(-30000) is 0, and float16 holds it.
_UNSEEN = -30000.0


def padded_attention(
    q: mx.array, k: mx.array, v: mx.array, scale: float, multiple: int
) -> mx.array:
    """`mx.fast.scaled_dot_product_attention` on tokens filled up to a multiple.

    Args:
        q, k, v: (B, heads, tokens, channels).

    Returns:
        (B, heads, tokens, channels).
    """
    attend = mx.fast.scaled_dot_product_attention
    tokens = q.shape[2]
    extra = -tokens % multiple
    if extra == 0:
        return attend(q, k, v, scale=scale)
    filled = [mx.pad(x, [(0, 0), (0, 0), (0, extra), (0, 0)]) for x in (q, k, v)]
    seen = mx.arange(tokens + extra) < tokens
    mask = mx.where(seen, 0.0, _UNSEEN).astype(q.dtype)
    mask = mx.repeat(mask[None], tokens + extra, axis=0)
    return attend(*filled, scale=scale, mask=mask)[:, :, :tokens]


@cache
def attention_multiple() -> int:
    """To how many tokens attention is filled up here: 128 where that gives a fused gradient, or 1.

    Tried out once a process, since it depends on the GPU and on cuDNN.
    """
    if backend_name() != "cuda":
        return 1

    def total(x: mx.array, multiple: int) -> mx.array:
        out = padded_attention(x, 2 * x, -x, 0.125, multiple)
        return (out.astype(mx.float32) ** 2).sum()

    x = mx.random.normal((1, 2, 250, 64), key=mx.random.key(0)).astype(mx.float16)
    try:
        slopes = [mx.grad(total)(x, multiple).astype(mx.float32) for multiple in (128, 1)]
        error = mx.max(mx.abs(slopes[0] - slopes[1])) / mx.max(mx.abs(slopes[1]))
        return 128 if error.item() < 0.02 else 1
    except (RuntimeError, ValueError):
        return 1


@contextmanager
def cheap_gradients(block: Block, multiple: int | None = None) -> Iterator[None]:
    """Within the context the block computes with what is cheap to differentiate here.

    Args:
        multiple: of tokens, for attention in 16 bits; None: `attention_multiple()`.
    """
    to_fill = attention_multiple() if multiple is None else multiple
    attend = block.attention

    def attend_filled(q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
        if to_fill == 1 or q.dtype == mx.float32:
            return attend(q=q, k=k, v=v, scale=scale)
        return padded_attention(q, k, v, scale, to_fill)

    def activate(x: mx.array) -> mx.array:
        return gelu(x) if x.dtype == mx.float32 else nn.gelu(x)

    streams = [] if is_accelerated() else block.streams.values()
    exact = [stream for stream in streams if _has_exact_gelu(stream)]
    before = [stream.activation for stream in exact]
    block.attention = attend_filled
    for stream in exact:
        stream.activation = activate
    try:
        yield
    finally:
        block.attention = attend
        for stream, function in zip(exact, before, strict=True):
            stream.activation = function


def _has_exact_gelu(stream: Stream) -> bool:
    function = stream.activation
    return isinstance(function, nn.GELU) and function._approx == "none"
