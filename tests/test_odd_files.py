"""Odd files that real datasets hold: each is used as it should be, or refused with what to do (docs/files.md)."""

import itertools
import json
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from analytic_shapes import CENTRE, Interpolated, any_plan, any_predictor, preprocessed, write_ellipsoid
from nibabel.testing import data_path
from nnunet_helpers import nnunet_folders
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_swipe.commands.mesh import write_meshes
from nnunetv2_swipe.commands.predict import _output_grid
from nnunetv2_swipe.images.cases import check_case, check_dataset
from nnunetv2_swipe.images.dicom import require_images
from nnunetv2_swipe.images.headers import read_header
from nnunetv2_swipe.inference import encoded_image
from nnunetv2_swipe.labels import require_declared, require_writable
from nnunetv2_swipe.planners import SwIPEPlanner
from nnunetv2_swipe.planners.label_statistics import label_statistics
from nnunetv2_swipe.preprocessing import SwIPEPreprocessor
from nnunetv2_swipe.trainers.training_data import require_trainable

AFFINE = np.array([[2.0, 0, 0, -30], [0, 3.0, 0, 12], [0, 0, 4.0, 5], [0, 0, 0, 1]])
VALUES = np.random.default_rng(0).normal(size=(10, 12, 14)).astype(np.float32)
LABELS = (VALUES > 1).astype(np.uint8)
NAME = "Dataset001_Odd"


def tilted():
    """The affine of a tilted CT gantry: each slice is shifted along y."""
    affine = AFFINE.copy()
    affine[1, 2] = 1.5
    return affine


def save(file, values=VALUES, affine=AFFINE, kind=nibabel.Nifti1Image, **header):
    nibabel.save(kind(values, affine, **header), file)
    return str(file)


def run_case(image, label=None, reader="SimpleITKIO"):
    plans, configuration, dataset = any_plan(reader=reader, spacing=(4.0, 3.0, 2.0))
    return SwIPEPreprocessor(verbose=False).run_case([image], label, plans, configuration, dataset)


def dataset_of(image, label):
    return {"case": {"images": [image], "label": label}}


def check(image, label=None, reader=SimpleITKIO):
    """What the planner checks of a case before it plans."""
    label = label or save(image.replace("_0000", ""), LABELS, nibabel.load(image).affine)
    check_dataset(dataset_of(image, label), reader, {"channel_names": {"0": "CT"}})


@pytest.fixture
def image(tmp_path):
    return save(tmp_path / "case_0000.nii.gz")


@pytest.fixture
def planner(tmp_path):
    """Factory of the planner of a dataset of one case; its fingerprint is empty, so that it cannot plan."""
    with nnunet_folders(tmp_path / "nnunet") as root:
        for folder in ("nnUNet_raw", "nnUNet_preprocessed"):
            (root / folder / NAME).mkdir()
        (root / "nnUNet_preprocessed" / NAME / "dataset_fingerprint.json").write_text("{}")

        def make(image=None, label=None, **header):
            content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
            if image is not None:
                content["dataset"] = dataset_of(image, label)
            (root / "nnUNet_raw" / NAME / "dataset.json").write_text(json.dumps(content | header))
            return SwIPEPlanner(1)

        make.images = root / "nnUNet_raw" / NAME / "imagesTr"
        yield make


def measured(file, tmp_path, labels, order=None):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "nnunetv2_swipe.planners.label_statistics.ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1)
        )
        return label_statistics(
            {"case": file},
            {"case": (4.0, 3.0, 2.0)},
            cache_file=tmp_path / "statistics.json",
            reader_name="SimpleITKIO",
            label_manager=LabelManager(labels, order),
        )


