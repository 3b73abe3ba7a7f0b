"""Checks of the preprocessed data that are about to be trained on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_raw

from nnunetv2_swipe.freshness import outdated_copies
from nnunetv2_swipe.images.cases import require_three_axes
from nnunetv2_swipe.planners.shared_data import other_plans, require_alike
from nnunetv2_swipe.stored_cases import read_properties, require_only_cases, stored_cases


def require_trainable(folder: Path, plans: Mapping[str, Any], configuration: Mapping[str, Any]) -> None:
    """Check a folder of preprocessed data.

    Args:
        folder: The configuration's data, in the dataset's folder of preprocessed data.
        plans: The plan.
        configuration: Its configuration, inheritance resolved.

    Raises:
        ValueError: The data are another plan's, too, which preprocesses otherwise and may have replaced them; another
            file lies among them; or they are of images with four axes, of which validation can write nothing.
        OSError: A file is missing or cannot be read.
    """
    name = plans["plans_name"]
    if configuration["data_identifier"] not in [f"{name}_{c}" for c in plans["configurations"]]:
        require_alike(plans, configuration, other_plans(folder.parent, name))
    require_only_cases(folder)
    for case in stored_cases(folder)[:1]:  # the first tells of all
        require_three_axes(read_properties(folder / f"{case}.pkl"), case)


def warning_of_old_labels(folder: Path, dataset_name: str, file_ending: str) -> str | None:
    """Say that validation would be scored against old labels: nnU-Net renews its copies of them by their dates alone.

    Args:
        folder: Preprocessed data of a configuration, in the dataset's folder.
        dataset_name: Name of the dataset's folder of raw data.
        file_ending: How label files end.

    Returns:
        The warning; None if the copies are like the label files, or the raw data are not at hand.
    """
    if not nnUNet_raw.is_set():
        return None
    raw = Path(nnUNet_raw) / dataset_name / "labelsTr"
    labels = {case: raw / f"{case}{file_ending}" for case in stored_cases(folder)}
    outdated = outdated_copies(labels, folder.parent / "gt_segmentations", file_ending)
    if not outdated:
        return None
    copy, label = next(iter(outdated.items()))
    return (
        f"{len(outdated)} label files were changed after nnU-Net copied them; {copy} differs from {label}. Validation "
        f"will be scored against the old ones, and the training data were most likely made from them, too. Delete "
        f"{copy.parent} and preprocess again."
    )
