"""Channels, shapes and grids of image files from their headers: those that nnU-Net's readers then read."""

import shutil
import struct
import zlib

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from nibabel.testing import data_path
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from PIL import Image

from nnunetv2_swipe.geometry import grid_of_image
from nnunetv2_swipe.images.cases import check_case
from nnunetv2_swipe.images.dicom import require_images
from nnunetv2_swipe.images.headers import read_header

NUMBERS = np.random.default_rng(0).integers(0, 255, (7, 20, 30, 4), dtype=np.uint8)


def write_png(file, array, depth, colour, extra=b""):
    """A PNG of an array (y, x) or (y, x, colours), of any depth and type of colour, and with further chunks."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    size = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], depth, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in array)
    chunks = [chunk(b"IHDR", size), chunk(b"PLTE", bytes(range(30))) if colour == 3 else b""]
    chunks += [chunk(b"tRNS", extra) if extra else b"", chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


GREY, RGB, RGBA = NUMBERS[0, ..., 0], NUMBERS[0, ..., :3], NUMBERS[0]
PHOTOGRAPHS = {
    "grey.png": lambda f: write_png(f, GREY, 8, 0),
    "deep.png": lambda f: write_png(f, GREY, 16, 0),
    "rgb.png": lambda f: write_png(f, RGB, 8, 2),
    "rgba.png": lambda f: write_png(f, RGBA, 8, 6),
    "grey_transparent.png": lambda f: write_png(f, GREY, 8, 0, b"\0\5"),
    "rgb_transparent.png": lambda f: write_png(f, RGB, 8, 2, b"\0\5" * 3),
    "palette.png": lambda f: write_png(f, GREY % 10, 8, 3),
    "palette_transparent.png": lambda f: write_png(f, GREY % 10, 8, 3, b"\0"),
    "bits.png": lambda f: Image.fromarray(GREY > 100).save(f),
    "grey.bmp": lambda f: Image.fromarray(GREY).save(f),
    "rgb.bmp": lambda f: Image.fromarray(RGB).save(f),
    "grey.tif": lambda f: tifffile.imwrite(f, GREY),
    "rgb.tif": lambda f: tifffile.imwrite(f, RGB, photometric="rgb"),
    "deep_rgb.tif": lambda f: tifffile.imwrite(f, RGB.astype(np.uint16) * 200, photometric="rgb", compression="zlib"),
    "black_is_zero.tif": lambda f: tifffile.imwrite(f, RGB, photometric="minisblack", planarconfig="contig"),
    "planar.tif": lambda f: tifffile.imwrite(f, RGB.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"),
}


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_channels_of_photographs_are_those_that_nnunet_reads(tmp_path, name):
    file = tmp_path / name
    PHOTOGRAPHS[name](file)
    array, properties = NaturalImage2DIO().read_images([str(file)])
    header = read_header(str(file), NaturalImage2DIO)
    assert (header.channels, *header.shape) == array.shape
    assert header.properties == properties
    assert header.note is None


@pytest.mark.parametrize("colour", [2, 4, 6])
def test_colours_of_16_bits_that_are_cut_to_8_are_noted(tmp_path, colour):
    file = tmp_path / "a.png"
    write_png(file, NUMBERS[0, ..., : {2: 3, 4: 2, 6: 4}[colour]], 16, colour)
    assert "16 bits per colour" in read_header(str(file), NaturalImage2DIO).note


def interleaved(file):
    """A colour TIFF whose header says grey, one number per pixel, as some converters write it."""
    Image.fromarray(RGB).save(file)
    content = bytearray(file.read_bytes())
    first = struct.unpack_from("<I", content, 4)[0]
    for entry in range(first + 2, first + 2 + 12 * struct.unpack_from("<H", content, first)[0], 12):
        if struct.unpack_from("<H", content, entry)[0] in (262, 277):  # photometric interpretation, samples per pixel
            struct.pack_into("<H", content, entry + 8, 1)
    file.write_bytes(content)


@pytest.mark.parametrize("reader", [NaturalImage2DIO, Tiff3DIO, SimpleITKIO])
def test_a_colour_tiff_that_says_it_is_grey_is_refused(tmp_path, reader):
    file = tmp_path / "a_0000.tif"
    interleaved(file)
    assert NaturalImage2DIO().read_images([str(file)])[0].shape == (1, 1, 20, 30)  # the fault: a third of the bytes
    with pytest.raises(ValueError, match=r"a_0000\.tif holds 3 numbers per pixel, but its header says one"):
        read_header(str(file), reader)


def test_a_colour_tiff_marked_as_black_is_zero_is_refused_where_it_would_be_one_channel(tmp_path):
    file = tmp_path / "a.tif"
    PHOTOGRAPHS["black_is_zero.tif"](file)
    assert SimpleITKIO().read_images([str(file)])[0].shape == (1, 1, 20, 30)
    with pytest.raises(ValueError, match="holds 3 numbers per voxel"):
        read_header(str(file), SimpleITKIO)


def test_a_tiff_with_a_palette_is_noted(tmp_path):
    file = tmp_path / "a.tif"
    Image.fromarray(RGB).convert("P").save(file)
    assert "palette" in read_header(str(file), NaturalImage2DIO).note


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("volume.tif", lambda f: tifffile.imwrite(f, NUMBERS[..., 0], photometric="minisblack")),
        ("two.tif", lambda f: tifffile.imwrite(f, RGB[..., :2], photometric="minisblack", planarconfig="contig")),
        ("grey_and_alpha.png", lambda f: write_png(f, RGB[..., :2], 8, 4)),
    ],
)
def test_photographs_of_another_number_of_channels_are_refused(tmp_path, name, write):
    write(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name} has the shape .* of one, three \(RGB\) or four"):
        read_header(str(tmp_path / name), NaturalImage2DIO)


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO])
@pytest.mark.parametrize("shape", [(7, 20, 30), (1, 20, 30)])
def test_the_grid_is_that_of_the_file(tmp_path, reader, shape):
    file = str(tmp_path / "a.nii.gz")
    image = sitk.GetImageFromArray(NUMBERS[: shape[0], ..., 0])
    image.SetSpacing((0.5, 1.0, 2.0))
    image.SetOrigin((5, 6, 7))
    image.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, 1))
    sitk.WriteImage(image, file)
    array, properties = reader().read_images([file])
    header = read_header(file, reader)
    assert header.shape == array.shape[1:]
    np.testing.assert_allclose(header.properties["spacing"], properties["spacing"])
    np.testing.assert_allclose(header.grid.affine, grid_of_image(properties, array.shape[1:]).affine, atol=1e-5)


@pytest.mark.parametrize("ending", [".nii.gz", ".mha"])
def test_an_image_in_2d_is_one_slice(tmp_path, ending):
    file = str(tmp_path / f"a{ending}")
    image = sitk.GetImageFromArray(GREY)
    image.SetSpacing((0.5, 0.75))
    sitk.WriteImage(image, file)
    array, properties = SimpleITKIO().read_images([file])
    header = read_header(file, SimpleITKIO)
    assert header.shape == array.shape[1:] == (1, 20, 30)
    np.testing.assert_allclose(header.properties["spacing"], properties["spacing"])
    for reader in (SimpleITKIOWithReorient, NibabelIO):
        if reader is SimpleITKIOWithReorient or ending == ".nii.gz":
            with pytest.raises(ValueError, match="has two axes"):
                read_header(file, reader)


@pytest.mark.parametrize("with_spacing", [False, True])
def test_tiff_volumes_have_their_spacing_beside_them(tmp_path, with_spacing):
    for name in ("case_0000.tif", "case.tif"):
        tifffile.imwrite(tmp_path / name, NUMBERS[..., 0], photometric="minisblack")
    if with_spacing:
        (tmp_path / "case.json").write_text('{"spacing": [3, 1, 1]}')
    image = read_header(str(tmp_path / "case_0000.tif"), Tiff3DIO)
    label = read_header(str(tmp_path / "case.tif"), Tiff3DIO, is_label=True)
    for header in (image, label):
        assert header.shape == (7, 20, 30)
        assert list(header.properties["spacing"]) == ([3, 1, 1] if with_spacing else [1, 1, 1])
        assert header.knows_spacing == with_spacing


def test_a_spacing_file_that_holds_none_is_named(tmp_path):
    tifffile.imwrite(tmp_path / "case_0000.tif", NUMBERS[..., 0], photometric="minisblack")
    (tmp_path / "case.json").write_text('{"spacing": [3, 1]}')
    with pytest.raises(ValueError, match=r'case\.json must hold \{"spacing": \[z, y, x\]\}'):
        read_header(str(tmp_path / "case_0000.tif"), Tiff3DIO)


SEVERAL_NUMBERS = {
    "four axes": lambda f: nibabel.save(nibabel.Nifti1Image(NUMBERS, np.eye(4)), f),
    "five axes": lambda f: nibabel.save(nibabel.Nifti1Image(NUMBERS[:, :, :, None], np.eye(4)), f),
    "colours": lambda f: sitk.WriteImage(sitk.GetImageFromArray(NUMBERS[..., :3].copy(), isVector=True), str(f)),
    "complex": lambda f: nibabel.save(nibabel.Nifti1Image(NUMBERS[..., 0].astype(np.complex64), np.eye(4)), f),
}


@pytest.mark.parametrize("reader", [SimpleITKIO, SimpleITKIOWithReorient, NibabelIO, NibabelIOWithReorient])
@pytest.mark.parametrize("kind", SEVERAL_NUMBERS)
def test_volumes_of_several_numbers_per_voxel_are_refused(tmp_path, reader, kind):
    file = tmp_path / "a_0000.nii.gz"
    SEVERAL_NUMBERS[kind](file)
    with pytest.raises(ValueError, match=r"a_0000\.nii\.gz .*one file per channel"):
        read_header(str(file), reader)


def test_files_of_another_reader_are_left_to_it(tmp_path):
    class Reader(SimpleITKIO):
        pass

    assert read_header(str(tmp_path / "none.xyz"), Reader) is None
    assert check_case([str(tmp_path / "none.xyz")], Reader, ["CT"]) == []


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.mha", "a.nrrd", "a.png", "a.tif"])
def test_a_file_that_is_missing_or_empty_is_named(tmp_path, name):
    file = tmp_path / name
    reader = {"png": NaturalImage2DIO, "tif": Tiff3DIO}.get(name.split(".")[-1], SimpleITKIO)
    with pytest.raises(ValueError, match=rf"{name} cannot be read as an image: there is no such file"):
        read_header(str(file), reader)
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{name} cannot be read as an image"):
        read_header(str(file), reader)


class TestChannels:
    """Those of one case."""

    @pytest.fixture
    def write(self, tmp_path):
        def make(name, shape=(7, 20, 30), spacing=(1.0, 1.0, 2.0)):
            image = sitk.GetImageFromArray(np.zeros(shape, np.int16))
            image.SetSpacing(spacing)
            sitk.WriteImage(image, str(tmp_path / name))
            return str(tmp_path / name)

        return make

    def test_are_counted(self, write):
        files = [write("a_0000.mha"), write("a_0001.mha")]
        assert len(check_case(files, SimpleITKIO, ["CT", "PET"])) == 2
        with pytest.raises(ValueError, match=r"a_0001\.mha: found 2 of the 3 channels \(a, b, c\). Is the file"):
            check_case(files, SimpleITKIO, ["a", "b", "c"])

    @pytest.mark.parametrize("change", [{"shape": (7, 20, 31)}, {"spacing": (1.0, 1.5, 2.0)}], ids=str)
    def test_of_another_shape_or_spacing_are_refused(self, write, change):
        """Where nnU-Net raises a RuntimeError without text."""
        files = [write("a_0000.nii.gz"), write("a_0001.nii.gz", **change)]
        with pytest.raises(RuntimeError, match=r"^$"):
            SimpleITKIO().read_images(files)
        with pytest.raises(ValueError, match=r"one shape and spacing.*a_0000.nii.gz has .*; .*a_0001.nii.gz has "):
            check_case(files, SimpleITKIO, ["CT", "PET"])


class TestDICOM:
    FILE = f"{data_path}/0.dcm"

    def test_file_is_refused_with_what_to_do(self, tmp_path):
        file = tmp_path / "a_0000.nii.gz"
        shutil.copy(self.FILE, file)
        with pytest.raises(ValueError, match=r"a_0000\.nii\.gz is DICOM\. Convert .* dcm2niix"):
            read_header(str(file), SimpleITKIO)

    def test_folder_is_refused_with_what_to_do(self, tmp_path):
        folder = tmp_path / "a_0000.nii.gz"
        folder.mkdir()
        shutil.copy(self.FILE, folder)
        with pytest.raises(ValueError, match="is DICOM"):
            read_header(str(folder), SimpleITKIO)
        with pytest.raises(ValueError, match=r"holds DICOM\. Convert"):
            require_images(tmp_path, ".mha")
        with pytest.raises(ValueError, match=r"holds DICOM\. Convert"):
            require_images(folder, ".dcm")

    def test_folder_of_images_is_fine(self, tmp_path):
        with pytest.raises(ValueError, match=r"holds no images that end in \.nii\.gz"):
            require_images(tmp_path, ".nii.gz")
        (tmp_path / "a_0000.nii.gz").touch()
        require_images(tmp_path, ".nii.gz")