class TestTiltedGantry:
    def test_is_refused_where_simpleitk_reads_with_the_remedy(self, tmp_path):
        file = save(tmp_path / "case_0000.nii.gz", affine=tilted())
        with pytest.raises(ValueError, match=r"case_0000.* is sheared.*Resample .*or set .*NibabelIO"):
            check(file)
        with pytest.raises(ValueError, match="is sheared"):
            run_case(file)

    def test_is_taken_as_it_is_where_nibabel_reads(self, tmp_path, caplog):
        file = save(tmp_path / "case_0000.nii.gz", affine=tilted())
        check(file, reader=NibabelIO)
        assert caplog.text == ""
        data, _, _ = run_case(file, reader="NibabelIO")
        assert data.shape[1:3] == (15, 12)  # slices are as far apart as their centres: 4.27 mm
        grid = read_header(file, NibabelIO).grid
        np.testing.assert_allclose(
            grid.position_of(np.array([[5.0, 2, 3]]))[0] * (-1, -1, 1), (tilted() @ (3, 2, 5, 1))[:3]
        )

    def test_with_an_upright_qform_is_warned_of(self, tmp_path, caplog):
        file = str(tmp_path / "case_0000.nii.gz")
        upright_qform(file)
        label = save(tmp_path / "case.nii.gz", LABELS)
        with caplog.at_level(logging.WARNING):
            check(file, label)
        assert "case_0000.nii.gz: its sform is sheared" in caplog.text
        grid = read_header(file, SimpleITKIO).grid
        np.testing.assert_allclose(grid.position_of(np.zeros((1, 3)))[0] * (-1, -1, 1), AFFINE[:3, 3])
        with pytest.raises(ValueError, match="on another grid"):
            check(file, label, reader=NibabelIO)  # which takes the sform

    def test_is_taken_as_it_is_in_a_metaimage(self, tmp_path):
        file = tmp_path / "case_0000.mha"
        sitk.WriteImage(sitk.GetImageFromArray(VALUES), str(file))
        content = file.read_bytes().replace(b"Matrix = 1 0 0 0 1 0 0 0 1", b"Matrix = 1 0 0 0 1 0 0 0.5 1")
        file.write_bytes(content)
        assert run_case(str(file))[0].shape[0] == 1
        grid = read_header(str(file), SimpleITKIO).grid
        np.testing.assert_allclose(grid.position_of(np.array([[1.0, 0, 0]])), [[0, 0.5, 1]])


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO])
def test_a_voxel_size_that_the_sform_contradicts_is_warned_of(tmp_path, caplog, reader):
    image = nibabel.Nifti1Image(VALUES, AFFINE)
    image.header["pixdim"][3] = 8
    file = str(tmp_path / "case_0000.nii.gz")
    nibabel.save(image, file)
    assert list(run_case(file, reader=reader.__name__)[2]["spacing"]) == [8, 3, 2]
    check(file, shutil.copy(file, str(tmp_path / "case.nii.gz")), reader)
    assert "case_0000.nii.gz: the voxel size is 2 x 3 x 8 mm by its pixdim, 2 x 3 x 4 mm by its sform" in caplog.text


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO])
def test_without_qform_and_sform_the_voxel_size_is_that_of_pixdim(tmp_path, reader):
    image = nibabel.Nifti1Image(VALUES, None)
    image.header.set_zooms((2, 3, 4))
    image.set_sform(None)
    image.set_qform(None)
    file = str(tmp_path / "case_0000.nii.gz")
    nibabel.save(image, file)
    assert (nibabel.load(file).header["qform_code"], nibabel.load(file).header["sform_code"]) == (0, 0)
    check_case([file], reader, ["CT"])
    data, _, properties = run_case(file, reader=reader.__name__)
    assert list(properties["spacing"]) == [4, 3, 2]
    np.testing.assert_allclose(data[0], VALUES.T, rtol=1e-6)


@pytest.mark.parametrize("further", [(1,), (1, 1)])
def test_further_axes_of_length_one(tmp_path, further):
    file = save(tmp_path / "case_0000.nii.gz", VALUES.reshape(*VALUES.shape, *further))
    data, _, _ = run_case(file)  # SimpleITK leaves them out
    np.testing.assert_allclose(data[0], VALUES.T, rtol=1e-6)
    with pytest.raises(ValueError, match=r"case_0000.* of which NibabelIO reads three\. Save it without"):
        check(file, save(tmp_path / "case.nii.gz", LABELS), NibabelIO)


