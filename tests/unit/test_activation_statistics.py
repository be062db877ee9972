"""Statistics add up exactly, whatever the partition and the order of images."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditquant.activations.histogram import NUM_BINS
from ditquant.activations.input_statistics import (
    load_statistics,
    merge,
    of_one_image,
    save_statistics,
    to_fixed,
)
from ditquant.activations.segments import grouped
from ditquant.activations.summary import layer_summary, temporal_analysis
from ditquant.artifacts import save_tensors
from ditquant.backend import mx
from ditquant.errors import UserError
from support.activations import input_statistics, statistics

IMAGES = 6


def image_statistics(number: int):
    """Values over many magnitudes, with zeros of both signs: what float sums would get wrong."""
    random = np.random.default_rng(number)
    scale = np.exp(3 * random.standard_normal((3, 1, 5)))
    values = (scale * random.standard_normal((3, 7, 5))).astype(np.float32)
    signed_zeros = np.where(number % 2, 0.0, -0.0) * np.ones((3, 7, 2), np.float32)
    return statistics(
        {"z": values, "b": np.concatenate([values, signed_zeros], 2).astype(np.float32)},
        image=f"{number:04d}",
        post_gelu=("b",),
    )


PARTS = [image_statistics(number) for number in range(IMAGES)]


def file_bytes(merged) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.safetensors"
        save_statistics(path, merged)
        return path.read_bytes()


ALL_AT_ONCE = file_bytes(merge(PARTS))


@settings(max_examples=40, deadline=None)
@given(
    order=st.permutations(range(IMAGES)),
    cuts=st.sets(st.integers(1, IMAGES - 1)),
    reverse=st.booleans(),
)
def test_any_partition_in_any_order_gives_the_same_bytes(order, cuts, reverse):
    bounds = [0, *sorted(cuts), IMAGES]
    jobs = [merge([PARTS[i] for i in order[a:b]]) for a, b in itertools.pairwise(bounds)]
    assert file_bytes(merge(jobs[::-1] if reverse else jobs)) == ALL_AT_ONCE


def test_merging_through_files_gives_the_same_bytes(tmp_path):
    paths = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for path, part in zip(paths, (PARTS[2], merge(PARTS[:2]), merge(PARTS[3:])), strict=True):
        save_statistics(path, part)
    assert file_bytes(merge([load_statistics(path) for path in paths])) == ALL_AT_ONCE


def test_merged_values_are_those_of_all_values_together():
    values = [np.random.default_rng(i).normal(size=(2, 9, 4)).astype(np.float32) for i in range(3)]
    merged = merge([statistics({"a": v}, image=f"{i:04d}") for i, v in enumerate(values)])
    together = input_statistics(np.concatenate(values, axis=1))
    measured = merged.of("a")
    np.testing.assert_array_equal(measured.channel_min, together.channel_min)
    np.testing.assert_array_equal(measured.channel_max, together.channel_max)
    np.testing.assert_array_equal(measured.histogram, together.histogram)
    np.testing.assert_array_equal(measured.count, [108, 108])
    # Each image's contribution is rounded to a multiple of 2^-20.
    resolution = 2.0**-20
    np.testing.assert_allclose(
        measured.average(measured.sum_mean_square),
        np.mean([(v.astype(np.float64) ** 2).mean(axis=(1, 2)) for v in values], axis=0),
        rtol=0, atol=resolution,
    )  # fmt: skip
    np.testing.assert_allclose(
        measured.average(measured.sum_channel_max),
        np.mean([v.max(axis=1).astype(np.float64) for v in values], axis=0),
        rtol=0, atol=resolution,
    )  # fmt: skip
    np.testing.assert_allclose(
        measured.average(measured.sum_absmax),
        np.mean([np.abs(v).max(axis=(1, 2)).astype(np.float64) for v in values], axis=0),
        rtol=0, atol=resolution,
    )  # fmt: skip
    np.testing.assert_array_equal(measured.token_histogram, together.token_histogram)
    np.testing.assert_array_equal(measured.token_histogram.sum(axis=1), [27, 27])
    np.testing.assert_array_equal(measured.forwards, [3, 3])
    pooled = measured.pooled()
    assert pooled.absmax == max(np.abs(v).max() for v in values)
    assert pooled.count == 216
    assert pooled.forwards == 6


def test_groups_of_steps_average_over_their_own_forward_passes():
    values = np.random.default_rng(3).normal(size=(3, 9, 4)).astype(np.float32)
    groups = grouped(statistics({"a": values}).of("a"), [0, 0, 1])
    np.testing.assert_array_equal(groups.forwards, [2, 1])
    largest = values.max(axis=1).astype(np.float64)
    expected = [largest[:2].mean(axis=0), largest[2]]
    found = groups.average(groups.sum_channel_max)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2.0**-20)


def test_a_file_gives_back_what_was_saved(tmp_path):
    for part in (PARTS[0], merge(PARTS)):
        path = tmp_path / "s.safetensors"
        save_statistics(path, part)
        loaded = load_statistics(path)
        assert loaded.images == part.images
        assert loaded.steps == part.steps
        assert list(loaded.input_of.items()) == list(part.input_of.items())
        assert list(loaded.inputs) == list(part.inputs)
        assert loaded.post_gelu == part.post_gelu
        for name, measured in part.inputs.items():
            for field, array in vars(measured).items():
                found = getattr(loaded.inputs[name], field)
                assert found.dtype == array.dtype
                np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("count", [1, 2**15, 2**31, 2**40])
def test_counts_of_any_size_come_back(count, tmp_path):
    """Files hold integers in the narrowest type that will do."""
    measured = PARTS[0].inputs["z"]
    histogram = np.full_like(measured.histogram, count)
    changed = dataclasses.replace(measured, histogram=histogram)
    inputs = {**PARTS[0].inputs, "z": changed}
    path = tmp_path / "s.safetensors"
    save_statistics(path, dataclasses.replace(PARTS[0], inputs=inputs))
    found = load_statistics(path).of("z").histogram
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, histogram)


def test_a_file_is_narrow(tmp_path):
    """A merged file has at most 24 bytes a channel, and 4 a bin: sums and counts are small."""
    path = tmp_path / "s.safetensors"
    merged = merge(PARTS)
    save_statistics(path, merged)
    header = 16_000
    channels = sum(m.channel_min.size for m in merged.inputs.values())
    bins = sum(2 * m.histogram.size for m in merged.inputs.values())
    assert path.stat().st_size <= 24 * channels + 4 * bins + header


def test_minus_zero_is_zero():
    zeros = np.full((1, 2), -0.0, np.float32)
    sums, counts = np.zeros(1, np.int64), np.zeros((1, NUM_BINS), np.int64)
    made = of_one_image(
        channel_min=zeros,
        channel_max=zeros,
        sum_mean_square=sums,
        histogram=counts,
        token_histogram=counts,
    )
    assert not np.signbit(made.channel_min).any()
    assert not np.signbit(made.channel_max).any()


def test_an_image_cannot_be_merged_twice():
    with pytest.raises(UserError, match="given twice"):
        merge([PARTS[0], PARTS[1], PARTS[0]])


@pytest.mark.parametrize(
    "change", [{"model": "other"}, {"steps": (0, 3, 6)}, {"sigmas": np.ones(3, np.float32)}]
)
def test_parts_that_do_not_fit_are_refused(change):
    with pytest.raises(UserError, match="image 0001"):
        merge([PARTS[0], dataclasses.replace(PARTS[1], **change)])


def test_another_kind_of_file_is_refused(tmp_path):
    save_tensors(tmp_path / "x.safetensors", {"a": mx.zeros(2)}, "ditquant.latents")
    with pytest.raises(UserError, match=r"holds ditquant\.latents where"):
        load_statistics(tmp_path / "x.safetensors")


@pytest.mark.parametrize("value", [2.0**30, -(2.0**31), np.inf, np.nan])
def test_values_outside_the_documented_range_are_refused(value):
    with pytest.raises(UserError, match=r"statistics end at 2\^30"):
        to_fixed(np.array([0.0, value]))


def test_summaries_report_what_was_measured():
    values = np.zeros((3, 4, 2), np.float32)
    values[:, 0, 0] = [1.0, -4.0, 2.0]
    values[:, 1, 1] = [0.5, 0.5, 0.5]
    made = statistics({"a": values}, post_gelu=("a",))
    layer = layer_summary(made)["layers"]["a"]
    assert layer["absmax"] == layer["mean_absmax"] == [1.0, 4.0, 2.0]
    assert layer["min"] == [0.0, -4.0, 0.0]
    assert layer["max"] == [1.0, 0.5, 2.0]
    assert layer["mean_channel_absmax"] == [0.75, 2.25, 1.25]
    assert layer["rms"] == pytest.approx(
        [(1.25 / 8) ** 0.5, (16.25 / 8) ** 0.5, (4.25 / 8) ** 0.5], rel=1e-5
    )
    assert layer["values"] == 24
    # Of eight values the largest alone lies above the 99 % point: all three are in its bin.
    for name in ("p99", "p999", "p9999"):
        np.testing.assert_allclose(layer[name], [1.0, 4.0, 2.0], rtol=1 / 16)
    assert layer["p99"] <= layer["p999"] <= layer["p9999"]
    # The tokens' largest values are 0, 0, 0.5 and 1 (4, 2).
    tokens = layer["token_absmax"]
    assert tokens["median"] == [0.0, 0.0, 0.0]
    np.testing.assert_allclose(tokens["p99"], [1.0, 4.0, 2.0], rtol=1 / 16)
    assert tokens["largest"] == [1.0, 4.0, 2.0]
    temporal = temporal_analysis(made)
    assert temporal["layers"]["a"] == {
        "post_gelu": True,
        "absmax_range": [1.0, 4.0],
        "drift": 4.0,
        "variability": pytest.approx(np.std([1, 4, 2]) / np.mean([1, 4, 2]), rel=1e-5),
        "step_of_max": 2,
        "sigma_of_max": 0.55,
        "step_of_min": 0,
    }
    assert temporal["summary"]["most_variable"] == ["a"]


def test_a_shift_behind_gelu_saves_nearly_a_bit():
    values = np.random.default_rng(5).standard_normal((2, 400, 16)).astype(np.float32)
    gelu = values * 0.5 * (1 + np.tanh(0.7978846 * (values + 0.044715 * values**3)))
    gelu = (8 * gelu).clip(-0.17, None).astype(np.float32)
    summary = temporal_analysis(statistics({"a": values, "fc2": gelu}, post_gelu=("fc2",)))
    # Half the codes of a symmetric quantizer stand for nothing: a quarter of the squared error is
    # left; less here, because the many values at the lowest one are met exactly.
    assert 0.1 < summary["summary"]["post_gelu_shift_error"] < 0.3
    assert temporal_analysis(statistics({"a": values}))["summary"]["post_gelu_shift_error"] is None


def test_tokens_of_very_different_sizes_gain_bits_by_scales_of_their_own():
    values = np.random.default_rng(5).uniform(-1, 1, size=(1, 101, 16)).astype(np.float32)
    values[0, 0] *= 64
    values[:, :, 0] = np.sign(values[:, :, 0])
    values[0, 0, 0] = 64
    tokens = layer_summary(statistics({"a": values}))["layers"]["a"]["token_absmax"]
    # The median is one bin's width off at most.
    assert tokens["gain_bits"][0] == pytest.approx(6, abs=np.log2(17 / 16))
