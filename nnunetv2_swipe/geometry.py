"""Grids in the patient: where the points of an image lie in millimetres, and where in a preprocessed image.

Arrays are (z, y, x), as everywhere; positions in the patient are (x, y, z) in millimetres, in LPS coordinates (towards
the patient's left, back and head), as SimpleITK and DICOM have them. Files without geometry (PNG, TIFF) get axes along
x, y and z from the origin, with the spacing that nnU-Net's reader gives them.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from nibabel.orientations import inv_ornt_aff, io_orientation

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From RAS (towards the patient's right, front and head) to LPS, and from LPS to RAS."""
MAX_POINTS_PER_AXIS = 1_000_000
_OF_A_VOXEL = 1e-3
"""How far, in voxels of the preprocessed image, a grid may be from parallel to count as such."""
_OF_THE_SAME_VOXEL = 0.5
"""How far apart, in voxels, points of two grids may be: further away a voxel's label is its neighbour's."""


@dataclass(frozen=True, eq=False)
class Grid:
    """A regular grid in the patient.

    Attributes:
        shape: Points along z, y and x of the array; a 2D image has one along z.
        affine: (4, 4), from an index (z, y, x, 1) of the array to millimetres (x, y, z, 1) in LPS.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance of neighbouring points along z, y and x, in millimetres."""
        return tuple(np.linalg.norm(self.affine[:3, :3], axis=0).tolist())

    def index_of(self, points_mm: np.ndarray) -> np.ndarray:
        """Continuous indices (M, 3) of positions (M, 3) in millimetres."""
        return (points_mm - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T

    def position_of(self, index: np.ndarray) -> np.ndarray:
        """Positions (M, 3) in millimetres of continuous indices (M, 3)."""
        return index @ self.affine[:3, :3].T + self.affine[:3, 3]

    def with_spacing(self, spacing: Sequence[float]) -> "Grid":
        """A grid of another spacing (z, y, x) that fills the same box, to half a point, around the same centre.

        Raises:
            ValueError: It has more points than any image.
        """
        ratio = np.asarray(spacing, dtype=float) / self.spacing
        shape = np.maximum(1, np.round(np.asarray(self.shape) / np.maximum(ratio, 1e-300)))
        if shape.max() > MAX_POINTS_PER_AXIS:
            raise ValueError(
                f"A grid of spacing {tuple(spacing)} has {shape.max():.3g} points along an axis; at most "
                f"{MAX_POINTS_PER_AXIS:,} are possible. Ask for a coarser grid."
            )
        return self._rescaled(shape.astype(int), ratio)

    def with_shape(self, shape: Sequence[int]) -> "Grid":
        """A grid of another number of points that fills the same box."""
        return self._rescaled(np.asarray(shape), np.asarray(self.shape) / shape)

    def part(self, box: Sequence[slice]) -> "Grid":
        """The grid of the points in a box."""
        affine = self.affine.copy()
        affine[:3, 3] = self.position_of(np.array([[part.start for part in box]], dtype=float))[0]
        z, y, x = (part.stop - part.start for part in box)
        return Grid((z, y, x), affine)

    def is_same_as(self, other: "Grid") -> bool:
        """Whether every point of another grid is, along each axis, within half a voxel of this grid's own."""
        if self.shape != other.shape:
            return False
        corners = np.array(list(itertools.product(*[(0.0, n - 1.0) for n in self.shape])))
        apart = np.abs(self.index_of(other.position_of(corners)) - corners)
        return bool(apart.max() <= _OF_THE_SAME_VOXEL)

    def in_order_of_ras(self) -> "Grid":
        """The points with the axes of the array, reversed or exchanged, as close to z, y and x of RAS as can be."""
        affine = RAS_TO_LPS @ self.affine[:, [2, 1, 0, 3]]
        orientation = io_orientation(affine)
        affine = RAS_TO_LPS @ affine @ inv_ornt_aff(orientation, self.shape[::-1])
        x, y, z = (self.shape[::-1][i] for i in np.argsort(orientation[:, 0]))
        return Grid((z, y, x), affine[:, [2, 1, 0, 3]])

    def is_parallel_to(self, image: "Grid") -> bool:
        """Whether its axes are those of an image, in any order."""
        box = [[0, n] for n in image.shape]
        return place(self, image, transpose=(0, 1, 2), bbox=box, shape=image.shape).is_lattice(self.shape)

    def _rescaled(self, shape: np.ndarray, ratio: np.ndarray) -> "Grid":
        affine = self.affine.copy()
        affine[:3, :3] *= ratio
        centres = [(np.asarray(n) - 1) / 2 for n in (self.shape, shape)]
        affine[:3, 3] += self.affine[:3, :3] @ centres[0] - affine[:3, :3] @ centres[1]
        z, y, x = shape.tolist()
        return Grid((z, y, x), affine)


def grid_of_image(properties: Mapping[str, Any], shape: Sequence[int]) -> Grid:
    """The grid of an image, from what nnU-Net's reader says of it and its array's shape (z, y, x)."""
    affine = np.eye(4)
    if "sitk_stuff" in properties:
        stuff = properties["sitk_stuff"]
        dims = len(stuff["spacing"])
        direction = np.eye(3)
        direction[:dims, :dims] = np.reshape(stuff["direction"], (dims, dims))
        affine[:3, :3] = direction * np.append(stuff["spacing"], [1.0] * (3 - dims))
        affine[:dims, 3] = stuff["origin"]
        affine[:3, :3] = affine[:3, 2::-1]
    elif "nibabel_stuff" in properties:
        stuff = properties["nibabel_stuff"]
        affine = RAS_TO_LPS @ stuff.get("reoriented_affine", stuff["original_affine"])
        affine[:3, :3] = affine[:3, 2::-1]
    else:
        affine[:3, :3] = np.diag(properties["spacing"])[::-1]
    z, y, x = map(int, shape)
    return Grid((z, y, x), affine)


def properties_on_grid(properties: Mapping[str, Any], grid: Grid) -> dict[str, Any]:
    """What nnU-Net's writer needs to write a label map on a grid, from what its reader said of an image.

    nnU-Net's NibabelIOWithReorient then writes RAS, not the image's own order of axes.
    """
    affine = grid.affine.copy()
    affine[:3, :3] = affine[:3, 2::-1]
    result = {**properties, "spacing": list(grid.spacing)}
    if "sitk_stuff" in properties:
        dims = len(properties["sitk_stuff"]["spacing"])
        spacing = np.asarray(grid.spacing[::-1])
        direction = (affine[:3, :3] / spacing)[:dims, :dims]
        result["sitk_stuff"] = {
            **properties["sitk_stuff"],
            "spacing": tuple(spacing[:dims].tolist()),
            "origin": tuple(affine[:dims, 3].tolist()),
            "direction": tuple(direction.flatten().tolist()),
        }
    elif "nibabel_stuff" in properties:
        ras = RAS_TO_LPS @ affine
        result["nibabel_stuff"] = dict.fromkeys(properties["nibabel_stuff"], ras)
    return result


class Placement(NamedTuple):
    """Where the points of a grid lie in a preprocessed image: index -> matrix @ index + offset, in its voxels."""

    matrix: np.ndarray
    """(3, 3): from the grid's axes (z, y, x) to those of the preprocessed image."""
    offset: np.ndarray
    """(3,)."""

    @property
    def axes(self) -> tuple[int, ...] | None:
        """The grid's axis along each axis of the preprocessed image, if they are parallel."""
        axes = np.abs(self.matrix).argmax(1)
        return tuple(axes.tolist()) if len(set(axes.tolist())) == 3 else None

    def is_lattice(self, shape: Sequence[int]) -> bool:
        """Whether, over a grid of a shape, the position along each axis of the image depends on one of the grid's."""
        if self.axes is None:
            return False
        astray = np.abs(self.matrix) * (np.asarray(shape) - 1)
        astray[range(3), self.axes] = 0
        return bool(astray.sum(1).max() < _OF_A_VOXEL)


def place(
    grid: Grid,
    image: Grid,
    *,
    transpose: Sequence[int],
    bbox: Sequence[Sequence[int]],
    shape: Sequence[int],
) -> Placement:
    """Where a grid lies in a preprocessed image.

    Args:
        grid: The grid.
        image: The grid of the image as it was read.
        transpose: The plan's `transpose_forward`.
        bbox: The part of the transposed image that was preprocessed, [first, end) of each axis.
        shape: Shape of the preprocessed image.
    """
    to_image = np.linalg.inv(image.affine) @ grid.affine
    first, end = np.asarray(bbox, dtype=float).T
    scale = np.asarray(shape) / (end - first)
    matrix = to_image[list(transpose), :3] * scale[:, None]
    # voxel centres are half a voxel from the border, before and after resampling
    offset = (to_image[list(transpose), 3] - first + 0.5) * scale - 0.5
    return Placement(matrix, offset)


def box_around(mask: np.ndarray) -> tuple[slice, ...]:
    """The box of a mask's voxels and their neighbours; one voxel if there are none."""
    box = []
    for axis in range(mask.ndim):
        (where,) = mask.any(tuple(a for a in range(mask.ndim) if a != axis)).nonzero()
        first, last = (where[0], where[-1]) if len(where) else (0, 0)
        box.append(slice(max(0, int(first) - 1), min(mask.shape[axis], int(last) + 2)))
    return tuple(box)
