"""Preprocessing: nnU-Net's own data, the source frame where it belongs, checked input, shared folders."""

import json
import shutil
from copy import deepcopy

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
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
    set_key,
    write_phantom,
    write_volume,
)
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tiny_models import dataset_of, plans_of

from nnunetv2_swipe.network.coordinates import N_SOURCE_CHANNELS, source_channels
from nnunetv2_swipe.planners.shared_data import other_plans, shared_identifier
from nnunetv2_swipe.preprocessing import SwIPEPreprocessor, SwIPEPreprocessor_withSourceFrame
from nnunetv2_swipe.preprocessing.source_coordinates import ImageWithSourceFrame, SwIPEDatasetBlosc2

CASE = "abdomen_000"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two cases, planned and preprocessed by nnU-Net, then planned by SwIPEPlanner, which shares the data."""
    with nnunet_folders(tmp_path_factory.mktemp("preprocessing")) as root:
        write_phantom(root / "nnUNet_raw", cases_3d=2)
        plan(901, "ExperimentPlanner", "-c", "3d_fullres")
        plan(901, "SwIPEPlanner", "-c", "3d_fullres")
        yield root


@pytest.fixture
def raw(folders):
    return folders / "nnUNet_raw" / ABDOMEN


@pytest.fixture
def data_folder(folders):
    return folders / "nnUNet_preprocessed" / ABDOMEN / "nnUNetPlans_3d_fullres"


@pytest.fixture
def image(raw):
    return str(raw / "imagesTr" / f"{CASE}_0000.nii.gz")


@pytest.fixture
def labels(raw):
    return str(raw / "labelsTr" / f"{CASE}.nii.gz")


def run_case(preprocessor, image, labels, plans=PLANS):
    """Preprocess a case."""
    manager = PlansManager(json.loads(plans_file(ABDOMEN, plans).read_text()))
    dataset_json = json.loads(plans_file(ABDOMEN, "dataset").read_text())
    configuration = manager.get_configuration("3d_fullres")
    return preprocessor(verbose=False).run_case([image], labels, manager, configuration, dataset_json)


class TestImageWithSourceFrame:
    DATA = np.random.default_rng(0).standard_normal((2, 5, 6, 7)).astype(np.float32)
    FULL = np.concatenate((source_channels((5, 6, 7)), DATA))

    @pytest.fixture(params=["numpy", "blosc2"])
    def image(self, request):
        return ImageWithSourceFrame(self.DATA if request.param == "numpy" else blosc2.asarray(self.DATA))

    @pytest.mark.parametrize(
        "box",
        [
            np.s_[:],
            np.s_[...],
            np.s_[:, 1:3],
            np.s_[:, :, 2:5, :],
            np.s_[:, 1:3, 0:6, 2:7],
            np.s_[:, 4:5, 5:6, 6:7],
        ],
        ids=str,
    )
    def test_reads_what_the_whole_array_holds_there(self, image, box):
        np.testing.assert_array_equal(image[box], self.FULL[box])

    def test_looks_like_an_array_to_nnunet(self, image):
        assert (image.shape, image.ndim, image.dtype) == (self.FULL.shape, 4, np.float32)

    def test_is_cropped_and_padded_like_an_array(self, image):
        box = [[-2, 3], [1, 4], [3, 12]]
        np.testing.assert_array_equal(crop_and_pad_nd(image, box, 0), crop_and_pad_nd(self.FULL, box, 0))

    @pytest.mark.parametrize("item", [0, np.s_[1:], np.s_[0, 1:3]], ids=str)
    def test_part_of_the_channels_is_refused(self, image, item):
        with pytest.raises(IndexError, match="all its channels"):
            image[item]


def test_stored_training_data_are_nnunets(image, labels, tmp_path):
    manager = PlansManager(json.loads(plans_file(ABDOMEN).read_text()))
    dataset_json = json.loads(plans_file(ABDOMEN, "dataset").read_text())
    stored = []
    for preprocessor in (DefaultPreprocessor, SwIPEPreprocessor, SwIPEPreprocessor_withSourceFrame):
        folder = tmp_path / preprocessor.__name__
        folder.mkdir()
        arguments = ([image], labels, manager, manager.get_configuration("3d_fullres"), dataset_json)
        preprocessor(verbose=False).run_case_save(str(folder / CASE), *arguments)
        data, seg, _, properties = nnUNetDatasetBlosc2(str(folder), [CASE]).load_case(CASE)
        stored.append((data[:], seg[:], properties))
    np.testing.assert_equal(stored[1:], stored[:1] * 2)


def test_training_dataset_adds_the_frame_as_it_reads(data_folder):
    data, seg, _, _ = nnUNetDatasetBlosc2(str(data_folder), [CASE]).load_case(CASE)
    framed, framed_seg, _, _ = SwIPEDatasetBlosc2(str(data_folder), [CASE]).load_case(CASE)
    np.testing.assert_array_equal(framed[:], np.concatenate((source_channels(data.shape[1:]), data[:])))
    np.testing.assert_array_equal(framed_seg[:], seg[:])


@pytest.mark.parametrize("with_previous_stage", [False, True])
def test_image_to_predict_has_the_frame_in_front_if_the_plan_asks(image, labels, with_previous_stage):
    labels = labels if with_previous_stage else None  # of a cascade: the segmentation of the stage before
    data, seg, properties = run_case(SwIPEPreprocessor_withSourceFrame, image, labels)
    stock_data, stock_seg, stock_properties = run_case(DefaultPreprocessor, image, labels)
    np.testing.assert_array_equal(data[:N_SOURCE_CHANNELS], source_channels(stock_data.shape[1:]))
    np.testing.assert_array_equal(data[N_SOURCE_CHANNELS:], stock_data)
    np.testing.assert_equal((seg, properties), (stock_seg, stock_properties))


@pytest.mark.parametrize("plans", [PLANS, "nnUNetPlans"])
def test_image_to_predict_has_no_frame_otherwise(image, plans):
    data, _, _ = run_case(SwIPEPreprocessor, image, None, plans)
    np.testing.assert_array_equal(data, run_case(DefaultPreprocessor, image, None, plans)[0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_image_that_is_not_finite_is_named(image, tmp_path, value):
    # MetaImage: ITK's NIfTI reader turns such values into zeros by itself
    array = sitk.GetArrayFromImage(sitk.ReadImage(image)).astype(np.float32)
    array[3, 4, 5:7] = value
    file = str(write_volume(array, tmp_path / "broken_0000.mha"))
    with pytest.raises(ValueError, match=r"broken_0000\.mha: the image holds 2 values that are NaN or infinite"):
        run_case(SwIPEPreprocessor, file, None)


def test_undeclared_label_is_named(image, labels, tmp_path):
    array = read_labels(labels)
    array[0, 0, 0] = 9
    file = str(write_volume(array, tmp_path / "labels.nii.gz", like=sitk.ReadImage(labels)))
    with pytest.raises(ValueError, match=rf"{CASE}_0000\.nii\.gz, {file}: the segmentation holds the label 9"):
        run_case(SwIPEPreprocessor, image, file)


def test_shared_data_are_kept_when_up_to_date(data_folder):
    before = dates(data_folder)
    preprocess(901)
    assert dates(data_folder) == before
    assert [f.name for f in data_folder.parent.iterdir() if f.name.startswith(f"{PLANS}_")] == []


IN_CONFIGURATION = ("configurations", "3d_fullres")


@pytest.mark.parametrize(
    ("change", "shared"),
    [
        (set_key((*IN_CONFIGURATION, "preprocessor_name"), "SwIPEPreprocessor"), True),
        (set_key((*IN_CONFIGURATION, "preprocessor_name"), "DefaultPreprocessor"), True),
        (set_key((*IN_CONFIGURATION, "preprocessor_name"), "AnotherPreprocessor"), False),
        (set_key((*IN_CONFIGURATION, "patch_size"), [8, 8, 8]), True),
        (set_key((*IN_CONFIGURATION, "spacing"), [4.0, 4.0, 4.0]), False),
        (set_key((*IN_CONFIGURATION, "normalization_schemes"), ["CTNormalization"]), False),
        (set_key((*IN_CONFIGURATION, "resampling_fn_data_kwargs"), {"order": 1}), False),
        (set_key(("transpose_forward",), [2, 1, 0]), False),
        (set_key(("foreground_intensity_properties_per_channel",), {}), False),
    ],
)
@pytest.mark.usefixtures("folders")
def test_data_are_shared_with_a_plan_of_the_same_preprocessing(change, shared):
    stock = json.loads(plans_file(ABDOMEN, "nnUNetPlans").read_text())
    own = deepcopy(stock)
    own["configurations"]["3d_fullres"]["data_identifier"] = "Own_3d_fullres"
    change(own)
    identifier = shared_identifier(own, "3d_fullres", {"nnUNetPlans": stock})
    assert identifier == ("nnUNetPlans_3d_fullres" if shared else "Own_3d_fullres")


@pytest.mark.usefixtures("folders")
def test_data_are_shared_only_if_all_that_use_them_are_alike():
    """As nnU-Net's residual encoder plans, of an older fingerprint, use those of nnUNetPlans."""
    stock = json.loads(plans_file(ABDOMEN, "nnUNetPlans").read_text())
    own, older = deepcopy(stock), deepcopy(stock)
    own["configurations"]["3d_fullres"]["data_identifier"] = "Own_3d_fullres"
    older["foreground_intensity_properties_per_channel"] = {}
    assert shared_identifier(own, "3d_fullres", {"nnUNetPlans": stock, "Older": older}) == "Own_3d_fullres"


