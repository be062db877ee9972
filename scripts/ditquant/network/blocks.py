"""Names of blocks and linears, taps on them, and a block as a pure function.

A multimodal block is "mm03", a unified one (FLUX) "uni07". Their linears are named by stream and
place: "mm03.img.attn.q_proj", "mm03.txt.mlp.fc1", "uni07.mlp.fc2". The order of blocks is the order
of computation. What differs between models (the last text block of SD3 has neither o_proj nor
mlp, k_proj has no bias, qk_norm) is read off the modules, never assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..backend import mx, nn
from ..models.shapes import PLACES, STREAMS, block_path


def _child(parent: Any, name: str) -> Any:
    return parent[int(name)] if isinstance(parent, list) else getattr(parent, name)


def rotation_of(module: nn.Module) -> Any:
    """What a linear does to its input first (`rotation.InputRotation`), or None."""
    return getattr(module, "rotation", None)


@dataclass(frozen=True)
class Linear:
    """A linear layer of an MMDiT.

    Attributes:
        name: "mm03.img.attn.q_proj"; outside attention and MLP the path itself.
        path: module path in the MMDiT, "multimodal_transformer_blocks.3.image_transformer...".
        parent, attribute: where the module hangs, so that it can be exchanged; inside an
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
    def is_post_gelu(self) -> bool:
        """True for fc2: its input has passed GELU and is never below -0.17, unless rotated."""
        return self.attribute == "fc2" and rotation_of(self.module) is None


@dataclass(frozen=True)
class Block:
    """A transformer block of an MMDiT.

    Attributes:
        name: "mm03" or "uni07".
        module: DiffusionKit's MultiModalTransformerBlock or UnifiedTransformerBlock.
        path: module path in the MMDiT.
        streams: stream name -> TransformerBlock; ("img", "txt") or ("uni",).
    """

    name: str
    module: nn.Module
    path: str
    streams: dict[str, nn.Module]

    @property
    def is_unified(self) -> bool:
        return "uni" in self.streams


def walk_blocks(model: nn.Module) -> list[Block]:
    """All blocks of an MMDiT in order of computation."""
    blocks = []
    for index, module in enumerate(model.multimodal_transformer_blocks):
        streams = {"img": module.image_transformer_block, "txt": module.text_transformer_block}
        path = f"multimodal_transformer_blocks.{index}"
        blocks.append(Block(f"mm{index:02d}", module, path, streams))
    for index, module in enumerate(getattr(model, "unified_transformer_blocks", [])):
        path = f"unified_transformer_blocks.{index}"
        blocks.append(Block(f"uni{index:02d}", module, path, {"uni": module.transformer_block}))
    return blocks


def walk_linears(block: Block) -> list[Linear]:
    """The attention and MLP linears of a block; places that hold something else are left out."""
    linears = []
    for stream, transformer in block.streams.items():
        prefix = block.name if stream == "uni" else f"{block.name}.{stream}"
        for place in PLACES:
            group, attribute = place.split(".")
            parent = getattr(transformer, group, None)
            module = getattr(parent, attribute, None)
            # Identity stands where SD3's last text block has no o_proj.
            if parent is None or module is None or isinstance(module, nn.Identity):
                continue
            path = f"{block.path}.{STREAMS[stream]}.{place}"
            linears.append(Linear(f"{prefix}.{place}", path, parent, attribute))
    return linears


def shared_input(linear: Linear) -> str:
    """Names the array that a linear reads: that of query, key and value is one."""
    name, _, place = linear.name.rpartition(".")
    return f"{name}.qkv" if place in ("q_proj", "k_proj", "v_proj") else linear.name


def linear_path(name: str) -> str:
    """A block linear's module path: "multimodal_transformer_blocks.3.image_..." of "mm03.img...".

    Without a model: what `walk_linears` reads off one.
    """
    block, *place = name.split(".")
    stream = "uni" if block.startswith("uni") else place.pop(0)
    return ".".join([block_path(block), STREAMS[stream], *place])


def all_linears(model: nn.Module) -> list[Linear]:
    """The block linears of a whole MMDiT: 69 of the demo model, 285 of SD3-medium."""
    return [linear for block in walk_blocks(model) for linear in walk_linears(block)]


# Which linears a recipe quantizes: the blocks' attention and MLP; also the adaLN of every stream
# and of the final layer; also the embedders and the final layer's own.
SCOPES = ("blocks", "blocks+adaln", "all")


