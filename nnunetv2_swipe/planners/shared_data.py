"""Preprocessed data that plans of a dataset share."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2_swipe.files import read_json
from nnunetv2_swipe.planners.label_statistics import STATISTICS_FILE
from nnunetv2_swipe.planners.nnunet_plan import with_inherited
from nnunetv2_swipe.planners.plan_block import data_preprocessor

logger = logging.getLogger(__name__)

Plans = Mapping[str, Mapping[str, Any]]
"""Plans of a dataset by the name of their files, without ending."""

_NO_PLANS = ("dataset.json", "dataset_fingerprint.json", "splits_final.json", STATISTICS_FILE)
PREPROCESSING_KEYS = (
    "spacing", "normalization_schemes", "use_mask_for_norm", "resampling_fn_data", "resampling_fn_seg",
    "resampling_fn_data_kwargs", "resampling_fn_seg_kwargs",
)  # fmt: skip
"""Keys of a configuration that say how images are preprocessed, besides the preprocessor's name."""
PREPROCESSING_KEYS_OF_PLAN = (
    "transpose_forward", "image_reader_writer", "foreground_intensity_properties_per_channel",
)  # fmt: skip
"""Keys of the plan itself that say how images are preprocessed."""


def other_plans(folder: Path, plans_name: str) -> dict[str, dict[str, Any]]:
    """The other plans of a dataset, from its folder of preprocessed data.

    Other files may lie there, too. One that cannot be read is named in a warning and taken for none of them.
    """
    files = [f for f in sorted(folder.glob("*.json")) if not f.name.startswith(".") and f.name not in _NO_PLANS]
    read = {file.stem: _read_or_warn(file) for file in files if file.stem != plans_name and file.is_file()}
    return {name: content for name, content in read.items() if _is_plan(content)}


def _read_or_warn(file: Path) -> Any:  # noqa: ANN401
    try:
        return read_json(file)
    except (ValueError, OSError) as error:
        logger.warning("%s It is left alone: if it is not a plan, this does not matter.", error)
        return None


def _is_plan(content: Any) -> bool:  # noqa: ANN401
    """Whether a JSON file holds a plan of nnU-Net."""
    configurations = content.get("configurations") if isinstance(content, dict) else None
    return isinstance(configurations, dict) and all(isinstance(c, dict) for c in configurations.values())


def preprocessing_settings(plans: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Everything in a plan and one of its configurations (inheritance resolved) that the stored data depend on."""
    return {
        "preprocessor": data_preprocessor(own),
        **{key: own.get(key) for key in PREPROCESSING_KEYS},
        **{key: plans.get(key) for key in PREPROCESSING_KEYS_OF_PLAN},
    }


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
    settings = preprocessing_settings(plans, own)
    for name, used in _uses(identifier, others):
        if "preprocessor_name" not in used or preprocessing_settings(others[name], used) != settings:
            return name
    return None


def _resolved(plans: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A configuration with what it inherits; nothing if the plan has none of that name."""
    return with_inherited(plans, name) if name in plans["configurations"] else {}
