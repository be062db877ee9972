"""Sizes of an MM-DiT, and what follows from them before a weight is read.

The workflow asks this module while it plans, so it imports neither MLX nor DiffusionKit. Names and
shapes are those that `network.blocks` reads off a loaded model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..errors import UserError

Widths = dict[str, tuple[int, int]]

# Pixels of a side of the picture to one of its latents.
VAE_SCALE = 8
# Channels of the latents that are sampled (`sampling.latent_shape`).
LATENT_CHANNELS = 16
# Module of a stream in its block, and places of the linears in that.
STREAMS = {
    "img": "image_transformer_block",
    "txt": "text_transformer_block",
    "uni": "transformer_block",
}
PLACES = ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj", "mlp.fc1", "mlp.fc2")
# Of the text stream of a last block: nothing follows its attention.
_LAST_PLACES = PLACES[:3]


@dataclass(frozen=True)
class Shape:
    """Sizes of an MM-DiT under the names of DiffusionKit's MMDiTConfig, whose defaults they have.

    Attributes:
        hidden_size: width of the streams.
        max_latent_resolution: side of the square table of learned positions.
    """

    hidden_size: int = 1536
    num_heads: int = 24
    depth_multimodal: int = 24
    depth_unified: int = 0
    parallel_mlp_for_unified_blocks: bool = True
    mlp_ratio: int = 4
    vae_latent_dim: int = LATENT_CHANNELS
    max_latent_resolution: int = 192
    patch_size: int = 2
    pooled_text_embed_dim: int = 2048
    token_level_text_embed_dim: int = 4096
    frequency_embed_dim: int = 256

    @property
    def block_names(self) -> list[str]:
        """In order of computation: mm00, mm01, ..., uni00, ..."""
        multimodal = [f"mm{index:02d}" for index in range(self.depth_multimodal)]
        return multimodal + [f"uni{index:02d}" for index in range(self.depth_unified)]

    def _streams(self) -> list[tuple[str, str, bool]]:
        """Name ("mm03.img", "uni00"), module path, and whether only its attention is computed."""
        streams = []
        for block in self.block_names:
            for stream in ("uni",) if block.startswith("uni") else ("img", "txt"):
                name = block if stream == "uni" else f"{block}.{stream}"
                ends = stream == "txt" and block == self.block_names[-1]
                streams.append((name, f"{block_path(block)}.{STREAMS[stream]}", ends))
        return streams

    def block_linears(self) -> Widths:
        """Block linear's name -> (outputs, inputs), in the order of `blocks.all_linears`."""
        width, wide = self.hidden_size, self.mlp_ratio * self.hidden_size
        shapes = {"mlp.fc1": (wide, width), "mlp.fc2": (width, wide)}
        return {
            f"{stream}.{place}": shapes.get(place, (width, width))
            for stream, _, ends in self._streams()
            for place in (_LAST_PLACES if ends else PLACES)
        }

    def other_linears(self) -> Widths:
        """Path -> (outputs, inputs) of all others, in the order of `blocks.other_linears`."""
        width = self.hidden_size
        linears = {
            "context_embedder": (width, self.token_level_text_embed_dim),
            "t_embedder.mlp.layers.0": (width, self.frequency_embed_dim),
            "t_embedder.mlp.layers.2": (width, width),
            "y_embedder.mlp.layers.0": (width, self.pooled_text_embed_dim),
            "y_embedder.mlp.layers.2": (width, width),
            "final_layer.linear": (self.patch_size**2 * self.vae_latent_dim, width),
            "final_layer.adaLN_modulation.layers.1": (2 * width, width),
        }
        for stream, path, ends in self._streams():
            parallel = stream.startswith("uni") and self.parallel_mlp_for_unified_blocks
            parts = 2 if ends else 3 if parallel else 6
            linears[f"{path}.adaLN_modulation.layers.1"] = (parts * width, width)
        return dict(sorted(linears.items()))


def block_path(block: str) -> str:
    """Module path of a block: "multimodal_transformer_blocks.3" of "mm03"."""
    kind, index = block[:-2], int(block[-2:])
    parents = {"mm": "multimodal_transformer_blocks", "uni": "unified_transformer_blocks"}
    return f"{parents[kind]}.{index}"


# Options of DiffusionKit's MMDiTConfig that a model folder may set beside the sizes.
_OTHER_OPTIONS = {"dtype", "layer_norm_eps", "max_period", "use_qk_norm"}


def read_shape(options: Mapping[str, Any]) -> Shape:
    """The sizes in the `mmdit` section of a model folder's config.json.

    Raises:
        ValueError: an unknown option, or a size that is none.
    """
    known: dict[str, Any] = {field.name: field.default for field in fields(Shape)}
    unknown = sorted(set(options) - set(known) - _OTHER_OPTIONS)
    if unknown:
        raise ValueError(f"mmdit.{unknown[0]}, which is no option")
    given = {name: value for name, value in options.items() if name in known}
    for name, value in given.items():
        may_be_zero = name in ("depth_unified", "parallel_mlp_for_unified_blocks")
        # Names of blocks have two digits.
        most = 99 if name.startswith("depth_") else 2**20
        if type(value) is not type(known[name]) or not (not may_be_zero) <= value <= most:
            raise ValueError(f"mmdit.{name}: {value!r}")
    if options.get("dtype", "float32") not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"mmdit.dtype: {options['dtype']!r}")
    shape = Shape(**given)
    if shape.hidden_size % shape.num_heads:
        raise ValueError(
            f"mmdit: {shape.num_heads} heads do not divide hidden_size {shape.hidden_size}"
        )
    if shape.vae_latent_dim != LATENT_CHANNELS:
        raise ValueError(f"mmdit.vae_latent_dim: {shape.vae_latent_dim} is not {LATENT_CHANNELS}")
    return shape


_VAE_OPTIONS = {
    "in_channels", "out_channels", "block_out_channels", "layers_per_block", "resnet_groups",
}  # fmt: skip


def read_vae(options: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Arguments of DiffusionKit's VAE configuration in a model folder's config.json.

    Args:
        options: the section `vae`.
        part: "encoder" or "decoder".

    Raises:
        KeyError, TypeError, ValueError: an option that is missing, unknown, or of no such VAE.
    """
    own = dict(options[part])
    if unknown := sorted(set(own) - _VAE_OPTIONS):
        raise ValueError(f"vae.{part}.{unknown[0]}, which is no option")
    for key, value in own.items():
        for number in value if isinstance(value, list) else [value]:
            if type(number) is not int or number < 1:
                raise ValueError(f"vae.{part}.{key}: {value!r}")
    levels = len(own["block_out_channels"])
    if 2 ** (levels - 1) != VAE_SCALE:
        raise ValueError(f"vae.{part}.block_out_channels: {levels} levels where there must be 4")
    return own


def check_image_size(shape: Shape, size: tuple[int, int], key: str, model: str) -> None:
    """Checks that a model can draw pictures of `size`, (height, width) in pixels.

    Args:
        key: what the size was set by, for the message.
        model: its name, for the message.

    Raises:
        UserError: a side that is no positive multiple of a patch, or longer than the positions go.
    """
    patch = VAE_SCALE * shape.patch_size
    longest = VAE_SCALE * shape.max_latent_resolution
    longest -= longest % patch
    if any(side < patch or side % patch or side > longest for side in size):
        height, width = size
        raise UserError(
            f"{key} is {height} x {width} pixels, which {model} cannot draw: height and width are "
            f"multiples of {patch} from {patch} to {longest}."
        )
