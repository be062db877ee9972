"""The adapter for DiffusionKit's `MMDiT`: SD3's multimodal blocks, and unified ones as FLUX has.

Everything that depends on how DiffusionKit names and calls its modules is here and in
`models.shapes`, `models.load` and `models.layout`, which need no loaded model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from ..backend import mx, nn
from ..models.load import build_mmdit, load_mmdit
from ..models.shapes import PLACES, STREAMS, block_path
from ..models.spec import ModelSpec
from .blocks import Activation, Block, Compute, Linear, Network, Stream, Streams, stream_names
from .sampling import sigma_schedule

# The time step that models and blocks are called with: its modulation is whatever `set_modulation`
# set. DiffusionKit reads the value of its time step in every stream of every block; a constant is
# there already, where a computed one would make the host wait for the device each time.
ANY_TIMESTEP = mx.array([0.0])


class _AnyKey(dict[float, mx.array]):
    """Gives one value for every key: DiffusionKit looks modulation up by time step."""

    def __init__(self, value: mx.array):
        super().__init__()
        self._value = value

    def __getitem__(self, key: float) -> mx.array:
        return self._value

    def __contains__(self, key: object) -> bool:
        return True


class _Modulated:
    """A module with an adaLN: a stream's TransformerBlock, or the final layer."""

    def __init__(self, module: nn.Module):
        self.module = module

    def modulation(self, inputs: mx.array) -> mx.array:
        parameters: mx.array = self.module.adaLN_modulation(inputs)
        return parameters

    def set_modulation(self, parameters: mx.array) -> None:
        """DiffusionKit's own cache empties the adaLN weights after the last step, so that a second
        image fails; this one is set before each forward pass and empties nothing."""
        object.__setattr__(self.module, "_modulation_params", _AnyKey(parameters))


class KitStream(_Modulated, Stream):
    """A `TransformerBlock`."""

    def __init__(self, module: nn.Module, name: str):
        super().__init__(module)
        self.modulation_path = f"{STREAMS[name]}.adaLN_modulation.layers.1"
        self.parallel_mlp = bool(module.parallel_mlp)

    @property
    def activation(self) -> Activation | None:
        function: Activation | None = getattr(getattr(self.module, "mlp", None), "act_fn", None)
        return function

    @activation.setter
    def activation(self, function: Activation | None) -> None:
        self.module.mlp.act_fn = function


class KitBlock(Block):
    """A `MultiModalTransformerBlock` or `UnifiedTransformerBlock`.

    Args:
        call: what computes; the module itself unless it is replaced.
    """

    def __init__(self, name: str, module: nn.Module, call: Any = None):
        self.name, self.module, self.path = name, module, block_path(name)
        self._call = module if call is None else call
        children = {stream: getattr(module, STREAMS[stream]) for stream in stream_names(name)}
        self.streams = {stream: KitStream(child, stream) for stream, child in children.items()}
        self.linears = []
        for stream, child in children.items():
            prefix = name if stream == "uni" else f"{name}.{stream}"
            for place in PLACES:
                group, attribute = place.split(".")
                parent = getattr(child, group, None)
                layer = getattr(parent, attribute, None)
                # Identity stands where SD3's last text block has no o_proj.
                if parent is not None and layer is not None and not isinstance(layer, nn.Identity):
                    path = f"{self.path}.{STREAMS[stream]}.{place}"
                    self.linears.append(Linear(f"{prefix}.{place}", path, parent, attribute))

    @property
    def attention(self) -> Callable[..., mx.array]:
        function: Callable[..., mx.array] = self.module.sdpa
        return function

    @attention.setter
    def attention(self, function: Callable[..., mx.array]) -> None:
        self.module.sdpa = function

    def __call__(
        self, streams: Streams, positional_encodings: mx.array | None = None
    ) -> tuple[mx.array, ...]:
        output = self._call(*streams, ANY_TIMESTEP, positional_encodings=positional_encodings)
        outputs = output if isinstance(output, tuple) else (output,)
        return tuple(stream for stream in outputs if stream is not None)


