"""What the headers of image files say, where SimpleITK finds in them what nnU-Net's readers find."""

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk

from nnunetv2_swipe.inference.geometry import Grid, grid_of_image

_ENDINGS = (".nii", ".nii.gz", ".nrrd", ".mha", ".gipl", ".png")


def n_channels(files: Sequence[str]) -> int | None:
    """Channels of the files of a case together; None if nnU-Net reads one otherwise.

    Raises:
        ValueError: A file cannot be read.
    """
    headers = [_header(f) for f in files]
    found = [header.GetNumberOfComponents() for header in headers if header is not None]
    return sum(found) if len(found) == len(files) else None


def grid_of_file(file: str) -> Grid | None:
    """The grid of an image, but for the order of its axes; None if nnU-Net reads it otherwise.

    Raises:
        ValueError: It cannot be read.
    """
    header = _header(file)
    if header is None:
        return None
    dims = header.GetDimension()
    stuff = {
        "spacing": header.GetSpacing(),
        "origin": header.GetOrigin(),
        "direction": np.reshape(header.GetDirection(), (dims, dims)),
    }
    return grid_of_image({"sitk_stuff": stuff}, (1,) * (3 - dims) + header.GetSize()[::-1])


def _header(file: str) -> sitk.ImageFileReader | None:
    if not file.lower().endswith(_ENDINGS):
        return None
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        if "orthonormal" in str(error):  # sheared; for such images nnU-Net has NiBabel
            return None
        raise ValueError(f"{file} cannot be read as an image. Is it there, and complete?") from error
    is_scalar = reader.GetNumberOfComponents() == 1 or file.lower().endswith(".png")
    return reader if is_scalar and reader.GetDimension() in (2, 3) else None
