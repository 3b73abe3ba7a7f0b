"""Preprocessed data that several configurations of a dataset share."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from batchgenerators.utilities.file_and_folder_operations import load_json

from nnunetv2_swipe.planners.plan_block import data_preprocessor

_PREPROCESSING_KEYS = (
    "spacing", "normalization_schemes", "use_mask_for_norm", "resampling_fn_data", "resampling_fn_seg",
    "resampling_fn_data_kwargs", "resampling_fn_seg_kwargs",
)  # fmt: skip
_PREPROCESSING_KEYS_OF_PLAN = (
    "transpose_forward", "image_reader_writer", "foreground_intensity_properties_per_channel",
)  # fmt: skip


def other_plans(folder: Path, plans_name: str) -> list[dict[str, Any]]:
    """The other plans of a dataset, from its folder of preprocessed data."""
    read = [load_json(str(file)) for file in sorted(folder.glob("*.json")) if file.stem != plans_name]
    return [plans for plans in read if isinstance(plans, dict) and "configurations" in plans]


def shared_identifier(plans: Mapping[str, Any], name: str, others: Iterable[Mapping[str, Any]]) -> str:
    """Data folder of another plan whose preprocessing of this configuration is the same, else the plan's own.

    Raises:
        ValueError: Another plan uses the plan's own folder, with another preprocessing.
    """
    own = plans["configurations"][name]
    users = []
    for other in others:
        candidate = other["configurations"].get(name, {})
        if "data_identifier" not in candidate:
            continue
        if _is_preprocessed_alike(plans, own, other, candidate):
            return candidate["data_identifier"]
        if candidate["data_identifier"] == own["data_identifier"]:
            users.append(other)
    if users:
        raise _conflict(users[0], own)
    return own["data_identifier"]


def require_same_preprocessing(
    plans: Mapping[str, Any], own: Mapping[str, Any], others: Iterable[Mapping[str, Any]]
) -> None:
    """ValueError if another plan uses a configuration's data folder, but preprocesses otherwise.

    Args:
        plans: The plan.
        own: The configuration, inheritance resolved.
        others: The dataset's other plans.
    """
    for other in others:
        for candidate in other["configurations"].values():
            if candidate.get("data_identifier") == own["data_identifier"] and not _is_preprocessed_alike(
                plans, own, other, candidate
            ):
                raise _conflict(other, own)


def _is_preprocessed_alike(
    plans: Mapping[str, Any], own: Mapping[str, Any], other: Mapping[str, Any], candidate: Mapping[str, Any]
) -> bool:
    return (
        data_preprocessor(candidate) == data_preprocessor(own)
        and all(candidate.get(k) == own.get(k) for k in _PREPROCESSING_KEYS)
        and all(other.get(k) == plans.get(k) for k in _PREPROCESSING_KEYS_OF_PLAN)
    )


def _conflict(other: Mapping[str, Any], own: Mapping[str, Any]) -> ValueError:
    return ValueError(
        f"The plan {other.get('plans_name')!r} uses the data in {own['data_identifier']}, which this plan would "
        "replace by data preprocessed otherwise. Plan this one anew, or give it another name (-overwrite_plans_name; "
        "-tp of nnUNetv2_move_plans_between_datasets)."
    )
