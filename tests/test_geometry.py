"""Where grids lie in the patient, against SimpleITK and nibabel."""

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from analytic_shapes import DIRECTIONS, rotation
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from skimage.io import imsave

from nnunetv2_swipe.geometry import Grid, grid_of_image, place, properties_on_grid
from nnunetv2_swipe.inference.output_grid import OutputGrid

READERS = [SimpleITKIO, SimpleITKIOWithReorient, NibabelIO, NibabelIOWithReorient]


def write_image(file, direction, *, size=(7, 9, 5), spacing=(0.5, 0.75, 3.0)):
    """An image of distinct values; size, spacing and origin along x, y and z of the file."""
    values = np.arange(np.prod(size), dtype=np.float32).reshape(size[::-1])
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(spacing)
    image.SetOrigin((-20.0, 35.5, 7.25))
    image.SetDirection(direction.flatten().tolist())
    sitk.WriteImage(image, str(file))
    return image


@pytest.fixture(params=DIRECTIONS.values(), ids=DIRECTIONS)
def image_file(tmp_path, request):
    file = tmp_path / "case_0000.nii.gz"
    write_image(file, request.param)
    return file


def read(reader, file):
    array, properties = reader().read_images([str(file)])
    return array[0], properties, grid_of_image(properties, array.shape[1:])


@pytest.mark.parametrize("reader", READERS)
def test_every_voxel_lies_where_simpleitk_has_it(image_file, reader):
    array, _, grid = read(reader, image_file)
    image = sitk.ReadImage(str(image_file))
    for index in [(0, 0, 0), (2, 3, 1), tuple(n - 1 for n in array.shape)]:
        (position,) = grid.position_of(np.array([index], dtype=float))
        there = image.TransformPhysicalPointToIndex(position.tolist())
        assert image.GetPixel(there) == array[index]
        np.testing.assert_allclose(position, image.TransformIndexToPhysicalPoint(there), atol=1e-3)
        np.testing.assert_allclose(grid.index_of(position[None]), [index], atol=1e-3)


@pytest.mark.parametrize("spacing", [1e-9, 1e-300, 5e-324])
def test_a_grid_of_more_points_than_any_image_is_refused(spacing):
    with pytest.raises(ValueError, match="points along an axis; at most 1,000,000 are possible"):
        Grid((4, 4, 4), np.eye(4)).with_spacing((spacing, 1, 1))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("wanted", [{"spacing": (0.25, 1.5, 1.0)}, {"size": (14, 4, 20)}], ids=str)
def test_a_file_on_another_grid_fills_the_same_box(image_file, tmp_path, reader, wanted):
    array, properties, grid = read(reader, image_file)
    other = OutputGrid(**wanted).of(grid)
    labels = np.zeros(other.shape, dtype=np.uint8)
    labels[0, 1, 2] = 1
    file = tmp_path / "labels.nii.gz"
    reader().write_seg(labels, str(file), properties_on_grid(properties, other))
    written = sitk.ReadImage(str(file))
    if "size" in wanted and not reader.__name__.endswith("WithReorient"):
        assert written.GetSize() == wanted["size"]
    (place_of_one,) = np.argwhere(sitk.GetArrayFromImage(written) == 1)
    found = written.TransformIndexToPhysicalPoint(place_of_one[::-1].tolist())
    np.testing.assert_allclose(found, other.position_of(np.array([[0.0, 1, 2]]))[0], atol=1e-3)
    centres = [g.position_of((np.array([g.shape]) - 1) / 2) for g in (grid, other)]
    np.testing.assert_allclose(*centres, atol=1e-6)
    extents = [np.array(g.shape) * g.spacing for g in (grid, other)]
    assert (np.abs(extents[0] - extents[1]) <= np.array(other.spacing) / 2 + 1e-6).all()
    assert array.shape == grid.shape


def test_the_images_own_grid_writes_its_own_geometry(image_file):
    _, properties, grid = read(SimpleITKIO, image_file)
    written = properties_on_grid(properties, OutputGrid().of(grid))
    for key, value in properties["sitk_stuff"].items():
        np.testing.assert_allclose(written["sitk_stuff"][key], value, atol=1e-6)


