"""Plans that were edited by hand: every impossible value is named with what is allowed, before anything is built."""

import copy
import dataclasses
import json
import math
import re

import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_swipe.config import OF_DECODING, OF_TRAINING, PLAN_KEY, SwIPEConfig
from nnunetv2_swipe.network.swipe_net import SwIPENet
from nnunetv2_swipe.planners.plan_block import derive_block, read_block, with_swipe_block

NAME = "3d_fullres"
DATASET_JSON = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "anterior": 1, "posterior": 2},
    "file_ending": ".nii.gz",
}
STATISTICS = {str(i): {"n_cases": 1, "surface_to_volume_per_mm": 4 / 4.5} for i in (1, 2)}
RESAMPLING = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
INTENSITIES = {"mean": 9e4, "std": 6e4, "percentile_00_5": 2e3, "percentile_99_5": 3e5, "min": 0.0, "max": 5e5}


def nnunets_plan():
    """What nnU-Net 2.8.1 plans for the hippocampus dataset, and a cascade."""
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 9,
        "patch_size": [40, 56, 40],
        "median_image_size_in_voxels": [36.0, 50.0, 35.0],
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        **{f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in ("data", "seg", "probabilities")},
        **{f"resampling_fn_{what}_kwargs": RESAMPLING for what in ("data", "seg", "probabilities")},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 4,
                "features_per_stage": [32, 64, 128, 256],
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [[3, 3, 3]] * 4,
                "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
                "n_conv_per_stage": [2, 2, 2, 2],
                "n_conv_per_stage_decoder": [2, 2, 2],
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }
    return {
        "dataset_name": "Dataset004_Hippocampus",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [36, 50, 35],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            NAME: configuration,
            "3d_lowres": copy.deepcopy(configuration) | {"next_stage": "3d_cascade_fullres"},
            "3d_cascade_fullres": {"inherits_from": NAME, "previous_stage": "3d_lowres"},
        },
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": INTENSITIES},
    }


def real_plan():
    plans = nnunets_plan()
    labels = PlansManager(copy.deepcopy(plans)).get_label_manager(DATASET_JSON)
    plans["configurations"][NAME][PLAN_KEY] = derive_block(plans, NAME, labels, STATISTICS).to_dict()
    return plans


PLAN = real_plan()
BLOCK = PLAN["configurations"][NAME][PLAN_KEY]
MISSING = object()
VALUES = {
    "missing": MISSING,
    "null": None,
    "object": {"a": 1},
    "string": "7",
    "true": True,
    "empty list": [],
    "negative": -1,
    "zero": 0,
    "fraction": 2.5,
    "huge": 10**12,
    "infinity": math.inf,
    "NaN": math.nan,
    "10^400": 10**400,
}
OF_PLAN = (
    "dataset_name", "plans_name", "image_reader_writer", "transpose_forward", "transpose_backward", "label_manager",
    "configurations", "foreground_intensity_properties_per_channel",
)  # fmt: skip
OF_CONFIGURATION = (
    "data_identifier", "preprocessor_name", "batch_size", "patch_size", "spacing", "normalization_schemes",
    "use_mask_for_norm", "resampling_fn_data", "resampling_fn_seg", "resampling_fn_probabilities",
    "resampling_fn_data_kwargs", "resampling_fn_seg_kwargs", "resampling_fn_probabilities_kwargs", "architecture",
    "batch_dice", "previous_stage", "next_stage", "inherits_from",
)  # fmt: skip
POSSIBLE_OF_NNUNET = {
    ("dataset_name", "string"),
    ("plans_name", "string"),
    ("data_identifier", "string"),
    ("label_manager", "missing"),
    ("batch_dice", "true"),
    ("use_mask_for_norm", "first true"),
    ("spacing", "first fraction"),
    *[(f"resampling_fn_{what}_kwargs", "no option") for what in ("data", "seg", "probabilities")],
    *[(key, kind) for key in ("previous_stage", "next_stage") for kind in ("missing", "null")],
    ("next_stage", "empty list"),
    ("inherits_from", "missing"),
}
"""Names of files and folders, which nnU-Net itself looks for, and what is optional."""


@pytest.fixture(autouse=True)
def empty_folders(monkeypatch, tmp_path):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))


