"""SwIPE's block of the plan: plain JSON in and out, and errors that say what is wrong."""

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest

from nnunetv2_swipe.config import BACKBONES, OF_DECODING, OF_TRAINING, RANGES, SwIPEConfig


@pytest.mark.parametrize("dims", [2, 3])
def test_round_trip_through_json(tiny_config, dims):
    config = tiny_config(dims, image_decoder_features=[], dropout=0.25, regions=True)
    block = json.loads(json.dumps(config.to_dict()))
    assert SwIPEConfig.from_dict(block) == config
    assert SwIPEConfig.from_dict(block).to_dict() == block
    assert config.dims == dims


def test_settings_of_training_and_decoding_make_no_other_network(tiny_config):
    config = tiny_config()
    block = config.to_dict()
    assert {*OF_TRAINING, *OF_DECODING} <= set(block)
    assert config.differs_from(block | {"n_points": 7, "decoding": "blended", "dropout": 0.5}) is None
    assert config.differs_from(block | {"n_points": 7, "cascade": not config.cascade}) == "cascade"
    del block["cascade"]  # of an older version
    assert config.differs_from(block) is None


def test_unknown_key_is_named_with_those_allowed(tiny_config):
    block = tiny_config().to_dict() | {"patch_siez": [4, 4, 4]}
    with pytest.raises(ValueError, match=r"unknown key 'patch_siez'; allowed keys: .*patch_size"):
        SwIPEConfig.from_dict(block)


@pytest.mark.parametrize("key", [field.name for field in dataclasses.fields(SwIPEConfig)])
def test_missing_key_is_named(tiny_config, key):
    block = tiny_config().to_dict()
    del block[key]
    with pytest.raises(ValueError, match=f"key '{key}' is missing"):
        SwIPEConfig.from_dict(block)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("n_points", True, "type int"),
        ("n_points", 64.0, "type int"),
        ("n_points", "64", "type int"),
        ("rfb", 1, "type bool"),
        ("rfb", "true", "type bool"),
        ("dropout", "0.1", "type float"),
        ("dropout", True, "type float"),
        ("initial_lr", None, "type float"),
        ("backbone", 3, "type str"),
        ("patch_size", 8, "a list"),
        ("patch_size", "444", "a list"),
        ("patch_size", {"z": 4}, "a list"),
        ("features_per_stage", [16.0, 16], "type int"),
        ("strides", [2, 2], "a list"),
        ("strides", [[2, 2, 2], [2, 2, "2"]], "type int"),
    ],
)
def test_wrong_type_is_named(tiny_config, key, value, expected):
    with pytest.raises(ValueError, match=f'"{key}" must be (of )?{expected}, got '):
        SwIPEConfig.from_dict(tiny_config().to_dict() | {key: value})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400])
@pytest.mark.parametrize("key", [f.name for f in dataclasses.fields(SwIPEConfig) if f.type is float])
def test_a_number_that_is_not_finite_is_named(tiny_config, key, value):
    with pytest.raises(ValueError, match=f'"{key}" must be a finite number, got -?(nan|inf)'):
        SwIPEConfig.from_dict(tiny_config().to_dict() | {key: value})


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("patch_size", (3, 4, 4), "powers of two"),
        ("patch_size", (0, 4, 4), "powers of two"),
        ("patch_size", (4,), "2 or 3"),
        ("patch_size", (4, 4, 4, 4), "2 or 3"),
        ("backbone", "ResNet", ", ".join(map(repr, BACKBONES))),
        ("norm_op", "LayerNorm", "InstanceNorm"),
        ("decoding", "nearest", "blended"),
        ("strides", (), "1 to 16 stages"),
        ("strides", ((3, 3, 3), (2, 2, 2)), "3 powers of two"),
        ("strides", ((2, 2), (2, 2)), "3 powers of two"),
        ("kernel_sizes", ((3, 3, 3),), "2 stages of 3 odd numbers"),
        ("kernel_sizes", ((2, 2, 2), (3, 3, 3)), "2 stages of 3 odd numbers"),
        ("features_per_stage", (16,), "2 numbers, each 1 to 2048"),
        ("features_per_stage", (16, 12), "divisible by 8 for Res2Net"),
        ("n_blocks_per_stage", (1, 0), "2 numbers, each 1 to 64"),
        ("patch_decoder_features", (), "1 to 16 numbers"),
        ("image_decoder_features", (0,), "each 1 to 2048"),
        ("boundary_radius", (1, 1), "3 numbers"),
        ("boundary_radius", (1, 1, -1), "each 0 to 1000"),
        ("spo_connectivity", 8, "6, 18, 26"),
        ("dropout", 1.0, "0 to less than 1"),
        ("patch_loss_weight", 0.0, "more than 0"),
        ("patch_loss_weight", 1.5, "at most 1"),
        ("n_points", 0, "1 to 1048576"),
        ("n_points", 1 << 21, "1 to 1048576"),
        ("initial_lr", -1e-3, "1e-09 to 1"),
        ("n_spo", -1, "0 to 26"),
        ("n_spo", 27, "0 to 26"),
        ("mise_levels", -1, "0 to 8"),
        ("strides", ((8, 8, 8), (16, 16, 16)), "their product, too"),
        ("embedding_loss_weight", -0.5, "0 to 1000"),
    ],
)
def test_impossible_value_is_named_with_what_is_allowed(tiny_config, key, value, allowed):
    pattern = rf'"{key}" is {re.escape(repr(value))}; allowed: .*{re.escape(allowed)}'
    with pytest.raises(ValueError, match=pattern):
        tiny_config().replace(**{key: value})


def test_channels_need_not_be_divisible_for_the_other_backbones(tiny_config):
    assert tiny_config(backbone="PlainConvEncoder", features_per_stage=[5, 7]).features_per_stage == (5, 7)


def test_an_integer_serves_as_a_float(tiny_config):
    dropout = tiny_config(dropout=0).dropout
    assert isinstance(dropout, float)
    assert dropout == 0.0


def test_replace_changes_nothing_else(tiny_config):
    config = tiny_config()
    changed = config.replace(n_spo=0)
    assert {key for key, value in changed.to_dict().items() if config.to_dict()[key] != value} == {"n_spo"}
    assert config == tiny_config()


def test_replace_refuses_an_unknown_key(tiny_config):
    with pytest.raises(ValueError, match="unknown key 'colour'"):
        tiny_config().replace(colour="red")


def test_no_value_can_be_changed_in_place(tiny_config):
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny_config().dropout = 0.5


def test_total_strides_accumulate_per_axis(tiny_config):
    config = tiny_config(strides=((1, 2, 2), (2, 2, 4)))
    assert config.total_strides() == [(1, 2, 2), (2, 4, 8)]


def test_the_docs_tell_every_range():
    rows = (Path(__file__).parents[1] / "docs" / "plan.md").read_text().split("## What is allowed")[1].splitlines()
    for key, (low, high) in RANGES.items():
        (row,) = [r for r in rows if r.startswith("|") and f"`{key}`" in r.split("|")[1]]
        assert f" {low} to {high:,} " in row
