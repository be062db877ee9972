"""Balancing: the folded network is the same network, whatever the factors."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ditquant.backend import mx, nn
from ditquant.network.blocks import Block, tapped
from ditquant.network.sampling import predict
from ditquant.weights.balance import apply_balance, balanced_parameters, folds, path_inside
from support.block_data import random_trajectory
from support.models import build_network, parameters


def flux_like(**overrides) -> nn.Module:
    from diffusionkit.mlx.config import PositionalEncoding

    return build_network(
        depth_unified=2,
        pos_embed_type=PositionalEncoding.PreSDPARope,
        rope_axes_dim=[8, 12, 12],
        use_qk_norm=True,
        patchify_via_reshape=True,
        **overrides,
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "sd3": build_network,
    "sd3.5": lambda: build_network(use_qk_norm=True),
    "flux": flux_like,
    "unified, serial": lambda: flux_like(parallel_mlp_for_unified_blocks=False),
}


def output_of(model: nn.Module) -> mx.array:
    trajectory = random_trajectory(seed=3)
    conditioning = trajectory.conditioning
    return predict(
        model,
        trajectory.latents[:1],
        trajectory.sigmas[1],
        trajectory.timesteps[1],
        conditioning.tokens,
        conditioning.pooled,
        trajectory.cfg_weight,
    )


def difference(one: mx.array, other: mx.array) -> float:
    return (mx.linalg.norm((one - other).flatten()) / mx.linalg.norm(one.flatten())).item()


def random_factors(block: Block, seed: int) -> dict[str, mx.array]:
    """Log-uniform in 0.3 .. 3."""
    names = {fold.name: fold.channels for fold in folds(block)}
    keys = mx.random.split(mx.random.key(seed), len(names))
    low, high = mx.log(mx.array(0.3)), mx.log(mx.array(3.0))
    return {
        name: mx.exp(mx.random.uniform(low, high, (channels,), key=key))
        for (name, channels), key in zip(names.items(), keys, strict=True)
    }


@pytest.mark.parametrize("name", MODELS)
def test_the_balanced_network_is_the_same_network(name):
    model = MODELS[name]()
    expected = output_of(model)
    for seed, block in enumerate(model.blocks):
        before = parameters(block.module)
        apply_balance(block, random_factors(block, seed))
        changed = parameters(block.module)
        assert changed.keys() - before.keys() == set(), "balancing adds no parameter"
        assert not mx.array_equal(
            before[f"{path_inside(block, block.linears[0])}.weight"],
            block.linears[0].module.weight,
        )
    # float32 products in another order, through all blocks; a wrong fold gives errors near 1
    assert difference(expected, output_of(model)) < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_every_fold_is_exact_by_itself(name):
    model = MODELS[name]()
    expected = output_of(model)
    for index in range(len(model.blocks)):
        for fold in folds(model.blocks[index]):
            other = MODELS[name]()
            block = other.blocks[index]
            factors = random_factors(block, 5)
            apply_balance(block, {fold.name: factors[fold.name]})
            assert difference(expected, output_of(other)) < 1e-5, (block.name, fold.name)


@pytest.mark.parametrize("name", MODELS)
def test_what_linears_read_is_divided(name):
    """Every linear except fc2 has a fold, and its input is x / b."""
    model = MODELS[name]()
    block = model.blocks[-1]
    linears = block.linears

    def inputs() -> dict[str, mx.array]:
        seen: dict[str, mx.array] = {}
        with tapped(linears, lambda linear, x: seen.update({linear.name: x})):
            output_of(model)
        return seen

    before = inputs()
    factors = random_factors(block, 1)
    readers = {linear.name: fold.name for fold in folds(block) for linear in fold.readers}
    assert set(readers) == {linear.name for linear in linears if linear.attribute != "fc2"}
    apply_balance(block, factors)
    after = inputs()
    for linear in linears:
        fold = readers.get(linear.name)
        expected = before[linear.name] / (factors[fold] if fold else 1.0)
        assert difference(expected, after[linear.name]) < 1e-5, linear.name


def test_folds_of_each_kind_of_block():
    names = {
        name: [[fold.name for fold in folds(block)] for block in make().blocks]
        for name, make in MODELS.items()
    }
    whole = ["img.qkv", "img.fc1", "txt.qkv", "txt.fc1", "o"]
    assert names["sd3"] == [whole, ["img.qkv", "img.fc1", "txt.qkv", "o"]]
    assert names["flux"] == [whole, whole, ["uni.qkv", "o"], ["uni.qkv", "o"]]
    assert names["unified, serial"][-1] == ["uni.qkv", "uni.fc1", "o"]
    last = (MODELS["sd3"]()).blocks[-1]
    joint = folds(last)[-1]
    assert [linear.name for linear in joint.readers] == ["mm01.img.attn.o_proj"]
    assert [linear.name for linear in joint.values] == [
        "mm01.img.attn.v_proj",
        "mm01.txt.attn.v_proj",
    ]


def test_one_factor_of_one_stream_alone_changes_the_network():
    """The trap: values of both streams meet in attention, so "o" cannot be one stream's."""
    model = build_network()
    expected = output_of(model)
    block = model.blocks[0]
    balanced = balanced_parameters(block, {"o": random_factors(block, 0)["o"]})
    image_only = {name: array for name, array in balanced.items() if name.startswith("image")}
    block.module.load_weights(list(image_only.items()), strict=False)
    assert difference(expected, output_of(model)) > 1e-3


def test_only_what_changes_is_returned_in_its_own_dtype():
    model = build_network(dtype=mx.float16, float16_dtype=mx.float16)
    model.module.set_dtype(mx.float16)
    block = model.blocks[0]
    before = parameters(block.module)
    balanced = balanced_parameters(block, {"txt.fc1": mx.full((64,), 2.0)})
    text = "text_transformer_block"
    adaln = f"{text}.adaLN_modulation.layers.1"
    fc1 = f"{text}.mlp.fc1.weight"
    assert set(balanced) == {f"{adaln}.weight", f"{adaln}.bias", fc1}
    assert all(array.dtype == mx.float16 for array in balanced.values())
    assert mx.array_equal(balanced[fc1], 2 * before[fc1])
    weight, bias = balanced[f"{adaln}.weight"], balanced[f"{adaln}.bias"]
    kept = [slice(0, 192), slice(320, 384)]
    assert all(mx.array_equal(weight[rows], before[f"{adaln}.weight"][rows]) for rows in kept)
    assert all(mx.array_equal(bias[rows], before[f"{adaln}.bias"][rows]) for rows in kept)
    assert mx.array_equal(parameters(block.module)[fc1], before[fc1]), "a pure function"
    assert balanced_parameters(block, {}) == {}


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"uni.qkv": mx.ones(64)}, "factors for uni.qkv, of img.qkv, img.fc1, txt.qkv"),
        ({"o": mx.ones(32)}, r"factors for o: shape \(32,\), not \(64,\)"),
    ],
)
def test_factors_that_do_not_fit_are_refused(factors, message):
    with pytest.raises(ValueError, match=message):
        balanced_parameters(build_network().blocks[-1], factors)