def test_four_axes_are_refused_in_planning(tmp_path, planner):
    file = save(tmp_path / "case_0000.nii.gz", np.stack([VALUES, VALUES], -1))
    label = save(tmp_path / "case.nii.gz", LABELS)
    with pytest.raises(ValueError, match=r"case_0000\.nii\.gz has 4 axes.*one file per channel"):
        planner(file, label, channel_names={"0": "CT", "1": "PET"}).plan_experiment()


def test_four_axes_that_nnunet_preprocessed_are_refused_before_training(tmp_path):
    """As with a plan of nnU-Net's, whose final validation fails."""
    file = save(tmp_path / "case_0000.nii.gz", np.stack([VALUES, VALUES], -1))
    label = save(tmp_path / "case.nii.gz", LABELS)
    plans, configuration, dataset = any_plan(channels=("CT", "PET"))
    data = tmp_path / "data"
    data.mkdir()
    preprocessor = DefaultPreprocessor(verbose=False)
    configuration.configuration["patch_size"] = [8, 8, 8]
    preprocessor.run_case_save(str(data / "case"), [file], label, plans, configuration, dataset)
    plan = {"plans_name": "p", "configurations": {"c": {}}}
    with pytest.raises(ValueError, match=r"image of the case case has 4 axes.*one file per channel"):
        require_trainable(data, plan, {"data_identifier": "p_c"})


def test_big_endian_files_are_read_as_others(tmp_path, image):
    file = save(tmp_path / "big_0000.nii.gz", header=nibabel.Nifti1Header(endianness=">"))
    for reader in ("SimpleITKIO", "NibabelIO"):
        np.testing.assert_array_equal(run_case(file, reader=reader)[0], run_case(image, reader=reader)[0])


def test_nifti_2_is_read_by_nibabel_alone(tmp_path, image):
    file = save(tmp_path / "second_0000.nii.gz", kind=nibabel.Nifti2Image)
    np.testing.assert_array_equal(run_case(file, reader="NibabelIO")[0], run_case(image, reader="NibabelIO")[0])
    with pytest.raises(ValueError, match=r"second_0000\.nii\.gz is NIfTI-2.*Convert .*or set .*NibabelIO"):
        run_case(file)
    shipped = f"{data_path}/example_nifti2.nii.gz"  # of four axes
    with pytest.raises(ValueError, match=r"has 4 axes.*one file per channel"):
        read_header(shipped, NibabelIO)


def upright_qform(file):
    image = nibabel.Nifti1Image(VALUES, None)
    image.set_sform(tilted(), 1)
    image.set_qform(AFFINE, 1)
    nibabel.save(image, file)


USABLE = {
    "an upright qform": (upright_qform, "SimpleITKIO"),
    "a further axis": (lambda f: save(f, VALUES[..., None]), "SimpleITKIO"),
    "big-endian": (lambda f: save(f, header=nibabel.Nifti1Header(endianness=">")), "SimpleITKIO"),
    "one slice in 2D": (lambda f: save(f, VALUES[:, :, 0]), "SimpleITKIO"),
    "sheared": (lambda f: save(f, affine=tilted()), "NibabelIO"),
    "NIfTI-2": (lambda f: save(f, kind=nibabel.Nifti2Image), "NibabelIO"),
}


