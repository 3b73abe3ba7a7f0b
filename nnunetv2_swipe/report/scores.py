"""Scores of a segmentation: overlap and surfaces, by MONAI."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

METRICS = ("Dice", "NSD", "HD95")
TOLERANCE = {2: 2.0, 3: 1.0}
"""Of the NSD: 2 pixels of the image in 2D, 1 mm in 3D."""


def score_case(
    prediction: np.ndarray,
    truth: np.ndarray,
    *,
    structures: Mapping[str, Sequence[int]],
    spacing: Sequence[float],
    tolerance: float | None = None,
    ignore_label: int | None = None,
) -> dict[str, dict[str, float]]:
    """Dice, NSD (surface Dice) and HD95 of every structure of one case.

    Args:
        prediction: Label map, (z, y, x); one slice is an image in 2D.
        truth: The same of the reference.
        structures: Name -> labels of every class or region.
        spacing: Voxel size (z, y, x), in mm (or 1, for images without).
        tolerance: Distance up to which surfaces agree, for the NSD, in the same unit; default: `TOLERANCE`.
        ignore_label: Where the reference has this label nothing counts.

    Returns:
        Structure -> metric -> value; structures that are in neither map are left out. Where one is in one map only,
        Dice and NSD are 0 and HD95 is the diagonal of the image.
    """
    dims = 2 if truth.shape[0] == 1 else 3
    counted = np.ones_like(truth, dtype=bool) if ignore_label is None else truth != ignore_label
    prediction, truth = (np.where(counted, m, 0).reshape(truth.shape[-dims:]) for m in (prediction, truth))
    masks = {
        name: tuple(torch.from_numpy(np.isin(m, labels))[None, None].float() for m in (prediction, truth))
        for name, labels in structures.items()
    }
    spacing = [float(s) for s in spacing[-dims:]]
    diagonal = float(np.linalg.norm(np.multiply(truth.shape, spacing)))
    scores = {}
    for name, (found, expected) in masks.items():
        if found.any() and expected.any():
            surfaces: dict[str, Any] = {"include_background": True, "spacing": spacing}
            values = (
                compute_dice(found, expected),
                compute_surface_dice(found, expected, [tolerance or TOLERANCE[dims]], use_subvoxels=True, **surfaces),
                compute_hausdorff_distance(found, expected, percentile=95, **surfaces),
            )
            scores[name] = dict(zip(METRICS, map(float, values), strict=True))
        elif found.any() or expected.any():
            scores[name] = dict(zip(METRICS, (0.0, 0.0, diagonal), strict=True))
    return scores
