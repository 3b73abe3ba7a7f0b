"""Preprocessed data that plans of a dataset share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchgenerators.utilities.file_and_folder_operations import load_json

from nnunetv2_swipe.planners.nnunet_plan import with_inherited
from nnunetv2_swipe.planners.plan_block import data_preprocessor

Plans = Mapping[str, Mapping[str, Any]]
"""Plans of a dataset by the name of their files, without ending."""

_PREPROCESSING_KEYS = (
    "spacing", "normalization_schemes", "use_mask_for_norm", "resampling_fn_data", "resampling_fn_seg",
    "resampling_fn_data_kwargs", "resampling_fn_seg_kwargs",
)  # fmt: skip
_PREPROCESSING_KEYS_OF_PLAN = (
    "transpose_forward", "image_reader_writer", "foreground_intensity_properties_per_channel",
)  # fmt: skip


def other_plans(folder: Path, plans_name: str) -> dict[str, dict[str, Any]]:
    """The other plans of a dataset, from its folder of preprocessed data."""
    read = {file.stem: load_json(str(file)) for file in sorted(folder.glob("*.json")) if file.stem != plans_name}
    return {name: plans for name, plans in read.items() if isinstance(plans, dict) and "configurations" in plans}


def shared_identifier(plans: Mapping[str, Any], name: str, others: Plans) -> str:
    """The data folder of other plans that all preprocess a configuration as this one does, else the plan's own.

    Raises:
        ValueError: Another plan uses the plan's own folder, with another preprocessing.
    """
    own = _resolved(plans, name)
    candidates = (_resolved(other, name).get("data_identifier") for other in others.values())
    for identifier in candidates:
        if identifier and _unlike(plans, own, identifier, others) is None:
            return identifier
    require_alike(plans, own, others)
    return own["data_identifier"]


def is_used_by_others(own: Mapping[str, Any], others: Plans) -> bool:
    """Whether other plans of the dataset use a configuration's data folder, too."""
    return bool(_uses(own["data_identifier"], others))


def require_alike(plans: Mapping[str, Any], own: Mapping[str, Any], others: Plans) -> None:
    """ValueError if another plan uses a configuration's data folder, too, but preprocesses otherwise.

    Args:
        plans: The plan.
        own: Its configuration, inheritance resolved.
        others: The dataset's other plans.
    """
    identifier = own["data_identifier"]
    other = _unlike(plans, own, identifier, others)
    if other is not None:
        raise ValueError(
            f"The plan {other!r} uses the data in {identifier}, too, but preprocesses otherwise than this plan. Plan "
            f"this one or that one anew, delete {other}.json if it is of no use any more, or give this one another "
            "name (-overwrite_plans_name; -tp of nnUNetv2_move_plans_between_datasets)."
        )


def _uses(identifier: str, others: Plans) -> list[tuple[str, Mapping[str, Any]]]:
    """The plans, by name, and their configurations that use a data folder."""
    uses = [(name, _resolved(plans, c)) for name, plans in others.items() for c in plans["configurations"]]
    return [(name, configuration) for name, configuration in uses if configuration.get("data_identifier") == identifier]


def _unlike(plans: Mapping[str, Any], own: Mapping[str, Any], identifier: str, others: Plans) -> str | None:
    """The first plan that uses a data folder and preprocesses otherwise than a configuration."""
    for name, used in _uses(identifier, others):
        alike = (
            "preprocessor_name" in used
            and data_preprocessor(used) == data_preprocessor(own)
            and all(used.get(k) == own.get(k) for k in _PREPROCESSING_KEYS)
            and all(others[name].get(k) == plans.get(k) for k in _PREPROCESSING_KEYS_OF_PLAN)
        )
        if not alike:
            return name
    return None


def _resolved(plans: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A configuration with what it inherits; nothing if the plan has none of that name."""
    return with_inherited(plans, name) if name in plans["configurations"] else {}