def test_a_2d_file_keeps_its_two_axes(tmp_path):
    file = tmp_path / "case_0000.nii.gz"
    image = sitk.GetImageFromArray(np.arange(20.0).reshape(4, 5))
    image.SetSpacing((0.5, 2.0))
    image.SetOrigin((3.0, -1.0))
    sitk.WriteImage(image, str(file))
    _, properties, grid = read(SimpleITKIO, file)
    assert grid.shape == (1, 4, 5)
    (position,) = grid.position_of(np.array([[0.0, 3, 2]]))
    np.testing.assert_allclose(position[:2], image.TransformIndexToPhysicalPoint((2, 3)))
    finer = OutputGrid(spacing=(0.25, 1.0)).of(grid)
    assert finer.shape == (1, 8, 10)
    SimpleITKIO().write_seg(np.zeros(finer.shape), str(tmp_path / "out.nii.gz"), properties_on_grid(properties, finer))
    written = sitk.ReadImage(str(tmp_path / "out.nii.gz"))
    np.testing.assert_allclose(written.GetSpacing(), (0.25, 1.0))
    np.testing.assert_allclose(written.GetOrigin(), (2.875, -1.5))


def test_a_photograph_has_pixels(tmp_path):
    imsave(tmp_path / "case_0000.png", np.zeros((6, 8), dtype=np.uint8), check_contrast=False)
    _, properties, grid = read(NaturalImage2DIO, tmp_path / "case_0000.png")
    np.testing.assert_allclose(grid.position_of(np.array([[0.0, 2, 5]])), [[5, 2, 0]])
    assert OutputGrid(size=(16, 3)).of(grid).shape == (1, 3, 16)
    assert properties_on_grid(properties, OutputGrid(size=(16, 3)).of(grid))["spacing"][1:] == [2.0, 0.5]


def test_nibabel_and_simpleitk_agree(image_file):
    np.testing.assert_allclose(
        read(SimpleITKIO, image_file)[2].affine, read(NibabelIO, image_file)[2].affine, atol=1e-3
    )
    ras = nibabel.load(image_file).affine
    np.testing.assert_allclose(np.abs(ras[:3, 3]), np.abs(read(NibabelIO, image_file)[2].affine[:3, 3]))


def test_place_in_a_cropped_transposed_and_resampled_image(image_file):
    """The last voxel of the cropped part ends where the preprocessed image ends."""
    _, _, grid = read(SimpleITKIO, image_file)
    transpose, bbox, shape = (2, 0, 1), ((1, 6), (2, 5), (3, 9)), (10, 9, 3)
    placement = place(grid, grid, transpose=transpose, bbox=bbox, shape=shape)
    assert placement.is_lattice(grid.shape)
    assert placement.axes == transpose
    for corner, expected in [(0, (-0.5,) * 3), (1, [n - 0.5 for n in shape])]:
        transposed = np.array([b[corner] for b in bbox]) - 0.5
        index = np.empty(3)
        index[list(transpose)] = transposed
        np.testing.assert_allclose(placement.matrix @ index + placement.offset, expected, atol=1e-9)


def test_an_oblique_grid_is_no_lattice(image_file, tmp_path):
    _, _, grid = read(SimpleITKIO, image_file)
    direction = sitk.ReadImage(str(image_file)).GetDirection()
    write_image(tmp_path / "turned.nii.gz", np.reshape(direction, (3, 3)) @ rotation(0, 0, 5))
    _, _, turned = read(SimpleITKIO, tmp_path / "turned.nii.gz")
    shape = grid.shape
    assert not place(turned, grid, transpose=(0, 1, 2), bbox=[(0, n) for n in shape], shape=shape).is_lattice(shape)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"spacing": (1.0, -1.0, 1.0)}, "spacing.*above 0"),
        ({"size": (0, 4, 4)}, "size.*above 0"),
        ({"size": (4,)}, "two or three"),
        ({"size": (4, 4, 4), "spacing": (1.0, 1.0, 1.0)}, "one of"),
    ],
)
def test_impossible_grids_are_refused(wanted, message):
    with pytest.raises(ValueError, match=message):
        OutputGrid(**wanted)


def test_numbers_fit_the_image(image_file):
    _, _, grid = read(SimpleITKIO, image_file)
    with pytest.raises(ValueError, match="a volume takes three"):
        OutputGrid(size=(4, 4)).of(grid)