@pytest.mark.parametrize("kind", USABLE)
def test_what_can_be_used_is_predicted_on_its_own_grid(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(encoded_image, "TiledImage", Interpolated)
    write, reader = USABLE[kind]
    file, output = tmp_path / "case_0000.nii.gz", tmp_path / "out" / "case"
    write(file)
    output.parent.mkdir()
    predictor = any_predictor(reader=reader, spacing=(4.0, 3.0, 2.0))
    predictor.predict_from_files_sequential([[str(file)]], [str(output)])
    reader = predictor.plans_manager.image_reader_writer_class
    image, labels = (read_header(str(f), reader) for f in (file, output.with_name("case.nii.gz")))
    assert labels.shape == image.shape
    np.testing.assert_allclose(labels.grid.affine, image.grid.affine, atol=1e-5)


ORIENTATIONS = [
    np.array([axes, flips]).T
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO"])
def test_an_image_stored_in_any_of_48_orientations_is_predicted_alike(tmp_path, monkeypatch, reader):
    monkeypatch.setattr(encoded_image, "TiledImage", Interpolated)
    source = tmp_path / "source.nii.gz"
    write_ellipsoid(source, np.eye(3), (1.0, 1.0, 1.0))
    points = CENTRE + np.random.default_rng(0).normal(scale=8, size=(50, 3))
    maps, probabilities = [], []
    for orientation in ORIENTATIONS:
        turned = nibabel.load(source).as_reoriented(orientation)
        nibabel.save(turned, tmp_path / "case_0000.nii.gz")
        image = encoded_image.EncodedImage(
            *preprocessed(tmp_path / "case_0000.nii.gz", spacing=(1, 1, 1), reader=reader)
        )
        labels = nibabel.Nifti1Image(image.labels().transpose(2, 1, 0), turned.affine)
        maps.append(nibabel.as_closest_canonical(labels).get_fdata())
        probabilities.append(image.query(points))
    assert len(maps) == 48
    assert 3000 < maps[0].sum() < 8000  # of an ellipsoid of 5,800 mm3
    for labels, probability in zip(maps, probabilities, strict=True):
        np.testing.assert_array_equal(labels, maps[0])
        np.testing.assert_allclose(probability, probabilities[0], atol=1e-4)


class TestLabels:
    def test_with_gaps_are_refused_in_planning(self, image, tmp_path, planner):
        label = save(tmp_path / "case.nii.gz", LABELS)
        names = {name: value for value, name in ((0, "background"), (1, "a"), (7, "b"), (8, "c"), (9, "d"))}
        with pytest.raises(ValueError, match=r"labels \[0, 1, 7, 8, 9\]; they must be 0, 1, 2"):
            planner(image, label, labels=names).plan_experiment()

    def test_that_are_not_declared_are_named(self, image, tmp_path):
        values = LABELS.copy()
        values[0, 0, :3] = 7, 8, 9
        label = save(tmp_path / "case.nii.gz", values)
        for use in (lambda: measured(label, tmp_path, {"background": 0, "a": 1}), lambda: run_case(image, label)):
            with pytest.raises(ValueError, match=r"case\.nii\.gz.* holds the label 7, which dataset\.json does not"):
                use()

    @pytest.mark.parametrize("value", [0.9999999, 1.5])
    def test_that_are_no_whole_numbers_are_named_as_such(self, image, tmp_path, value):
        values = LABELS.astype(np.float32)
        values[0, 0, 0] = value
        label = save(tmp_path / "case.nii.gz", values)
        for use in (lambda: measured(label, tmp_path, {"background": 0, "a": 1}), lambda: run_case(image, label)):
            with pytest.raises(ValueError, match=rf"case\.nii\.gz.* holds the value {value}, which is no whole number"):
                use()

    def test_that_are_nan_are_no_whole_numbers_either(self):
        with pytest.raises(ValueError, match="the map holds the value nan, which is no whole number"):
            require_declared(np.array([0.0, np.nan, 1.0]), [0, 1], "the map")

    def test_of_float64_without_foreground_are_fine(self, image, tmp_path):
        label = save(tmp_path / "case.nii.gz", np.zeros_like(LABELS, dtype=np.float64))
        assert measured(label, tmp_path, {"background": 0, "a": 1}) == {}
        _, segmentation, _ = run_case(image, label)
        assert segmentation.max() == 0

    def test_above_255_are_read_and_written(self, tmp_path):
        values = np.zeros(VALUES.shape, np.uint16)
        values[2:5, 2:5, 2:5] = 299
        label = save(tmp_path / "case.nii.gz", values)
        names = {f"class {i}" if i else "background": i for i in range(300)}
        assert measured(label, tmp_path, names)["299"]["volume_mm3"] == pytest.approx(27 * 24)
        manager = LabelManager(names, None)
        require_writable(manager, "SimpleITKIO")
        for reader in (SimpleITKIO, NibabelIO):
            array, properties = reader().read_seg(label)
            reader().write_seg(array[0], str(tmp_path / "out.nii.gz"), properties)
            assert nibabel.load(tmp_path / "out.nii.gz").get_fdata().max() == 299
        with pytest.raises(ValueError, match="labels up to 299, but SimpleITKIOWithReorient writes numbers up to 255"):
            require_writable(manager, "SimpleITKIOWithReorient")

    def test_of_several_colours_are_refused(self, tmp_path):
        """As of a label map that is saved as an image with a palette."""
        image, label = tmp_path / "case_0000.tif", tmp_path / "case.tif"
        tifffile.imwrite(image, np.zeros((20, 30), np.uint8))
        tifffile.imwrite(label, np.zeros((20, 30, 3), np.uint8), photometric="rgb")
        with pytest.raises(ValueError, match=r"case\.tif holds 3 channels \(colours\); a label map holds one"):
            check(str(image), str(label), NaturalImage2DIO)


class TestGrids:
    """Of an image and its label map."""

    @pytest.mark.parametrize(
        ("shape", "affine"),
        [
            ((10, 12, 13), AFFINE),
            ((10, 12, 14), np.diag([2.0, 3.0, 4.5, 1.0]) + AFFINE * (np.arange(4) == 3)),
            ((10, 12, 14), AFFINE @ np.array([[1, 0, 0, 0.6], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])),
            ((10, 12, 14), np.diag([-1.0, 1, 1, 1]) @ AFFINE),
        ],
        ids=["shape", "spacing", "origin", "direction"],
    )
    def test_that_differ_are_refused_with_both_shapes_and_affines(self, image, tmp_path, planner, shape, affine):
        affine = affine.copy()
        affine[3] = 0, 0, 0, 1
        label = save(tmp_path / "case.nii.gz", np.zeros(shape, np.uint8), affine)
        told = (
            rf"(?s)another grid than its image.*case\.nii\.gz has the shape \({shape[2]}, 12, 10\).*affine.*"
            r"case_0000\.nii\.gz has the shape \(14, 12, 10\).*affine"
        )
        with pytest.raises(ValueError, match=told):
            planner(image, label).plan_experiment()
        with pytest.raises(ValueError, match=told):
            run_case(image, label)

    def test_that_differ_by_rounding_are_fine(self, image, tmp_path):
        affine = AFFINE.copy()
        affine[:3, 3] += 0.1
        affine[0, 0] += 0.01
        check(image, save(tmp_path / "case.nii.gz", LABELS, affine))


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO])
def test_a_spacing_that_looks_lost_is_warned_of(tmp_path, caplog, reader):
    check(save(tmp_path / "case_0000.nii.gz", affine=np.eye(4)), reader=reader)
    assert "case_0000.nii.gz: the voxels are 1 x 1 x 1 mm and begin at the origin" in caplog.text
    caplog.clear()
    isotropic = np.eye(4)
    isotropic[:3, 3] = 90, -126, -72  # of a brain atlas
    check(save(tmp_path / "case_0000.nii.gz", affine=isotropic), reader=reader)
    assert caplog.text == ""