@pytest.mark.usefixtures("folders")
def test_configurations_inherit_their_preprocessing():
    stock = json.loads(plans_file(ABDOMEN, "nnUNetPlans").read_text())
    stock["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres"}
    own = deepcopy(stock)
    assert shared_identifier(own, "3d_fullres", {"nnUNetPlans": stock}) == "nnUNetPlans_3d_fullres"
    stock["configurations"]["3d_cascade_fullres"]["spacing"] = [4.0, 4.0, 4.0]
    with pytest.raises(ValueError, match="'nnUNetPlans' uses the data in nnUNetPlans_3d_fullres"):
        shared_identifier(own, "3d_fullres", {"nnUNetPlans": stock})


@pytest.mark.usefixtures("folders")
def test_data_that_another_plan_uses_are_not_replaced():
    other = json.loads(plans_file(ABDOMEN, "nnUNetPlans").read_text()) | {"plans_name": "Other"}
    own = deepcopy(other)
    other["configurations"]["3d_fullres"]["spacing"] = [4.0, 4.0, 4.0]
    with pytest.raises(ValueError, match=r"(?s)'Other' uses the data in nnUNetPlans_3d_fullres.*overwrite_plans_name"):
        shared_identifier(own, "3d_fullres", {"Other": other})


def test_data_of_another_plan_are_not_replaced(data_folder):
    """As after nnUNetv2_move_plans_between_datasets, which leaves the name of the folder."""
    other = json.loads(plans_file(ABDOMEN, "nnUNetPlans").read_text()) | {"plans_name": "Other"}
    other["configurations"]["3d_fullres"]["spacing"] = [4.0, 4.0, 4.0]
    before = dates(data_folder)
    file = plans_file(ABDOMEN, "Other")
    file.write_text(json.dumps(other))
    try:
        with pytest.raises(ValueError, match=r"(?s)'Other' uses the data in nnUNetPlans_3d_fullres.* -tp "):
            preprocess(901)
    finally:
        file.unlink()
    assert dates(data_folder) == before


