"""nnU-Net's own part of a plan, checked before anything is built from it."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from nnunetv2.preprocessing.resampling.utils import recursive_find_resampling_fn_by_name
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunetv2_swipe.config import MAX_KERNEL_SIZE, MAX_STRIDE
from nnunetv2_swipe.trust import is_known

MAX_CROP_VOXELS, MAX_BATCH_SIZE = 1 << 30, 1 << 16
MIN_SPACING, MAX_SPACING = 1e-9, 1e9
_RESAMPLING = ("resampling_fn_data", "resampling_fn_seg", "resampling_fn_probabilities")
_CT_KEYS = ("mean", "std", "percentile_00_5", "percentile_99_5")
_INTENSITIES, _INTENSITIES_ONCE = (
    f"foreground_intensity_properties_{ending}" for ending in ("per_channel", "by_modality")
)


def check_plan(plans: Mapping[str, Any], configuration_name: str) -> None:
    """Check what nnU-Net's code reads of a plan for one of its configurations.

    Raises:
        ValueError: A key is missing, or its value is not possible; the message names it and what is allowed.
    """
    _require({"label_manager": "LabelManager", **plans}, _rules_of_plan())  # nnU-Net's default
    forward, backward = plans["transpose_forward"], plans["transpose_backward"]
    if [forward[i] for i in backward] != [0, 1, 2]:
        raise _error("transpose_backward", backward, f"the inverse of 'transpose_forward' {forward}")
    configuration = resolved_configuration(plans, configuration_name)
    check_configuration(configuration)
    names = list(plans["configurations"])
    for key in ("previous_stage", "next_stage"):
        value = configuration.get(key)
        stages = value if isinstance(value, list) and key == "next_stage" else [value]
        if value is not None and not all(stage in names for stage in stages):
            raise _error(key, value, f"null, or a configuration of the plan ({', '.join(names)})")
    _check_intensities(plans, configuration["normalization_schemes"])


def resolved_configuration(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration with what it inherits, in today's form if it is of an old version of nnU-Net.

    Raises:
        ValueError: As of `with_inherited`; or it has no "architecture" and is of no old version either.
    """
    configuration = with_inherited(plans, name)
    return configuration if "architecture" in configuration else _of_old_version(configuration)


def with_inherited(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration with what it inherits.

    Raises:
        ValueError: There is none of that name, it is no object, or inheritance goes in a circle.
    """
    configurations = plans.get("configurations")
    if not isinstance(configurations, Mapping):
        raise _error("configurations", configurations, "an object (in braces)")
    inherited: dict[str, Any] = {}
    visited: list[str] = []
    while True:
        if not isinstance(name, str) or name not in configurations:
            asked = f"'inherits_from' of {visited[-1]!r}" if visited else "what is asked for of 'configurations'"
            raise ValueError(f"nnU-Net plan: {asked} is {name!r}; allowed: one of {', '.join(configurations)}.")
        if name in visited:
            raise _error("inherits_from", name, f"no circle (here {' -> '.join([*visited, name])})")
        configuration = configurations[name]
        if not isinstance(configuration, Mapping):
            raise _error(name, configuration, "an object (in braces)")
        visited.append(name)
        inherited = {**configuration, **inherited}
        if "inherits_from" not in configuration:
            return inherited
        name = configuration["inherits_from"]


def _of_old_version(configuration: dict[str, Any]) -> dict[str, Any]:
    """nnU-Net's translation of a configuration without "architecture", as its first versions wrote it."""
    try:
        return ConfigurationManager(configuration).configuration
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            "nnU-Net plan: key 'architecture' is missing, and what is there cannot be read as a plan of an old version "
            "of nnU-Net. Plan the dataset again."
        ) from error


def check_configuration(configuration: Mapping[str, Any]) -> None:
    """Check what nnU-Net's code reads of a configuration, inheritance resolved.

    Raises:
        ValueError: A key is missing, or its value is not possible; the message names it and what is allowed.
    """
    check_geometry(configuration)
    _require(configuration, _rules_of_configuration())
    masks, n = configuration["use_mask_for_norm"], len(configuration["normalization_schemes"])
    if len(masks) != n:
        raise _error("use_mask_for_norm", masks, f"true or false for each of {n} channels ('normalization_schemes')")
    for name in _RESAMPLING:
        _check_options(f"{name}_kwargs", configuration[f"{name}_kwargs"], configuration[name])


def check_geometry(configuration: Mapping[str, Any]) -> None:
    """Check what SwIPE's rules read of a configuration: crop, spacing, batch size, stages.

    Raises:
        ValueError: A key is missing, or its value is not possible; the message names it and what is allowed.
    """
    _require(configuration, _rules_of_geometry())
    dims, spacing = len(configuration["patch_size"]), configuration["spacing"]
    if len(spacing) != dims:
        raise _error("spacing", spacing, f"{dims} numbers, one for each axis of 'patch_size'")
    kwargs = configuration["architecture"]["arch_kwargs"]
    for key, highest in (("strides", MAX_STRIDE), ("kernel_sizes", MAX_KERNEL_SIZE)):
        stages = kwargs.get(key)
        if not _is_list(stages, partial(_is_stage, dims=dims, highest=highest)):
            raise _error(key, stages, f"for each stage {dims} whole numbers from 1 to {highest}")
    if len(kwargs["strides"]) != len(kwargs["kernel_sizes"]):
        raise _error("kernel_sizes", kwargs["kernel_sizes"], f"{len(kwargs['strides'])} stages, as in 'strides'")


