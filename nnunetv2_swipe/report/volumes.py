"""The files of a case, read, and checked to belong together."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_swipe.geometry import Grid, grid_of_image
from nnunetv2_swipe.images.content import check_content
from nnunetv2_swipe.inference.uncertainties import TOTAL_UNCERTAINTY
from nnunetv2_swipe.labels import require_declared
from nnunetv2_swipe.report.cases import Case
from nnunetv2_swipe.report.structures import Structures


class Volumes(NamedTuple):
    """The files of a case, read. What is to be ignored is background in both label maps."""

    image: np.ndarray
    """(C, z, y, x)."""
    prediction: np.ndarray
    """Labels, (z, y, x)."""
    truth: np.ndarray | None
    grid: Grid
    uncertainty: np.ndarray | None
    """Variance of the labels (z, y, x), if it was written beside them."""

    @property
    def is_slice(self) -> bool:
        """Whether it is an image in 2D."""
        return self.prediction.shape[0] == 1


class ImageOfMaps(NamedTuple):
    """An image, and the grid that its maps must be on."""

    values: np.ndarray
    """(C, z, y, x)."""
    grid: Grid
    file: str
    """The first file of the image."""


def read_case(case: Case, reader: BaseReaderWriter, structures: Structures) -> Volumes:
    """Read the image and the maps of a case.

    Raises:
        ValueError: A file cannot be read, a map is not on the image's grid, or a label is not declared; the file is
            named.
    """
    image = read_image(case.images, reader)
    prediction = read_labels(case.prediction, reader, image, structures.declared)
    truth = None if case.truth is None else read_labels(case.truth, reader, image, structures.declared)
    file = case.prediction.parent / TOTAL_UNCERTAINTY / f"{case.name}.nii.gz"
    of_nifti = reader if ".nii.gz" in reader.supported_file_endings else SimpleITKIO()
    uncertainty = read_map(file, of_nifti, image) if file.is_file() else None
    if truth is not None and structures.ignore_label is not None:
        prediction, truth = (np.where(truth == structures.ignore_label, 0, m) for m in (prediction, truth))
    return Volumes(image.values, prediction, truth, image.grid, uncertainty)


def read_image(files: Sequence[str | Path], reader: BaseReaderWriter) -> ImageOfMaps:
    """Read an image of one file per channel.

    Raises:
        ValueError: The files cannot be read; they are named.
    """
    names = list(map(str, files))
    values, grid, _ = _read(reader.read_images, names)
    return ImageOfMaps(values, grid, names[0])


def read_labels(file: str | Path, reader: BaseReaderWriter, image: ImageOfMaps, declared: Sequence[int]) -> np.ndarray:
    """Read the label map (z, y, x) of an image.

    Args:
        file: Of the label map.
        reader: Of the dataset.
        image: The image.
        declared: The labels that dataset.json declares.

    Raises:
        ValueError: The file cannot be read, is not on the image's grid, or holds another label; it is named.
    """
    labels = read_map(file, reader, image)
    require_declared(labels, declared, str(file))
    return labels


def read_map(file: str | Path, reader: BaseReaderWriter, image: ImageOfMaps) -> np.ndarray:
    """Read a map (z, y, x) of an image.

    Files without geometry of their own (PNG, TIFF) are compared by their shape alone.

    Raises:
        ValueError: The file cannot be read or is not on the image's grid; it is named.
    """
    values, grid, has_geometry = _read(reader.read_seg, str(file))
    if len(values) != 1:
        raise ValueError(f"{file} has {len(values)} channels; a map of labels or of uncertainty has one.")
    remedy = "Maps must be on the images' own grids."
    if grid.shape != image.grid.shape:
        raise ValueError(f"{file} has {grid.shape} voxels, its image {image.file} has {image.grid.shape}. {remedy}")
    if has_geometry and not grid.is_same_as(image.grid):
        raise ValueError(
            f"{file} does not lie where its image {image.file} lies: spacing {_rounded(grid.spacing)} and "
            f"{_rounded(image.grid.spacing)} mm (z, y, x), first voxel at {_rounded(grid.affine[:3, 3])} and "
            f"{_rounded(image.grid.affine[:3, 3])} mm (x, y, z), or other directions. Is it of another image? {remedy}"
        )
    return values[0]


def _read(read: Callable[[Any], tuple[np.ndarray, dict]], files: list[str] | str) -> tuple[np.ndarray, Grid, bool]:
    """Values (C, z, y, x), grid, and whether the files give the grid, of what a reader reads."""
    names = [files] if isinstance(files, str) else files
    for name in names:
        check_content(name, finite=False)  # a picture shows the rest of the image
    try:
        values, properties = read(files)
        grid = grid_of_image(properties, values.shape[1:])
    except Exception as error:  # readers raise all kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{', '.join(names)} cannot be read as an image ({reason}). Is it complete, and of the kind that the "
            "model was trained on?"
        ) from error
    return values, grid, "sitk_stuff" in properties or "nibabel_stuff" in properties


def _rounded(values: Sequence[float] | np.ndarray) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
