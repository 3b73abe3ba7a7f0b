"""Volume, extent and surface of the labels: answers derived by hand, and the file that keeps them."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from nnunet_helpers import nnunet_folders, write_volume
from nnunetv2.configuration import default_num_processes
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_swipe.planners import label_statistics as statistics_module
from nnunetv2_swipe.planners.label_statistics import label_statistics, measure_mask, thickness_mm


def box_mask(shape, start, size):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = True
    return mask


@pytest.mark.parametrize(
    ("shape", "start"), [((6, 6, 8), (2, 1, 3)), ((6, 6, 8), (0, 0, 0)), ((2, 3, 4), (0, 0, 0))], ids=str
)
def test_box_under_anisotropic_spacing(shape, start):
    """6 x 3 x 2 mm, wherever it lies: the image's border does not take faces away."""
    measured = measure_mask(box_mask(shape, start, (2, 3, 4)), (3, 1, 0.5))
    assert measured["volume_mm3"] == pytest.approx(36)
    assert measured["extent_mm"] == pytest.approx([6, 3, 2])
    assert measured["surface_to_volume_per_mm"] == pytest.approx(2 * (6 * 3 + 6 * 2 + 3 * 2) / 36)


def test_single_voxel():
    measured = measure_mask(box_mask((3, 3, 3), (1, 1, 1), (1, 1, 1)), (2, 3, 4))
    assert measured["volume_mm3"] == pytest.approx(24)
    assert measured["extent_mm"] == pytest.approx([2, 3, 4])
    assert measured["surface_to_volume_per_mm"] == pytest.approx(52 / 24)


def test_an_axis_of_length_one_does_not_count():
    """A 4 x 2 mm rectangle in nnU-Net's form of a 2D image: perimeter over area."""
    measured = measure_mask(box_mask((1, 5, 5), (0, 1, 2), (1, 2, 2)), (999, 2, 1))
    assert measured["extent_mm"] == pytest.approx([999, 4, 2])
    assert measured["surface_to_volume_per_mm"] == pytest.approx(12 / 8)