def load(plans, name=NAME):
    """The settings as training reads them, and prediction after it; the plan goes through a file's text."""
    plans = json.loads(json.dumps(plans))
    planned = with_swipe_block(plans, name, DATASET_JSON, trainer_name="SwIPETrainer", changes={})
    return read_block(PlansManager(planned).get_configuration(name))


def edited(value, *path):
    """The real plan with another value, or none, at a path of keys and positions."""
    plans = copy.deepcopy(PLAN)
    *parents, last = path
    place = plans
    for step in parents:
        place = place[step]
    if value is MISSING:
        place.pop(last, None)
    else:
        place[last] = value
    return plans


def refusal(plans, name=NAME):
    """The message with which a plan is refused; None if it is taken. Other exceptions are not caught."""
    try:
        load(plans, name)
    except ValueError as error:
        return str(error)
    return None


def require_network(config):
    """Build the network and run a training step, of shapes alone."""
    with torch.device("meta"):
        network = SwIPENet(config, 1, 3)
        x = torch.empty(2, network.expected_channels, 40, 56, 40)
        points = torch.empty(2, 8, 3)
        neighbours = torch.empty(2, 8, config.n_spo, 3, dtype=torch.int64) if config.n_spo else None
    outputs = network(x, points, neighbours)
    assert outputs.patch.shape == (2, 8, 3)
    outputs.patch.sum().backward()


def test_the_plan_is_possible():
    for name in (NAME, "3d_cascade_fullres"):
        config = load(PLAN, name)
        assert config.to_dict() == BLOCK
    require_network(config)


def mutations_of_block():
    """Every key with every value, lists also with every value as the first of their numbers."""
    for field in dataclasses.fields(SwIPEConfig):
        for kind, value in VALUES.items():
            yield (field.name,), kind, value
            inner = BLOCK[field.name]
            path = [field.name]
            while isinstance(inner, list):
                inner = inner[0]
                path.append(0)
            if len(path) > 1 and value is not MISSING:
                yield tuple(path), kind, value


@pytest.mark.parametrize(
    ("path", "kind", "value"),
    [pytest.param(*m, id=f"{'.'.join(map(str, m[0]))}-{m[1]}") for m in mutations_of_block()],
)
def test_every_edit_of_swipes_block_is_possible_or_named(path, kind, value):
    key = path[0]
    plans = edited(value, "configurations", NAME, PLAN_KEY, *path)
    message = refusal(plans)
    if message is not None:
        assert re.search(rf"""^SwIPE plan: .*["']{key}["']""", message)
        return
    assert kind not in ("missing", "null", "object", "infinity", "NaN", "10^400", "huge", "negative")
    config = load(plans)
    changed = {k for k, v in config.to_dict().items() if v != BLOCK[k]}
    assert changed <= {key}
    if not changed <= {*OF_TRAINING, *OF_DECODING}:
        require_network(config)


def mutations_of_nnunets_part():
    for key in OF_PLAN:
        for kind, value in VALUES.items():
            yield (key,), kind, value
    for key in OF_CONFIGURATION:
        for kind, value in VALUES.items():
            yield ("configurations", NAME, key), kind, value
    for key in ("patch_size", "spacing", "normalization_schemes", "use_mask_for_norm"):
        for kind, value in VALUES.items():
            if value is not MISSING:
                yield ("configurations", NAME, key, 0), f"first {kind}", value
    for key in ("strides", "kernel_sizes"):
        for kind, value in VALUES.items():
            yield ("configurations", NAME, "architecture", "arch_kwargs", key), kind, value
    for key in ("transpose_forward", "transpose_backward"):
        for kind, value in (("another axis", 1), ("three axes", 3)):
            yield (key, 0), kind, value
    for what in ("data", "seg", "probabilities"):
        yield ("configurations", NAME, f"resampling_fn_{what}_kwargs"), "no option", {}


@pytest.mark.parametrize(
    ("path", "kind", "value"),
    [pytest.param(*m, id=f"{'.'.join(map(str, m[0]))}-{m[1]}") for m in mutations_of_nnunets_part()],
)
def test_every_edit_of_nnunets_part_is_possible_or_named(path, kind, value):
    key = next(step for step in reversed(path) if isinstance(step, str))
    message = refusal(edited(value, *path))
    if (key, kind) in POSSIBLE_OF_NNUNET:
        assert message is None
    else:
        assert message is not None
        assert re.search(rf"plan: .*['\"]{key}['\"]", message)