def test_plans_are_told_from_other_files(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("nnunetv2_swipe.files._PAUSE_S", 0)
    plan_of = {"configurations": {}}
    contents = {"Own": plan_of, "Other": plan_of, "Odd": {"configurations": [1]}, "List": [], "a": {"labels": {}}}
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "splits_final.json").write_text('[{"train": [')  # another fold is writing it
    (tmp_path / "._Other.json").write_bytes(b"\x00\x05\x16\x07\xff")  # of macOS
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "notes.json").touch()
    assert other_plans(tmp_path, "Own") == {"Other": plan_of}
    assert [record.getMessage().split(" is not")[0] for record in caplog.records] == [str(tmp_path / "notes.json")]


def test_data_of_a_plan_whose_name_begins_alike_are_kept(data_folder):
    """They are another plan's as much as those of a plan with any other name."""
    longer = data_folder.parent / f"{PLANS}_24G_3d_fullres"
    data_folder.rename(longer)
    plans = plans_file(ABDOMEN).read_text()
    other = plans_file(ABDOMEN, f"{PLANS}_24G")
    shutil.copy(plans_file(ABDOMEN, "nnUNetPlans"), other)
    edit_json(other, set_key((*IN_CONFIGURATION, "data_identifier"), longer.name))
    try:
        edit_json(plans_file(ABDOMEN), set_key((*IN_CONFIGURATION, "data_identifier"), longer.name))
        before = dates(longer)
        preprocess(901)
        assert dates(longer) == before
    finally:
        other.unlink()
        plans_file(ABDOMEN).write_text(plans)
        longer.rename(data_folder)


