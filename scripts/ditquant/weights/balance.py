"""Channel balancing: the same network with its channels scaled, so that rounding hurts less.

A linear computes W x = (W diag(b)) (x / b). Dividing channel j of its input by b_j makes large
channels smaller and their weights larger (SmoothQuant, Xiao et al. 2022, arXiv 2211.10438; PTQ4DiT,
Wu et al. 2024, arXiv 2405.16005). The division is folded into the parameters that made x, so that
nothing is left to do at run time. In DiffusionKit's blocks:

    fold       what is divided by b                   what is multiplied by b
    img.qkv    chunks shift1, scale1 of adaLN         columns of q_proj, k_proj, v_proj
    img.fc1    chunks shift2, scale2 of adaLN         columns of fc1
    txt.qkv, txt.fc1                                  the same of the text stream
    o          rows and bias of v_proj                columns of o_proj
    uni.qkv    chunks shift1, scale1 of adaLN         columns of q_proj, k_proj, v_proj, fc1

* The modulated input is norm(x) (1 + s) + t with (s, t) = adaLN(m), so dividing it means t / b and
  (1 + s) / b - 1: the weights of both chunks and the shift's bias are divided, the scale's bias c
  becomes (1 + c) / b - 1.
* Attention mixes values of tokens, channel by channel, and its weights add up to 1: dividing a
  channel of v divides that channel of what o_proj reads. Tokens of both streams are mixed, so "o"
  is one b for both, and concerns the v_proj of a last text block that has no o_proj.
* Unified blocks (FLUX) with a parallel MLP give the same array to attention and MLP: one b.
* fc2 has no such fold: GELU(x / b) is not GELU(x) / b. Nor have q and k between each other: with
  qk_norm their rows are normalised, without it they are not read by a linear.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlx.utils import tree_flatten

from ..backend import mx
from ..network.blocks import Block, Linear


@dataclass(frozen=True)
class Fold:
    """One set of channels of a block that can be scaled.

    Attributes:
        name: "img.qkv", "img.fc1", "o", ...; see the module's docstring.
        channels: length of its factors.
        readers: linears whose columns are multiplied.
        values: v_proj linears whose rows are divided; empty for the folds into adaLN.
        modulation: path inside the block of the adaLN linear whose chunks are divided, or None.
        chunk: the shift's chunk in it; the scale's is the next.
    """

    name: str
    channels: int
    readers: tuple[Linear, ...]
    values: tuple[Linear, ...] = ()
    modulation: str | None = None
    chunk: int = 0


def path_inside(block: Block, linear: Linear) -> str:
    """A linear's module path inside its block: "image_transformer_block.attn.q_proj"."""
    return linear.path.removeprefix(f"{block.path}.")


def _by_place(block: Block, stream: str) -> dict[str, Linear]:
    """A stream's linears by their attribute: "q_proj", ..., "fc2"."""
    prefix = block.name if stream == "uni" else f"{block.name}.{stream}"
    return {li.place: li for li in block.linears if li.name.startswith(f"{prefix}.")}


def folds(block: Block) -> list[Fold]:
    """The folds that are valid in a block, in order of computation."""
    found, values, readers = [], [], []
    for stream, own in block.streams.items():
        linears, adaln = _by_place(block, stream), own.modulation_path
        attention = tuple(linears[f"{part}_proj"] for part in "qkv")
        channels = attention[0].module.weight.shape[1]
        fc1 = (linears["fc1"],) if "fc1" in linears else ()
        if own.parallel_mlp:
            attention, fc1 = attention + fc1, ()
        found.append(Fold(f"{stream}.qkv", channels, attention, modulation=adaln))
        if fc1:
            found.append(Fold(f"{stream}.fc1", channels, fc1, modulation=adaln, chunk=3))
        values.append(linears["v_proj"])
        readers += [linears["o_proj"]] if "o_proj" in linears else []
    found.append(Fold("o", values[0].module.weight.shape[0], tuple(readers), tuple(values)))
    return found


class _Changes(dict[str, mx.array]):
    """Parameters that were changed, in float32; those not changed yet are read from the block."""

    def __init__(self, own: Mapping[str, mx.array]):
        super().__init__()
        self._own = own

    def __missing__(self, name: str) -> mx.array:
        return self._own[name].astype(mx.float32)


def _divide_modulation(new: _Changes, fold: Fold, b: mx.array) -> None:
    """Divides the shift and (1 + scale) that an adaLN linear gives."""
    names = f"{fold.modulation}.weight", f"{fold.modulation}.bias"
    weight, bias = (new[name] for name in names)
    chunks = bias.size // fold.channels
    rows, offsets = mx.split(weight, chunks), mx.split(bias, chunks)
    shift, scale = fold.chunk, fold.chunk + 1
    rows[shift], rows[scale] = rows[shift] / b[:, None], rows[scale] / b[:, None]
    offsets[shift] = offsets[shift] / b
    offsets[scale] = (1.0 + offsets[scale]) / b - 1.0
    for name, parts in zip(names, (rows, offsets), strict=True):
        new[name] = mx.concatenate(parts)


def balanced_parameters(block: Block, factors: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """The parameters of a full-precision block that balancing changes.

    Args:
        factors: fold's name -> b, (channels,) float32, positive; other folds stay as they are.

    Returns:
        Parameter path inside the block ("image_transformer_block.attn.q_proj.weight") -> new array
        in the old one's dtype; computed in float32.

    Raises:
        ValueError: factors for a fold that the block does not have, or of another length.
    """
    known = {fold.name: fold for fold in folds(block)}
    for name, b in factors.items():
        if name not in known:
            raise ValueError(f"factors for {name}, of {', '.join(known)}")
        if b.shape != (known[name].channels,):
            raise ValueError(f"factors for {name}: shape {b.shape}, not ({known[name].channels},)")
    own = dict(tree_flatten(block.module.parameters()))
    new = _Changes(own)
    for name, fold in known.items():
        if name not in factors:
            continue
        b = factors[name].astype(mx.float32)
        for linear in fold.readers:
            weight = f"{path_inside(block, linear)}.weight"
            new[weight] = new[weight] * b
        for linear in fold.values:
            weight, bias = (f"{path_inside(block, linear)}.{kind}" for kind in ("weight", "bias"))
            new[weight] = new[weight] / b[:, None]
            if bias in own:
                new[bias] = new[bias] / b
        if fold.modulation is not None:
            _divide_modulation(new, fold, b)
    return {name: array.astype(own[name].dtype) for name, array in new.items()}


def apply_balance(block: Block, factors: Mapping[str, mx.array]) -> None:
    """Balances a full-precision block in place; it computes what it computed before.

    Raises:
        ValueError: see `balanced_parameters`.
    """
    block.module.load_weights(list(balanced_parameters(block, factors).items()), strict=False)
    mx.eval(block.module.parameters())
