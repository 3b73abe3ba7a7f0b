"""Nothing but nnU-Net's own console commands, each in a process of its own, from the raw data to an installed model."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunet_helpers import (
    ABDOMEN,
    MODEL,
    ON_CPU,
    PLANS,
    dates,
    geometry,
    make_folders,
    read_labels,
    run_command,
    run_python,
    write_phantom,
)
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

MODEL_FOLDER = f"{ABDOMEN}/SwIPETrainer__{PLANS}__3d_fullres"
EPOCHS, ITERATIONS = 3, 3

# nnU-Net's training command; keeps the checkpoint that it overwrites after each epoch and removes in the end.
TRAIN_AND_KEEP_CHECKPOINTS = """
import shutil
from nnunetv2.run.run_training import run_training_entry
from nnunetv2_swipe.trainers import SwIPETrainer

save = SwIPETrainer.save_checkpoint

def save_and_keep(self, filename):
    save(self, filename)
    if filename.endswith("checkpoint_latest.pth"):
        shutil.copy(filename, f"{filename}.{self.current_epoch}")

SwIPETrainer.save_checkpoint = save_and_keep
run_training_entry()
"""


def schedule(epochs, iterations):
    """A short training, whose loader works in the training process so that its draws can be repeated."""
    return {
        "SWIPE_NUM_EPOCHS": str(epochs),
        "SWIPE_ITERATIONS_PER_EPOCH": str(iterations),
        "nnUNet_n_proc_DA": "0",
        "OMP_NUM_THREADS": "2",
    }


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A dataset planned by nnU-Net's planner and then by ours."""
    root = tmp_path_factory.mktemp("stock_commands")
    variables = make_folders(root) | {"nnUNet_def_n_proc": "2"}
    write_phantom(root / "nnUNet_raw")
    preprocessed = root / "nnUNet_preprocessed" / ABDOMEN
    arguments = ("-d", 901, "-c", "3d_fullres", "-np", 2)
    run_command("nnUNetv2_plan_and_preprocess", *arguments, "-npfp", 2, variables=variables)
    before = dates(preprocessed / "nnUNetPlans_3d_fullres")
    run_command("nnUNetv2_plan_and_preprocess", *arguments, "-pl", "SwIPEPlanner", variables=variables)
    return SimpleNamespace(root=root, variables=variables, preprocessed=preprocessed, before=before)


def test_our_planner_adds_a_plan_and_leaves_nnunets_data_alone(planned):
    ours, stock = (json.loads((planned.preprocessed / f"{p}.json").read_text()) for p in (PLANS, "nnUNetPlans"))
    assert ours["experiment_planner_used"] == "SwIPEPlanner"
    for name, configuration in ours["configurations"].items():
        assert configuration["swipe"]["patch_size"]
        assert configuration["data_identifier"] == stock["configurations"][name]["data_identifier"]
        assert "swipe" not in stock["configurations"][name]
    assert dates(planned.preprocessed / "nnUNetPlans_3d_fullres") == planned.before
    assert not list(planned.preprocessed.glob(f"{PLANS}_*"))
    assert (planned.preprocessed / "dataset_label_statistics.json").is_file()


@pytest.fixture(scope="module")
def trained_on_stock_plan(planned):
    arguments = (901, "3d_fullres", 0, "-tr", "SwIPETrainer", *ON_CPU)
    run_command("nnUNetv2_train", *arguments, variables=planned.variables | schedule(1, 2))
    return planned.root / "nnUNet_results" / ABDOMEN / "SwIPETrainer__nnUNetPlans__3d_fullres"


def test_training_on_a_stock_plan_leaves_a_whole_model(trained_on_stock_plan):
    """What prediction, export and nnUNetv2_find_best_configuration ask for."""
    fold = trained_on_stock_plan / "fold_0"
    for file in ("checkpoint_final.pth", "progress.png", "debug.json", "validation/summary.json"):
        assert (fold / file).is_file()
    for file in ("plans.json", "dataset.json", "dataset_fingerprint.json"):
        assert (trained_on_stock_plan / file).is_file()
    configuration = json.loads((trained_on_stock_plan / "plans.json").read_text())["configurations"]["3d_fullres"]
    assert configuration["swipe"]["source_coordinates"] is True
    assert configuration["preprocessor_name"] == "SwIPEPreprocessor_withSourceFrame"


@pytest.fixture(scope="module")
def trained(planned):
    """A training of our plan, without interruption."""
    arguments = (901, "3d_fullres", 0, *MODEL, *ON_CPU, "--npz")
    run_python(TRAIN_AND_KEEP_CHECKPOINTS, *arguments, variables=planned.variables | schedule(EPOCHS, ITERATIONS))
    return planned.root / "nnUNet_results" / MODEL_FOLDER