@pytest.mark.usefixtures("folders")
def test_planner_shares_every_configuration_it_can():
    configurations = json.loads(plans_file(ABDOMEN).read_text())["configurations"]
    identifiers = {name: c["data_identifier"] for name, c in configurations.items()}
    assert identifiers == {name: f"nnUNetPlans_{name}" for name in configurations}


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize(
    ("shape", "spacing", "expected"),
    [
        ((1, 12, 12), (1.0, 1.0, 1.0), (1, 12, 12)),  # a third of a voxel
        ((4, 12, 12), (0.3, 1.0, 1.0), (1, 12, 12)),
        ((6, 12, 12), (1.0, 1.0, 1.0), (2, 12, 12)),  # enough voxels: as nnU-Net does
        ((1, 1, 1), (0.1, 0.1, 0.1), (1, 1, 1)),
    ],
)
def test_a_case_thinner_than_half_a_voxel_of_the_plan_has_one_voxel(shape, spacing, expected, transpose):
    """For training as well; the spacing that is kept is the image's own."""
    plans = plans_of(np.array((3.0, 1.0, 1.0))[list(transpose)], transpose_forward=list(transpose))
    image = np.random.default_rng(0).uniform(1, 2, (1, *shape)).astype(np.float32)
    labels = np.ones((1, *shape), dtype=np.float32)
    properties = {"spacing": list(spacing)}
    data, seg, found = SwIPEPreprocessor(verbose=False).run_case_npy(
        image, labels, properties, plans, plans.get_configuration("any"), dataset_of()
    )
    assert data.shape == seg.shape == (1, *np.array(expected)[list(transpose)])
    assert np.isfinite(data).all()
    assert (seg == 1).all()
    assert len(found["class_locations"][1]) > 0
    assert found["spacing"] == list(spacing)


def test_one_slice_of_what_nnunet_crops_has_one_voxel():
    plans = plans_of((3.0, 1.0, 1.0))
    image = np.zeros((1, 12, 12, 12), dtype=np.float32)
    image[:, 5] = 1
    data, _, found = SwIPEPreprocessor(verbose=False).run_case_npy(
        image, None, {"spacing": [1.0, 1.0, 1.0]}, plans, plans.get_configuration("any"), dataset_of()
    )
    assert data.shape == (1, 1, 12, 12)
    assert list(found["bbox_used_for_cropping"][0]) == [5, 6]
