"""Recipes and activation configurations that do not fit a model are told while planning."""

from __future__ import annotations

import pytest

from ditquant.backend import mx
from ditquant.errors import UserError
from ditquant.models.shapes import Shape
from ditquant.models.spec import read_spec
from ditquant.network.blocks import SCOPES
from ditquant.planning.fitting import check_channel_group, check_recipe
from ditquant.planning.recipes import MLX_GROUPS
from ditquant.weights.grids import Grid, fit_scales
from ditquant.weights.rotation import mark_rotated
from support.models import build_network
from support.problems import whole_recipe

SMALL = Shape(hidden_size=96, num_heads=2, depth_multimodal=2)
LINEARS = SMALL.block_linears()


def recipe(**options):
    return whole_recipe("rtn", **{"group_size": 32, **options})


def check(**options):
    check_recipe("recipes.own", recipe(**options), LINEARS, "small")


@pytest.mark.parametrize("scope", SCOPES)
def test_what_fits_passes(scope):
    check(quantize=scope)
    check(quantize=scope, grid="channel", group_size=128)
    check(quantize=scope, rotation=32)
    # A linear that is left alone needs no dividing group.
    check(quantize=scope, group_size=64, layers={"*": "full", "mm00.*.fc2": 8})


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("size", [64, 128])
def test_a_group_size_that_does_not_divide_names_recipe_key_linear_and_width(scope, size):
    with pytest.raises(UserError) as error:
        check(quantize=scope, group_size=size)
    assert str(error.value) == (
        f"recipes.own.group_size: mm00.img.attn.q_proj of small has 96 inputs, which groups of "
        f"{size} do not divide: use 32, or leave the linear alone with layers."
    )


def test_the_first_linear_that_is_quantized_counts():
    with pytest.raises(UserError, match=r"mm01\.txt\.attn\.v_proj of small has 96 inputs"):
        check(group_size=64, layers={"*": "full", "*.v_proj": "full", "mm01.txt.*.v_proj": 3})


def test_a_channel_grid_needs_one_of_mlxs_groups():
    odd = Shape(hidden_size=48, num_heads=2, depth_multimodal=2).block_linears()
    with pytest.raises(UserError, match=r"48 inputs, which groups of 128, 64, 32 do not divide"):
        check_recipe("recipes.own", recipe(grid="channel"), odd, "odd")


def test_a_recipe_that_quantizes_nothing_is_told():
    with pytest.raises(UserError, match=r"recipes\.own\.layers: it leaves every linear of small"):
        check(layers={"*": "full"})
    check(layers={"*": "full"}, quantize="all")


@pytest.mark.parametrize("scope", SCOPES)
def test_a_rotation_that_does_not_divide_names_recipe_key_linear_and_width(scope):
    # Rotations are for all block linears, also for those that keep their weights.
    with pytest.raises(UserError) as error:
        check(quantize=scope, rotation=64, layers={"*": "full", "mm01.*": 4})
    assert str(error.value).startswith(
        "recipes.own.rotation: mm00.img.attn.q_proj of small has 96 inputs, which a rotation of 64 "
        "does not divide."
    )


@pytest.mark.parametrize("pattern", ["mm02.*", "*.fc3", "mm01.txt.mlp.*", "adaLN*", "", "MM00.*"])
def test_a_pattern_that_fits_nothing_is_told_with_the_names(pattern):
    with pytest.raises(UserError) as error:
        check(layers={"*.fc1": 8, pattern: 6})
    message = str(error.value)
    assert message.startswith(
        f"recipes.own.layers: no linear of small has a name like {pattern!r}."
    )
    assert "mm00 followed by .img.attn.q_proj, .img.attn.k_proj" in message
    assert "mm01 followed by .img.attn.q_proj" in message


def test_names_of_many_blocks_are_told_in_short():
    linears = read_spec("sd3-medium").shape.block_linears()
    with pytest.raises(UserError) as error:
        check_recipe("recipes.own", recipe(layers={"mm24.*": 8}), linears, "sd3-medium")
    assert "mm00 to mm22 followed by .img.attn.q_proj" in str(error.value)
    assert "; mm23 followed by" in str(error.value)
    assert len(str(error.value)) < 700


@pytest.mark.parametrize("width", [16, 32, 48, 64, 96, 128, 192, 1536, 2432])
@pytest.mark.parametrize("grid", ["group", "channel"])
@pytest.mark.parametrize("size", MLX_GROUPS)
def test_planning_and_packing_agree(width, grid, size):
    linears = {"mm00.img.mlp.fc1": (8, width)}
    try:
        fit_scales(mx.ones((8, width)), Grid(grid, 4, size))
    except UserError:
        with pytest.raises(UserError, match="do not divide"):
            check_recipe("r", recipe(grid=grid, group_size=size), linears, "x")
    else:
        check_recipe("r", recipe(grid=grid, group_size=size), linears, "x")


@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_planning_and_rotating_agree(size):
    model = build_network(hidden_size=96)
    linears = Shape(hidden_size=96, num_heads=2, depth_multimodal=2).block_linears()
    try:
        mark_rotated(model, size)
    except UserError:
        with pytest.raises(UserError, match="does not divide"):
            check_recipe("r", recipe(rotation=size), linears, "x")
    else:
        check_recipe("r", recipe(rotation=size), linears, "x")


def test_groups_of_channels_must_fill_every_input():
    check_channel_group("activations", None, LINEARS, "small")
    check_channel_group("activations", 32, LINEARS, "small")
    with pytest.raises(UserError) as error:
        check_channel_group("activations.variants.a6", 64, LINEARS, "small")
    assert str(error.value) == (
        "activations.variants.a6.channel_group: mm00.img.attn.q_proj of small has 96 inputs, which "
        "groups of 64 do not fill. Use another size, or null."
    )
