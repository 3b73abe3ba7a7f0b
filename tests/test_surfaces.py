"""Surfaces against shapes of known volume and area, and against label maps."""

from types import SimpleNamespace

import numpy as np
import pytest
import pyvista
import SimpleITK as sitk
from analytic_shapes import CENTRE, DIRECTIONS, RADII, SPACINGS, distance, rotation
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from scipy.ndimage import map_coordinates
from skimage.measure import marching_cubes

from nnunetv2_swipe.commands.mesh import FORMATS, write_mesh
from nnunetv2_swipe.inference.case_files import CaseFiles
from nnunetv2_swipe.inference.geometry import Grid, properties_on_grid
from nnunetv2_swipe.inference.output_grid import OutputGrid
from nnunetv2_swipe.inference.surfaces import extract_mesh


def sphere(points):
    return 1 / (1 + np.exp(3 * (np.linalg.norm(points, axis=1) - 10)))


def torus(points):
    around = np.hypot(points[:, 0], points[:, 1]) - 9
    return 1 / (1 + np.exp(3 * (np.hypot(around, points[:, 2]) - 4)))


SHAPES = {
    "sphere": (sphere, 4 / 3 * np.pi * 10**3, 4 * np.pi * 10**2, 2),
    "torus": (torus, 2 * np.pi**2 * 9 * 4**2, 4 * np.pi**2 * 9 * 4, 0),
}


def grid_around_origin(spacing, direction, half=15.0):
    shape = np.ceil(2 * half / np.array(spacing)).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = direction[:, ::-1] * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((shape - 1) / 2)
    return Grid(tuple(shape.tolist()), affine)


def mesh_of(shape, grid):
    field = shape(grid.position_of(np.indices(grid.shape).reshape(3, -1).T)).reshape(grid.shape)
    return extract_mesh(field, grid, shape)


def polydata(mesh):
    return pyvista.PolyData.from_regular_faces(mesh.vertices, mesh.faces)


@pytest.mark.parametrize(("shape", "volume", "area", "euler"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
@pytest.mark.parametrize("spacing", [(0.5, 0.5, 0.5), (0.8, 0.4, 0.5)], ids=str)
def test_volume_area_and_euler_number(shape, volume, area, euler, direction, spacing):
    """Half a percent; the field is sharp, so that interpolation between voxels would be far off."""
    mesh = mesh_of(shape, grid_around_origin(spacing, direction))
    surface = polydata(mesh)
    assert surface.is_manifold
    assert surface.n_open_edges == 0
    edges = {
        tuple(sorted(edge)) for face in mesh.faces.tolist() for edge in zip(face, [*face[1:], face[0]], strict=True)
    }
    assert len(mesh.vertices) - len(edges) + len(mesh.faces) == euler
    assert surface.volume == pytest.approx(volume, rel=5e-3)
    assert surface.area == pytest.approx(area, rel=5e-3)


@pytest.mark.parametrize("name", SHAPES)
def test_vertices_lie_on_the_level(name):
    shape = SHAPES[name][0]
    mesh = mesh_of(shape, grid_around_origin((1.0, 1.0, 1.0), rotation(10, 20, 30)))
    assert np.abs(shape(mesh.vertices) - 0.5).max() < 1e-3


def test_faces_look_outwards():
    for direction in DIRECTIONS.values():
        mesh = mesh_of(sphere, grid_around_origin((1.0, 1.0, 1.0), direction))
        a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
        assert ((np.cross(b - a, c - a) * a).sum(1) > 0).all()


def test_a_shape_cut_by_the_border_is_closed():
    grid = grid_around_origin((1.0, 1.0, 1.0), np.eye(3), half=8.0)
    surface = polydata(mesh_of(sphere, grid))
    assert surface.n_open_edges == 0
    assert surface.volume > 0


def test_noise_has_a_closed_surface():
    """Where marching cubes puts vertices within cells, which belong to no edge."""
    field = np.random.default_rng(0).random((9, 10, 11))
    grid = grid_around_origin((1.0, 1.0, 1.0), np.eye(3), half=5.0)
    grid = Grid(field.shape, grid.affine)

    def trilinear(points):
        return map_coordinates(np.pad(field, 1), grid.index_of(points).T + 1, order=1)

    mesh = extract_mesh(field, grid, trilinear)
    plain = marching_cubes(np.pad(field, 1), 0.5, allow_degenerate=False)[0]
    between = plain != plain.round()
    assert (between.sum(1) > 1).any()
    np.testing.assert_allclose(grid.index_of(mesh.vertices) + 1, plain, atol=2e-3)
    assert polydata(mesh).n_open_edges == 0


def test_nothing_gives_no_faces():
    grid = grid_around_origin((1.0, 1.0, 1.0), np.eye(3))
    assert len(extract_mesh(np.zeros(grid.shape), grid, sphere).faces) == 0


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_mesh_and_label_map_lie_in_the_same_place(ellipsoid, tmp_path, direction):
    """As a viewer sees them: the voxels inside the surface in the file are those of the label map in the file."""
    image = ellipsoid(direction, SPACINGS["all different"])
    mesh = image.mesh("ellipsoid")
    write_mesh(mesh, tmp_path / "ellipsoid.ply")
    grid, reader = OutputGrid(spacing=(0.9, 1.1, 1.4)).of(image.grid), SimpleITKIO()
    _, properties = reader.read_images([str(tmp_path / "ellipsoid_0000.nii.gz")])
    files = CaseFiles(tmp_path / "labels", reader)
    files.write_labels(image.labels(grid), grid, ".nii.gz", properties_on_grid(properties, grid))
    files.finish(".nii.gz")
    labels = sitk.ReadImage(str(tmp_path / "labels.nii.gz"))
    index = np.argwhere(sitk.GetArrayFromImage(labels) >= 0)
    points = np.array([labels.TransformIndexToPhysicalPoint(i[::-1].tolist()) for i in index])
    surface = pyvista.read(tmp_path / "ellipsoid.ply")
    inside = pyvista.PolyData(points).select_interior_points(surface)["selected_points"].astype(bool)
    labelled = sitk.GetArrayFromImage(labels)[tuple(index.T)] == 1
    clear = np.abs(distance(points)) > 0.09  # a tenth of a voxel
    assert (inside == labelled)[clear].all()
    assert (labelled == (distance(points) > 0))[clear].all()
    assert surface.volume == pytest.approx(4 / 3 * np.pi * RADII.prod(), rel=0.01)
    np.testing.assert_allclose(surface.center, CENTRE, atol=0.2)


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("ras", [False, True])
def test_every_format_holds_the_surface(tmp_path, ending, ras):
    mesh = mesh_of(sphere, grid_around_origin((1.0, 1.0, 1.0), np.eye(3)))
    moved = SimpleNamespace(vertices=mesh.vertices + np.array([30, -20, 5]), faces=mesh.faces)
    write_mesh(moved, tmp_path / f"sphere.{ending}", ras=ras)
    surface = pyvista.read(tmp_path / f"sphere.{ending}")
    assert surface.n_faces == len(mesh.faces)
    np.testing.assert_allclose(surface.center, (-30, 20, 5) if ras else (30, -20, 5), atol=0.01)
    assert not list(tmp_path.glob(".unfinished*"))
    assert surface.volume == pytest.approx(SHAPES["sphere"][1], rel=0.02)


def test_unknown_classes_are_named(ellipsoid):
    with pytest.raises(ValueError, match="no class 'cube'; there are ellipsoid"):
        ellipsoid(DIRECTIONS["axial"], SPACINGS["isotropic"]).mesh("cube")