def other_linears(model: nn.Module, scope: str = "all") -> list[Linear]:
    """The linears outside attention and MLP that a scope of `SCOPES` adds, sorted by path.

    There are 49 adaLN linears in SD3-medium and 6 others. Convolutions and embeddings are none.
    """
    learned = {linear.path for linear in all_linears(model)}
    linears = []
    for path, module in sorted(model.named_modules(), key=lambda item: item[0]):
        is_adaln = ".adaLN_modulation." in f".{path}"
        if not isinstance(module, nn.Linear | nn.QuantizedLinear) or path in learned:
            continue
        if scope == "all" or (scope == "blocks+adaln" and is_adaln):
            *above, attribute = path.split(".")
            parent: Any = model
            for name in above:
                parent = _child(parent, name)
            linears.append(Linear(path, path, parent, attribute))
    return linears


def set_linear(linear: Linear, module: nn.Module) -> None:
    """Puts `module` in the linear's place."""
    if isinstance(linear.parent, list):
        linear.parent[int(linear.attribute)] = module
    else:
        setattr(linear.parent, linear.attribute, module)


# ------------------------------------------------------------------------------- modulation


class _AnyKey(dict[float, mx.array]):
    """Gives one value for every key: DiffusionKit looks modulation up by time step."""

    def __init__(self, value: mx.array):
        super().__init__()
        self._value = value

    def __getitem__(self, key: float) -> mx.array:
        return self._value

    def __contains__(self, key: object) -> bool:
        return True


def modulated_modules(model: nn.Module) -> list[nn.Module]:
    """Every module with an adaLN: the streams of all blocks, and the final layer."""
    streams = [stream for block in walk_blocks(model) for stream in block.streams.values()]
    return [*streams, model.final_layer]


def set_modulation(module: nn.Module, parameters: mx.array) -> None:
    """Makes `parameters` (B, 1, 1, n * hidden) the modulation of `module` for every time step.

    DiffusionKit's own cache empties the adaLN weights after the last step, so that a second image
    fails; this one is set before each forward pass and empties nothing.
    """
    object.__setattr__(module, "_modulation_params", _AnyKey(parameters))


# The time step that models and blocks are called with: its modulation is whatever `set_modulation`
# set. DiffusionKit reads the value of its time step in every stream of every block; a constant is
# there already, where a computed one would make the host wait for the device each time.
ANY_TIMESTEP = mx.array([0.0])


def call_block(
    block: Block, streams: Sequence[mx.array], positional_encodings: mx.array | None = None
) -> tuple[mx.array, ...]:
    """Applies a block whose modulation has been set.

    Args:
        streams: (img, txt) each (B, tokens, 1, hidden), or (uni,) for a unified block.
        positional_encodings: RoPE tables for models that have them.

    Returns:
        The streams after the block; the text stream is left out where the block drops it.
    """
    output = block.module(*streams, ANY_TIMESTEP, positional_encodings=positional_encodings)
    outputs = output if isinstance(output, tuple) else (output,)
    return tuple(stream for stream in outputs if stream is not None)


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

    # DiffusionKit's unified blocks read fc2's bias and set it to zero in every call.
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


class InPlace:
    """Is called in a block's place, and has its attributes: modulation is set on its streams."""

    def __init__(self, block: Block):
        self._block = block

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block.module, name)


class _Recorder(InPlace):
    """Notes the streams before and after the block."""

    def __init__(self, block: Block, note: Callable[[str, tuple[mx.array, ...]], None]):
        super().__init__(block)
        self._note = note

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        count = len(self._block.streams)
        self._note(self._block.name, tuple(arguments[:count]))
        output = self._block.module(*arguments, **options)
        outputs = output if isinstance(output, tuple) else (output,)
        self._note(f"{self._block.name}.out", tuple(s for s in outputs if s is not None))
        return output


@contextmanager
def blocks_replaced(model: nn.Module, replace: Callable[[Block], Any]) -> Iterator[None]:
    """Within the context, `replace(block)` is called in each block's place by the model.

    It has to give the block's own attributes, as `InPlace` does.
    """
    lists = [
        blocks
        for blocks in (
            model.multimodal_transformer_blocks,
            getattr(model, "unified_transformer_blocks", None),
        )
        if blocks is not None
    ]
    others = iter([replace(block) for block in walk_blocks(model)])
    before = [list(blocks) for blocks in lists]
    for blocks in lists:
        blocks[:] = [next(others) for _ in blocks]
    try:
        yield
    finally:
        for blocks, modules in zip(lists, before, strict=True):
            blocks[:] = modules


@contextmanager
def boundaries(
    model: nn.Module, note: Callable[[str, tuple[mx.array, ...]], None]
) -> Iterator[None]:
    """Within the context, `note(name, streams)` is called at each block's input and output.

    `name` is "mm03" for the input of block mm03 and "mm03.out" for its output.
    """
    with blocks_replaced(model, lambda block: _Recorder(block, note)):
        yield