def test_a_dataset_of_dicom_is_refused_in_planning(planner):
    series = planner.images / "case_0000"
    series.mkdir(parents=True)
    shutil.copy(f"{data_path}/0.dcm", series)
    with pytest.raises(ValueError, match=r"imagesTr holds DICOM\. Convert each series .*dcm2niix"):
        planner()


def test_a_photograph_read_by_simpleitk_says_what_it_is(tmp_path):
    file = str(tmp_path / "case_0000.png")
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((20, 30, 3), np.uint8), isVector=True), file)
    with pytest.raises(ValueError, match="holds 3 numbers per voxel"):
        check_case([file], SimpleITKIO, ["R", "G", "B"])


def test_surfaces_of_one_slice_are_refused_before_the_first_case(tmp_path, monkeypatch):
    files = [save(tmp_path / "a_0000.nii.gz"), save(tmp_path / "b_0000.nii.gz", VALUES[:, :, :1])]
    predictor = SimpleNamespace(
        channels={"a": 1},
        cases=lambda *_: {file: ([file], None) for file in files},
        plans_manager=SimpleNamespace(image_reader_writer_class=SimpleITKIO),
        encode=lambda *_: pytest.fail("a case was begun"),
    )
    monkeypatch.setattr("nnunetv2_swipe.commands.mesh.make_predictor", lambda _: predictor)
    monkeypatch.setattr("nnunetv2_swipe.commands.mesh.find_spec", lambda _: object())
    arguments = SimpleNamespace(
        spacing=None, classes=None, i="", prev_stage_predictions=None, disable_progress_bar=True
    )
    with pytest.raises(ValueError, match=r"b_0000\.nii\.gz is of one slice; surfaces need volumes"):
        write_meshes(arguments)


