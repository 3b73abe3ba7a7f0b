"""A dataset of TIFF volumes, whose spacing nnU-Net keeps in files of its own, and what lies about in its folder."""

import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from nnunet_helpers import PLANS, edit_json, make_trainer, narrow, nnunet_folders, plan, plans_file
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunetv2_swipe.commands.predict import _grid_as_read
from nnunetv2_swipe.trainers.swipe_trainer import SwIPETrainer

NUMBER, DATASET, CONFIGURATION = 906, "Dataset906_Tiff", "3d_fullres"
SPACING = (3.0, 1.0, 1.0)
CASES = ("a", "b", "c", "d", "e")


def write_case(raw, case, seed):
    """A box in noise, in voxels of 3 x 1 x 1 mm."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((20, 48, 48), dtype=np.uint8)
    labels[6 : 10 + seed, 10:26, 12 : 28 + seed] = 1
    image = (rng.normal(100, 10, labels.shape) + 50 * labels).astype(np.float32)
    for folder, name, array in (("imagesTr", f"{case}_0000", image), ("labelsTr", case, labels)):
        (raw / folder).mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(raw / folder / f"{name}.tif", array)
        (raw / folder / f"{case}.json").write_text(json.dumps({"spacing": SPACING}))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Planned and preprocessed by nnU-Net, then planned by SwIPEPlanner."""
    with nnunet_folders(tmp_path_factory.mktemp("tiff")) as root:
        raw = root / "nnUNet_raw" / DATASET
        for seed, case in enumerate(CASES):
            write_case(raw, case, seed)
        header = {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "box": 1},
            "numTraining": len(CASES),
            "file_ending": ".tif",
        }
        (raw / "dataset.json").write_text(json.dumps(header))
        plan(NUMBER, "ExperimentPlanner", "-c", CONFIGURATION)
        plan_anew()
        yield root


@pytest.fixture
def preprocessed(folders):
    return folders / "nnUNet_preprocessed" / DATASET


def plan_anew(*arguments):
    plan(NUMBER, "SwIPEPlanner", "--no_pp", "-c", CONFIGURATION, *arguments)


def block_of_stock_plan():
    trainer = make_trainer(SwIPETrainer, DATASET, CONFIGURATION, plans="nnUNetPlans")
    return trainer.configuration_manager.configuration["swipe"]


def planned_block():
    return json.loads(plans_file(DATASET).read_text())["configurations"][CONFIGURATION]["swipe"]


@pytest.fixture
def without_statistics(preprocessed):
    (preprocessed / "dataset_label_statistics.json").unlink(missing_ok=True)


@pytest.mark.usefixtures("folders", "without_statistics")
def test_a_stock_plan_gets_the_planners_block():
    """Although nnU-Net's copies of the labels have lost the spacing."""
    block = block_of_stock_plan()
    assert block == planned_block()
    assert block["patch_size"][0] < block["patch_size"][1]  # an axis of 3 mm has fewer voxels than one of 1 mm


@pytest.mark.usefixtures("without_statistics")
def test_it_gets_the_same_block_without_raw_files(folders):
    """As on a cluster where only the preprocessed data are."""
    raw = folders / "nnUNet_raw"
    raw.rename(folders / "away")
    try:
        assert block_of_stock_plan() == planned_block()
    finally:
        (folders / "away").rename(raw)


def test_planner_and_trainer_share_the_statistics(preprocessed, monkeypatch):
    block_of_stock_plan()
    assert (preprocessed / "dataset_label_statistics.json").is_file()

    def fail(*_):
        raise AssertionError("a label file was read")

    monkeypatch.setattr(Tiff3DIO, "read_seg", fail)
    assert block_of_stock_plan() == planned_block()
    plan_anew()


@pytest.mark.usefixtures("without_statistics")
def test_labels_of_a_case_that_is_no_more_are_not_read(preprocessed):
    (preprocessed / "gt_segmentations" / "gone.tif").write_bytes(b"no image")
    (preprocessed / "gt_segmentations" / "._a.tif").write_bytes(b"\x00\x05\x16\x07")
    assert block_of_stock_plan() == planned_block()


@pytest.mark.usefixtures("without_statistics")
def test_missing_labels_and_damaged_properties_are_named(preprocessed):
    label, properties = preprocessed / "gt_segmentations" / "a.tif", preprocessed / "nnUNetPlans_3d_fullres" / "a.pkl"
    for file, message in ((label, r"a\.tif is missing"), (properties, r"a\.pkl cannot be read")):
        content = file.read_bytes()
        if file is label:
            file.unlink()
        else:
            file.write_bytes(content[:50])
        with pytest.raises((FileNotFoundError, ValueError), match=message):
            block_of_stock_plan()
        file.write_bytes(content)


def test_a_damaged_plan_of_the_model_folder_is_written_anew(folders, monkeypatch):
    monkeypatch.setattr("nnunetv2_swipe.files._PAUSE_S", 0)
    model = folders / "nnUNet_results" / DATASET / f"SwIPETrainer__nnUNetPlans__{CONFIGURATION}"
    model.mkdir(parents=True, exist_ok=True)
    (model / "plans.json").write_text('{"configurations": {')
    try:
        assert block_of_stock_plan() == planned_block()
    finally:
        shutil.rmtree(model)


@pytest.mark.parametrize("key", ["labels", "channel_names", "file_ending"])
def test_training_names_what_dataset_json_lacks(preprocessed, key):
    file = preprocessed / "dataset.json"
    content = file.read_text()
    edit_json(file, lambda header: header.pop(key))
    try:
        with pytest.raises(
            ValueError, match=rf'nnUNet_preprocessed.{DATASET}.dataset\.json: the key "{key}" is missing'
        ):
            make_trainer(SwIPETrainer, DATASET, CONFIGURATION)
    finally:
        file.write_text(content)


