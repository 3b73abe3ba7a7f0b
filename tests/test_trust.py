"""Files of a model or of preprocessed data that would run code: nothing of them is run."""

import os
import pickle
import re
import shutil
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunet_helpers import ABDOMEN, MODEL, ON_CPU, call_command, edit_json, make_trainer
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.run.run_training import maybe_load_checkpoint

from nnunetv2_swipe.commands.mesh import main as mesh
from nnunetv2_swipe.commands.predict import main as predict
from nnunetv2_swipe.commands.report import main as report
from nnunetv2_swipe.inference.predictor import SwIPEPredictor
from nnunetv2_swipe.preprocessing.datasets import PLAIN_DATASETS
from nnunetv2_swipe.trainers import SwIPETrainer, SwIPETrainer_noSourceCoordinates
from nnunetv2_swipe.trainers.checkpoints import read_checkpoint, require_plain_pretrained_weights
from nnunetv2_swipe.trust import read_pickle, require_known_names

CONFIGURATION = "3d_fullres"


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.makedirs, (self.folder, 0o777, True)


@pytest.fixture
def marker(tmp_path):
    """What appears when code of a file is run."""
    return tmp_path / "run"


@pytest.fixture
def hostile(model, marker):
    """A model whose checkpoints would run code."""
    for file in model.glob("fold_*/*.pth"):
        torch.save(torch.load(file, weights_only=False) | {"more": Hostile(marker)}, file)
    return model