class _InPlace:
    """Is called in a block's place as DiffusionKit calls blocks."""

    def __init__(self, block: KitBlock, compute: Compute):
        self._count, self._compute = len(block.streams), compute

    def __call__(self, *arguments: Any, positional_encodings: mx.array | None = None) -> Any:
        outputs = self._compute(arguments[: self._count], positional_encodings)
        if self._count == 1:
            return outputs[0]
        image, text = (*outputs, None)[:2]
        return image, text


class DiffusionKitNetwork(Network):
    """DiffusionKit's `MMDiT`.

    Args:
        module: the model; its linears may be packed or rotated.
        shift: of the sigma schedule.
    """

    def __init__(self, module: nn.Module, shift: float = 3.0):
        self.module, self._shift = module, shift
        self._lists = [
            ("mm", module.multimodal_transformer_blocks),
            ("uni", getattr(module, "unified_transformer_blocks", [])),
        ]
        self.blocks: list[Block] = [
            KitBlock(f"{kind}{index:02d}", block)
            for kind, blocks in self._lists
            for index, block in enumerate(blocks)
        ]

    def modulation_inputs(self, pooled: mx.array, timestep: mx.array) -> mx.array:
        timesteps = mx.broadcast_to(timestep, pooled.shape[:1])
        texts = self.module.y_embedder(pooled)[:, None, None, :]
        inputs: mx.array = texts + self.module.t_embedder(timesteps)
        return inputs

    def modulate(self, inputs: mx.array) -> None:
        streams = [stream for block in self.blocks for stream in block.streams.values()]
        modulated: list[Stream | _Modulated] = [*streams, _Modulated(self.module.final_layer)]
        parameters = [one.modulation(inputs) for one in modulated]
        mx.eval(parameters)
        for one, values in zip(modulated, parameters, strict=True):
            one.set_modulation(values)

    def forward(self, latents: mx.array, tokens: mx.array) -> mx.array:
        velocity: mx.array = self.module(latents, mx.expand_dims(tokens, 2), ANY_TIMESTEP)
        return velocity

    def positional_encodings(
        self, latent_size: tuple[int, int], text_tokens: int
    ) -> mx.array | None:
        if hasattr(self.module, "x_pos_embedder"):
            return None
        patch = self.module.config.patch_size
        height, width = latent_size
        tables: mx.array = self.module.pre_sdpa_rope(
            text_sequence_length=text_tokens,
            latent_image_resolution=(height // patch, width // patch),
        )
        return tables

    def sigmas(self, num_steps: int) -> mx.array:
        return sigma_schedule(num_steps, self._shift)

    def timesteps(self, sigmas: mx.array, dtype: mx.Dtype) -> mx.array:
        return (sigmas * 1000).astype(dtype)

    def is_modulation(self, path: str) -> bool:
        return ".adaLN_modulation." in f".{path}"

    @contextmanager
    def blocks_replaced(self, replace: Callable[[Block], Compute]) -> Iterator[None]:
        before = [list(modules) for _, modules in self._lists]
        blocks = iter(self.blocks)
        for _, modules in self._lists:
            for index, call in enumerate(modules):
                own = next(blocks)
                block = KitBlock(own.name, own.module, call)
                modules[index] = _InPlace(block, replace(block))
        try:
            yield
        finally:
            for (_, modules), originals in zip(self._lists, before, strict=True):
                modules[:] = originals


def load_network(
    spec: ModelSpec, dtype: mx.Dtype, blocks: Collection[str] | None = None
) -> Network:
    """The full-precision network with its weights in `dtype`; see `load.load_mmdit`."""
    return DiffusionKitNetwork(load_mmdit(spec, dtype, blocks), spec.shift)


def empty_network(spec: ModelSpec) -> Network:
    """The network with random weights, for those of a checkpoint."""
    return DiffusionKitNetwork(build_mmdit(spec), spec.shift)


def linear_path(name: str) -> str:
    """A block linear's module path, "multimodal_transformer_blocks.3...." of "mm03.img...."."""
    block, *place = name.split(".")
    stream = "uni" if block.startswith("uni") else place.pop(0)
    return ".".join([block_path(block), STREAMS[stream], *place])
