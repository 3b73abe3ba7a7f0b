"""Surfaces against shapes of known volume and area, and against label maps."""

import itertools
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import pyvista
import SimpleITK as sitk
from analytic_shapes import CENTRE, DIRECTIONS, RADII, SPACINGS, distance, rotation
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from scipy.ndimage import map_coordinates
from skimage.measure import marching_cubes

from nnunetv2_swipe.commands import mesh as mesh_command
from nnunetv2_swipe.commands.mesh import FORMATS
from nnunetv2_swipe.geometry import Grid, properties_on_grid
from nnunetv2_swipe.inference.case_files import CaseFiles
from nnunetv2_swipe.inference.output_grid import OutputGrid
from nnunetv2_swipe.inference.surface_files import file_names, write_mesh
from nnunetv2_swipe.inference.surfaces import Mesh, extract_mesh


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


def space_of(file):
    """The coordinates that a file says it is in, where 3D Slicer reads them with the same readers of VTK."""
    reader = pyvista.get_reader(file)
    surface = reader.read()
    if file.suffix == ".vtp":
        return list(surface.field_data["SPACE"])
    vtk = reader.reader
    if file.suffix == ".ply":
        comments = [vtk.GetComments().GetValue(i) for i in range(vtk.GetComments().GetNumberOfValues())]
    else:
        comments = [vtk.GetHeader() if file.suffix == ".stl" else vtk.GetComment()]
    return re.findall("SPACE=(RAS|LPS)", " ".join(comments))


@pytest.mark.parametrize("ending", FORMATS)
def test_a_file_says_which_coordinates_it_is_in(tmp_path, ending):
    mesh = mesh_of(sphere, grid_around_origin((2.0, 2.0, 2.0), np.eye(3)))
    for ras, space in ((False, "LPS"), (True, "RAS")):
        write_mesh(mesh, tmp_path / f"sphere.{ending}", ras=ras)
        assert space_of(tmp_path / f"sphere.{ending}") == [space]


