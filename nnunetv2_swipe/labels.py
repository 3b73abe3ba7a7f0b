"""Which labels a dataset may hold."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from nnunetv2.utilities.label_handling.label_handling import LabelManager


def declared_labels(label_manager: LabelManager) -> list[int]:
    """Every label that dataset.json declares, the ignore label included."""
    ignore = [label_manager.ignore_label] if label_manager.has_ignore_label else []
    return [int(label) for label in (*label_manager.all_labels, *ignore)]


def label_dtype(label_manager: LabelManager) -> np.dtype:
    """Type of label maps, nnU-Net's."""
    return np.dtype(np.uint8 if len(label_manager.foreground_labels) < 255 else np.uint16)


def named_structures(dataset_json: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The labels of every foreground class or region, by its name in dataset.json; the ignore label is none."""
    named = {name: as_tuple(value) for name, value in dataset_json["labels"].items()}
    return {name: values for name, values in named.items() if values != (0,) and name != "ignore"}


def as_tuple(value: int | str | list[int] | tuple[int, ...]) -> tuple[int, ...]:
    """Labels as dataset.json gives them, one or several; nnU-Net takes "10" for 10."""
    return tuple(map(int, value)) if isinstance(value, (list, tuple)) else (int(value),)


def require_consecutive(label_manager: LabelManager) -> None:
    """ValueError if the labels of exclusive classes are not 0, 1, 2 and so on, which no network of nnU-Net learns."""
    labels = list(map(int, label_manager.all_labels))
    if not label_manager.has_regions and labels != list(range(len(labels))):
        raise ValueError(
            f"dataset.json declares the labels {labels}; they must be 0, 1, 2 and so on without a gap. Change it and "
            "the label files."
        )


def require_writable(label_manager: LabelManager, reader_name: str) -> None:
    """ValueError if nnU-Net's class that writes label maps writes 8 bits, and the labels need more."""
    highest = max(declared_labels(label_manager))
    if reader_name == "SimpleITKIOWithReorient" and highest > 255:
        raise ValueError(
            f"dataset.json declares labels up to {highest}, but {reader_name} writes numbers up to 255. Set "
            '"overwrite_image_reader_writer": "SimpleITKIO" in dataset.json.'
        )


def require_declared(segmentation: np.ndarray, declared: Sequence[int], subject: str) -> None:
    """Check the labels of a segmentation.

    Args:
        segmentation: Of any shape and type.
        declared: The labels that dataset.json declares.
        subject: What the message begins with, such as the name of the file.

    Raises:
        ValueError: The segmentation holds an undeclared label, or a value that is no whole number.
    """
    found = pd.unique(segmentation.ravel())  # numpy would sort all voxels
    undeclared = np.sort(found[~np.isin(found, declared)])
    broken = undeclared[undeclared != np.round(undeclared)]
    if len(broken):
        raise ValueError(
            f"{subject} holds the value {broken[0]!s}, which is no whole number, as labels must be. If the "
            "segmentation was resampled, do it again with nearest-neighbour interpolation; if its numbers were "
            "rescaled, round them."
        )
    if len(undeclared):
        raise ValueError(
            f"{subject} holds the label {undeclared[0]:g}, which dataset.json does not declare (declared: "
            f"{list(declared)}). Correct the segmentation or the labels in dataset.json."
        )
