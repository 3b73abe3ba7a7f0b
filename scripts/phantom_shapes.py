"""Building blocks of the phantoms: random fields, implicit shapes, and a canvas to paint them on.

A shape is an approximate signed distance (negative inside) in the unit of the coordinates it is given, so it can be
rendered on any grid.
"""

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

FloatArray: TypeAlias = NDArray[np.floating[Any]]
Points: TypeAlias = list[FloatArray]  # one array per axis, all of the shape of the grid
Window: TypeAlias = tuple[Any, ...]  # an index into such a grid


def smooth_field(rng: np.random.Generator, shape: tuple[int, ...], order: int, amplitude: float) -> FloatArray:
    """Random low-frequency field over a grid: a cosine series with falling coefficients.

    Args:
        rng: Source of randomness.
        shape: Grid to evaluate on; the field stretches with it and so is the same at every resolution.
        order: Highest number of half waves along an axis.
        amplitude: Standard deviation of the field, in whatever unit the caller needs.

    Returns:
        Field of the given shape.
    """
    waves = np.indices((order + 1,) * len(shape))
    series = rng.standard_normal(waves.shape[1:]) / (1 + (waves**2).sum(0))
    series.flat[0] = 0  # a constant would move or resize organs instead of deforming them
    power_per_wave = 0.5 ** (waves > 0).sum(0)
    series *= amplitude / math.sqrt((series**2 * power_per_wave).sum())
    for size in shape:
        basis = np.cos(np.pi * np.outer(np.arange(order + 1), (np.arange(size) + 0.5) / size))
        series = np.tensordot(series, basis, axes=(0, 0))  # (k, ...) -> (..., size)
    return series.astype(np.float32)


def correlated_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma_voxels: tuple[float, ...]) -> FloatArray:
    """Gaussian noise of unit variance, smoothed to the given correlation length per axis."""
    noise = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma_voxels, mode="wrap")
    return noise / max(float(noise.std()), 1e-6)


def ellipsoid(points: Points, centre: tuple[float, ...], radii: tuple[float, ...]) -> FloatArray:
    """Approximate signed distance to an ellipsoid (an ellipse or an elliptic cylinder for two axes)."""
    scaled = [(axis - c) / r for axis, c, r in zip(points, centre, radii, strict=True)]
    k0 = np.sqrt(sum(s * s for s in scaled) + 1e-6)
    k1 = np.sqrt(sum((s / r) ** 2 for s, r in zip(scaled, radii, strict=True)) + 1e-6)
    return k0 * (k0 - 1) / k1


def capsule(points: Points, start: tuple[float, ...], end: tuple[float, ...], radius: float) -> FloatArray:
    """Signed distance to a straight tube with round ends that thins to half its radius."""
    axis = [e - s for s, e in zip(start, end, strict=True)]
    offset = [p - s for p, s in zip(points, start, strict=True)]
    along = sum(o * a for o, a in zip(offset, axis, strict=True)) / sum(a * a for a in axis)
    along = np.clip(along, 0, 1)
    across = sum((o - along * a) ** 2 for o, a in zip(offset, axis, strict=True))
    return np.sqrt(across) - radius * (1 - 0.5 * along)


def find_window(points: Points, low: tuple[float, ...], high: tuple[float, ...]) -> Window:
    """Smallest slices, up to a margin, that hold all points between two corners: small organs need not all voxels."""
    coarse = tuple(slice(None, None, max(1, size // 24)) for size in points[0].shape)
    inside = np.ones(points[0][coarse].shape, bool)
    for axis, start, stop in zip(points, low, high, strict=True):
        inside &= (axis[coarse] >= start) & (axis[coarse] <= stop)
    window = []
    for dim, part in enumerate(coarse):
        hits = np.flatnonzero(inside.any(tuple(other for other in range(inside.ndim) if other != dim)))
        window.append(slice(max(0, (hits[0] - 1) * part.step), (hits[-1] + 2) * part.step) if len(hits) else slice(0))
    return tuple(window)


def smooth_min(a: FloatArray, b: FloatArray, width: float) -> FloatArray:
    """Union of two shapes with a fillet of the given width (polynomial smooth minimum)."""
    overlap = np.clip(0.5 + 0.5 * (b - a) / width, 0, 1)
    return b + (a - b) * overlap - width * overlap * (1 - overlap)


def smooth_max(a: FloatArray, b: FloatArray, width: float) -> FloatArray:
    """Intersection of two shapes with a fillet; `smooth_max(a, -b, w)` cuts b out of a."""
    return -smooth_min(-a, -b, width)


def downsample(image: FloatArray, factors: tuple[int, ...]) -> FloatArray:
    """Average blocks over the trailing axes, as a pixel or a slice profile does."""
    for offset, factor in enumerate(factors):
        axis = image.ndim - len(factors) + offset
        image = image.reshape(*image.shape[:axis], -1, factor, *image.shape[axis + 1 :]).mean(axis + 1)
    return image


class Canvas:
    """Layers painted over one another, each hiding what lies below by its occupancy."""

    def __init__(self, shape: tuple[int, ...], *, edge: float, n_labels: int, channels: int = 1) -> None:
        """Start with a black canvas that is background everywhere.

        Args:
            shape: Supersampled grid.
            edge: Width over which a border goes from inside to outside, in the unit of the distances.
            n_labels: Number of labels, background included.
            channels: Intensity channels.
        """
        self.shape = shape
        self.edge = edge
        self.intensity = np.zeros((channels, *shape), np.float32)
        self.coverage = np.zeros((n_labels, *shape), np.float32)
        self.coverage[0] = 1

    def paint(
        self, distance: FloatArray, value: float | FloatArray, label: int | None = None, window: Window = (...,)
    ) -> None:
        """Paint a shape.

        Args:
            distance: Signed distance of the shape, over the window.
            value: Intensity, one number or an array with channels first.
            label: What the shape becomes; None leaves the labels below as they are.
            window: Part of the canvas to paint on.
        """
        occupancy = np.clip(0.5 - distance / self.edge, 0, 1)
        all_channels = (slice(None), *window)
        intensity = self.intensity[all_channels]
        intensity += occupancy * (value - intensity)
        if label is not None:
            coverage = self.coverage[all_channels]
            coverage *= 1 - occupancy
            coverage[label] += occupancy

    def labels(self, factors: tuple[int, ...]) -> NDArray[np.uint8]:
        """Label per voxel of the final grid: the class that covers most of it."""
        return downsample(self.coverage, factors).argmax(0).astype(np.uint8)