def test_holes_and_parts_have_surfaces_too():
    hollow = box_mask((5, 5, 5), (1, 1, 1), (3, 3, 3))
    hollow[2, 2, 2] = False
    assert measure_mask(hollow, (1, 1, 1))["surface_to_volume_per_mm"] == pytest.approx((54 + 6) / 26)
    parts = box_mask((1, 5, 9), (0, 1, 1), (1, 1, 1)) | box_mask((1, 5, 9), (0, 1, 7), (1, 1, 1))
    measured = measure_mask(parts, (1, 1, 1))
    assert measured["extent_mm"] == pytest.approx([1, 1, 7])
    assert measured["surface_to_volume_per_mm"] == pytest.approx(4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_thickness_of_a_long_bar_is_its_side(axis):
    spacing, side_mm, voxels = (1.5, 3.0, 1.0), 3.0, [2, 1, 3]
    voxels[axis] = 300
    thickness = thickness_mm(measure_mask(np.pad(np.ones(voxels, dtype=bool), 1), spacing))
    assert thickness == pytest.approx(side_mm, rel=0.01)


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """Measure label maps given as {case: array}; spacing 1 mm unless told otherwise."""
    with nnunet_folders(tmp_path / "nnunet"):
        (tmp_path / "labels").mkdir()

        def call(arrays, labels, order=None, spacing=(1, 1, 1)):
            for case, array in arrays.items():
                write_volume(array.astype(np.uint8), tmp_path / "labels" / f"{case}.nii.gz", spacing=spacing)
            return again(labels, order, spacing=spacing)

        def again(labels, order=None, *, folder=tmp_path / "labels", spacing=(1, 1, 1), cache=CACHE):
            files = {file.name.removesuffix(".nii.gz"): file for file in folder.iterdir()}
            return label_statistics(
                files,
                dict.fromkeys(files, spacing),
                cache_file=tmp_path / cache,
                reader_name="SimpleITKIO",
                label_manager=LabelManager(labels, order),
            )

        def forbid_reading():
            def fail(*_):
                raise AssertionError("a label file was read")

            monkeypatch.setattr(SimpleITKIO, "read_seg", fail)

        call.again, call.folder, call.forbid_reading = again, tmp_path / "labels", forbid_reading
        yield call


CACHE = "statistics.json"
LABELS = {"background": 0, "first": 1, "second": 2, "third": 3}


def label_map(**sizes):
    """A map with a bar of each label, `_label=length`; the bars are one voxel thick."""
    array = np.zeros((5, 5, 20), dtype=np.uint8)
    for name, length in sizes.items():
        label = int(name.removeprefix("_"))
        array[label, label, :length] = label
    return array


def test_medians_over_the_cases_that_hold_a_class(measure):
    maps = {"a": label_map(_1=2, _2=6), "b": label_map(_1=4), "c": label_map(_1=12), "empty": label_map()}
    statistics = measure(maps, LABELS, spacing=(2, 1, 0.5))
    assert set(statistics) == {"1", "2"}  # no case holds the third
    assert (statistics["1"]["n_cases"], statistics["2"]["n_cases"]) == (3, 1)
    assert statistics["1"]["volume_mm3"] == pytest.approx(4)
    assert statistics["1"]["extent_mm"] == pytest.approx([2, 1, 2])
    assert statistics["1"]["surface_to_volume_per_mm"] == pytest.approx(2 * (2 * 1 + 2 * 2 + 1 * 2) / 4)
    assert statistics["2"]["volume_mm3"] == pytest.approx(6)


def test_only_empty_maps_leave_nothing(measure):
    assert measure({"a": label_map(), "b": label_map()}, LABELS) == {}


def test_regions_are_measured_whole(measure):
    array = np.zeros((4, 4, 8), dtype=np.uint8)
    array[1:3, 1:3, 1:5] = 1
    array[1:3, 1:3, 5:7] = 2
    statistics = measure({"a": array}, {"background": 0, "whole": [1, 2], "core": [2]}, [1, 2])
    assert set(statistics) == {"(1, 2)", "2"}  # also of a region written as a list of one
    assert statistics["(1, 2)"]["volume_mm3"] == pytest.approx(24)
    assert statistics["2"]["volume_mm3"] == pytest.approx(8)


def test_undeclared_label_is_named_with_its_file(measure):
    with pytest.raises(ValueError, match=r"b\.nii\.gz holds the label 4"):
        measure({"a": label_map(_1=2), "b": label_map(_1=2, _4=1)}, LABELS)


def test_ignored_voxels_are_no_class_and_no_error(measure):
    statistics = measure({"a": label_map(_1=2, _4=3)}, LABELS | {"ignore": 4})
    assert set(statistics) == {"1"}


def test_labels_are_read_once(measure):
    first = measure({"a": label_map(_1=2), "b": label_map(_1=4)}, LABELS)
    measure.forbid_reading()
    assert measure.again(LABELS) == first


def test_copies_of_the_labels_need_not_be_read_again(measure, tmp_path):
    """Trainers find the copies that nnUNetv2_preprocess makes, on clusters copies of these, with dates of their own."""
    first = measure({"a": label_map(_1=2), "b": label_map(_1=4)}, LABELS)
    copies = tmp_path / "gt_segmentations"
    shutil.copytree(measure.folder, copies)
    for file in copies.iterdir():
        os.utime(file, (10**9, 10**9))
    measure.forbid_reading()
    assert measure.again(LABELS, folder=copies) == first


def test_a_changed_file_is_measured_anew_although_its_date_was_kept(measure, tmp_path):
    """As unzip, rsync -a and cp -p keep it."""
    first = measure({"a": label_map(_1=2)}, LABELS)
    file, corrected = measure.folder / "a.nii.gz", tmp_path / "corrected.nii.gz"
    write_volume(label_map(_1=6), corrected)
    shutil.copystat(file, corrected)
    corrected.replace(file)
    assert measure.again(LABELS)["1"]["volume_mm3"] == 3 * first["1"]["volume_mm3"]


def test_the_spacing_is_the_images(measure):
    """A copy of a TIFF has lost it."""
    assert measure({"a": label_map(_1=2)}, LABELS)["1"]["volume_mm3"] == pytest.approx(2)
    assert measure.again(LABELS, spacing=(3, 1, 1))["1"]["volume_mm3"] == pytest.approx(6)


def test_statistics_that_cannot_be_kept_are_used(measure, caplog):
    """As in a read-only folder; root may write there, so that the folder of the cache is a file here."""
    first = measure({"a": label_map(_1=2)}, LABELS)
    assert measure.again(LABELS, cache=f"{CACHE}/statistics.json") == first
    assert f"{CACHE}/statistics.json cannot be kept" in caplog.text


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_statistics_of_a_read_only_folder_are_used(measure, tmp_path, caplog):
    tmp_path.chmod(0o555)
    try:
        assert measure.again(LABELS) == {}
    finally:
        tmp_path.chmod(0o755)
    assert "cannot be written: Permission denied" in caplog.text


@pytest.mark.parametrize("content", ['{"source": {"cases"', "[]", "{}"])
def test_a_damaged_cache_is_made_again(measure, tmp_path, content):
    first = measure({"a": label_map(_1=2)}, LABELS)
    whole = (tmp_path / CACHE).read_text()
    (tmp_path / CACHE).write_text(content)
    assert measure.again(LABELS) == first
    assert (tmp_path / CACHE).read_text() == whole


def test_a_further_case_or_other_labels_are_measured_anew(measure):
    assert measure({"a": label_map(_1=2, _2=2)}, LABELS)["1"]["n_cases"] == 1
    assert measure({"b": label_map(_1=4)}, LABELS)["1"]["n_cases"] == 2
    assert set(measure.again({"background": 0, "both": [1, 2], "second": 2}, [1, 2])) == {"(1, 2)", "2"}


def test_no_more_processes_than_the_job_may_use(measure, monkeypatch):
    processes = []

    def pool(n, **_):
        processes.append(n)
        return ThreadPoolExecutor(1)

    monkeypatch.setattr(statistics_module, "ProcessPoolExecutor", pool)
    for n in (1, 99):
        monkeypatch.setattr(statistics_module, "available_cpus", lambda n=n: n)
        measure({case: label_map(_1=2 if n == 1 else 3) for case in "abc"}, LABELS)
    assert processes == [1, min(3, default_num_processes)]


def test_cases_that_nnunet_would_store_in_one_file_are_named(measure):
    """Before a label file is read: the labels of `a` and the image of `a_seg` are both a_seg.b2nd."""
    measure.forbid_reading()
    with pytest.raises(ValueError, match=r"case a and the image of the case a_seg in one file, a_seg\.b2nd"):
        measure({"a": label_map(_1=2), "a_seg": label_map(_1=2)}, LABELS)
