"""Preprocessed data, and copies of labels, are made again when the raw files are others or files are damaged."""

import os
import pickle
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from nnunet_helpers import (
    ABDOMEN,
    PLANS,
    dates,
    edit_json,
    nnunet_folders,
    plan,
    plans_file,
    preprocess,
    read_labels,
    write_phantom,
    write_volume,
)
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunetv2_swipe.freshness import changed_since, outdated_copies, raw_files, renew_copies
from nnunetv2_swipe.preprocessing import SwIPEPreprocessor
from nnunetv2_swipe.preprocessing.datasets import PlainDatasetBlosc2
from nnunetv2_swipe.preprocessing.preprocessed_data import RECORD
from nnunetv2_swipe.stored_cases import read_properties, require_only_cases, stored_cases

CASE, OTHER_CASE = "abdomen_000", "abdomen_001"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two cases, planned and preprocessed by nnU-Net, and a plan of SwIPE's preprocessor that shares the data."""
    with nnunet_folders(tmp_path_factory.mktemp("freshness")) as root:
        write_phantom(root / "nnUNet_raw", cases_3d=2)
        plan(901, "ExperimentPlanner", "-c", "3d_fullres")
        shutil.copy(plans_file(ABDOMEN, "nnUNetPlans"), plans_file(ABDOMEN))
        edit_json(plans_file(ABDOMEN), use_our_preprocessor)
        yield root


def use_our_preprocessor(plans):
    plans["plans_name"] = PLANS
    plans["configurations"]["3d_fullres"]["preprocessor_name"] = "SwIPEPreprocessor"


@pytest.fixture
def raw(folders):
    return folders / "nnUNet_raw" / ABDOMEN


@pytest.fixture(params=["with record", "of nnU-Net"])
def data(request, folders):
    """The folder of preprocessed data, up to date."""
    preprocess(901)
    folder = folders / "nnUNet_preprocessed" / ABDOMEN / "nnUNetPlans_3d_fullres"
    if request.param == "of nnU-Net":
        shutil.rmtree((folder / RECORD).parent)
    return folder


def are_made_again(data):
    """Whether preprocessing makes all of the data again, rather than none."""
    before = dates(data)
    preprocess(901)
    after = dates(data)
    renewed = [after[name] > before.get(name, 0) for name in after]
    assert all(renewed) or not any(renewed)
    return all(renewed)


def replace_as_unzip_does(file, array):
    """Put another image in a file's place, with the date that the file has; its content is of the same length."""
    new = write_volume(array, file.with_name(f"new_{file.name}"), like=sitk.ReadImage(file))
    shutil.copystat(file, new)
    new.replace(file)


def stored_labels(data, case):
    return nnUNetDatasetBlosc2(str(data), [case]).load_case(case)[1][:]


def test_data_that_are_up_to_date_are_kept(data):
    assert not are_made_again(data)
    assert (data / RECORD).is_file()


def test_corrected_labels_are_used_although_their_date_is_old(data, raw):
    label = raw / "labelsTr" / f"{CASE}.nii.gz"
    corrected = np.roll(read_labels(label), 1, axis=2)
    before = stored_labels(data, CASE)
    replace_as_unzip_does(label, corrected)
    assert are_made_again(data)
    assert (stored_labels(data, CASE) != before).any()
    np.testing.assert_array_equal(read_labels(data.parent / "gt_segmentations" / label.name), corrected)


def test_a_corrected_image_is_used_although_its_date_is_old(data, raw):
    image = raw / "imagesTr" / f"{CASE}_0000.nii.gz"
    replace_as_unzip_does(image, read_labels(image) + 1)
    assert are_made_again(data)


def describe_the_dataset(data):
    file = data.parents[2] / "nnUNet_raw" / ABDOMEN / "dataset.json"
    edit_json(file, lambda content: content.update(description=content.get("description", "") + "."))


def age(data):
    for file in data.glob("*.*"):
        os.utime(file, (10**9, 10**9))


def lose_a_file(data):
    (data / f"{CASE}_seg.b2nd").unlink()


def swap_cases(data):
    """Data of another spacing differ in shape; so do those of another case."""
    for ending in (".b2nd", "_seg.b2nd"):
        shutil.copy(data / f"{OTHER_CASE}{ending}", data / f"{CASE}{ending}")


def keep_a_case_that_is_no_more(data):
    for ending in (".b2nd", "_seg.b2nd", ".pkl"):
        shutil.copy(data / f"{CASE}{ending}", data / f"gone{ending}")


CHANGES = [describe_the_dataset, age, lose_a_file, swap_cases, keep_a_case_that_is_no_more]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_data_are_made_again(data, change):
    names = set(dates(data))
    shapes = {case: stored_labels(data, case).shape for case in (CASE, OTHER_CASE)}
    assert len(set(shapes.values())) == 2
    change(data)
    assert are_made_again(data)
    assert set(dates(data)) == names
    assert {case: stored_labels(data, case).shape for case in shapes} == shapes


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
@pytest.mark.parametrize("ending", [".b2nd", "_seg.b2nd", ".pkl"])
def test_cut_files_are_made_again(data, ending, share):
    file = data / f"{CASE}{ending}"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    assert are_made_again(data)
    assert file.stat().st_size == len(whole)


