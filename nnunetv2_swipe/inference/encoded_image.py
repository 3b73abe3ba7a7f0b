"""An image that was encoded once, and answers for any position in the patient and any grid."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor
from tqdm import tqdm

from nnunetv2_swipe.geometry import Grid, Placement, box_around, grid_of_image, place
from nnunetv2_swipe.inference.memory import require_memory
from nnunetv2_swipe.inference.surfaces import Mesh, extract_mesh
from nnunetv2_swipe.inference.tiles import TiledImage
from nnunetv2_swipe.inference.uncertainties import UNCERTAINTIES
from nnunetv2_swipe.labels import as_tuple, label_dtype, named_structures

_ROUNDING = 1e-3
"""Of positions, in voxels."""
_VALUES_AT_ONCE = 1 << 24
"""Logits of a grid that is oblique to the image."""


class EncodedImage:
    """What a model knows of an image; nothing is resampled, each answer is decoded where it is asked for.

    Outside the image, and outside its part that is not zero, everything is background, as in nnU-Net.

    Args:
        predictor: nnU-Net's predictor, holding a model of a SwIPE trainer.
        image: Preprocessed image, see `TiledImage`.
        properties: What the preprocessor says of it.
        keep: Keep the embeddings, to ask again without encoding; else they are forgotten as a grid parallel to the
            image is passed through. See `TiledImage` for how many are kept at most.

    Attributes:
        grid: The image's own grid.
        channels: The number, among the K, of every class or region by its name in dataset.json.

    Raises:
        ValueError: The model is not of a SwIPE trainer.
    """

    def __init__(
        self, predictor: nnUNetPredictor, image: Tensor, properties: Mapping[str, Any], *, keep: bool = True
    ) -> None:
        plans = predictor.plans_manager
        self._labels = predictor.label_manager
        self.channels = named_channels(predictor)
        self._quiet = not predictor.allow_tqdm
        self._tiled = TiledImage(predictor, image, keep=keep)
        self._transpose = plans.transpose_forward
        self._bbox = properties["bbox_used_for_cropping"]
        shape = [properties["shape_before_cropping"][axis] for axis in plans.transpose_backward]
        self.grid = grid_of_image(properties, shape)

    @property
    def num_classes(self) -> int:
        """Segmentation heads K: classes with the background, or regions."""
        return self._tiled.num_classes

    def query(self, points_mm: np.ndarray) -> np.ndarray:
        """Probabilities (M, K) float32 at positions (M, 3): x, y and z in millimetres, LPS.

        With regions they are each region's own, else they add up to one.
        """
        points = np.asarray(points_mm, dtype=float)
        if points.ndim != 2 or points.shape[1] != 3:
            raise ValueError(f"Positions have the shape {points.shape}; it must be (points, 3).")
        result = self._background(self.num_classes, (len(points),))
        self._decode_points(self._placement(self.grid), self.grid.index_of(points), result, self._probabilities)
        return result.T

    def labels(self, grid: Grid | None = None, out: np.ndarray | None = None) -> np.ndarray:
        """The label map (z, y, x) on a grid; default: the image's own.

        Of the logits no more than a block is held at a time, however many classes there are.

        Args:
            grid: The grid.
            out: Where to write it, filled with zeros (a memory map, say).
        """
        grid = grid or self.grid
        if out is None:
            out = np.zeros(grid.shape, label_dtype(self._labels))
        self._fill(grid, out[None], self._segmentation, self._label_map)
        return out

    def probabilities(self, grid: Grid | None = None) -> np.ndarray:
        """Probabilities (K, z, y, x) float32 on a grid; default: the image's own."""
        grid = grid or self.grid
        result = self._background(self.num_classes, grid.shape)
        self._fill(grid, result, self._probabilities)
        return result

    def uncertainty(self, grid: Grid | None = None) -> np.ndarray:
        """Variances (4, z, y, x) float32, summed over classes; default: on the image's own grid.

        One for each of `UNCERTAINTIES`: of the label, given the probabilities; of the probabilities over the nearest
        patches, over mirrored passes, and over folds, each the mean over what comes after it. In a tile they add up to
        the variance of the label, given the mean probabilities p of all: sum(p - p^2). Every position is decoded, by
        all its nearest patches: it takes many times as long as `labels`.

        Raises:
            ValueError: The grid is not parallel to the image.
        """
        grid = grid or self.grid
        result = np.zeros((len(UNCERTAINTIES), *grid.shape), dtype=np.float32)
        self._fill_lattice(self._lattice(grid, "Uncertainty is decoded"), result, self._tiled.variance_lattice)
        return result

    def attention(self, grid: Grid | None = None) -> np.ndarray | None:
        """How much each stage counts for the patch of every point (MEA): (n stages, z, y, x) float32, finest first.

        The weights of all stages add up to one; 0 outside the image. None of a network without multi-stage attention.

        Args:
            grid: The grid; default: the image's own.

        Raises:
            ValueError: The grid is not parallel to the image.
        """
        grid = grid or self.grid
        placement = self._lattice(grid, "Attention is shown")
        weights = self._tiled.attention()
        if weights is None:
            return None
        result = np.zeros((len(weights), *grid.shape), dtype=np.float32)
        self._fill_lattice(placement, result, partial(_nearest, weights))
        return result

    def mesh(self, name: str, spacing_mm: float | None = None) -> Mesh:
        """The surface of a class or region, where its probability is one half.

        Args:
            name: Its name in dataset.json.
            spacing_mm: Of the grid on which the surface is looked for; default: the image's smallest. What is thinner
                may be missed; vertices are moved onto the surface whatever it is.

        Returns:
            The surface; without vertices if the image holds none of it.

        Raises:
            ValueError: There is no such class, or the image is of one slice.
        """
        return next(self.meshes([name], spacing_mm))

    def meshes(self, names: Sequence[str], spacing_mm: float | None = None) -> Iterator[Mesh]:
        """Surfaces of several classes (see `mesh`); the image is searched once for all, for regions once each."""
        for name in names:
            if name not in self.channels:
                raise ValueError(f"There is no class {name!r}; there are {', '.join(self.channels)}.")
        if min(self.grid.shape) == 1:
            raise ValueError("An image of one slice has no surfaces.")
        spacing = min(self.grid.spacing) if spacing_mm is None else spacing_mm
        if not 0 < spacing < math.inf:
            raise ValueError(f"The spacing of a surface's cells is {spacing}; it must be above 0.")
        grid = self.grid.with_spacing((spacing,) * 3)
        require_memory(5 * math.prod(grid.shape), f"The field of a surface in cells of {spacing} mm")
        labels = None if self._labels.has_regions else self.labels(grid)
        for name in names:
            channel = self.channels[name]
            box = grid if labels is None else grid.part(box_around(labels == channel))
            field = np.zeros(box.shape, dtype=np.float32)
            self._fill(box, field[None], partial(self._probability, channel))
            yield extract_mesh(field, box, partial(self._query_channel, channel))

    def _query_channel(self, channel: int, points_mm: np.ndarray) -> np.ndarray:
        return self.query(points_mm)[:, channel]

    def _probability(self, channel: int, logits: Tensor) -> Tensor:
        """Probabilities (1, ...) of one channel."""
        return self._probabilities(logits)[channel : channel + 1]

    def _background(self, channels: int, shape: tuple[int, ...]) -> np.ndarray:
        result = np.zeros((channels, *shape), dtype=np.float32)
        if not self._labels.has_regions:
            result[0] = 1
        return result

    def _segmentation(self, logits: Tensor) -> Tensor:
        """Labels (1, ...) of logits (K, ...)."""
        if self._labels.has_regions:
            return self._labels.convert_logits_to_segmentation(logits)[None]
        return logits.max(0, keepdim=True).indices  # torch.argmax takes thirty times as long on the CPU

    def _probabilities(self, logits: Tensor) -> Tensor:
        return self._labels.apply_inference_nonlin(logits)

    def _placement(self, grid: Grid) -> Placement:
        return place(grid, self.grid, transpose=self._transpose, bbox=self._bbox, shape=self._tiled.shape)

    def _lattice(self, grid: Grid, what: str) -> Placement:
        """Where a grid lies; ValueError if it is not parallel to the image."""
        placement = self._placement(grid)
        if not placement.is_lattice(grid.shape):
            raise ValueError(f"{what} on grids parallel to the image only.")
        return placement

    def _label_map(self, labels: Tensor) -> Tensor:
        """Labels (1, ...) of those that `decode_lattice` returns."""
        if self._labels.has_regions:
            return self._labels.convert_probabilities_to_segmentation(labels.float())[None]
        return labels

    def _fill(
        self,
        grid: Grid,
        out: np.ndarray,
        reduce: Callable[[Tensor], Tensor],
        reduce_labels: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Write what `reduce` makes of the logits (K, ...) into (C, *grid.shape), where the image is.

        On a grid parallel to the image what `reduce_labels`, if it is given, makes of the labels alone.
        """
        self._warn_if_outside(grid)
        placement = self._placement(grid)
        if placement.is_lattice(grid.shape):
            chosen, labels_only = reduce_labels or reduce, reduce_labels is not None
            self._fill_lattice(
                placement,
                out,
                lambda p: chosen(self._tiled.decode_lattice(p, labels_only=labels_only)),
                labels_only=labels_only,
            )
            return
        n, step = math.prod(grid.shape), max(1, _VALUES_AT_ONCE // self.num_classes)
        for first in tqdm(range(0, n, step), disable=self._quiet):
            index = np.unravel_index(np.arange(first, min(first + step, n)), grid.shape)
            where: tuple[Any, ...] = (slice(None), *index)
            values = out[where]
            self._decode_points(placement, np.stack(index, 1), values, reduce)
            out[where] = values

    def _fill_lattice(
        self,
        placement: Placement,
        out: np.ndarray,
        values: Callable[[Sequence[Tensor]], Tensor],
        *,
        labels_only: bool = False,
    ) -> None:
        """Write values (C, ...) at positions along z, y and x of the image into (C, *grid.shape), block by block."""
        axes = placement.axes or ()
        view = out.transpose(0, *[axis + 1 for axis in axes])
        positions = []
        for axis, along in enumerate(axes):
            p = placement.matrix[axis, along] * np.arange(view.shape[axis + 1]) + placement.offset[axis]
            if placement.matrix[axis, along] < 0:
                p, view = p[::-1], np.flip(view, axis + 1)
            first, end = np.searchsorted(p, [-0.5, self._tiled.shape[axis] - 0.5 - _ROUNDING])
            view = view[(slice(None),) * (axis + 1) + (slice(first, end),)]
            positions.append(torch.from_numpy(p[first:end].astype(np.float32)))
        if not all(map(len, positions)):
            return
        for box in tqdm(self._tiled.blocks(positions, labels_only=labels_only), disable=self._quiet):
            where = (slice(None), *box)
            view[where] = values([p[part] for p, part in zip(positions, box, strict=True)]).cpu().numpy()

    def _decode_points(
        self, placement: Placement, index: np.ndarray, out: np.ndarray, reduce: Callable[[Tensor], Tensor]
    ) -> None:
        """Write what `reduce` makes of the logits (K, M) at indices (M, 3) into (C, M), where the image is."""
        points = index @ placement.matrix.T + placement.offset
        inside = ((points >= -0.5) & (points < np.asarray(self._tiled.shape) - 0.5 - _ROUNDING)).all(1)
        if inside.any():
            logits = self._tiled.decode(torch.from_numpy(points[inside].astype(np.float32)))
            out[:, inside] = reduce(logits.T).cpu().numpy()

    def _warn_if_outside(self, grid: Grid) -> None:
        """Warn if points of a grid lie outside the image."""
        corners = np.array(list(np.ndindex(2, 2, 2))) * (np.asarray(grid.shape) - 1)
        index = self.grid.index_of(grid.position_of(corners))
        border = np.asarray(self.grid.shape) - 0.5 + _ROUNDING
        if (index < -0.5 - _ROUNDING).any() or (index > border).any():
            warnings.warn("The grid reaches beyond the image; what is outside is labelled background.", stacklevel=2)


def _nearest(values: Tensor, positions: Sequence[Tensor]) -> Tensor:
    """Values (C, *shape) at the voxels nearest to positions along each axis."""
    for axis, p in enumerate(positions, start=1):
        values = values.index_select(axis, p.round().long().clamp(0, values.shape[axis] - 1))
    return values


def named_channels(predictor: nnUNetPredictor) -> dict[str, int]:
    """The number, among the K, of every foreground class or region by its name in dataset.json."""
    labels = predictor.label_manager
    heads = labels.foreground_regions if labels.has_regions else labels.all_labels
    of = {as_tuple(head): number for number, head in enumerate(heads)}
    return {name: of[values] for name, values in named_structures(predictor.dataset_json).items() if values in of}
