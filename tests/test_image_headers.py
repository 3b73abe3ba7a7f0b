"""Channels and grids of image files from their headers, of formats that nnU-Net's readers read alike."""

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from nnunetv2_swipe.inference.image_headers import grid_of_file, n_channels


@pytest.fixture
def write(tmp_path):
    """Factory of image files: `write(name, array)` returns the path."""

    def make(name, array):
        file = str(tmp_path / name)
        if name.endswith((".png", ".bmp")):
            Image.fromarray(array).save(file)
        elif name.endswith(".tif"):
            tifffile.imwrite(file, array, photometric="minisblack")
        else:
            image = sitk.GetImageFromArray(array)
            image.SetSpacing((0.5, 1.0, 2.0, 1.0)[: array.ndim])
            sitk.WriteImage(image, file)
        return file

    return make


def zeros(*shape):
    return np.zeros(shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "shape", "channels"),
    [("a.nii.gz", (4, 5, 6), 1), ("a.mha", (5, 6), 1), ("a.png", (5, 6), 1), ("a.png", (5, 6, 3), 3)],
)
def test_channels_are_those_of_all_files(write, name, shape, channels):
    assert n_channels([write(name, zeros(*shape)), write(f"b_{name}", zeros(*shape))]) == 2 * channels


@pytest.mark.parametrize(
    ("name", "shape"),
    [("a.bmp", (5, 6)), ("a.tif", (3, 20, 30)), ("a.tif", (20, 30, 3)), ("a.nii.gz", (2, 4, 5, 6)), ("a.nii", None)],
)
def test_what_nnunet_reads_otherwise_is_left_to_it(write, tmp_path, name, shape):
    """A grey BMP, and TIFF volumes of three slices or columns, are several channels to SimpleITK.

    Four axes are channels to nnU-Net; what is sheared (None) only NiBabel reads.
    """
    if shape is None:
        file = str(tmp_path / name)
        affine = np.eye(4)
        affine[0, 1] = 0.1
        nibabel.save(nibabel.Nifti1Image(zeros(4, 5, 6), affine), file)
    else:
        file = write(name, zeros(*shape))
    assert n_channels([file]) is None
    assert grid_of_file(file) is None


def test_the_grid_is_that_of_the_file(write):
    grid = grid_of_file(write("a.nii.gz", zeros(4, 5, 6)))
    assert grid.shape == (4, 5, 6)
    np.testing.assert_allclose(grid.spacing, (2, 1, 0.5))


@pytest.mark.parametrize("name", ["a.nii.gz", "a.png"])
def test_a_damaged_file_is_named(tmp_path, name):
    file = tmp_path / name
    for look in (lambda: n_channels([str(file)]), lambda: grid_of_file(str(file))):
        file.write_bytes(b"")
        with pytest.raises(ValueError, match=rf"{name} cannot be read as an image"):
            look()
        file.unlink()
        with pytest.raises(ValueError, match=rf"{name} cannot be read as an image"):
            look()
