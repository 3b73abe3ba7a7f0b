"""Scores of a segmentation: overlap and surfaces by MONAI, calibration."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

CALIBRATION_BINS = 15
METRICS = ("Dice", "NSD", "HD95")


def score_case(
    prediction: np.ndarray,
    truth: np.ndarray,
    *,
    structures: Mapping[str, Sequence[int]],
    spacing: Sequence[float],
    tolerance: float,
) -> dict[str, dict[str, float]]:
    """Dice, NSD (surface Dice) and HD95 of every structure of one case.

    Args:
        prediction: Label map, (z, y, x) or (y, x).
        truth: The same of the reference.
        structures: Name -> labels of every class or region.
        spacing: Voxel size per axis, in mm (or 1, for images without).
        tolerance: Distance up to which surfaces agree, for the NSD, in the same unit.

    Returns:
        Structure -> metric -> value; structures that are in neither map are left out. Where one is in one map only,
        Dice and NSD are 0 and HD95 is the diagonal of the image.
    """
    masks = {
        name: tuple(torch.from_numpy(np.isin(m, labels))[None, None].float() for m in (prediction, truth))
        for name, labels in structures.items()
    }
    spacing = [float(s) for s in spacing]
    diagonal = float(np.linalg.norm(np.multiply(truth.shape, spacing)))
    scores = {}
    for name, (found, expected) in masks.items():
        if found.any() and expected.any():
            values = (
                compute_dice(found, expected),
                compute_surface_dice(
                    found, expected, [tolerance], include_background=True, spacing=spacing, use_subvoxels=True
                ),
                compute_hausdorff_distance(found, expected, include_background=True, percentile=95, spacing=spacing),
            )
            scores[name] = dict(zip(METRICS, map(float, values), strict=True))
        elif found.any() or expected.any():
            scores[name] = dict(zip(METRICS, (0.0, 0.0, diagonal), strict=True))
    return scores


def calibration(probabilities: np.ndarray, truth: np.ndarray, *, regions: Sequence[Sequence[int]]) -> np.ndarray:
    """What the expected calibration error is summed from: per bin of confidence the voxels, confidence and hits.

    Args:
        probabilities: (K, voxels).
        truth: Labels, (voxels,).
        regions: Labels of each channel of region-based training; empty: channels are labels.

    Returns:
        (3, bins): sums over the voxels of 1, of the confidence in the decision, and of its being right.
    """
    p = probabilities.astype(np.float64)
    if regions:
        right = np.stack([np.isin(truth, r) for r in regions]) == (p > 0.5)
        confidence = np.maximum(p, 1 - p)
    else:
        right = truth == p.argmax(0)
        confidence = p.max(0)
    confidence, right = confidence.ravel(), right.ravel().astype(np.float64)
    weights = (None, confidence, right)
    return np.stack([np.histogram(confidence, CALIBRATION_BINS, (0, 1), weights=w)[0] for w in weights])


def expected_calibration_error(sums: np.ndarray) -> float:
    """ECE (Guo et al., ICML 2017) of the added-up sums of `calibration`."""
    voxels, confidence, right = sums
    return float(np.abs(confidence - right).sum() / voxels.sum())
