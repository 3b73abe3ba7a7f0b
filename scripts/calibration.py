"""Whether a segmentation is right as often as its probabilities say."""

from collections.abc import Sequence

import numpy as np

CALIBRATION_BINS = 15


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
