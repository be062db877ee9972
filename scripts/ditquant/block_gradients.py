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

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

from .backend import backend_name, is_accelerated, mx, nn
from .blocks import Block

# ---------------------------------------------------------------------------------------- GELU

# erf(x) = x P(x^2) / Q(x^2) on |x| <= 4, highest power first: XLA's coefficients, to 4e-7.
_ERF_P = (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
    -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
)  # fmt: skip
_ERF_Q = (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
    -1.42647390514189e-02,
)  # fmt: skip
# exp(-u) / (2 pi)^(1/32) on 0 <= u <= 1, highest power first: Chebyshev's interpolation, to 2e-8.
_EXP = (
    8.016200966462098e-04, -7.227095326365022e-03, 3.892241870095603e-02, -1.5722104424580052e-01,
    4.720687450797288e-01, -9.441830672007083e-01, 9.441845122145125e-01,
)  # fmt: skip


def _polynomial(x: mx.array, coefficients: tuple[float, ...]) -> mx.array:
    first, second, *rest = coefficients
    value = first * x + second
    for coefficient in rest:
        value = value * x + coefficient
    return value


def _normal_cdf(x: mx.array) -> mx.array:
    """Phi(x), by products, sums and one quotient."""
    x = mx.clip(x * math.sqrt(0.5), -4.0, 4.0)
    square = x * x
    return 0.5 + 0.5 * x * (_polynomial(square, _ERF_P) / _polynomial(square, _ERF_Q))


def _normal_density(x: mx.array) -> mx.array:
    """exp(-x^2 / 2) / sqrt(2 pi); beyond |x| = 5.7, where it is below 5e-8, it stays so."""
    # exp(-t) = exp(-t / 16)^16, by four squarings.
    value = _polynomial(mx.minimum(x * x * (1 / 32), 1.0), _EXP)
    for _ in range(4):
        value = value * value
    return value


@mx.custom_function
def _gelu_and_cdf(x: mx.array) -> tuple[mx.array, mx.array]:
    cdf = _normal_cdf(x)
    return x * cdf, cdf


@_gelu_and_cdf.vjp
def _gelu_vjp(x: mx.array, slopes: Sequence[mx.array], outputs: Sequence[mx.array]) -> mx.array:
    return slopes[0] * (outputs[1] + x * _normal_density(x))


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
    except RuntimeError:
        return 1


@contextmanager
def cheap_gradients(block: Block, multiple: int | None = None) -> Iterator[None]:
    """Within the context the block computes with what is cheap to differentiate here.

    Args:
        multiple: of tokens, for attention in 16 bits; None: `attention_multiple()`.
    """
    to_fill = attention_multiple() if multiple is None else multiple
    attend: Callable[..., mx.array] = block.module.sdpa

    def attend_filled(q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
        if to_fill == 1 or q.dtype == mx.float32:
            return attend(q=q, k=k, v=v, scale=scale)
        return padded_attention(q, k, v, scale, to_fill)

    def activate(x: mx.array) -> mx.array:
        return gelu(x) if x.dtype == mx.float32 else nn.gelu(x)

    streams = [] if is_accelerated() else block.streams.values()
    mlps = [stream.mlp for stream in streams if _has_exact_gelu(stream)]
    before = [mlp.act_fn for mlp in mlps]
    block.module.sdpa = attend_filled
    for mlp in mlps:
        mlp.act_fn = activate
    try:
        yield
    finally:
        block.module.sdpa = attend
        for mlp, function in zip(mlps, before, strict=True):
            mlp.act_fn = function


def _has_exact_gelu(stream: nn.Module) -> bool:
    # The last text block of SD3 has no mlp.
    function = getattr(getattr(stream, "mlp", None), "act_fn", None)
    return isinstance(function, nn.GELU) and function._approx == "none"