def load(model, **options):
    predictor = SwIPEPredictor(device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(str(model), (0,), **options)
    return predictor


def images():
    return Path(nnUNet_raw) / ABDOMEN / "imagesTr"


def predictions(model, folder):
    """A folder of predictions, for a report: the true labels of a case, with the model's plan."""
    folder.mkdir()
    shutil.copy(next((Path(nnUNet_raw) / ABDOMEN / "labelsTr").iterdir()), folder)
    for name in ("plans.json", "dataset.json"):
        shutil.copy(model / name, folder)
    return folder


def test_a_hostile_checkpoint_is_not_run_by_our_commands(hostile, marker, tmp_path, capsys):
    common = ("-i", images(), "-o", tmp_path / "out", "-d", ABDOMEN, "-c", CONFIGURATION, "-f", 0, *MODEL, *ON_CPU)
    of_report = (predictions(hostile, tmp_path / "predictions"), "-m", hostile, "-i", images(), *ON_CPU)
    for command, arguments in (
        (predict, common),
        (mesh, common),
        (report, (*of_report, "-o", tmp_path / "report.html")),
    ):
        with pytest.raises(SystemExit, match="1"):
            call_command("command", *arguments, function=command)
        message = capsys.readouterr().err
        assert re.search(r"fold_\d/checkpoint_final.pth refers to os\.makedirs.*--trust", message), message
    assert not marker.exists()


def test_trust_reads_it(hostile, marker):
    with pytest.raises(RuntimeError, match=r"refers to os\.makedirs"):
        load(hostile)
    assert not marker.exists()
    assert load(hostile, trust=True).trainer_name == "SwIPETrainer"
    assert marker.exists()


def test_our_commands_read_it_if_they_are_told_to_trust(hostile, marker, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    arguments = ("-o", tmp_path / "out", "-d", ABDOMEN, "-c", CONFIGURATION, "-f", 0, *MODEL, *ON_CPU, "--trust")
    with pytest.raises(SystemExit, match="1"):
        call_command("command", "-i", tmp_path / "empty", *arguments, function=predict)
    assert "empty holds no images" in capsys.readouterr().err  # what is looked for behind the model
    assert marker.exists()
    marker.rmdir()
    folder = predictions(hostile, tmp_path / "predictions")
    arguments = ("-m", hostile, "-i", images(), "-o", tmp_path / "report.html", *ON_CPU, "--cases", 0, "--trust")
    call_command("command", folder, *arguments, function=report)
    assert marker.exists()
    assert "learning rate" in (tmp_path / "report.html").read_text()


def test_a_hostile_checkpoint_is_not_run_by_a_training_that_goes_on(hostile, marker, monkeypatch):
    """Nor is another one taken in its place; nor is it read for another fold."""

    def trainer(fold=0):
        return make_trainer(SwIPETrainer, ABDOMEN, CONFIGURATION, fold=fold, continues=True)

    with pytest.raises(RuntimeError, match=r"refers to os\.makedirs.*SWIPE_TRUST=1"):
        maybe_load_checkpoint(trainer(), True, False)
    with pytest.raises(RuntimeError, match=r"fold_0/\S+ refers to os\.makedirs"):
        trainer(fold=2).initialize()
    assert not marker.exists()
    shutil.rmtree(hostile / "fold_1")
    monkeypatch.setenv("SWIPE_TRUST", "1")
    maybe_load_checkpoint(trainer(), True, False)
    assert marker.exists()


@pytest.mark.parametrize("options", [("-pretrained_weights={}",), ("-pretrained_weights", "{}")])
def test_hostile_pretrained_weights_are_not_run(hostile, marker, tmp_path, monkeypatch, options):
    file = shutil.copy(next(hostile.glob("fold_*/checkpoint_final.pth")), tmp_path / "weights.pth")
    arguments = ["901", CONFIGURATION, "2", "-p", "any", *(option.format(file) for option in options)]
    monkeypatch.setattr("sys.argv", ["/usr/bin/nnUNetv2_train", *arguments])
    with pytest.raises(RuntimeError, match=r"weights\.pth refers to os\.makedirs.*SWIPE_TRUST=1"):
        make_trainer(SwIPETrainer, ABDOMEN, CONFIGURATION, fold=2).initialize()
    assert not marker.exists()
    monkeypatch.setattr("sys.argv", ["another_program", *arguments])
    require_plain_pretrained_weights()


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_in_place_of_a_checkpoint_is_not_run(model, marker, protocol):
    file = model / "fold_0" / "checkpoint_final.pth"
    file.write_bytes(pickle.dumps(Hostile(marker), protocol))
    with pytest.raises(RuntimeError, match=r"fold_0/checkpoint_final\.pth (refers to os\.makedirs|cannot be read)"):
        load(model)
    assert not marker.exists()


@pytest.mark.parametrize("core", ["core", "_core"])
def test_checkpoints_with_numbers_of_numpy_are_read(tmp_path, core):
    """nnU-Net's own, and those of this package's earlier versions, by NumPy 1 and 2."""
    numbers = [np.float32(1.5), np.float64(2.5), np.int64(3), np.bool_(True)]
    held = dict.fromkeys(("network_weights", "trainer_name"), numbers)
    arguments = {key: {} for key in ("plans", "configuration", "dataset_json")}
    torch.save(held | {"init_args": arguments}, tmp_path / "own.pth")
    with zipfile.ZipFile(tmp_path / "own.pth") as old, zipfile.ZipFile(tmp_path / "other.pth", "w") as new:
        for name in old.namelist():
            new.writestr(name, re.sub(rb"numpy\._?core", f"numpy.{core}".encode(), old.read(name)))
    assert read_checkpoint(tmp_path / "other.pth")["trainer_name"] == numbers


def empties(file):
    """Settings of a network that is no network: logging.basicConfig(filename=..., filemode="w", ...)."""
    return {
        "network_class_name": "logging.basicConfig",
        "arch_kwargs": {"filename": str(file), "filemode": "w", "force": True},
        "_kw_requires_import": [],
    }


@pytest.mark.parametrize("trainer", ["SwIPETrainer", "nnUNetTrainer"])
def test_the_network_that_a_plan_names_is_not_looked_for(model, tmp_path, trainer):
    """Of a SwIPE trainer it is not used; of others nothing is built at all."""
    victim = tmp_path / "victim"
    victim.write_text("content")

    def change(plans):
        plans["configurations"][CONFIGURATION]["architecture"] = empties(victim)

    file = model / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False) | {"trainer_name": trainer}
    change(checkpoint["init_args"]["plans"])
    torch.save(checkpoint, file)
    edit_json(model / "plans.json", change)
    with suppress(ValueError):
        load(model)
    assert victim.read_text() == "content"


@pytest.mark.parametrize("name", ["nnUNetTrainer", "join", "os.system", "SwIPETrainer.__init__", "absent", None, 3])
def test_a_trainer_that_is_none_of_ours_is_refused(model, name):
    file = model / "fold_0" / "checkpoint_final.pth"
    torch.save(torch.load(file, weights_only=False) | {"trainer_name": name}, file)
    with pytest.raises(ValueError, match=r"fold_0/checkpoint_final\.pth is of (the trainer .* not installed|nnUNet)"):
        load(model)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("preprocessor_name", "load_json"),  # a function that nnU-Net's modules import
        ("preprocessor_name", "Pool"),
        ("preprocessor_name", "os.system"),
        ("preprocessor_name", ["DefaultPreprocessor", {}]),
        ("normalization_schemes", ["ZScoreNormalization", "ABC"]),
        ("resampling_fn_data", "recursive_find_python_class"),
        ("resampling_fn_seg", "OrderedDict"),
        ("resampling_fn_probabilities", "absent"),
        ("image_reader_writer", "isfile"),
        ("label_manager", "Path"),
    ],
)
def test_names_in_a_plan_are_of_what_nnunet_looks_for(key, name):
    with pytest.raises(ValueError, match=rf"plans\.json: '{key}' is .*that is installed here"):
        require_known_names({key: name}, {}, "plans.json")