@pytest.mark.parametrize("ending", FORMATS)
def test_a_surface_on_a_full_disk_is_named_and_leaves_what_was_there(tmp_path, full_disk, ending):
    file = tmp_path / f"sphere.{ending}"
    file.write_text("of yesterday")
    mesh = mesh_of(sphere, grid_around_origin((1.0, 1.0, 1.0), np.eye(3)))
    with full_disk(), pytest.raises(OSError, match=rf"sphere\.{ending} cannot be written"):
        write_mesh(mesh, file)
    assert file.read_text() == "of yesterday"
    assert [f.name for f in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("ending", FORMATS)
def test_triangles_of_no_area_do_not_make_a_surface_incomplete(tmp_path, ending):
    """Vertices so near that they are one in float32."""
    vertices = np.array([[100.0, 0, 0], [100 + 1e-9, 0, 0], [100, 1, 0], [101, 0, 1]])
    write_mesh(Mesh(vertices, np.array([[0, 1, 2], [0, 2, 3]])), tmp_path / f"two.{ending}")
    assert (tmp_path / f"two.{ending}").is_file()


def test_a_link_beside_a_surface_is_not_written_through(tmp_path):
    (tmp_path / "other").write_text("theirs")
    (tmp_path / ".unfinished_sphere.ply").symlink_to(tmp_path / "other")
    write_mesh(mesh_of(sphere, grid_around_origin((2.0, 2.0, 2.0), np.eye(3))), tmp_path / "sphere.ply")
    assert (tmp_path / "other").read_text() == "theirs"


@pytest.mark.parametrize(
    "names",
    [("a/b", "a_b"), ("Kidney", "kidney"), ("caf\u00e9", "cafe\u0301"), ("p1.", "p1 "), ("con", "_CON")],
    ids=ascii,
)
def test_names_that_would_be_one_file_are_named(names):
    with pytest.raises(ValueError, match=".*".join(re.escape(repr(name)) for name in names)):
        file_names(names)


def test_every_name_is_that_of_a_file_below_the_folder():
    kept = ["liver", "left kidney", "nulla", "v1.2"]
    names = [*kept, "..", "", "a/../b", "C:\\x", "nul", "com1.a", "tumour?", "p1.", "L\n1"]
    found = file_names(names)
    assert [found[name] for name in kept] == kept
    assert len(set(found.values())) == len(names)
    for name in found.values():
        assert name
        assert not re.search(r'[<>:"/\\|?*\n]|^\.|[. ]$|^(con|nul|com1)(\.|$)', name)


class Spheres:
    """A predictor of cases and classes, each a sphere at a place of its own, but for those that are absent."""

    plans_manager = SimpleNamespace(image_reader_writer_class=object)  # of which no headers are known

    def __init__(self, cases, classes, absent=()):
        self.channels = {name: number for number, name in enumerate(classes)}
        self._cases, self._absent = list(cases), absent

    def cases(self, *_):
        return {case: ([case], None) for case in self._cases}

    def encode(self, files, _):
        (case,) = files
        grid = grid_around_origin((2.0, 2.0, 2.0), np.eye(3))
        mesh = extract_mesh(np.where(np.indices(grid.shape).min(0) > 3, 1.0, 0.0), grid)

        def meshes(names, _):
            for name in names:
                centre = self.centre(case, name)
                absent = (case, name) in self._absent
                yield Mesh(mesh.vertices[:0], mesh.faces[:0]) if absent else Mesh(mesh.vertices + centre, mesh.faces)

        return SimpleNamespace(grid=grid, meshes=meshes)

    def centre(self, case, name):
        return np.array([100.0 * self._cases.index(case), 100.0 * self.channels[name], 0])


def write_surfaces(predictor, output, monkeypatch, *arguments):
    output.mkdir(exist_ok=True)
    monkeypatch.setattr(mesh_command, "make_predictor", lambda _: predictor)
    fixed = ["-i", "in", "-o", str(output), "-d", "1", "-c", "3d_fullres", "--disable_progress_bar"]
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_swipe_mesh", *fixed, *arguments])
    mesh_command.main()


def test_every_case_and_class_has_a_surface_of_its_own(tmp_path, monkeypatch):
    """Although `p1` and `left_kidney`, `p1_left` and `kidney` joined are the same."""
    cases, classes = ("p1", "p1_left"), ("left_kidney", "kidney")
    predictor = Spheres(cases, classes)
    write_surfaces(predictor, tmp_path / "out", monkeypatch)
    for case, name in itertools.product(cases, classes):
        surface = pyvista.read(tmp_path / "out" / case / f"{name}.stl")
        offset = np.array(surface.center) - predictor.centre(case, name)
        assert np.abs(offset).max() < 15
    assert len(list((tmp_path / "out").rglob("*.stl"))) == 4


def test_a_class_that_is_not_found_removes_its_own_file_alone(tmp_path, monkeypatch):
    """That of an earlier run."""
    names = (("p1", "p1_left"), ("left_kidney", "kidney"))
    write_surfaces(Spheres(*names), tmp_path / "out", monkeypatch)
    write_surfaces(Spheres(*names, absent=[("p1_left", "kidney")]), tmp_path / "out", monkeypatch)
    found = {file.relative_to(tmp_path / "out").as_posix() for file in (tmp_path / "out").rglob("*.stl")}
    assert found == {"p1/left_kidney.stl", "p1/kidney.stl", "p1_left/left_kidney.stl"}


@pytest.mark.parametrize(("cases", "classes"), [(("p", "P"), ("a",)), (("p",), ("a/b", "a_b"))], ids=str)
def test_colliding_names_are_refused_before_the_first_case(tmp_path, monkeypatch, capsys, cases, classes):
    predictor = Spheres(cases, classes)
    monkeypatch.setattr(predictor, "encode", lambda *_: pytest.fail("a case was begun"))
    with pytest.raises(SystemExit, match="1"):
        write_surfaces(predictor, tmp_path / "out", monkeypatch)
    assert "would be one file or folder" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_unknown_classes_are_named(ellipsoid):
    with pytest.raises(ValueError, match="no class 'cube'; there are ellipsoid"):
        ellipsoid(DIRECTIONS["axial"], SPACINGS["isotropic"]).mesh("cube")
