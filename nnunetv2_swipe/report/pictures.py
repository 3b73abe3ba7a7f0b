"""Volumes as pictures: the slices of a volume side by side in one PNG, of a size that a page can hold."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""
MOST_SLICES, MOST_PIXELS = 64, 320
"""Of a volume, and along the sides of a slice; of larger ones some are left out."""
COLOURS = (
    (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (240, 228, 66),
    (213, 94, 0), (0, 114, 178), (154, 205, 50), (255, 127, 80), (147, 112, 219),
)  # fmt: skip
"""Of classes, first those of Okabe and Ito, which the colour-blind tell apart; repeated if there are more."""
FALSE_POSITIVE, FALSE_NEGATIVE, CONFUSED = (220, 30, 30), (30, 80, 255), (170, 60, 200)
_OPAQUE, _TRANSLUCENT = 220, 130


def displayed_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """How many slices, rows and columns of a volume are shown."""
    factor = min(1.0, MOST_PIXELS / max(shape[1:]))
    return min(shape[0], MOST_SLICES), *(max(1, round(n * factor)) for n in shape[1:])


def thinned(volume: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The voxels of a volume (z, y, x) that are nearest to the points of a coarser grid of the same box."""
    return volume[
        np.ix_(*[((np.arange(m) + 0.5) * n / m).astype(int) for m, n in zip(shape, volume.shape, strict=True)])
    ]


def grey_levels(image: np.ndarray) -> np.ndarray:
    """An image as uint8: its 0.5th percentile is black, its 99.5th white."""
    low, high = np.percentile(image, (0.5, 99.5))
    return (255 * np.clip((image - low) / max(high - low, 1e-6), 0, 1)).astype(np.uint8)


def colour_of(label: int) -> Colour:
    """Of a label."""
    return COLOURS[(label - 1) % len(COLOURS)]


def colours_of(structures: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Of every class, that of its label; of regions, which share labels, one each. In the form of CSS."""
    exclusive = all(len(labels) == 1 for labels in structures.values())
    numbered = enumerate(structures.items(), start=1)
    return {name: css(colour_of(labels[0] if exclusive else number)) for number, (name, labels) in numbered}


def css(colour: Colour) -> str:
    """A colour in the form of CSS."""
    return "rgb({}, {}, {})".format(*colour)


def image_layer(image: np.ndarray) -> dict[str, Any]:
    """The lowest layer: an image (C, z, y, x); three of a slice are red, green, blue, else the first counts."""
    colour = len(image) == 3 and image.shape[1] == 1
    levels = np.stack([grey_levels(c) for c in image], -1) if colour else grey_levels(image[0])
    return {"name": "Image", "shown": True, "source": _png(Image.fromarray(_side_by_side(levels)))}


def label_layer(name: str, labels: np.ndarray, *, shown: bool) -> dict[str, Any]:
    """Labels (z, y, x) in the colours of their classes."""
    return _layer(name, labels % 256, [(*colour_of(i), _TRANSLUCENT) for i in range(1, 256)], shown=shown)


def error_layer(prediction: np.ndarray, truth: np.ndarray, ignore_label: int | None) -> dict[str, Any]:
    """Where two label maps (z, y, x) differ: false positives, false negatives, classes taken for others."""
    wrong = (prediction != truth) & (truth != ignore_label)
    kinds = np.where(truth == 0, 1, np.where(prediction == 0, 2, 3))
    colours = [(*colour, _OPAQUE) for colour in (FALSE_POSITIVE, FALSE_NEGATIVE, CONFUSED)]
    return _layer("Error", np.where(wrong, kinds, 0), colours, shown=True)


def heat_layer(name: str, values: np.ndarray, low: float, high: float) -> dict[str, Any]:
    """Values (z, y, x): transparent at `low`, yellow at `high`, red between them."""
    levels = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
    heat = [(255, i, 0, round(_OPAQUE * math.sqrt(i / 255))) for i in range(1, 256)]
    return _layer(name, (255 * levels).round(), heat, shown=False)


def view(
    layers: Sequence[dict[str, Any]], shape: Sequence[int], spacing: Sequence[float], first: int
) -> dict[str, Any]:
    """What the page's slice viewer shows.

    Args:
        layers: One above the other.
        shape: Slices, rows and columns of each.
        spacing: Distance of two neighbouring ones along each axis.
        first: The slice to begin with.
    """
    columns = math.ceil(math.sqrt(shape[0]))
    return {"layers": list(layers), "shape": list(shape), "spacing": list(spacing), "columns": columns, "first": first}


def slice_of_most(mask: np.ndarray) -> int:
    """The slice in which most of a mask (z, y, x) lies; the middle one if there is nothing."""
    voxels = mask.sum((1, 2))
    return int(voxels.argmax()) if voxels.any() else len(mask) // 2


def _layer(name: str, indices: np.ndarray, colours: Sequence[tuple[int, ...]], *, shown: bool) -> dict[str, Any]:
    """Colours, from index 1 on; index 0 is transparent."""
    picture = Image.fromarray(_side_by_side(indices.astype(np.uint8)), mode="P")
    palette = np.array([(0, 0, 0, 0), *colours], dtype=np.uint8)
    picture.putpalette(palette[:, :3].tobytes())
    return {"name": name, "shown": shown, "source": _png(picture, transparency=palette[:, 3].tobytes())}


def _side_by_side(slices: np.ndarray) -> np.ndarray:
    """Slices (n, h, w, ...) in rows of as many as there are rows, (rows * h, columns * w, ...)."""
    n, h, w, *rest = slices.shape
    columns = math.ceil(math.sqrt(n))
    rows = -(-n // columns)
    mosaic = np.zeros((rows * columns, h, w, *rest), dtype=slices.dtype)
    mosaic[:n] = slices
    return mosaic.reshape(rows, columns, h, w, *rest).swapaxes(1, 2).reshape(rows * h, columns * w, *rest)


def _png(picture: Image.Image, **options: bytes) -> str:
    """As a data URL."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", **options)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
