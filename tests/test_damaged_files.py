"""Image and label files that are cut off, damaged or hold NaN: SimpleITK reads zeros there, without an error."""

import gzip
import struct
from concurrent.futures import ThreadPoolExecutor

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from analytic_shapes import any_plan, any_predictor
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_swipe.images.content import check_content
from nnunetv2_swipe.images.headers import read_header
from nnunetv2_swipe.images.nifti import CHUNK
from nnunetv2_swipe.inference.encoded_image import EncodedImage
from nnunetv2_swipe.planners.label_statistics import label_statistics
from nnunetv2_swipe.preprocessing import SwIPEPreprocessor

SHAPE = (80, 90, 100)
PIXDIM_Y = 84


def volume(dtype=np.int16):
    return np.random.default_rng(0).integers(0, 2, SHAPE).astype(dtype)


def write(file, array=None):
    array = volume() if array is None else array
    nibabel.save(nibabel.Nifti1Image(array, np.diag([2.0, 3.0, 4.0, 1.0])), file)


def read_silently(file):
    """Whether SimpleITK reads a file without an error."""
    try:
        sitk.ReadImage(str(file))
    except RuntimeError:
        return False
    return True


def cut(share):
    def damage(file):
        content = file.read_bytes()
        file.write_bytes(content[: round(len(content) * share)])

    return damage