def test_names_in_plans_of_nnunet_and_ours_are_known(model):
    predictor = load(model)
    plans, configuration = predictor.plans_manager.plans, predictor.configuration_manager.configuration
    require_known_names(plans, configuration, "plans.json")
    for name in ("SwIPEPreprocessor", "DefaultPreprocessor"):
        require_known_names(plans, configuration | {"preprocessor_name": name}, "plans.json")


def test_names_are_checked_before_a_model_or_a_report_uses_them(model, tmp_path, capsys):
    def change(plans):
        plans["image_reader_writer"] = "isfile"

    file = model / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False)
    change(checkpoint["init_args"]["plans"])
    torch.save(checkpoint, file)
    edit_json(model / "plans.json", change)
    with pytest.raises(ValueError, match=r"plans\.json: 'image_reader_writer' is 'isfile', which is no reader"):
        load(model)
    folder = predictions(model, tmp_path / "predictions")
    arguments = (folder, "-i", images(), "-o", tmp_path / "report.html", *ON_CPU)
    with pytest.raises(SystemExit, match="1"):
        call_command("command", *arguments, function=report)
    assert "predictions/plans.json: 'image_reader_writer' is 'isfile'" in capsys.readouterr().err


def test_pickles_of_plain_data_are_read(tmp_path):
    content = {
        "spacing": [np.float64(1.5), 2.0],
        "class_locations": {1: np.arange(6).reshape(2, 3), (1, 2): np.array([], np.int64)},
        "nibabel_stuff": {"original_affine": np.eye(4)},
        "more": [OrderedDict(a=1), {1, 2}, frozenset([3]), slice(1, 2), 1j, b"bytes", None],
    }
    file = tmp_path / "case.pkl"
    for protocol in (4, pickle.HIGHEST_PROTOCOL):
        file.write_bytes(pickle.dumps(content, protocol))
        np.testing.assert_equal(read_pickle(file), content)


@pytest.mark.parametrize("content", [b"", pickle.dumps({"spacing": np.ones(3)})[:-20], b"no pickle"])
def test_a_damaged_pickle_is_named(tmp_path, content):
    file = tmp_path / "case.pkl"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"case\.pkl cannot be read \(.*preprocess the dataset anew"):
        read_pickle(file)


@pytest.mark.parametrize("trainer", [SwIPETrainer, SwIPETrainer_noSourceCoordinates])
@pytest.mark.usefixtures("model")
def test_a_hostile_pickle_of_a_preprocessed_case_is_not_run(trainer, marker, tmp_path, monkeypatch):
    """In training; a report and the check for data that are up to date read it by the same datasets."""
    made = make_trainer(trainer, ABDOMEN, CONFIGURATION, fold=3)
    made.initialize()
    data = shutil.copytree(made.preprocessed_dataset_folder, tmp_path / "data")
    case = min(data.glob("*.pkl")).stem
    dataset = made.dataset_class(str(data), [case])
    (data / f"{case}.pkl").write_bytes(pickle.dumps({"spacing": Hostile(marker)}))
    with pytest.raises(ValueError, match=rf"{case}\.pkl refers to os\.makedirs.*SWIPE_TRUST=1"):
        dataset.load_case(case)
    assert not marker.exists()
    monkeypatch.setenv("SWIPE_TRUST", "1")
    dataset.load_case(case)
    assert marker.exists()


def test_a_report_does_not_run_the_pickle_of_the_crop_that_it_shows(model, marker, tmp_path):
    from nnunetv2_swipe.report.training import crop_with_points

    predictor = load(model)
    configuration = predictor.configuration_manager
    source = Path(nnUNet_preprocessed) / ABDOMEN / configuration.data_identifier
    data = shutil.copytree(source, tmp_path / "data")
    case = min(data.glob("*.pkl")).stem
    (data / f"{case}.pkl").write_bytes(pickle.dumps(Hostile(marker)))
    structures = SimpleNamespace(label_colours={})
    arguments = (configuration.configuration, predictor.network.config, predictor.label_manager, structures, case)
    with pytest.raises(ValueError, match=r"refers to os\.makedirs"):
        crop_with_points(data, *arguments)
    assert not marker.exists()


def test_every_dataset_of_nnunet_has_one_that_reads_plain_data():
    from nnunetv2.training.dataloading.nnunet_dataset import file_ending_dataset_mapping

    assert set(PLAIN_DATASETS) == set(file_ending_dataset_mapping.values())
