"""What planning knows of a model's shapes is what its modules have."""

from __future__ import annotations

import dataclasses
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ditquant.backend import import_diffusionkit, mx
from ditquant.errors import UserError
from ditquant.models.load import mmdit_config
from ditquant.models.shapes import Shape, check_image_size, read_shape
from ditquant.models.spec import PUBLISHED, check_t5, drawn_size, read_spec
from ditquant.network.diffusionkit import empty_network, linear_path, load_network
from ditquant.network.sampling import latent_shape
from support.models import CONFIG, build_network, write_folder

ROOT = Path(__file__).parents[2]


def assert_same_linears(shape: Shape, model) -> None:
    blocks = {linear.name: linear.module.weight.shape for linear in model.linears}
    others = {linear.name: linear.module.weight.shape for linear in model.other_linears()}
    assert list(shape.block_linears().items()) == list(blocks.items())
    assert list(shape.other_linears().items()) == list(others.items())
    assert shape.block_names == [block.name for block in model.blocks]
    for linear in model.linears:
        assert linear_path(linear.name) == linear.path


@pytest.mark.parametrize("name", [*PUBLISHED, "demo"])
def test_published_and_embedded_models(name):
    spec = read_spec(name)
    config = mmdit_config(spec)
    for field in dataclasses.fields(Shape):
        assert getattr(spec.shape, field.name) == getattr(config, field.name), field.name
    # Nothing is computed: MLX draws weights when they are first used.
    assert_same_linears(spec.shape, empty_network(spec))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"depth_unified": 2},
        {"depth_unified": 1, "parallel_mlp_for_unified_blocks": False},
        {"mlp_ratio": 2, "hidden_size": 96, "frequency_embed_dim": 64},
        {"patch_size": 4, "pooled_text_embed_dim": 48, "token_level_text_embed_dim": 80},
    ],
)
def test_models_of_other_sizes(options):
    mmdit = {**CONFIG["mmdit"], **options}
    assert_same_linears(read_shape(mmdit), build_network(**options))


def test_a_model_folder(tmp_path):
    spec = read_spec("local", str(write_folder(tmp_path / "tiny", depth_multimodal=3)))
    assert_same_linears(spec.shape, load_network(spec, mx.float32))


def test_the_defaults_are_diffusionkits():
    import_diffusionkit()
    config = importlib.import_module("diffusionkit.mlx.config").MMDiTConfig()
    for field in dataclasses.fields(Shape):
        assert field.default == getattr(config, field.name), field.name


SMALL = read_shape(CONFIG["mmdit"])


@pytest.mark.parametrize("size", [(16, 64), (64, 64), (48, 32)])
def test_sizes_that_can_be_drawn_are(size):
    check_image_size(SMALL, size, "k", "tiny")
    model = build_network()
    _, height, width, channels = latent_shape(size)
    positions = model.module.x_pos_embedder(mx.zeros((1, height, width, channels)))
    patches = model.module.x_embedder(mx.zeros((1, height, width, channels)))
    assert positions.shape == patches.shape


@pytest.mark.parametrize(
    "size", [(0, 64), (64, 0), (-16, 64), (8, 64), (24, 64), (64, 72), (80, 64), (64, 128)]
)
def test_sizes_that_cannot_be_drawn_are_told(size):
    height, width = size
    with pytest.raises(UserError) as error:
        check_image_size(SMALL, size, "calibration.image_size", "tiny")
    assert str(error.value) == (
        f"calibration.image_size is {height} x {width} pixels, which tiny cannot draw: height and "
        "width are multiples of 16 from 16 to 64."
    )


def test_larger_patches_allow_fewer_sizes():
    wide = dataclasses.replace(SMALL, patch_size=4, max_latent_resolution=10)
    check_image_size(wide, (64, 32), "k", "wide")
    for size in ((48, 64), (80, 64)):
        with pytest.raises(UserError, match="multiples of 32 from 32 to 64"):
            check_image_size(wide, size, "k", "wide")


def test_the_message_names_what_set_the_size(tmp_path):
    spec = read_spec("sd3-medium")
    assert drawn_size(spec, None) == [512, 512]
    assert drawn_size(spec, [1536, 16]) == [1536, 16]
    with pytest.raises(UserError, match=r"^calibration\.image_size is 1552 x 512 .* 16 to 1536"):
        drawn_size(spec, [1552, 512])
    folder = dataclasses.replace(spec, folder=Path("/models/own"), image_size=(512, 100))
    with pytest.raises(UserError, match=r"^image_size of /models/own/config\.json is 512 x 100"):
        drawn_size(folder, None)


def test_t5_is_for_models_that_read_it():
    check_t5(read_spec("sd3-medium"), True)
    check_t5(read_spec("demo"), False)
    with pytest.raises(UserError, match=r"text\.t5 is true, but demo reads no T5"):
        check_t5(read_spec("demo"), True)


def test_planning_imports_nothing_that_computes():
    """What rules/common.smk takes from the library."""
    modules = "models.spec, models.files, planning.settings, planning.fitting, planning.digest"
    code = "import sys\n" + "\n".join(
        f"import ditquant.{module.strip()}" for module in modules.split(",")
    )
    code += "\nprint(*sorted({name.partition('.')[0] for name in sys.modules}))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert {"ditquant", "mlx", "numpy", "diffusionkit"} & set(done.stdout.split()) == {"ditquant"}
