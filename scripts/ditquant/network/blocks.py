"""What the tracks know of a transformer: its blocks, their streams and linears, and one step.

A `Network` is a model of any family behind one interface. A block has the streams "img" and "txt"
(multimodal, "mm03") or one stream "uni" of text and then image tokens (unified, "uni07"). Linears
are named by stream and place: "mm03.img.attn.q_proj", "mm03.txt.mlp.fc1", "uni07.mlp.fc2". The
order of blocks is the order of computation. What differs between models of a family (the last text
block of SD3 has neither o_proj nor mlp, k_proj has no bias, qk_norm) is read off the modules.

`diffusionkit` has the adapter for DiffusionKit's classes. Another family is one more subclass of
`Network`, `Block` and `Stream`, whose linears have the names above.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from ..backend import mx, nn

Streams = Sequence[mx.array]
Activation = Callable[[mx.array], mx.array]
# In a block's place: its streams and the positional encodings -> the streams behind it.
Compute = Callable[[Streams, mx.array | None], tuple[mx.array, ...]]

# Which linears a recipe quantizes: the blocks' attention and MLP; also what modulates every stream
# and the final layer; also the embedders and the final layer's own.
SCOPES = ("blocks", "blocks+adaln", "all")


def _child(parent: Any, name: str) -> Any:
    return parent[int(name)] if isinstance(parent, list) else getattr(parent, name)


def rotation_of(module: nn.Module) -> Any:
    """What a linear does to its input first (`rotation.InputRotation`), or None."""
    return getattr(module, "rotation", None)


@dataclass(frozen=True)
class Linear:
    """A linear layer of a network.

    Attributes:
        name: "mm03.img.attn.q_proj"; outside attention and MLP the path itself.
        path: module path in the network's module.
        parent, attribute: where the layer hangs, so that it can be exchanged; inside an
            `nn.Sequential` its list of layers and the index in it.
    """

    name: str
    path: str
    parent: nn.Module | list[nn.Module]
    attribute: str

    @property
    def module(self) -> nn.Module:
        return _child(self.parent, self.attribute)

    @property
    def place(self) -> str:
        """One of "q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"."""
        return self.name.rpartition(".")[2]

    @property
    def is_post_gelu(self) -> bool:
        """True for fc2: its input has passed GELU and is never below -0.17, unless rotated."""
        return self.place == "fc2" and rotation_of(self.module) is None


def shared_input(linear: Linear) -> str:
    """Names the array that a linear reads: that of query, key and value is one."""
    name = linear.name.rpartition(".")[0]
    return f"{name}.qkv" if linear.place in ("q_proj", "k_proj", "v_proj") else linear.name


def set_linear(linear: Linear, module: nn.Module) -> None:
    """Puts `module` in the linear's place."""
    if isinstance(linear.parent, list):
        linear.parent[int(linear.attribute)] = module
    else:
        setattr(linear.parent, linear.attribute, module)


def stream_names(block: str) -> tuple[str, ...]:
    """The streams that enter the block of a name, in the order in which it takes them."""
    return ("uni",) if block.startswith("uni") else ("img", "txt")


class Stream(ABC):
    """One residual stream inside a block.

    Attributes:
        modulation_path: path inside the block of the linear that gives its modulation: rows in
            chunks of the width, the shift and scale in front of attention, its gate, and the same
            three for the MLP, as far as the stream has them.
        parallel_mlp: whether attention and MLP read the same array.
        activation: the function between fc1 and fc2; None where there is no MLP. May be set.
    """

    modulation_path: str
    parallel_mlp: bool
    activation: Activation | None

    @abstractmethod
    def modulation(self, inputs: mx.array) -> mx.array:
        """(B, 1, 1, chunks * hidden) from `Network.modulation_inputs` (B, 1, 1, hidden)."""

    @abstractmethod
    def set_modulation(self, parameters: mx.array) -> None:
        """Makes what `modulation` gave the modulation of every following call of the block."""


class Block(ABC):
    """A transformer block.

    Attributes:
        name: "mm03" or "uni07".
        module: with the block's parameters.
        path: module path in the network's module.
        streams: name -> stream; ("img", "txt") or ("uni",).
        linears: of attention and MLP; places that hold something else are left out.
        attention: function of (q, k, v, scale), each (B, heads, tokens, channels). May be set.
    """

    name: str
    module: nn.Module
    path: str
    streams: dict[str, Stream]
    linears: list[Linear]
    attention: Callable[..., mx.array]

    @abstractmethod
    def __call__(
        self, streams: Streams, positional_encodings: mx.array | None = None
    ) -> tuple[mx.array, ...]:
        """Applies the block whose modulation has been set.

        Args:
            streams: (img, txt) each (B, tokens, 1, hidden), or (uni,) for a unified block.
            positional_encodings: see `Network.positional_encodings`.

        Returns:
            The streams after the block; the text stream is left out where the block drops it.
        """


