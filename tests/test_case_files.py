"""Files of a case: as nnU-Net writes them, under their names whatever the case is called, and never cut off."""

import errno
import os
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from analytic_shapes import DIRECTIONS
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from nnunetv2_swipe.geometry import grid_of_image
from nnunetv2_swipe.inference import case_files
from nnunetv2_swipe.inference.case_files import CaseFiles
from nnunetv2_swipe.inference.whole_files import is_whole

READERS = [SimpleITKIO, SimpleITKIOWithReorient, NibabelIO, NibabelIOWithReorient]
DEVICE_FULL = Path("/dev/full")
needs_device = pytest.mark.skipif(not DEVICE_FULL.exists(), reason="a device that is always full")


def write_input(file, direction=None, shape=(4, 5, 6)):
    """An image whose axes are oblique; without a direction one of two axes."""
    image = sitk.GetImageFromArray(np.zeros(shape if direction is not None else shape[1:], dtype=np.float32))
    image.SetSpacing((0.7, 1.3, 2.5)[: image.GetDimension()])
    image.SetOrigin((10.0, -20.0, 30.0)[: image.GetDimension()])
    if direction is not None:
        image.SetDirection(direction.flatten().tolist())
    sitk.WriteImage(image, str(file))
    return file


def random_labels(shape, highest=3):
    return np.random.default_rng(0).integers(0, highest, shape, endpoint=True).astype(np.uint8)


