"""A family of transformers from elsewhere is one more adapter: both tracks run on it."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest

from ditquant.activations.observe import measure_image
from ditquant.backend import mx, nn
from ditquant.network.blocks import Block, Linear, Network, Stream
from ditquant.network.sampling import sample_euler
from ditquant.weights.block_io import read_block
from ditquant.weights.quantize_block import quantize_block
from ditquant.weights.reconstruct import block_problem
from support.block_data import random_trajectory, write_block_io
from support.problems import full_recipe

WIDTH = 64
# Our place of a linear -> this family's own name for it.
NAMES = {
    "attn.q_proj": "to_q", "attn.k_proj": "to_k", "attn.v_proj": "to_v", "attn.o_proj": "to_out",
    "mlp.fc1": "up", "mlp.fc2": "down",
}  # fmt: skip


class Layer(nn.Module):
    """Single-stream attention and MLP behind one shift and scale; no name is DiffusionKit's."""

    def __init__(self):
        super().__init__()
        for name in ("to_q", "to_k", "to_v", "to_out"):
            setattr(self, name, nn.Linear(WIDTH, WIDTH))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.condition = nn.Linear(WIDTH, 2 * WIDTH)
        self.given = None

    def __call__(self, x: mx.array) -> mx.array:
        shift, scale = mx.split(self.given, 2, axis=-1)
        y = x * (1 + scale) + shift
        q, k, v = (layer(y)[:, None, :, 0] for layer in (self.to_q, self.to_k, self.to_v))
        mixed = mx.fast.scaled_dot_product_attention(q, k, v, scale=WIDTH**-0.5)
        x = x + self.to_out(mixed.transpose(0, 2, 1, 3))
        return x + self.down(nn.gelu(self.up(x)))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [Layer() for _ in range(2)]
        self.enter, self.text = nn.Linear(16, WIDTH), nn.Linear(32, WIDTH)
        self.pooled, self.leave = nn.Linear(32, WIDTH), nn.Linear(WIDTH, 16)


class ToyStream(Stream):
    modulation_path, parallel_mlp, activation = "condition", False, None

    def __init__(self, layer):
        self._layer = layer

    def modulation(self, inputs):
        return self._layer.condition(inputs)

    def set_modulation(self, parameters):
        object.__setattr__(self._layer, "given", parameters)


class ToyBlock(Block):
    attention = None

    def __init__(self, index, layer):
        self.name, self.module, self.path = f"uni{index:02d}", layer, f"layers.{index}"
        self.streams = {"uni": ToyStream(layer)}
        self.linears = [
            Linear(f"{self.name}.{place}", f"{self.path}.{own}", layer, own)
            for place, own in NAMES.items()
        ]

    def __call__(self, streams, positional_encodings=None):
        return (self.module(*streams),)


class ToyNetwork(Network):
    def __init__(self):
        mx.random.seed(3)
        self.module = Model()
        mx.eval(self.module.parameters())
        self.blocks = [ToyBlock(*pair) for pair in enumerate(self.module.layers)]
        self._calls = list(self.blocks)

    def modulation_inputs(self, pooled, timestep):
        return (self.module.pooled(pooled) * timestep.reshape(-1, 1) / 1000)[:, None, None, :]

    def modulate(self, inputs):
        for block in self.blocks:
            block.streams["uni"].set_modulation(block.streams["uni"].modulation(inputs))

    def forward(self, latents, tokens):
        image = self.module.enter(latents.reshape(len(latents), -1, 1, 16))
        x = mx.concatenate([self.module.text(tokens)[:, :, None], image], axis=1)
        for call in self._calls:
            (x,) = call((x,), None)
        return self.module.leave(x[:, tokens.shape[1] :]).reshape(latents.shape)

    def positional_encodings(self, latent_size, text_tokens):
        return None

    def sigmas(self, num_steps):
        return mx.linspace(1, 0, num_steps + 1)

    def timesteps(self, sigmas, dtype):
        return (sigmas * 1000).astype(dtype)

    def is_modulation(self, path):
        return path.endswith(".condition")

    @contextmanager
    def blocks_replaced(self, replace):
        before, self._calls = self._calls, [replace(block) for block in self.blocks]
        try:
            yield
        finally:
            self._calls = before


@pytest.fixture(scope="module")
def network():
    return ToyNetwork()


def test_it_draws(network):
    given = random_trajectory(0).conditioning
    start = mx.random.normal((1, 8, 8, 16), key=mx.random.key(1))
    final = sample_euler(network, start, network.sigmas(3), given.tokens, given.pooled, 4.0)
    assert final.shape == start.shape
    assert not mx.array_equal(final, start).item()


def test_its_inputs_are_measured(network):
    found = measure_image(network, random_trajectory(0), [0, 2], "toy", "0000")
    assert list(found.input_of) == [linear.name for linear in network.linears]
    assert found.input_of["uni01.attn.v_proj"] == "uni01.attn.q_proj"
    assert found.post_gelu == {"uni00.mlp.fc2", "uni01.mlp.fc2"}


@pytest.mark.parametrize("rounding", ["gptq", "adaround"])
def test_its_blocks_are_quantized(network, tmp_path, rounding):
    files = [write_block_io(tmp_path / f"{n}.safetensors", network, seed=n) for n in range(3)]
    data = read_block(files, ["uni00", "uni01"], "uni01")
    recipe = full_recipe(rounding, iterations=20)
    result = quantize_block(block_problem(network, "uni01", data, recipe), recipe, seed=0)
    assert set(result.packed) == {f"uni01.{place}" for place in NAMES}
    errors = result.document["hard_error"]
    assert np.isfinite(errors["result"]["held_out"])
    assert errors["result"]["train"] < errors["rtn"]["train"]


def test_what_modulates_is_found(network):
    others = [linear.path for linear in network.other_linears("blocks+adaln")]
    assert others == ["layers.0.condition", "layers.1.condition"]
    assert len(network.other_linears()) == 2 + 4
