"""Scores of a segmentation: overlap and surfaces, by MONAI."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice
from torch import Tensor

from nnunetv2_swipe.geometry import box_around

METRICS = ("Dice", "NSD", "HD95")
TOLERANCE = {2: 2.0, 3: 1.0}
"""Distance up to which surfaces agree, for the NSD: 2 pixels in 2D, 1 mm in 3D."""


def score_case(
    prediction: np.ndarray,
    truth: np.ndarray,
    *,
    structures: Mapping[str, Sequence[int]],
    spacing: Sequence[float],
    metrics: Sequence[str] = METRICS,
    ignore_label: int | None = None,
) -> dict[str, dict[str, float]]:
    """Dice, NSD (surface Dice) and HD95 of every structure of one case.

    Args:
        prediction: Label map, (z, y, x); one slice is an image in 2D.
        truth: The same of the reference.
        structures: Name -> labels of every class or region.
        spacing: Voxel size (z, y, x), in mm; of an image in 2D in pixels, of which the first counts nothing.
        metrics: Which of them.
        ignore_label: Where the reference has this label nothing counts.

    Returns:
        Structure -> metric -> value; structures that are in neither map are left out. Where one is in one map only,
        Dice and NSD are 0 and HD95 is the diagonal of the image.
    """
    dims = 2 if truth.shape[0] == 1 else 3
    shape, spacing = truth.shape[-dims:], [float(s) for s in spacing[-dims:]]
    counted = None if ignore_label is None else truth != ignore_label
    prediction, truth = (m.reshape(shape) for m in (prediction, truth))
    compute: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "Dice": compute_dice,
        "NSD": lambda found, expected: compute_surface_dice(
            found, expected, [TOLERANCE[dims]], include_background=True, spacing=spacing, use_subvoxels=True
        ),
        "HD95": lambda found, expected: compute_hausdorff_distance(
            found, expected, include_background=True, percentile=95, spacing=spacing
        ),
    }
    worst = {"Dice": 0.0, "NSD": 0.0, "HD95": float(np.linalg.norm(np.multiply(shape, spacing)))}
    scores = {}
    for name, labels in structures.items():
        masks = [np.isin(m, labels) for m in (prediction, truth)]
        if counted is not None:
            masks = [mask & counted.reshape(shape) for mask in masks]
        if masks[0].any() and masks[1].any():
            box = box_around(masks[0] | masks[1])
            found, expected = (torch.from_numpy(mask[box])[None, None].float() for mask in masks)
            scores[name] = {metric: float(compute[metric](found, expected)) for metric in metrics}
        elif masks[0].any() or masks[1].any():
            scores[name] = {metric: worst[metric] for metric in metrics}
    return scores