def test_validation_writes_probabilities_for_ensembling(trained):
    (labels,) = (trained / "fold_0" / "validation").glob("*.nii.gz")
    probabilities = np.load(str(labels).replace(".nii.gz", ".npz"))["probabilities"]
    assert probabilities.shape == (6, *read_labels(labels).shape)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-2)


def test_a_resumed_training_goes_on_as_if_it_had_never_stopped(planned, trained):
    """To the last bit, in another process than the one that began it."""
    results = planned.root / "resumed"
    fold = results / MODEL_FOLDER / "fold_0"
    shutil.copytree(trained, results / MODEL_FOLDER)
    for file in ("checkpoint_final.pth", "checkpoint_best.pth"):
        (fold / file).unlink()
    shutil.move(fold / "checkpoint_latest.pth.0", fold / "checkpoint_latest.pth")
    variables = planned.variables | schedule(EPOCHS, ITERATIONS) | {"nnUNet_results": str(results)}
    output = run_command("nnUNetv2_train", 901, "3d_fullres", 0, *MODEL, *ON_CPU, "--c", variables=variables)
    assert "Epoch 1" in output
    assert "Epoch 0" not in output
    resumed, whole = (
        torch.load(folder / "checkpoint_final.pth", weights_only=False) for folder in (fold, trained / "fold_0")
    )
    assert len(whole["logging"]["train_losses"]) == EPOCHS
    for key in ("train_losses", "val_losses", "lrs"):
        assert resumed["logging"][key] == whole["logging"][key]
    assert resumed["network_weights"].keys() == whole["network_weights"].keys()
    different = [
        key for key, value in whole["network_weights"].items() if not resumed["network_weights"][key].equal(value)
    ]
    assert different == []


def predict(planned, output, *model):
    images = planned.root / "nnUNet_raw" / ABDOMEN / "imagesTs"
    arguments = ("-i", images, "-o", output, "-d", 901, "-c", "3d_fullres", "-f", 0, "-npp", 1, "-nps", 1)
    run_command("nnUNetv2_predict", *arguments, *model, *ON_CPU, "--save_probabilities", variables=planned.variables)
    return output


@pytest.fixture(scope="module")
def predicted(planned, trained):
    """The test image as nnUNetv2_predict labels it."""
    assert trained.is_dir()
    return predict(planned, planned.root / "predicted", *MODEL)


def test_prediction_lies_on_the_images_grid(planned, predicted):
    (labels,) = predicted.glob("*.nii.gz")
    image = planned.root / "nnUNet_raw" / ABDOMEN / "imagesTs" / labels.name.replace(".nii.gz", "_0000.nii.gz")
    np.testing.assert_allclose(geometry(labels), geometry(image), rtol=1e-5, atol=1e-4)
    assert set(np.unique(read_labels(labels))) <= set(range(6))


def test_ensemble_of_two_models(planned, predicted, trained_on_stock_plan):
    assert trained_on_stock_plan.is_dir()
    members = (predicted, predict(planned, planned.root / "by_stock_plan", "-tr", "SwIPETrainer"))
    output = planned.root / "ensemble"
    run_command("nnUNetv2_ensemble", "-i", *members, "-o", output, "-np", 1, variables=planned.variables)
    (labels,) = output.glob("*.nii.gz")
    file = labels.name.replace(".nii.gz", ".npz")
    mean = sum(np.load(member / file)["probabilities"] for member in members) / 2
    np.testing.assert_array_equal(read_labels(labels), mean.argmax(0))


@pytest.fixture(scope="module")
def installed(planned, trained):
    """The model, exported to a zip file and installed where there was nothing."""
    assert trained.is_dir()
    file, results = planned.root / "model.zip", planned.root / "elsewhere"
    results.mkdir()
    arguments = ("-d", 901, "-o", file, "-c", "3d_fullres", *MODEL, "-f", 0)
    run_command("nnUNetv2_export_model_to_zip", *arguments, variables=planned.variables)
    variables = {"nnUNet_results": str(results)}
    run_command("nnUNetv2_install_pretrained_model_from_zip", file, variables=variables)
    return results / MODEL_FOLDER


def test_installed_model_predicts_the_same_from_python(planned, predicted, installed):
    (labels,) = predicted.glob("*.nii.gz")
    folder = planned.root / "nnUNet_raw" / ABDOMEN / "imagesTs"
    image, properties = SimpleITKIO().read_images([str(folder / labels.name.replace(".nii.gz", "_0000.nii.gz"))])
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(installed), use_folds=(0,))
    segmentation = predictor.predict_single_npy_array(image, properties)
    assert np.mean(segmentation == read_labels(labels)) > 0.999  # float noise may decide a tie otherwise