def change_byte(place):
    """Of a compressed file: about the middle, or one of the checksum (-8 to -5)."""

    def damage(file):
        content = bytearray(file.read_bytes())
        content[len(content) // 2 if place is None else place] ^= 0x10
        file.write_bytes(content)

    return damage


def not_finite(file):
    array = volume(np.float32)
    array[3, 4, 5:7] = np.nan, np.inf
    write(file, array)


def voxel_size(value):
    def damage(file):
        write(file)
        with gzip.open(file) as stream:
            content = bytearray(stream.read())
        struct.pack_into("<f", content, PIXDIM_Y, value)
        file.write_bytes(gzip.compress(content, 1))

    return damage


CUT = {f"{share:.0%}": (cut(share), "cut off") for share in (0.99, 0.9, 0.5, 0.1)}
DAMAGED = {
    **CUT,
    "checksum": (change_byte(-6), "damaged .*CRC"),
    "a byte": (change_byte(None), "damaged|cut off"),
    "NaN": (not_finite, "holds 2 values that are NaN or infinite"),
    "pixdim 0": (voxel_size(0.0), r"voxel size in its header \(pixdim\) is 2, 0, 4"),
    "pixdim NaN": (voxel_size(np.nan), r"voxel size in its header \(pixdim\) is 2, nan, 4"),
}
IN_HEADERS = {name: DAMAGED[name] for name in (*CUT, "pixdim 0", "pixdim NaN")}


@pytest.fixture(params=DAMAGED)
def damaged(tmp_path, request):
    """A damaged file and what is said of it."""
    file = tmp_path / "case_0000.nii.gz"
    write(file)
    damage, message = DAMAGED[request.param]
    damage(file)
    assert read_silently(file)
    return file, rf"case_0000\.nii\.gz.*({message})"


def run_case(image, label, channels=("any",)):
    plans, configuration, dataset = any_plan(channels=channels)
    return SwIPEPreprocessor(verbose=False).run_case([str(image)], label and str(label), plans, configuration, dataset)


def test_a_damaged_image_is_not_preprocessed(damaged):
    file, message = damaged
    with pytest.raises(ValueError, match=message):
        run_case(file, None)


def test_a_damaged_label_map_is_not_preprocessed(damaged, tmp_path):
    file, message = damaged
    write(tmp_path / "image_0000.nii.gz")
    with pytest.raises(ValueError, match=message):
        run_case(tmp_path / "image_0000.nii.gz", file)


def test_a_damaged_label_map_is_not_measured(damaged, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "nnunetv2_swipe.planners.label_statistics.ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1)
    )
    file, message = damaged
    with pytest.raises(ValueError, match=message):
        label_statistics(
            {"case": file},
            {"case": (1.0, 1.0, 1.0)},
            cache_file=tmp_path / "statistics.json",
            reader_name="SimpleITKIO",
            label_manager=LabelManager({"background": 0, "any": 1}, None),
        )


def test_a_small_file_that_simpleitk_does_not_open_is_named_as_damaged(tmp_path):
    file = tmp_path / "case_0000.nii.gz"
    write(file, volume()[:10])
    change_byte(-6)(file)
    assert not read_silently(file)
    with pytest.raises(ValueError, match=r"case_0000\.nii\.gz cannot be read as an image: it is damaged .*CRC"):
        read_header(str(file), SimpleITKIO)


@pytest.mark.parametrize("name", IN_HEADERS)
def test_what_headers_and_lengths_tell_is_found_before_the_first_case(tmp_path, monkeypatch, name):
    monkeypatch.setattr(EncodedImage, "__init__", lambda *_, **__: pytest.fail("a case was begun"))
    files = [tmp_path / f"{case}_0000.nii.gz" for case in ("a", "b", "c")]
    for file in files:
        write(file)
    damage, message = IN_HEADERS[name]
    damage(files[-1])
    outputs = [str(tmp_path / "out" / case) for case in ("a", "b", "c")]
    with pytest.raises(ValueError, match=rf"c_0000\.nii\.gz.*({message})"):
        any_predictor().predict_from_files_sequential([[str(f)] for f in files], outputs)


def test_a_damaged_image_is_not_encoded(damaged):
    file, message = damaged
    with pytest.raises(ValueError, match=message):
        any_predictor().encode(file)


def test_whole_files_are_accepted(tmp_path):
    """Of one gzip member, of several, and with bytes behind the voxels."""
    for name in ("a.nii", "a.nii.gz"):
        write(tmp_path / name)
    content = (tmp_path / "a.nii").read_bytes()
    parts = [content[i : i + 10_000] for i in range(0, len(content), 10_000)]
    (tmp_path / "parts.nii.gz").write_bytes(b"".join(gzip.compress(part, 1) for part in parts))
    (tmp_path / "longer.nii.gz").write_bytes(gzip.compress(content + b"more", 1))
    (tmp_path / "plain.nii.gz").write_bytes(content)
    for name in ("a.nii", "a.nii.gz", "parts.nii.gz", "longer.nii.gz", "plain.nii.gz"):
        check_content(str(tmp_path / name))
        assert read_header(str(tmp_path / name), SimpleITKIO).shape == SHAPE[::-1]


def test_a_file_of_several_gzip_members_of_which_one_is_missing_is_refused(tmp_path):
    write(tmp_path / "a.nii")
    content = (tmp_path / "a.nii").read_bytes()
    file = tmp_path / "parts.nii.gz"
    file.write_bytes(
        b"".join(gzip.compress(content[i : i + 10_000], 1) for i in range(0, len(content) - 10_000, 10_000))
    )
    assert read_silently(file)
    with pytest.raises(ValueError, match=r"parts\.nii\.gz .*cut off"):
        read_header(str(file), SimpleITKIO)


@pytest.mark.parametrize("at", [0, CHUNK // 4 - 1, CHUNK // 4, -1])
def test_values_that_are_not_finite_are_found_anywhere(tmp_path, at):
    """Also at the borders of the pieces that are read at once; big-endian."""
    array = np.zeros((128, 128, 128), dtype=">f4")
    flat = array.flatten("F")
    flat[at] = np.nan
    header = nibabel.Nifti1Header(endianness=">")
    nibabel.save(nibabel.Nifti1Image(flat.reshape(array.shape, order="F"), np.eye(4), header), tmp_path / "a.nii")
    with pytest.raises(ValueError, match=r"a\.nii holds 1 values"):
        check_content(str(tmp_path / "a.nii"))


def large():
    return np.random.default_rng(0).integers(0, 1000, (40, 100, 100)).astype(np.int16)


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
@pytest.mark.parametrize(("damage", "message"), [(change_byte(None), "damaged"), (cut(0.9), "cut off")])
def test_compressed_files_of_other_formats_are_read_to_their_end(tmp_path, ending, damage, message):
    file = tmp_path / f"a{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(large()), str(file), True)
    check_content(str(file))
    damage(file)
    with pytest.raises(ValueError, match=rf"a\{ending} .*{message}"):
        check_content(str(file))


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_files_that_are_not_compressed_are_left_to_their_readers(tmp_path, ending):
    file = tmp_path / f"a{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(large()), str(file), False)
    check_content(str(file))
    cut(0.9)(file)
    check_content(str(file))
    with pytest.raises(RuntimeError):
        SimpleITKIO().read_images([str(file)])


@pytest.mark.parametrize("share", [0.99, 0.9, 0.5, 0.1])
def test_other_files_that_are_cut_off_are_found_by_their_headers(tmp_path, share):
    gipl, tiff = tmp_path / "a.gipl", tmp_path / "a_0000.tif"
    sitk.WriteImage(sitk.GetImageFromArray(large()), str(gipl), False)
    with tifffile.TiffWriter(tiff) as writer:
        for plane in large():
            writer.write(plane, compression="zlib", contiguous=False, metadata=None)
    for file, reader in ((gipl, SimpleITKIO), (tiff, Tiff3DIO)):
        assert read_header(str(file), reader).shape == large().shape
        cut(share)(file)
        with pytest.raises(ValueError, match=rf"{file.name} cannot be read as an image"):
            read_header(str(file), reader)


@pytest.mark.parametrize("name", ["case_0000.nii.gz", "case_0000.mha"])
def test_what_only_the_reader_finds_is_named(tmp_path, name):
    file = tmp_path / name
    sitk.WriteImage(sitk.GetImageFromArray(large()), str(file), False)
    cut(0.9)(file)
    with pytest.raises(ValueError, match=rf"{name}"):
        run_case(file, None)
