"""What the headers of image files say, as the reader of nnU-Net that will read the files finds it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import imageio.v3 as iio
import nibabel
import numpy as np
import SimpleITK as sitk
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunetv2_swipe.files import read_json_object
from nnunetv2_swipe.geometry import Grid, grid_of_image
from nnunetv2_swipe.images import nifti
from nnunetv2_swipe.images.dicom import DICOM_REMEDY, is_dicom
from nnunetv2_swipe.images.tiff import TIFF_ENDINGS, read_tiff_header, spacing_file

ONE_FILE_PER_CHANNEL = (
    "nnU-Net takes one file per channel: write each channel (or time point, as a case of its own) to a file of its "
    "own, named CASE_0000, CASE_0001 and so on"
)
NIBABEL_REMEDY = 'or set "overwrite_image_reader_writer": "NibabelIO" in dataset.json, and plan and train again'


@dataclass(frozen=True, eq=False)
class Header:
    """What the header of an image file says.

    Attributes:
        file: The file.
        channels: How many channels nnU-Net's reader makes of it.
        shape: Voxels along z, y and x; a 2D image has one along z. The axes are in the file's order.
        properties: Spacing and geometry as nnU-Net's readers give them, for axes in the file's order.
        note: What a user should know although the file can be used, as a sentence without the file's name; or None.
        knows_spacing: False for a TIFF volume without a file that gives its spacing: then it is 1 mm by assumption.
    """

    file: str
    channels: int
    shape: tuple[int, ...]
    properties: dict[str, Any]
    note: str | None = None
    knows_spacing: bool = True

    @property
    def grid(self) -> Grid:
        """Where the voxels lie in the patient, the axes in the file's order."""
        return grid_of_image(self.properties, self.shape)


def read_header(file: str, reader: type[BaseReaderWriter], *, is_label: bool = False) -> Header | None:
    """Read the header of an image file, and check what can be checked without reading its voxels.

    Args:
        file: The file.
        reader: The class of nnU-Net that will read it.
        is_label: Whether it is a label map; TIFF volumes have their spacing in another file then.

    Returns:
        What the header says; None if the reader is none of nnU-Net's own.

    Raises:
        ValueError: The file is missing or cut off, or the reader cannot read it or would read something else than
            what it holds. The message names the file.
        OSError: There is no access to it.
    """
    read = _READERS.get(reader.__name__)
    if read is None:
        return None
    if not Path(file).exists():
        raise ValueError(f"{file} cannot be read as an image: there is no such file.")
    if is_dicom(Path(file)):
        raise ValueError(f"{file} is DICOM. {DICOM_REMEDY}")
    if Path(file).is_dir():
        raise ValueError(f"{file} cannot be read as an image: it is a folder.")
    if file.lower().endswith(nifti.ENDINGS):
        nifti.check_nifti_header(file)
    header = read(file, reader.__name__, is_label)
    spacing = np.asarray(header.properties["spacing"], dtype=float)
    affine = header.grid.affine
    if not (np.isfinite(affine).all() and abs(np.linalg.det(affine)) > 0 and 0 < spacing.min() < np.inf):
        raise ValueError(
            f"{file}: the header gives no usable geometry (spacing {tuple(spacing.tolist())}, affine "
            f"{affine.tolist()}). Correct the header."
        )
    return header


def _by_simpleitk(file: str, reader: str, _: bool) -> Header:
    found = sitk.ImageFileReader()
    found.SetFileName(file)
    try:
        found.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError(_why_not_by_simpleitk(file, reader, str(error))) from error
    dims, size = found.GetDimension(), found.GetSize()
    _require_axes(file, size, (2, 3) if reader == "SimpleITKIO" else (3,), reader)
    samples = found.GetNumberOfComponents()
    if file.lower().endswith(TIFF_ENDINGS):
        samples = max(samples, read_tiff_header(file).samples)  # ITK takes what is marked as grey for one channel
    _require_one_number(file, samples, reader)
    if file.lower().endswith(".gipl"):
        voxel_bytes = sitk.Image([1] * dims, found.GetPixelIDValue()).GetSizeOfPixelComponent()
        if Path(file).stat().st_size < _GIPL_HEADER + voxel_bytes * int(np.prod(size)):
            raise nifti.cut_off(file)
    spacing = [abs(s) for s in found.GetSpacing()[::-1]]
    geometry = {"spacing": spacing[::-1], "origin": found.GetOrigin(), "direction": found.GetDirection()}
    properties = {"sitk_stuff": geometry, "spacing": [999 * max(spacing)] * (3 - dims) + spacing}
    note = nifti.contradiction(file) if file.lower().endswith(nifti.ENDINGS) else None
    if note:
        note += (
            ". SimpleITK takes the qform and pixdim: labels fit the voxels, but positions in millimetres (of surfaces, "
            "and of other images) may be off. Check the header"
        )
    return Header(file, 1, (1,) * (3 - dims) + size[::-1], properties, note)