def _check_options(key: str, options: Mapping[str, Any], function: str) -> None:
    """ValueError if a resampling function does not take its options; nnU-Net may need it after training only."""
    signature = inspect.signature(recursive_find_resampling_fn_by_name(function))
    try:
        signature.bind("image", "new shape", "spacing", "new spacing", **options)
    except TypeError as error:
        allowed = ", ".join(list(signature.parameters)[4:])
        raise _error(key, options, f"options of {function!r}, which are {allowed}") from error


def _check_intensities(plans: Mapping[str, Any], normalization_schemes: Sequence[str]) -> None:
    """ValueError if a channel is normalised as CT by intensities that the plan does not hold."""
    intensities = plans.get(_INTENSITIES, plans.get(_INTENSITIES_ONCE))
    if not isinstance(intensities, Mapping):
        raise _error(_INTENSITIES, intensities, "an object (in braces)")
    for channel, scheme in enumerate(normalization_schemes):
        known = intensities.get(str(channel))
        numbers = _CT_KEYS if scheme == "CTNormalization" else ()
        if not isinstance(known, Mapping) or not all(_is_number(known.get(key), -1e9, 1e9) for key in numbers):
            allowed = f"for channel {channel} an object (in braces)" + (f" of numbers {numbers}" if numbers else "")
            raise _error(_INTENSITIES, intensities, allowed)


Rule = tuple[str, str, Callable[[Any], bool]]
"""A key, what is allowed, and whether a value is."""


def _require(values: Mapping[str, Any], rules: Sequence[Rule]) -> None:
    """ValueError for the first key that is missing or whose value is not allowed."""
    for key, allowed, holds in rules:
        if key not in values:
            raise ValueError(f"nnU-Net plan: key {key!r} is missing; allowed: {allowed}. Plan the dataset again.")
        if not holds(values[key]):
            raise _error(key, values[key], allowed)


def _error(key: str, value: Any, allowed: str) -> ValueError:  # noqa: ANN401
    return ValueError(
        f"nnU-Net plan: {key!r} is {value!r}; allowed: {allowed}. The plan was edited, or is of another version of "
        "nnU-Net: correct it, or plan the dataset again."
    )


def _is_known(key: str) -> Callable[[Any], bool]:
    return partial(is_known, key)


def _rules_of_plan() -> list[Rule]:
    order = "0, 1 and 2 in any order"
    return [
        ("dataset_name", "a name", _is_name),
        ("plans_name", "a name", _is_name),
        ("image_reader_writer", "a reader of nnU-Net", _is_known("image_reader_writer")),
        ("label_manager", "a label manager of nnU-Net, such as 'LabelManager'", _is_known("label_manager")),
        ("transpose_forward", order, _is_permutation),
        ("transpose_backward", order, _is_permutation),
    ]


def _rules_of_geometry() -> list[Rule]:
    def is_spacing(value: Any) -> bool:  # noqa: ANN401
        return _is_list(value, lambda n: _is_number(n, MIN_SPACING, MAX_SPACING))

    def is_architecture(value: Any) -> bool:  # noqa: ANN401
        return _is_object(value) and _is_object(value.get("arch_kwargs"))

    return [
        ("patch_size", "2 or 3 whole numbers above 0, together at most 2^30 voxels", _is_crop),
        ("spacing", f"2 or 3 numbers from {MIN_SPACING:g} to {MAX_SPACING:g}", is_spacing),
        ("batch_size", f"a whole number from 1 to {MAX_BATCH_SIZE}", lambda v: _is_whole(v, 1, MAX_BATCH_SIZE)),
        ("architecture", "an object (in braces) with an object 'arch_kwargs'", is_architecture),
    ]


def _rules_of_configuration() -> list[Rule]:
    is_normalization = _is_known("normalization_schemes")
    return [
        ("data_identifier", "a name", _is_name),
        ("preprocessor_name", "a name", _is_name),
        (
            "normalization_schemes",
            "a normalisation of nnU-Net for each channel",
            lambda v: _is_list(v, is_normalization),
        ),
        ("use_mask_for_norm", "true or false for each channel", lambda v: _is_list(v, lambda b: isinstance(b, bool))),
        *[(name, "a resampling function of nnU-Net", _is_known(name)) for name in _RESAMPLING],
        *[(f"{name}_kwargs", "an object (in braces)", _is_object) for name in _RESAMPLING],
        ("batch_dice", "true or false", lambda v: isinstance(v, bool)),
    ]


def _is_number(value: Any, low: float, high: float) -> bool:  # noqa: ANN401
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _is_whole(value: Any, low: int, high: int) -> bool:  # noqa: ANN401
    return isinstance(value, int) and _is_number(value, low, high)


def _is_list(value: Any, valid: Callable[[Any], bool]) -> bool:  # noqa: ANN401
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(valid(v) for v in value)


def _is_name(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, str) and value != ""


def _is_object(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, Mapping)


def _is_crop(value: Any) -> bool:  # noqa: ANN401
    whole = _is_list(value, lambda n: _is_whole(n, 1, MAX_CROP_VOXELS)) and len(value) in (2, 3)
    return whole and math.prod(value) <= MAX_CROP_VOXELS


def _is_stage(value: Any, dims: int, highest: int) -> bool:  # noqa: ANN401
    per_axis = _is_list(value, lambda n: _is_whole(n, 1, highest)) and len(value) == dims
    return per_axis or _is_whole(value, 1, highest)


def _is_permutation(value: Any) -> bool:  # noqa: ANN401
    return _is_list(value, lambda n: _is_whole(n, 0, 2)) and sorted(value) == [0, 1, 2]
