"""What the headers of image files say, of the formats in which SimpleITK finds what nnU-Net's readers find."""

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk

from nnunetv2_swipe.inference.geometry import Grid, grid_of_image

_ENDINGS = (".nii", ".nii.gz", ".nrrd", ".mha", ".gipl", ".png")


def n_channels(files: Sequence[str]) -> int | None:
    """Channels of the files of a case together; None if one is of another format.

    Raises:
        ValueError: A file cannot be read.
    """
    headers = [_header(f) for f in files]
    found = [header.GetNumberOfComponents() for header in headers if header is not None]
    return sum(found) if len(found) == len(files) else None


def grid_of_file(file: str) -> Grid | None:
    """The grid of an image, but for the order of its axes; None if it is of another format.

    Raises:
        ValueError: It cannot be read.
    """
    header = _header(file)
    if header is None:
        return None
    dims = min(3, header.GetDimension())
    stuff = {
        "spacing": header.GetSpacing()[:dims],
        "origin": header.GetOrigin()[:dims],
        "direction": np.reshape(header.GetDirection(), (header.GetDimension(),) * 2)[:dims, :dims],
    }
    return grid_of_image({"sitk_stuff": stuff}, (1,) * (3 - dims) + header.GetSize()[dims - 1 :: -1])


def _header(file: str) -> sitk.ImageFileReader | None:
    if not file.lower().endswith(_ENDINGS):
        return None
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError(f"{file} cannot be read as an image. Is it there, and complete?") from error
    return reader