@pytest.mark.parametrize("value", [5, [], "swipe", True, [1, 2], 10**400, math.nan])
def test_a_block_that_is_no_object_is_named(value):
    message = refusal(edited(value, "configurations", NAME, PLAN_KEY))
    assert re.search('^SwIPE plan: "swipe" must be an object', message)


@pytest.mark.parametrize(
    ("value", "path", "expected"),
    [
        (3, ("configurations", NAME), "'3d_fullres' is 3; allowed: an object"),
        (MISSING, ("configurations", NAME), "of 'configurations' is '3d_fullres'; allowed: one of 3d_lowres"),
        ("3d_cascade_fullres", ("configurations", NAME, "inherits_from"), "no circle .here 3d_fullres -> 3d_casc"),
        ("3d_none", ("configurations", NAME, "inherits_from"), "'inherits_from' of '3d_fullres' is '3d_none'"),
        (16.5, ("configurations", NAME, "patch_size", 1), r"'patch_size' is \[40, 16.5, 40\]; allowed: 2 or 3 whole"),
        ([1.0, 1.0], ("configurations", NAME, "spacing"), r"'spacing' is \[1.0, 1.0\]; allowed: 3 numbers"),
        (2.5, ("configurations", NAME, "batch_size"), "'batch_size' is 2.5; allowed: a whole number from 1 to 65536"),
        (None, ("configurations", NAME, "architecture"), "'architecture' is None; allowed: an object"),
        (MISSING, ("configurations", NAME, "architecture"), "key 'architecture' is missing"),
        ([[3] * 3] * 3, ("configurations", NAME, "architecture", "arch_kwargs", "kernel_sizes"), "allowed: 4 stages"),
        ([True, False], ("configurations", NAME, "use_mask_for_norm"), "true or false for each of 1 channels"),
        (["CTNormalization"], ("configurations", NAME, "normalization_schemes"), None),
        ({"ordr": 1}, ("configurations", NAME, "resampling_fn_seg_kwargs"), "options of .* which are is_seg, order,"),
        ([1, 2, 0], ("transpose_forward",), "'transpose_backward' is .*the inverse of 'transpose_forward'"),
        ({"0": 5}, ("foreground_intensity_properties_per_channel",), "for channel 0 an object"),
    ],
)
def test_what_is_allowed_is_said(value, path, expected):
    message = refusal(edited(value, *path))
    assert message is None if expected is None else re.search(f"nnU-Net plan: .*{expected}", message)


@pytest.mark.parametrize("value", [MISSING, None, math.nan, math.inf, "7", 10**400])
def test_intensities_that_normalise_a_ct_are_checked(value):
    plans = edited(value, "foreground_intensity_properties_per_channel", "0", "mean")
    plans["configurations"][NAME]["normalization_schemes"] = ["CTNormalization"]
    assert "'foreground_intensity_properties_per_channel' is" in refusal(plans)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("patch_size", [2, 2, 64], '"patch_size" is .*below twice the crop along each axis, .40, 56, 24.'),
        ("strides", [[2, 2, 4], [2, 2, 4], [2, 2, 4]], '"strides" is .*a product below twice the crop'),
    ],
)
def test_patches_and_strides_have_room_in_the_crop(key, value, expected):
    plans = edited(value, "configurations", NAME, PLAN_KEY, key)
    plans["configurations"][NAME]["patch_size"] = [40, 56, 24]
    assert re.search(expected, refusal(plans))


def test_the_greatest_network_of_a_single_edit_can_be_built():
    """What the bounds let through is a matter of memory, not of numbers."""
    greatest = {
        "embedding_dim": 2048,
        "neck_features": 2048,
        "features_per_stage": [2048] * 3,
        "n_blocks_per_stage": [64] * 3,
        "kernel_sizes": [[15] * 3] * 3,
        "patch_decoder_features": [2048] * 16,
        "fourier_frequencies": 16,
        "patch_size": [64, 64, 64],
        "strides": [[4, 4, 4]] * 3,
    }
    for key, value in greatest.items():
        require_network(load(edited(value, "configurations", NAME, PLAN_KEY, key)))