@pytest.fixture
def trainer(folders):  # noqa: ARG001
    edit_json(plans_file(DATASET), narrow)
    return make_trainer(SwIPETrainer, DATASET, CONFIGURATION)


def log_of_initialization(trainer):
    """What the trainer writes to its log file; one of the same second may have written there, too."""
    log = Path(trainer.log_file)
    before = log.read_text()
    trainer.initialize()
    return log.read_text().removeprefix(before)


def test_training_says_that_copies_of_labels_are_old(folders, trainer):
    label = folders / "nnUNet_raw" / DATASET / "labelsTr" / "b.tif"
    content = label.read_bytes()
    try:
        tifffile.imwrite(label, tifffile.imread(label) * 0)
        log = log_of_initialization(trainer)
    finally:
        label.write_bytes(content)
    assert "WARNING: 1 label files were changed after nnU-Net copied them" in log
    assert str(label) in log


def test_training_says_nothing_of_copies_that_are_whole(trainer):
    assert "WARNING" not in log_of_initialization(trainer)


def test_training_names_a_file_that_nnunet_would_take_for_a_case(preprocessed, trainer):
    file = preprocessed / "nnUNetPlans_3d_fullres" / ".DS_Store"
    file.touch()
    try:
        with pytest.raises(ValueError, match=r"nnUNetPlans_3d_fullres.\.DS_Store is no part"):
            trainer.initialize()
    finally:
        file.unlink()


def test_training_names_splits_that_are_damaged(preprocessed, trainer, monkeypatch):
    monkeypatch.setattr("nnunetv2_swipe.files._PAUSE_S", 0)
    file = preprocessed / "splits_final.json"
    file.write_text('[{"train": ["a", ')
    try:
        with pytest.raises(ValueError, match=r"splits_final\.json is not a JSON file"):
            trainer.do_split()
    finally:
        file.unlink()
    # the file appears when it is complete, for folds that start together
    monkeypatch.setattr("nnunetv2.training.nnUNetTrainer.nnUNetTrainer.save_json", lambda *_: pytest.fail("in place"))
    assert sorted(itertools.chain(*trainer.do_split())) == list(CASES)
    assert json.loads(file.read_text()) == generate_crossval_split(list(CASES), seed=12345, n_splits=5)


class TestPlanner:
    def test_keeps_configurations_that_a_user_added(self, folders):  # noqa: ARG002
        def add(plans):
            plans["configurations"]["mine"] = {"inherits_from": CONFIGURATION, "batch_size": 3}

        edit_json(plans_file(DATASET), add)
        plan_anew()
        plans = json.loads(plans_file(DATASET).read_text())
        assert plans["configurations"]["mine"] == {"inherits_from": CONFIGURATION, "batch_size": 3}
        assert "swipe" in plans["configurations"][CONFIGURATION]

    def test_a_full_disk_leaves_the_plan_that_was_there(self, preprocessed, monkeypatch):
        before = plans_file(DATASET).read_text()

        def fail(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("nnunetv2_swipe.files.flush_to_disk", fail)
        with pytest.raises(OSError, match=rf"{PLANS}\.json cannot be written: No space left"):
            plan_anew()
        assert plans_file(DATASET).read_text() == before
        assert not list(preprocessed.glob(".unfinished*"))

    def test_a_damaged_plan_is_named(self, folders, monkeypatch):  # noqa: ARG002
        monkeypatch.setattr("nnunetv2_swipe.files._PAUSE_S", 0)
        before = plans_file(DATASET).read_text()
        plans_file(DATASET).write_text(before[:1000])
        try:
            with pytest.raises(ValueError, match=rf"{PLANS}\.json is not a JSON file"):
                plan_anew()
        finally:
            plans_file(DATASET).write_text(before)

    def test_says_that_the_fingerprint_is_of_older_files(self, folders, caplog):
        plan_anew("--clean")
        assert "is older than" not in caplog.text
        label = folders / "nnUNet_raw" / DATASET / "labelsTr" / "c.tif"
        label.touch()
        plan_anew()
        assert f"dataset_fingerprint.json is older than {label}" in caplog.text

    def test_refuses_a_fingerprint_of_other_cases(self, folders):
        raw = folders / "nnUNet_raw" / DATASET
        write_case(raw, "f", 1)
        try:
            with pytest.raises(ValueError, match=r"dataset_fingerprint\.json is of 5 cases, but the dataset has 6"):
                plan_anew()
        finally:
            for file in (*raw.glob("*/f.*"), *raw.glob("*/f_*")):
                file.unlink()


@pytest.mark.parametrize("name", ["scan_2024", "scan"])
@pytest.mark.parametrize("kind", ["image", "label map"])
def test_a_grid_like_a_tiffs_has_its_spacing(tmp_path, name, kind):
    """Also where the name of a label map ends like that of an image's channel."""
    file = tmp_path / (f"{name}_0000.tif" if kind == "image" else f"{name}.tif")
    tifffile.imwrite(file, np.zeros((5, 6, 7), dtype=np.uint8))
    (tmp_path / f"{name}.json").write_text(json.dumps({"spacing": SPACING}))
    predictor = SimpleNamespace(plans_manager=SimpleNamespace(image_reader_writer_class=Tiff3DIO))
    assert tuple(_grid_as_read(str(file), predictor).spacing) == SPACING
