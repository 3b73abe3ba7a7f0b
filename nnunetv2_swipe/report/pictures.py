"""Volumes as pictures: the slices of a volume side by side in one PNG, of a size that a page can hold."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from nnunetv2_swipe.geometry import Grid
from nnunetv2_swipe.report.structures import Colour

MOST_SLICES, MOST_PIXELS = 64, 256
"""Of a volume, and along the sides of a slice; of larger ones some are left out."""
MOST_PIXELS_OF_A_PHOTOGRAPH = 512
FALSE_POSITIVE, FALSE_NEGATIVE, CONFUSED = (220, 30, 30), (30, 80, 255), (170, 60, 200)
_OPAQUE, _TRANSLUCENT = 220, 130
_DIRECTIONS = ("RL", "AP", "IS")
"""Of the patient, against and along each axis of LPS."""


def displayed_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """How many slices, rows and columns of a volume are shown."""
    most = MOST_PIXELS_OF_A_PHOTOGRAPH if shape[0] == 1 else MOST_PIXELS
    factor = min(1.0, most / max(shape[1:]))
    return min(shape[0], MOST_SLICES), *(max(1, round(n * factor)) for n in shape[1:])


def nearest_indices(shown: int, n: int) -> np.ndarray:
    """Which of n voxels are nearest to the points of another grid of the same box, (shown,)."""
    return ((np.arange(shown) + 0.5) * n / shown).astype(int)


def thinned(volume: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The voxels of a volume (z, y, x) that are nearest to the points of a coarser grid of the same box."""
    return volume[np.ix_(*[nearest_indices(m, n) for m, n in zip(shape, volume.shape, strict=True)])]


def grey_levels(image: np.ndarray) -> np.ndarray:
    """An image as uint8: the 0.5th percentile of its finite values is black, their 99.5th white. NaN is black."""
    values = image.astype(float)
    finite = values[np.isfinite(values)]
    if not len(finite):
        return np.zeros(image.shape, dtype=np.uint8)
    low, high = np.percentile(finite, (0.5, 99.5))
    if low == high:  # there is little but one value
        low, high = finite.min(), finite.max()
    levels = np.clip((values - low) / ((high - low) or 1), 0, 1)
    return (255 * np.nan_to_num(levels)).astype(np.uint8)


def image_layer(image: np.ndarray) -> dict[str, Any]:
    """The lowest layer: an image (C, z, y, x), of a photograph its colours, else its first channel."""
    photograph = len(image) in (3, 4) and image.shape[1] == 1
    levels = grey_levels(np.moveaxis(image[:3], 0, -1) if photograph else image[0])
    return {"name": "Image", "shown": True, "source": _png(Image.fromarray(_side_by_side(levels)))}


def label_layer(name: str, labels: np.ndarray, colours: Mapping[int, Colour], *, shown: bool) -> dict[str, Any]:
    """Labels (z, y, x) in their colours."""
    order = list(colours)
    indices = np.zeros(labels.shape, dtype=np.uint8)
    for number, label in enumerate(order, start=1):
        indices[labels == label] = (number - 1) % 255 + 1
    return _layer(name, indices, [(*colours[label], _TRANSLUCENT) for label in order[:255]], shown=shown)


def error_layer(prediction: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Where two label maps (z, y, x) differ: false positives, false negatives, classes taken for others."""
    kinds = np.where(truth == 0, 1, np.where(prediction == 0, 2, 3))
    colours = [(*colour, _OPAQUE) for colour in (FALSE_POSITIVE, FALSE_NEGATIVE, CONFUSED)]
    return _layer("Error", np.where(prediction != truth, kinds, 0), colours, shown=True)


def heat_layer(name: str, values: np.ndarray, low: float, high: float) -> dict[str, Any]:
    """Values (z, y, x): transparent at `low` and where there is none (NaN), yellow at `high`, red between them."""
    levels = np.nan_to_num(np.clip((values - low) / max(high - low, 1e-9), 0, 1))
    heat = [(255, i, 0, round(_OPAQUE * math.sqrt(i / 255))) for i in range(1, 256)]
    return _layer(name, (255 * levels).round(), heat, shown=False)


def view(
    layers: Sequence[dict[str, Any]], spacing: Sequence[float], shown: np.ndarray, n_slices: int, most: np.ndarray
) -> dict[str, Any]:
    """What the page's slice viewer shows.

    Args:
        layers: One above the other.
        spacing: Distance of two slices, rows and columns.
        shown: The slices of the image that are shown, (n,).
        n_slices: How many it has.
        most: Mask (n, rows, columns) of what the first slice to be shown has most of.
    """
    voxels = most.sum((1, 2))
    return {
        "layers": list(layers),
        "shape": list(most.shape),
        "spacing": list(spacing),
        "columns": _columns(len(most)),
        "first": int(voxels.argmax()) if voxels.any() else len(most) // 2,
        "slices": shown.tolist(),
        "n_slices": n_slices,
    }


def edges(grid: Grid) -> list[str]:
    """Where the left, right, upper and lower edge of a grid's slices lie in the patient: L, R, A, P, S or I."""
    letters = []
    for axis in (2, 1):
        column = grid.affine[:3, axis]
        along = int(np.abs(column).argmax())
        ends = _DIRECTIONS[along]
        letters += list(ends if column[along] > 0 else reversed(ends))
    return letters


def _layer(name: str, indices: np.ndarray, colours: Sequence[tuple[int, ...]], *, shown: bool) -> dict[str, Any]:
    """Colours, from index 1 on; index 0 is transparent."""
    picture = Image.fromarray(_side_by_side(indices.astype(np.uint8)))
    palette = np.array([(0, 0, 0, 0), *colours], dtype=np.uint8)
    picture.putpalette(palette[:, :3].tobytes())
    return {"name": name, "shown": shown, "source": _png(picture, transparency=palette[:, 3].tobytes())}


def _columns(n: int) -> int:
    return math.ceil(math.sqrt(n))


def _side_by_side(slices: np.ndarray) -> np.ndarray:
    """Slices (n, h, w, ...) in rows and columns, (rows * h, columns * w, ...)."""
    n, h, w, *rest = slices.shape
    columns = _columns(n)
    rows = -(-n // columns)
    mosaic = np.zeros((rows * columns, h, w, *rest), dtype=slices.dtype)
    mosaic[:n] = slices
    return mosaic.reshape(rows, columns, h, w, *rest).swapaxes(1, 2).reshape(rows * h, columns * w, *rest)


def _png(picture: Image.Image, **options: bytes) -> str:
    """As a data URL."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", **options)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