@pytest.mark.parametrize("data", ["with record"], indirect=True)
@pytest.mark.parametrize("content", ["", '{"made_from": {', "[]"])
def test_a_damaged_record_counts_for_nothing(data, content, monkeypatch):
    monkeypatch.setattr("nnunetv2_swipe.files._PAUSE_S", 0)
    (data / RECORD).write_text(content)
    assert are_made_again(data)


@pytest.mark.parametrize("data", ["with record"], indirect=True)
def test_data_of_other_settings_are_made_again(data):
    def edit(plans):
        plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["NoNormalization"]

    for plans in (PLANS, "nnUNetPlans"):
        edit_json(plans_file(ABDOMEN, plans), edit)
    assert are_made_again(data)


def test_hidden_files_of_others_change_nothing(data):
    (data / ".DS_Store").touch()
    (data / f"._{CASE}.b2nd").touch()
    try:
        assert stored_cases(data) == [CASE, OTHER_CASE]
        assert not any(dates(data)[name] > before for name, before in kept(data).items())
        with pytest.raises(ValueError, match=r"\.DS_Store is no part of the preprocessed data.* Delete it"):
            require_only_cases(data)
    finally:
        (data / ".DS_Store").unlink()
        (data / f"._{CASE}.b2nd").unlink()
    require_only_cases(data)


def kept(data):
    before = dates(data)
    preprocess(901)
    return before


def test_an_interrupted_preprocessing_leaves_no_record(data, monkeypatch):
    lose_a_file(data)
    save = SwIPEPreprocessor.run_case_save

    def fail(self, output, *arguments):
        if output.endswith(OTHER_CASE):
            raise RuntimeError("interrupted")
        save(self, output, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(SwIPEPreprocessor, "run_case_save", fail)
        with pytest.raises(RuntimeError, match="interrupted"):
            preprocess(901)
    assert not (data / RECORD).exists()
    assert are_made_again(data)


def test_a_raw_file_that_changes_during_preprocessing_counts_as_changed(data, raw, monkeypatch):
    lose_a_file(data)
    save = SwIPEPreprocessor.run_case_save

    def change_afterwards(self, *arguments):
        save(self, *arguments)
        label = raw / "labelsTr" / f"{CASE}.nii.gz"
        replace_as_unzip_does(label, read_labels(label))

    with monkeypatch.context() as patch:
        patch.setattr(SwIPEPreprocessor, "run_case_save", change_afterwards)
        preprocess(901)
    assert are_made_again(data)
    assert not are_made_again(data)


def test_a_dataset_json_that_planning_has_not_seen_is_said(data, raw, caplog):
    def edit(content):
        content["description"] = content.get("description", "") + "!"

    edit_json(raw / "dataset.json", edit)
    preprocess(901)
    assert f"{raw / 'dataset.json'} was changed after planning" in caplog.text
    shutil.copy(raw / "dataset.json", data.parent)


def test_a_spacing_file_is_a_raw_file(tmp_path):
    """nnU-Net reads a TIFF's spacing from a file that is named after the case."""
    for name in ("a_0000.tif", "a_0001.tif", "a.json", "labels/a.tif", "labels/a.json", "labels/b.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    case = {"images": [str(tmp_path / f"a_000{i}.tif") for i in range(2)], "label": str(tmp_path / "labels/a.tif")}
    found = [str(file.relative_to(tmp_path)) for file in raw_files(case)]
    assert found == ["a_0000.tif", "a_0001.tif", "labels/a.tif", "a.json", "labels/a.json"]


def test_a_copy_with_an_old_date_was_changed_when_it_was_copied(tmp_path):
    file = tmp_path / "a"
    file.touch()
    os.utime(file, (10**9, 10**9))
    assert changed_since(2 * 10**18, [file]) is None
    assert changed_since(10**18 + 1, [file]) == file


@pytest.mark.parametrize("content", [b"", b"\x80\x04", pickle.dumps([1]), pickle.dumps({"a": 1})])
def test_properties_that_cannot_be_read_are_named(tmp_path, content):
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pkl .*reprocess the dataset a"):
        read_properties(tmp_path / "a.pkl")


def test_copies_that_kept_the_date_are_compared_without_reading(tmp_path, monkeypatch):
    label, copy = tmp_path / "case.nii.gz", tmp_path / "gt" / "case.nii.gz"
    copy.parent.mkdir()
    label.write_bytes(b"old")
    shutil.copy2(label, copy)
    with monkeypatch.context() as patch:
        patch.setattr("nnunetv2_swipe.freshness.digest", lambda file: pytest.fail(f"{file} was read"))
        assert outdated_copies({"case": label}, copy.parent, ".nii.gz") == {}
    replace_as_unzip_does_with(label, b"new")
    assert outdated_copies({"case": label}, copy.parent, ".nii.gz") == {copy: label}
    renew_copies({copy: label})
    assert copy.read_bytes() == b"new"
    assert copy.stat().st_mtime_ns == label.stat().st_mtime_ns


def replace_as_unzip_does_with(file, content):
    other = file.with_name("other")
    other.write_bytes(content)
    shutil.copystat(file, other)
    other.replace(file)


@pytest.mark.parametrize("ending", [".b2nd", "_seg.b2nd"])
def test_a_cut_file_is_named_as_it_is_read_in_training(data, tmp_path, ending):
    shutil.copytree(data, tmp_path / "data")
    file = tmp_path / "data" / f"{CASE}{ending}"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"The case {CASE} in .* cannot be read .*preprocess the dataset anew"):
        PlainDatasetBlosc2(str(tmp_path / "data")).load_case(CASE)
