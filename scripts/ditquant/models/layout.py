"""Tensor names: DiffusionKit's module paths, and the files that the original models ship in.

Stable Diffusion 3 is published as ONE safetensors file in the layout of its first implementation:
the MM-DiT under `model.diffusion_model.`, the VAE under `first_stage_model.`, convolutions as
(out, in, height, width), query, key and value fused into one matrix. Its text encoders come in
Hugging Face's names. DiffusionKit translates both while loading (`mmdit_state_dict_adjustments`,
`vae_*_state_dict_adjustments` and `map_clip_text_encoder_weights` of `model_io.py`). This module
is the exact inverse, as ordered tables: the first pattern that matches a whole name says what the
file calls the tensor and how its axes are laid out. A name that no pattern knows is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal

from ..backend import mx

MMDIT_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."

Tensors = dict[str, mx.array]
Rule = tuple[str, str, Callable[[mx.array], mx.array]]


def _same(tensor: mx.array) -> mx.array:
    return tensor


def _oihw(tensor: mx.array) -> mx.array:
    """(O, H, W, I), MLX's layout of a convolution -> (O, I, H, W), PyTorch's."""
    return tensor.transpose(0, 3, 1, 2)


def _pointwise(tensor: mx.array) -> mx.array:
    """(O, I): a linear layer that the file holds as a 1 x 1 convolution -> (O, I, 1, 1)."""
    return tensor[:, :, None, None]


def _batched(tensor: mx.array) -> mx.array:
    """(positions, hidden) -> (1, positions, hidden)."""
    return tensor[None]


_BLOCK = r"multimodal_transformer_blocks\.(\d+)\."
_STREAMS = {"image_transformer_block": "x_block", "text_transformer_block": "context_block"}
_QKV = re.compile(_BLOCK + r"(\w+_transformer_block)\.attn\.([qkv])_proj\.(weight|bias)")


def _block_rules(stream: str, name: str) -> list[Rule]:
    inside = _BLOCK + stream + r"\."
    to = rf"joint_blocks.\1.{name}."
    return [
        (inside + r"attn\.o_proj\.(\w+)", to + r"attn.proj.\2", _same),
        (inside + r"qk_norm\.([qk])_norm\.weight", to + r"attn.ln_\2.weight", _same),
        (inside + r"mlp\.(fc[12])\.(\w+)", to + r"mlp.\2.\3", _same),
        (inside + r"adaLN_modulation\.layers\.1\.(\w+)", to + r"adaLN_modulation.1.\2", _same),
    ]


MMDIT_RULES: list[Rule] = [
    (r"x_embedder\.proj\.weight", "x_embedder.proj.weight", _oihw),
    (r"x_embedder\.proj\.bias", "x_embedder.proj.bias", _same),
    (r"x_pos_embedder\.pos_embed\.weight", "pos_embed", _batched),
    (r"([ty])_embedder\.mlp\.layers\.(\d)\.(\w+)", r"\1_embedder.mlp.\2.\3", _same),
    (r"context_embedder\.(\w+)", r"context_embedder.\1", _same),
    *_block_rules("image_transformer_block", "x_block"),
    *_block_rules("text_transformer_block", "context_block"),
    (r"final_layer\.linear\.(\w+)", r"final_layer.linear.\1", _same),
    (
        r"final_layer\.adaLN_modulation\.layers\.1\.(\w+)",
        r"final_layer.adaLN_modulation.1.\1",
        _same,
    ),
]


# Names common to the encoder and the decoder; `{}` stands for `down` or `up`.
_RESNET = r"{}_blocks\.(\d+)\.resnets\.(\d+)\."
_TO_RESNET = r"{}.\1.block.\2."
_VAE_RULES: list[Rule] = [
    (r"(conv_in|conv_out)\.weight", r"\1.weight", _oihw),
    (r"(conv_in|conv_out)\.bias", r"\1.bias", _same),
    (r"conv_norm_out\.(\w+)", r"norm_out.\1", _same),
    (r"mid_blocks\.0\.(conv\d)\.weight", r"mid.block_1.\1.weight", _oihw),
    (r"mid_blocks\.0\.(\w+\.\w+)", r"mid.block_1.\1", _same),
    (r"mid_blocks\.2\.(conv\d)\.weight", r"mid.block_2.\1.weight", _oihw),
    (r"mid_blocks\.2\.(\w+\.\w+)", r"mid.block_2.\1", _same),
    (r"mid_blocks\.1\.group_norm\.(\w+)", r"mid.attn_1.norm.\1", _same),
    (r"mid_blocks\.1\.query_proj\.weight", "mid.attn_1.q.weight", _pointwise),
    (r"mid_blocks\.1\.key_proj\.weight", "mid.attn_1.k.weight", _pointwise),
    (r"mid_blocks\.1\.value_proj\.weight", "mid.attn_1.v.weight", _pointwise),
    (r"mid_blocks\.1\.out_proj\.weight", "mid.attn_1.proj_out.weight", _pointwise),
    (r"mid_blocks\.1\.query_proj\.bias", "mid.attn_1.q.bias", _same),
    (r"mid_blocks\.1\.key_proj\.bias", "mid.attn_1.k.bias", _same),
    (r"mid_blocks\.1\.value_proj\.bias", "mid.attn_1.v.bias", _same),
    (r"mid_blocks\.1\.out_proj\.bias", "mid.attn_1.proj_out.bias", _same),
    (_RESNET + r"conv_shortcut\.weight", _TO_RESNET + "nin_shortcut.weight", _pointwise),
    (_RESNET + r"conv_shortcut\.bias", _TO_RESNET + "nin_shortcut.bias", _same),
    (_RESNET + r"(conv\d)\.weight", _TO_RESNET + r"\3.weight", _oihw),
    (_RESNET + r"(\w+\.\w+)", _TO_RESNET + r"\3", _same),
    (r"{}_blocks\.(\d+)\.{}sample\.weight", r"{}.\1.{}sample.conv.weight", _oihw),
    (r"{}_blocks\.(\d+)\.{}sample\.bias", r"{}.\1.{}sample.conv.bias", _same),
]
VAE_RULES = {
    part: [(old.replace("{}", way), new.replace("{}", way), axes) for old, new, axes in _VAE_RULES]
    for part, way in (("encoder", "down"), ("decoder", "up"))
}

_CLIP_LAYER = r"layers\.(\d+)\."
_TO_CLIP_LAYER = r"text_model.encoder.layers.\1."
CLIP_RULES: list[Rule] = [
    (r"(token|position)_embedding\.weight", r"text_model.embeddings.\1_embedding.weight", _same),
    (_CLIP_LAYER + r"(layer_norm[12])\.(\w+)", _TO_CLIP_LAYER + r"\2.\3", _same),
    (_CLIP_LAYER + r"attention\.query_proj\.(\w+)", _TO_CLIP_LAYER + r"self_attn.q_proj.\2", _same),
    (_CLIP_LAYER + r"attention\.key_proj\.(\w+)", _TO_CLIP_LAYER + r"self_attn.k_proj.\2", _same),
    (_CLIP_LAYER + r"attention\.value_proj\.(\w+)", _TO_CLIP_LAYER + r"self_attn.v_proj.\2", _same),
    (_CLIP_LAYER + r"attention\.out_proj\.(\w+)", _TO_CLIP_LAYER + r"self_attn.out_proj.\2", _same),
    (_CLIP_LAYER + r"linear([12])\.(\w+)", _TO_CLIP_LAYER + r"mlp.fc\2.\3", _same),
    (r"final_layer_norm\.(\w+)", r"text_model.final_layer_norm.\1", _same),
    (r"text_projection\.weight", "text_projection.weight", _same),
]


def _translate(name: str, tensor: mx.array, rules: list[Rule]) -> tuple[str, mx.array]:
    for pattern, replacement, axes in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement), axes(tensor)
    raise ValueError(f"the file layout has no name for the tensor {name!r}")


def _fused_qkv(params: Mapping[str, mx.array]) -> Tensors:
    """q, k and v of every attention, stacked along the output axis; the key has no bias: zeros."""
    fused: Tensors = {}
    for name, tensor in params.items():
        match = _QKV.fullmatch(name)
        if match is None or match[3] != "q":
            continue
        block, stream, _, kind = match.groups()
        path = f"multimodal_transformer_blocks.{block}.{stream}.attn."
        key = mx.zeros_like(tensor) if kind == "bias" else params[f"{path}k_proj.weight"]
        value = params[f"{path}v_proj.{kind}"]
        target = f"joint_blocks.{block}.{_STREAMS[stream]}.attn.qkv.{kind}"
        fused[target] = mx.concatenate([tensor, key, value], axis=0)
    return fused


def mmdit_to_single_file(params: Mapping[str, mx.array]) -> Tensors:
    """An MM-DiT of the SD3 family under the names and axes of the original single file.

    Args:
        params: flat parameters of DiffusionKit's `MMDiT` (`dict(tree_flatten(m.parameters()))`),
            any dtype, with learned positions and no unified blocks.

    Returns:
        Tensors of the same dtype, prefixed `model.diffusion_model.`.

    Raises:
        ValueError: a parameter has no place in that layout (FLUX's unified blocks, for example).
    """
    tensors = _fused_qkv(params)
    rest = {name: tensor for name, tensor in params.items() if not _QKV.fullmatch(name)}
    tensors |= dict(_translate(name, tensor, MMDIT_RULES) for name, tensor in rest.items())
    return {MMDIT_PREFIX + name: tensor for name, tensor in tensors.items()}


def vae_to_single_file(
    params: Mapping[str, mx.array], part: Literal["encoder", "decoder"]
) -> Tensors:
    """One half of the VAE under the names and axes of the original single file.

    Args:
        params: flat parameters of DiffusionKit's `VAEEncoder` or `VAEDecoder`.
        part: which of the two.

    Returns:
        Tensors of the same dtype, prefixed `first_stage_model.encoder.` or `.decoder.`.

    Raises:
        ValueError: a parameter has no place in that layout.
    """
    rules = VAE_RULES[part]
    tensors = (_translate(name, tensor, rules) for name, tensor in params.items())
    return {f"{VAE_PREFIX}{part}.{name}": tensor for name, tensor in tensors}


def clip_to_hub(params: Mapping[str, mx.array]) -> Tensors:
    """A CLIP text model under Hugging Face's names (`CLIPTextModelWithProjection`).

    Args:
        params: flat parameters of DiffusionKit's `CLIPTextModel`.

    Raises:
        ValueError: a parameter has no place in that layout.
    """
    return dict(_translate(name, tensor, CLIP_RULES) for name, tensor in params.items())