def test_a_grid_to_predict_on_that_cannot_be_read_is_named(tmp_path):
    file = save(tmp_path / "grid.nii.gz", np.stack([VALUES, VALUES], -1))
    arguments = SimpleNamespace(like=file, spacing=None, size=None)
    with pytest.raises(ValueError, match=r"grid\.nii\.gz has 4 axes"):
        _output_grid(arguments, any_predictor())


TURNED = [[2, -1], [0, 1], [1, -1]]
"""Other axes of the array, two of them reversed, in the same place."""


def save_turned(file, values):
    nibabel.save(nibabel.Nifti1Image(values, AFFINE).as_reoriented(TURNED), file)
    return str(file)


@pytest.mark.parametrize("reader", [SimpleITKIOWithReorient, NibabelIOWithReorient])
def test_axes_in_several_orders_fit_if_the_reader_brings_them_into_one(tmp_path, image, reader):
    files = [image, save_turned(tmp_path / "case_0001.nii.gz", VALUES)]
    label = save_turned(tmp_path / "case.nii.gz", LABELS)
    read, _ = reader().read_images(files)
    np.testing.assert_allclose(read[0], read[1], rtol=1e-6)
    assert [header.note for header in check_case(files, reader, ["a", "b"], label)] == [None, None]
    with pytest.raises(ValueError, match="must have one shape and spacing"):
        check_case(files, SimpleITKIO, ["a", "b"])


def test_channels_that_lie_elsewhere_are_noted(tmp_path, image):
    moved = AFFINE.copy()
    moved[0, 3] += 50
    other = save(tmp_path / "case_0001.nii.gz", affine=moved)
    first, second = check_case([image, other], SimpleITKIO, ["a", "b"])
    assert first.note is None
    assert "does not lie where the case's first channel lies" in second.note


def test_a_note_on_many_cases_is_logged_once(tmp_path, caplog):
    for case in "abc":
        file = nibabel.Nifti1Image(VALUES, AFFINE)
        file.set_qform(np.diag([2.5, 3.0, 4.0, 1.0]), code="scanner")  # the voxel size in pixdim, too
        file.set_sform(AFFINE, code="scanner")
        nibabel.save(file, tmp_path / f"{case}_0000.nii.gz")
    with caplog.at_level(logging.WARNING):
        assert set(any_predictor().cases(str(tmp_path))) == set("abc")
    (record,) = [r for r in caplog.records if "by its pixdim" in r.message]
    assert "a_0000.nii.gz and 2 more files" in record.message


def test_dicom_in_many_folders_is_recognised(tmp_path):
    for number in range(120):
        (tmp_path / f"patient{number}").mkdir()
        (tmp_path / f"patient{number}" / "slice").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(ValueError, match=r"holds DICOM\. Convert"):
        require_images(tmp_path, ".nii.gz")


def test_an_image_without_the_number_of_a_channel_is_named_in_planning(planner):
    planner.images.mkdir()
    save(planner.images / "good.nii.gz")
    with pytest.raises(ValueError, match=r"holds good\.nii\.gz, without the number of a channel"):
        planner()


def test_a_fingerprint_of_other_files_is_refused(planner, tmp_path, image):
    made = planner(image, save(tmp_path / "case.nii.gz", LABELS))
    made._headers = check_dataset(made.dataset, SimpleITKIO, made.dataset_json)
    made.dataset_fingerprint = {"spacings": [[4.0, 3.0, 2.0]]}
    assert made._spacings_mm() == {"case": [4.0, 3.0, 2.0]}
    made.dataset_fingerprint = {"spacings": [[4.0, 3.0, 1.0]]}
    with pytest.raises(ValueError, match=r"case_0000\.nii\.gz the spacing .* It is of other files.* --clean"):
        made._spacings_mm()
