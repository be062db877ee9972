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

What can be taken off fc2's input is a constant, W x + c = W (x - z) + (c + W z) (TaQ-DiT,
arXiv 2411.14172): z is subtracted behind GELU and W z added to fc2's bias. Exact before rounding;
afterwards the error of W meets x - z instead of x.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mlx.utils import tree_flatten

from ..backend import mx, nn
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


@dataclass(frozen=True)
class Balance:
    """How one block is balanced; what is not named stays as it is.

    Attributes:
        factors: fold's name -> b, (channels,) float32, positive.
        shifts: stream's name ("img", "txt", "uni") -> z of its fc2, (channels,) float32.
    """

    factors: Mapping[str, mx.array] = field(default_factory=dict)
    shifts: Mapping[str, mx.array] = field(default_factory=dict)


def path_inside(block: Block, linear: Linear) -> str:
    """A linear's module path inside its block: "image_transformer_block.attn.q_proj"."""
    return linear.path.removeprefix(f"{block.path}.")


def _by_place(block: Block, stream: str) -> dict[str, Linear]:
    """A stream's linears by their attribute: "q_proj", ..., "fc2"."""
    prefix = block.name if stream == "uni" else f"{block.name}.{stream}"
    linears = block.linears
    return {li.place: li for li in linears if li.name.startswith(f"{prefix}.")}


def folds(block: Block) -> list[Fold]:
    """The folds that are valid in a block, in order of computation."""
    found, values, readers = [], [], []
    for stream, module in block.streams.items():
        linears, adaln = _by_place(block, stream), module.modulation_path
        attention = tuple(linears[f"{part}_proj"] for part in "qkv")
        channels = attention[0].module.weight.shape[1]
        fc1 = (linears["fc1"],) if "fc1" in linears else ()
        if module.parallel_mlp:
            attention, fc1 = attention + fc1, ()
        found.append(Fold(f"{stream}.qkv", channels, attention, modulation=adaln))
        if fc1:
            found.append(Fold(f"{stream}.fc1", channels, fc1, modulation=adaln, chunk=3))
        values.append(linears["v_proj"])
        readers += [linears["o_proj"]] if "o_proj" in linears else []
    found.append(Fold("o", values[0].module.weight.shape[0], tuple(readers), tuple(values)))
    return found


def shift_biases(block: Block) -> dict[str, tuple[Linear, Linear]]:
    """Streams whose fc2 can have a shift -> (fc2, the linear whose bias takes W z).

    DiffusionKit sets fc2's bias to zero in every call of a unified block. With a parallel MLP the
    outputs of o_proj and fc2 are added, and o_proj's bias serves; without one there is no place.
    """
    places = {}
    for stream, module in block.streams.items():
        linears = _by_place(block, stream)
        if "fc2" not in linears or (stream == "uni" and not module.parallel_mlp):
            continue
        places[stream] = (linears["fc2"], linears["o_proj" if stream == "uni" else "fc2"])
    return places


def _check(what: str, given: Mapping[str, mx.array], widths: Mapping[str, int]) -> None:
    for name, array in given.items():
        if name not in widths:
            raise ValueError(f"{what} for {name}, of {', '.join(widths)}")
        if array.shape != (widths[name],):
            raise ValueError(f"{what} for {name}: shape {array.shape}, not ({widths[name]},)")


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


def balanced_parameters(block: Block, balance: Balance) -> dict[str, mx.array]:
    """The parameters of a full-precision block that balancing changes.

    With shifts the block also needs what `apply_balance` puts behind GELU.

    Returns:
        Parameter path inside the block ("image_transformer_block.attn.q_proj.weight") -> new array
        in the old one's dtype; computed in float32.

    Raises:
        ValueError: factors or shifts for what the block does not have, or of another length.
    """
    known, places = folds(block), shift_biases(block)
    _check("factors", balance.factors, {fold.name: fold.channels for fold in known})
    _check(
        "a shift", balance.shifts, {s: fc2.module.weight.shape[1] for s, (fc2, _) in places.items()}
    )
    own = dict(tree_flatten(block.module.parameters()))
    new = _Changes(own)
    for fold in known:
        if fold.name not in balance.factors:
            continue
        b = balance.factors[fold.name].astype(mx.float32)
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
    for stream, z in balance.shifts.items():
        fc2, home = places[stream]
        bias = f"{path_inside(block, home)}.bias"
        new[bias] = new[bias] + new[f"{path_inside(block, fc2)}.weight"] @ z.astype(mx.float32)
    return {name: array.astype(own[name].dtype) for name, array in new.items()}


class Shifted(nn.Module):
    """An activation function with a constant taken off: f(x) - z.

    z is no parameter: it belongs to the quantization of fc2, like the scale of its input.
    """

    def __init__(self, function: nn.Module, shift: mx.array):
        super().__init__()
        self.function = function
        self._shift = shift

    def __call__(self, x: mx.array) -> mx.array:
        y = self.function(x)
        return y - self._shift.astype(y.dtype)


def apply_balance(block: Block, balance: Balance) -> None:
    """Balances a full-precision block in place; it computes what it computed before.

    Raises:
        ValueError: see `balanced_parameters`.
    """
    block.module.load_weights(list(balanced_parameters(block, balance).items()), strict=False)
    for stream, z in balance.shifts.items():
        own = block.streams[stream]
        own.activation = Shifted(own.activation, z)
    mx.eval(block.module.parameters())