class Network(ABC):
    """A diffusion transformer of any family.

    Attributes:
        module: all its parameters.
        blocks: in order of computation.
    """

    module: nn.Module
    blocks: list[Block]

    # ------------------------------------------------------------------------------- one step

    @abstractmethod
    def modulation_inputs(self, pooled: mx.array, timestep: mx.array) -> mx.array:
        """(B, 1, 1, hidden): the vector that modulates every stream.

        Args:
            pooled: pooled texts (B, channels).
            timestep: in the activations' dtype; a scalar for all rows, or (B,).
        """

    @abstractmethod
    def modulate(self, inputs: mx.array) -> None:
        """Computes and sets the modulation of the whole network from `modulation_inputs`."""

    @abstractmethod
    def forward(self, latents: mx.array, tokens: mx.array) -> mx.array:
        """The velocity dx/dsigma (B, h, w, channels) once `modulate` was called.

        Args:
            latents: (B, h, w, channels) in the activations' dtype.
            tokens: encoded texts (B, tokens, channels) in the same dtype.
        """

    @abstractmethod
    def positional_encodings(
        self, latent_size: tuple[int, int], text_tokens: int
    ) -> mx.array | None:
        """What the blocks take beside their streams, or None where positions are learned."""

    # ------------------------------------------------------------------------------- schedule

    @abstractmethod
    def sigmas(self, num_steps: int) -> mx.array:
        """(num_steps + 1,) float32 noise levels from 1 to 0."""

    @abstractmethod
    def timesteps(self, sigmas: mx.array, dtype: mx.Dtype) -> mx.array:
        """The time steps that the network knows noise levels by, in the activations' dtype."""

    # ---------------------------------------------------------------------- blocks and linears

    @abstractmethod
    def blocks_replaced(self, replace: Callable[[Block], Compute]) -> AbstractContextManager[None]:
        """Within the context, `replace(block)` is called in each block's place by `forward`.

        Contexts may be nested: the block that `replace` is given computes as it did outside.
        """

    @abstractmethod
    def is_modulation(self, path: str) -> bool:
        """Whether the linear at a module path gives the modulation of a stream or final layer."""

    def block(self, name: str) -> Block:
        return next(block for block in self.blocks if block.name == name)

    @property
    def linears(self) -> list[Linear]:
        """The block linears: 69 of the demo model, 285 of SD3-medium."""
        return [linear for block in self.blocks for linear in block.linears]

    def other_linears(self, scope: str = "all") -> list[Linear]:
        """The linears outside attention and MLP that a scope of `SCOPES` adds, sorted by path.

        There are 49 for modulation in SD3-medium and 6 others. Convolutions and embeddings are
        none.
        """
        in_blocks = {linear.path for linear in self.linears}
        linears = []
        for path, module in sorted(self.module.named_modules(), key=lambda item: item[0]):
            if not isinstance(module, nn.Linear | nn.QuantizedLinear) or path in in_blocks:
                continue
            if scope == "all" or (scope == "blocks+adaln" and self.is_modulation(path)):
                *above, attribute = path.split(".")
                parent: Any = self.module
                for name in above:
                    parent = _child(parent, name)
                linears.append(Linear(path, path, parent, attribute))
        return linears


@contextmanager
def boundaries(
    network: Network, note: Callable[[str, tuple[mx.array, ...]], None]
) -> Iterator[None]:
    """Within the context, `note(name, streams)` is called at each block's input and output.

    `name` is "mm03" for the input of block mm03 and "mm03.out" for its output.
    """

    def recorded(block: Block) -> Compute:
        def compute(streams: Streams, positions: mx.array | None) -> tuple[mx.array, ...]:
            note(block.name, tuple(streams))
            outputs = block(streams, positions)
            note(f"{block.name}.out", outputs)
            return outputs

        return compute

    with network.blocks_replaced(recorded):
        yield


# ------------------------------------------------------------------------------------- taps


class Tap(nn.Module):
    """Stands in for a module, shows its input to `see`, and computes with what `see` returns.

    The input of a rotated linear (`rotation`) is shown as it is multiplied, rotated.
    """

    def __init__(self, module: nn.Module, see: Callable[[mx.array], mx.array]):
        super().__init__()
        self.module = module
        self._see = see

    @property
    def rotation(self) -> Any:
        return rotation_of(self["module"])

    def product(self, x: mx.array) -> mx.array:
        module, seen = self["module"], self._see(x)
        result: mx.array = module(seen) if self.rotation is None else module.product(seen)
        return result

    def __call__(self, x: mx.array) -> mx.array:
        return self.product(x if self.rotation is None else self.rotation(x))

    # Blocks may read and set the bias of a linear (DiffusionKit's unified ones do, of fc2).
    def __getattr__(self, key: str) -> Any:
        return self.module.bias if key == "bias" else super().__getattr__(key)

    def __setattr__(self, key: str, value: Any) -> None:
        if key == "bias":
            self.module.bias = value
        else:
            super().__setattr__(key, value)


@contextmanager
def tapped(
    linears: Sequence[Linear], see: Callable[[Linear, mx.array], mx.array | None]
) -> Iterator[None]:
    """Within the context, `see(linear, input)` is called at every linear.

    If `see` returns an array, the linear computes with it instead (fake quantization); None leaves
    the input as it is (observation).
    """

    def seeing(linear: Linear) -> Callable[[mx.array], mx.array]:
        def see_input(x: mx.array) -> mx.array:
            replaced = see(linear, x)
            return x if replaced is None else replaced

        return see_input

    before = [linear.module for linear in linears]
    for linear in linears:
        set_linear(linear, Tap(linear.module, seeing(linear)))
    try:
        yield
    finally:
        for linear, module in zip(linears, before, strict=True):
            set_linear(linear, module)
