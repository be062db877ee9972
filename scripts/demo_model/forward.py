"""The forward passes of training: the mathematics of DiffusionKit's modules, laid out for speed.

DiffusionKit keeps tokens as (batch, tokens, 1, channels). MLX on CUDA turns a matrix product with
such an operand into batch * tokens products of one row, which makes a training step of the demo
model ten times slower than its arithmetic. Here every product is of two matrices, a batch has a
noise level for each picture, and the element-wise chains with a costly gradient (GELU, modulation,
gate) are single kernels both ways. The tests hold these functions to DiffusionKit's own modules.

All functions take parameters as a flat dict, module path to array, and compute in their dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ditquant.backend import compiled, mx, nn

Params = Mapping[str, mx.array]

LAYER_NORM_EPS = 1e-6  # MMDiTConfig.layer_norm_eps
CLIP_NORM_EPS = 1e-5  # mlx.nn.LayerNorm
MASKED = -6e4  # CLIPTextModel._get_mask in half precision
FREQUENCIES, MAX_PERIOD = 256, 10_000.0  # MMDiTConfig
TIMESTEPS = 1000.0  # a noise level sigma in 0..1 is embedded as the time step 1000 sigma


def dense(params: Params, path: str, x: mx.array) -> mx.array:
    """x (rows, in) through the linear layer at `path`: (rows, out)."""
    weight = params[f"{path}.weight"]
    bias = params.get(f"{path}.bias")
    return x @ weight.T if bias is None else mx.addmm(bias, x, weight.T)


def fused(
    forwards: Callable[..., mx.array], backwards: Callable[..., tuple[mx.array, ...]]
) -> Callable[..., mx.array]:
    """An element-wise function of one kernel forwards and one backwards.

    Args:
        forwards: of arrays (batch, tokens, channels) or (batch, 1, channels).
        backwards: of the outer gradient and the same arrays: the gradient of each, before the sum
            over the tokens of those that have one.
    """
    forward_kernel, backward_kernel = compiled(forwards), compiled(backwards)

    @mx.custom_function
    def function(*inputs: mx.array) -> mx.array:
        return forward_kernel(*inputs)

    @function.vjp
    def gradients(inputs: Any, outer: mx.array, _: mx.array) -> tuple[mx.array, ...]:
        inputs = inputs if isinstance(inputs, tuple | list) else (inputs,)
        return tuple(
            slope if slope.shape == x.shape else slope.sum(axis=1, keepdims=True)
            for slope, x in zip(backward_kernel(outer, *inputs), inputs, strict=True)
        )

    return function


def _gelu_slope(outer: mx.array, x: mx.array) -> tuple[mx.array]:
    density = mx.exp(x * x * -0.5) * (1 / math.sqrt(2 * math.pi))
    return (outer * ((1 + mx.erf(x * math.sqrt(0.5))) * 0.5 + x * density),)


# Exact GELU.
gelu = fused(lambda x: x * (1 + mx.erf(x * math.sqrt(0.5))) * 0.5, _gelu_slope)
# x * (1 + scale) + shift.
modulate = fused(
    lambda x, shift, scale: x * (1 + scale) + shift,
    lambda outer, x, shift, scale: (outer * (1 + scale), outer, outer * x),
)
# residual + gate * update.
gated = fused(
    lambda residual, gate, update: residual + gate * update,
    lambda outer, residual, gate, update: (outer, outer * update, outer * gate),
)


def _rows_of(table: mx.array, ids: mx.array) -> mx.array:
    """table[ids] as a product with a one-hot matrix.

    The gradient of indexing adds thousands of rows to the few that captions share, one atomic
    addition after the other; the gradient of a product is a product.
    """
    hot = ids.reshape(-1, 1) == mx.arange(len(table))
    return (hot.astype(table.dtype) @ table).reshape(*ids.shape, -1)


def _norm(x: mx.array) -> mx.array:
    return mx.fast.layer_norm(x, None, None, LAYER_NORM_EPS)


def _heads(x: mx.array, batch: int, heads: int) -> mx.array:
    return x.reshape(batch, -1, heads, x.shape[-1] // heads)


def _mlp(params: Params, path: str, x: mx.array) -> mx.array:
    return dense(params, f"{path}.layers.2", nn.silu(dense(params, f"{path}.layers.0", x)))


def time_embedding(sigma: mx.array) -> mx.array:
    """Sinusoidal embedding of noise levels (batch,): float32 (batch, 256)."""
    half = FREQUENCIES // 2
    frequencies = mx.exp(-math.log(MAX_PERIOD) / half * mx.arange(half, dtype=mx.float32))
    angles = TIMESTEPS * sigma[:, None] * frequencies[None]
    return mx.concatenate([mx.cos(angles), mx.sin(angles)], axis=-1)


def patchify(latents: mx.array) -> mx.array:
    """(batch, height, width, channels) -> (batch, tokens, 4 channels): 2 x 2 patches by rows."""
    b, h, w, c = latents.shape
    tokens = latents.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    return tokens.reshape(b, h * w // 4, 4 * c)


def _positions(params: Params, tokens: int) -> mx.array:
    """The middle of the learned table, which has room for larger pictures: (1, tokens, hidden)."""
    table = params["x_pos_embedder.pos_embed.weight"]
    full, side = math.isqrt(table.shape[0]), math.isqrt(tokens)
    first = (full - side) // 2
    middle = slice(first, first + side)
    return table.reshape(full, full, -1)[middle, middle].reshape(1, tokens, -1)


def velocity(
    params: Params, heads: int, x: mx.array, sigma: mx.array, context: mx.array, pooled: mx.array
) -> mx.array:
    """The MM-DiT's velocity for a batch with a noise level for each picture.

    Args:
        params: flat parameters of DiffusionKit's `MMDiT`.
        heads: attention heads.
        x: noisy latents in patches, (batch, tokens, 64): see `patchify`.
        sigma: noise levels, float32 (batch,).
        context: token embeddings, (batch, text tokens, width).
        pooled: pooled text embedding, (batch, width).

    Returns:
        The predicted `noise - latents` in patches, (batch, tokens, 64).
    """
    batch, tokens, width = x.shape
    embed = params["x_embedder.proj.weight"]
    hidden = embed.shape[0]
    patches = x.reshape(-1, width)
    image = mx.addmm(params["x_embedder.proj.bias"], patches, embed.reshape(hidden, -1).T)
    image = image.reshape(batch, tokens, hidden) + _positions(params, tokens)
    text = dense(params, "context_embedder", context.reshape(-1, context.shape[-1]))
    text = text.reshape(batch, -1, hidden)
    time = time_embedding(sigma).astype(x.dtype)
    condition = nn.silu(
        _mlp(params, "y_embedder.mlp", pooled) + _mlp(params, "t_embedder.mlp", time)
    )

    def modulation(path: str) -> list[mx.array]:
        linear = dense(params, f"{path}.adaLN_modulation.layers.1", condition)
        return mx.split(linear[:, None], linear.shape[-1] // hidden, axis=-1)

    def attention_inputs(path: str, stream: mx.array, shift: mx.array, scale: mx.array) -> mx.array:
        rows = modulate(_norm(stream), shift, scale).reshape(-1, hidden)
        q, k, v = (f"{path}.attn.{name}_proj" for name in "qkv")
        weight = mx.concatenate([params[f"{name}.weight"] for name in (q, k, v)])
        value_bias = params[f"{v}.bias"]
        bias = mx.concatenate([params[f"{q}.bias"], mx.zeros_like(value_bias), value_bias])
        return mx.addmm(bias, rows, weight.T).reshape(batch, -1, 3 * hidden)

    def finish(path: str, stream: mx.array, attended: mx.array, chunks: list) -> mx.array:
        gate1, shift2, scale2, gate2 = chunks
        update = dense(params, f"{path}.attn.o_proj", attended.reshape(-1, hidden))
        stream = gated(stream, gate1, update.reshape(stream.shape))
        rows = modulate(_norm(stream), shift2, scale2).reshape(-1, hidden)
        rows = dense(params, f"{path}.mlp.fc2", gelu(dense(params, f"{path}.mlp.fc1", rows)))
        return gated(stream, gate2, rows.reshape(stream.shape))

    depth = 1 + max(int(name.split(".")[1]) for name in params if name.startswith("multimodal"))
    for index in range(depth):
        block = f"multimodal_transformer_blocks.{index}"
        image_path = f"{block}.image_transformer_block"
        text_path = f"{block}.text_transformer_block"
        image_chunks, text_chunks = modulation(image_path), modulation(text_path)
        image_qkv = attention_inputs(image_path, image, *image_chunks[:2])
        text_qkv = attention_inputs(text_path, text, *text_chunks[:2])
        joined = mx.concatenate([image_qkv, text_qkv], axis=1)
        q, k, v = (
            _heads(part, batch, heads).transpose(0, 2, 1, 3)
            for part in mx.split(joined, 3, axis=-1)
        )
        attended = mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5)
        attended = attended.transpose(0, 2, 1, 3)
        image = finish(image_path, image, attended[:, :tokens], image_chunks[2:])
        if text_chunks[2:]:  # the last text block ends after its attention inputs
            text = finish(text_path, text, attended[:, tokens:], text_chunks[2:])

    shift, scale = modulation("final_layer")
    rows = modulate(_norm(image), shift, scale).reshape(-1, hidden)
    return dense(params, "final_layer.linear", rows).reshape(batch, tokens, width)


def encode_text(params: Params, heads: int, tokens: mx.array) -> tuple[mx.array, mx.array]:
    """The CLIP text model: token ids (batch, length) to what the MM-DiT reads.

    Returns:
        The output of the last layer but one, (batch, length, width), and the pooled output at the
        end token, projected, (batch, projection).
    """
    batch, length = tokens.shape
    x = _rows_of(params["token_embedding.weight"], tokens)
    x = x + params["position_embedding.weight"][:length]
    width = x.shape[-1]
    places = mx.arange(length)
    mask = ((places[:, None] < places[None]) * MASKED).astype(x.dtype)

    def norm(path: str, x: mx.array) -> mx.array:
        weight, bias = params[f"{path}.weight"], params[f"{path}.bias"]
        return mx.fast.layer_norm(x, weight, bias, CLIP_NORM_EPS)

    hidden_states = []
    depth = 1 + max(int(name.split(".")[1]) for name in params if name.startswith("layers."))
    for index in range(depth):
        layer = f"layers.{index}"
        rows = norm(f"{layer}.layer_norm1", x).reshape(-1, width)
        q, k, v = (
            _heads(dense(params, f"{layer}.attention.{name}_proj", rows), batch, heads)
            for name in ("query", "key", "value")
        )
        attended = mx.fast.scaled_dot_product_attention(
            *(part.transpose(0, 2, 1, 3) for part in (q, k, v)),
            scale=q.shape[-1] ** -0.5,
            mask=mask,
        )
        rows = attended.transpose(0, 2, 1, 3).reshape(-1, width)
        x = x + dense(params, f"{layer}.attention.out_proj", rows).reshape(x.shape)
        rows = dense(params, f"{layer}.linear1", norm(f"{layer}.layer_norm2", x).reshape(-1, width))
        rows = dense(params, f"{layer}.linear2", nn.gelu_fast_approx(rows))
        x = x + rows.reshape(x.shape)
        hidden_states.append(x)
    last = norm("final_layer_norm", x)[mx.arange(batch), tokens.argmax(-1)]
    return hidden_states[-2], last @ params["text_projection.weight"].T