def write_case(output, reader, image_file, ending, highest=3):
    """Write random labels on the grid of an image; those labels and the image's properties."""
    image, properties = reader.read_images([str(image_file)])
    labels = random_labels(image.shape[1:], highest)
    with CaseFiles(output, reader).removed_on_error() as files:
        files.write_labels(labels, grid_of_image(properties, labels.shape), ending, properties)
        files.finish(ending)
    return labels, properties


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
@pytest.mark.parametrize("direction", [*DIRECTIONS.values(), None], ids=[*DIRECTIONS, "two axes"])
@pytest.mark.parametrize("reader", READERS)
def test_label_maps_are_those_of_nnunets_writer(tmp_path, reader, direction, ending):
    """In what SimpleITK and NiBabel read, and in what the header means."""
    if direction is None and reader is not SimpleITKIO:
        pytest.skip("reads volumes only")
    image = write_input(tmp_path / "image_0000.nii.gz", direction)
    labels, properties = write_case(tmp_path / "ours", reader(), image, ending)
    ours, theirs = tmp_path / f"ours{ending}", tmp_path / f"theirs{ending}"
    reader().write_seg(labels, str(theirs), properties)
    first, second = (sitk.ReadImage(str(file)) for file in (ours, theirs))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(first), sitk.GetArrayFromImage(second))
    for get in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection", "GetPixelID"):
        np.testing.assert_allclose(getattr(first, get)(), getattr(second, get)(), rtol=1e-5, atol=1e-5)
    first, second = (nibabel.load(file) for file in (ours, theirs))
    np.testing.assert_array_equal(np.asanyarray(first.dataobj), np.asanyarray(second.dataobj))
    np.testing.assert_allclose(first.affine, second.affine, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(first.get_qform(), second.get_qform(), rtol=1e-5, atol=1e-4)
    for field in ("dim", "datatype", "qform_code", "sform_code", "xyzt_units"):
        np.testing.assert_array_equal(first.header[field], second.header[field], err_msg=field)


def test_sheared_axes_of_a_large_label_map_are_kept(tmp_path, monkeypatch):
    """They fit into one of the two transforms of a NIfTI header only."""
    monkeypatch.setattr(case_files, "LARGE", 0)
    affine = np.array([[1.0, 0.2, 0, 3], [0, 2, 0.1, 4], [0, 0, 3, 5], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(np.zeros((6, 5, 4), dtype=np.float32), affine), tmp_path / "a_0000.nii.gz")
    image, properties = NibabelIO().read_images([str(tmp_path / "a_0000.nii.gz")])
    grid = grid_of_image(properties, image.shape[1:])
    files = CaseFiles(tmp_path / "a", NibabelIO())
    labels = files.empty_label_map(grid.shape, np.dtype(np.uint8))
    assert isinstance(labels, np.memmap)
    files.write_labels(labels, grid, ".nii.gz", properties)
    files.finish(".nii.gz")
    np.testing.assert_allclose(nibabel.load(tmp_path / "a.nii.gz").affine, affine, atol=1e-6)


CASES = ["UPPER.nii", "a.b", "with blank", ".hidden", "a_0000", "UPPER.NII.GZ", "case", "a.npz"]


@pytest.mark.parametrize("case", CASES)
def test_files_are_called_after_the_case_whatever_its_name(tmp_path, case):
    image = write_input(tmp_path / "image_0000.nii.gz", np.eye(3))
    output = tmp_path / "out"
    reader = SimpleITKIO()
    array, properties = reader.read_images([str(image)])
    labels, grid = random_labels(array.shape[1:]), grid_of_image(properties, array.shape[1:])
    files = CaseFiles(output / case, reader)
    files.write_map("uncertainty", labels.astype(np.float32), grid)
    files.write_probabilities(np.zeros((2, *labels.shape), dtype=np.float32), properties)
    files.write_labels(labels, grid, ".nii.gz", properties)
    files.finish(".nii.gz")
    found = {str(f.relative_to(output)) for f in output.rglob("*") if f.is_file()}
    assert found == {f"{case}.nii.gz", f"{case}.npz", f"{case}.pkl", f"uncertainty/{case}.nii.gz"}
    np.testing.assert_array_equal(nibabel.load(output / f"{case}.nii.gz").get_fdata().T, labels)


@pytest.mark.parametrize(
    ("reader", "ending"),
    [
        (SimpleITKIO, ".nii.gz"),
        (SimpleITKIO, ".mha"),
        (SimpleITKIO, ".nrrd"),
        (NibabelIO, ".nii"),
        (Tiff3DIO, ".tif"),
        (NaturalImage2DIO, ".png"),
    ],
)
def test_a_label_map_that_is_cut_off_is_not_whole(tmp_path, reader, ending):
    if reader is NaturalImage2DIO:
        image = tmp_path / "a_0000.png"
        NaturalImage2DIO().write_seg(random_labels((1, 50, 60)), str(image), {})
    elif reader is Tiff3DIO:
        image = tmp_path / "a_0000.tif"
        Tiff3DIO().write_seg(random_labels((40, 50, 60)), str(image), {"spacing": (3.0, 1.0, 1.0)})
        (tmp_path / "a_0000.json").rename(tmp_path / "a.json")  # of an image it is called after the case
    else:
        image = write_input(tmp_path / f"a_0000{ending}", np.eye(3), (40, 50, 60))
    labels, _ = write_case(tmp_path / "out" / "a", reader(), image, ending)
    file = tmp_path / "out" / f"a{ending}"
    found, properties = reader().read_seg(str(file))
    np.testing.assert_array_equal(found[0], labels)
    assert properties["spacing"][0] == {".tif": 3, ".png": 999}.get(ending, 2.5)  # TIFF's lies beside it
    assert is_whole(file, reader())
    content = file.read_bytes()
    for n in (0, 10, len(content) // 2, len(content) - 40):
        file.write_bytes(content[:n])
        assert not is_whole(file, reader()), n
    file.unlink()
    assert not is_whole(file, reader())


def test_a_changed_byte_of_a_compressed_file_is_noticed(tmp_path):
    write_case(tmp_path / "a", SimpleITKIO(), write_input(tmp_path / "a_0000.nii.gz", np.eye(3), (9, 9, 9)), ".nii.gz")
    file = tmp_path / "a.nii.gz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert not is_whole(file, SimpleITKIO())


@pytest.mark.parametrize("ending", [".npz", ".pkl"])
def test_probabilities_that_are_cut_off_are_not_whole(tmp_path, ending):
    files = CaseFiles(tmp_path / "a", SimpleITKIO())
    files.write_probabilities(np.ones((2, 9, 9, 9), dtype=np.float32), {"spacing": [1.0, 1.0, 1.0]})
    files.finish(".nii.gz")
    file = tmp_path / f"a{ending}"
    assert is_whole(file, SimpleITKIO())
    content = file.read_bytes()
    for n in (0, 10, len(content) - 3):
        file.write_bytes(content[:n])
        assert not is_whole(file, SimpleITKIO()), n


@needs_device
@pytest.mark.parametrize(
    ("file", "write"),
    [
        ("case.nii.gz", lambda files, labels, grid, p: files.write_labels(labels, grid, ".nii.gz", p)),
        ("case.nii", lambda files, labels, grid, p: files.write_labels(labels, grid, ".nii", p)),
        ("case.mha", lambda files, labels, grid, p: files.write_labels(labels, grid, ".mha", p)),
        ("case.npz", lambda files, labels, _, p: files.write_probabilities(labels, p)),
        ("case.pkl", lambda files, labels, _, p: files.write_probabilities(labels, p)),
        ("m/case.nii.gz", lambda files, labels, grid, _: files.write_map("m", labels.astype(np.float32), grid)),
    ],
)
def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_none(tmp_path, file, write):
    image = write_input(tmp_path / "a_0000.nii.gz", np.eye(3), (40, 50, 60))
    array, properties = SimpleITKIO().read_images([str(image)])
    files = CaseFiles(tmp_path / "out" / "p1", SimpleITKIO())
    (files._folder / file).parent.mkdir(exist_ok=True)
    (files._folder / file).symlink_to(DEVICE_FULL)
    named = f"out/{file}".replace("out/case", "out/p1").replace("m/case", "m/p1")
    with pytest.raises(OSError, match=rf"{named} cannot be written: ") as error, files.removed_on_error():
        write(files, random_labels(array.shape[1:]), grid_of_image(properties, array.shape[1:]), properties)
    assert error.value.errno in (errno.ENOSPC, errno.EIO)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="reserves room on the disk")
def test_a_large_label_map_that_does_not_fit_on_the_disk_is_an_error_before_it_is_decoded(tmp_path, monkeypatch):
    """Written to in memory, it would end the process by a signal."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(case_files, "LARGE", 0)
    monkeypatch.setattr(os, "posix_fallocate", full)
    files = CaseFiles(tmp_path / "a", SimpleITKIO())
    with pytest.raises(OSError, match=r"labels.npy cannot be written: No space left on device"):
        files.empty_label_map((4, 5, 6), np.dtype(np.uint8))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=False)
    if mounted.returncode:
        pytest.skip("may not mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_on_a_disk_that_fills_no_file_appears(tmp_path, small_disk, ending):
    """With SimpleITK's writer the command ended well and left files of no bytes."""
    image = write_input(tmp_path / "a_0000.nii.gz", np.eye(3), (60, 60, 60))
    with pytest.raises(OSError, match=rf"p1{ending} cannot be written"):
        write_case(small_disk / "p1", SimpleITKIO(), image, ending, highest=255)
    assert not list(small_disk.iterdir())


def test_a_map_with_nan_is_whole(tmp_path):
    """A network that overflows is no fault of the disk."""
    file = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.full((3, 4, 5), np.nan, np.float32), np.eye(4)), file)
    assert is_whole(file, SimpleITKIO())