def _why_not_by_simpleitk(file: str, reader: str, error: str) -> str:
    if "orthonormal" in error:
        return (
            f"{file} is sheared: its axes are not at right angles (as of a tilted CT gantry), and {reader} cannot read "
            f"that. Resample such images and their labels onto axes at right angles, {NIBABEL_REMEDY}."
        )
    if file.lower().endswith(nifti.ENDINGS):
        nifti.check_nifti_content(file)  # which says what is wrong, if it is damaged
        if nifti.is_nifti2(file):
            return f"{file} is NIfTI-2, which {reader} cannot read. Convert such files to NIfTI-1, {NIBABEL_REMEDY}."
    return f"{file} cannot be read as an image. Is it complete, and of the format that its name ends in?"


def _by_nibabel(file: str, reader: str, _: bool) -> Header:
    try:
        image = cast(nibabel.Nifti1Image, nibabel.load(file))
        dtype = image.get_data_dtype()
    except (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError, OSError) as error:
        raise ValueError(f"{file} cannot be read as an image: {error}.") from error
    _require_axes(file, image.shape, (3,), reader)
    _require_one_number(file, 2 if dtype.kind == "c" else len(dtype.fields or (0,)), reader)
    spacing = [float(s) for s in image.header.get_zooms()[::-1]]
    properties = {"nibabel_stuff": {"original_affine": image.affine}, "spacing": spacing}
    note = nifti.contradiction(file)
    if note and "sheared" in note:
        note = None  # which NiBabel takes as it is
    elif note:
        note += ". NiBabel takes the pixdim for the spacing and the sform for positions. Check the header"
    return Header(file, 1, image.shape[::-1], properties, note)


def _by_skimage(file: str, reader: str, _: bool) -> Header:
    note = None
    if file.lower().endswith(TIFF_ENDINGS):
        tiff = read_tiff_header(file)
        shape, note = tiff.shape, tiff.note
    else:
        try:
            shape = iio.improps(file).shape
        except Exception as error:  # whatever imageio's plugins raise
            raise ValueError(f"{file} cannot be read as an image. Is it complete?") from error
        if file.lower().endswith(".png") and _is_deep_colour_png(file):
            note = (
                "it has 16 bits per colour, of which nnU-Net's reader keeps the upper 8. To keep all, save such "
                "images as .tif"
            )
    if len(shape) == 3 and shape[-1] not in (3, 4) and shape[0] in (3, 4):
        shape = (*shape[1:], shape[0])  # scikit-image's rule
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[-1] not in (3, 4)):
        raise ValueError(
            f"{file} has the shape {shape}; {reader} reads images in 2D, of one, three (RGB) or four (RGBA) channels "
            "in a file. Save grey images without transparency, and volumes as NIfTI."
        )
    channels = shape[2] if len(shape) == 3 else 1
    return Header(file, channels, (1, *shape[:2]), {"spacing": (999, 1, 1)}, note)


def _by_tifffile(file: str, reader: str, is_label: bool) -> Header:
    tiff = read_tiff_header(file)
    if tiff.samples > 1 or len(tiff.shape) != 3:
        raise ValueError(
            f"{file} has the shape {tiff.shape} and {tiff.samples} values per pixel; {reader} reads grey volumes, of "
            "three axes. Images in 2D end in .tif and are read by NaturalImage2DIO."
        )
    beside = spacing_file(file, is_label=is_label)
    if not beside.is_file():
        return Header(file, 1, tiff.shape, {"spacing": (1, 1, 1)}, tiff.note, knows_spacing=False)
    spacing = read_json_object(beside).get("spacing")
    if not isinstance(spacing, list) or len(spacing) != 3 or not all(isinstance(s, (int, float)) for s in spacing):
        raise ValueError(f'{beside} must hold {{"spacing": [z, y, x]}}, three numbers of millimetres.')
    return Header(file, 1, tiff.shape, {"spacing": spacing}, tiff.note)


def _require_axes(file: str, shape: tuple[int, ...], allowed: tuple[int, ...], reader: str) -> None:
    """ValueError if an image has another number of axes (x, y, z, ...) than a reader takes."""
    if len(shape) in allowed:
        return
    if len(shape) < 3:
        raise ValueError(
            f"{file} has two axes, {shape}; {reader} reads volumes only. Save it as a volume of one slice, with the "
            "shape (x, y, 1)."
        )
    if all(n == 1 for n in shape[3:]):
        raise ValueError(
            f"{file} has {len(shape)} axes, {shape}, of which {reader} reads three. Save it without those of length 1."
        )
    raise ValueError(f"{file} has {len(shape)} axes, {shape}. {ONE_FILE_PER_CHANNEL}.")


def _require_one_number(file: str, found: int, reader: str) -> None:
    if found > 1:
        raise ValueError(
            f"{file} holds {found} numbers per voxel (colours, vectors or complex numbers), which {reader} does not "
            f"read as channels. {ONE_FILE_PER_CHANNEL}, and declare each in dataset.json."
        )


def _is_deep_colour_png(file: str) -> bool:
    with Path(file).open("rb") as stream:
        depth, colour = stream.read(26)[24:]
    return depth == 16 and colour != 0


_GIPL_HEADER = 256
_READERS: dict[str, Callable[[str, str, bool], Header]] = {
    "SimpleITKIO": _by_simpleitk,
    "SimpleITKIOWithReorient": _by_simpleitk,
    "NibabelIO": _by_nibabel,
    "NibabelIOWithReorient": _by_nibabel,
    "NaturalImage2DIO": _by_skimage,
    "Tiff3DIO": _by_tifffile,
}
