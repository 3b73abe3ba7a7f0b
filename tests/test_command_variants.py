"""What nnU-Net's commands can be asked for, by their entry points in this process and with narrow networks."""

import json
import shutil
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunet_helpers import (
    ABDOMEN,
    FUNDUS,
    MODEL,
    ON_CPU,
    PLANS,
    call_command,
    edit_json,
    geometry,
    make_trainer,
    narrow,
    nnunet_folders,
    plan,
    plans_file,
    read_labels,
    write_phantom,
    write_variant,
    write_volume,
)
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from PIL import Image

from nnunetv2_swipe.commands.predict import main as predict_main
from nnunetv2_swipe.commands.report import main as report_main

NUMBER, NAME = 903, "Dataset903_Organs"
ORGANS = {"background": 0, "liver": 1, "kidney": 2, "spine": 3, "aorta": 4}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The phantoms, and the abdomen without its tumour: then every case holds every class."""
    with nnunet_folders(
        tmp_path_factory.mktemp("variants"), SWIPE_NUM_EPOCHS="1", SWIPE_ITERATIONS_PER_EPOCH="2"
    ) as root:
        write_phantom(root / "nnUNet_raw", cases_2d=5)
        write_variant(root / "nnUNet_raw" / ABDOMEN, NAME, relabel={5: 1}, labels=ORGANS)
        yield root


def train(number, configuration, fold, *arguments, model=MODEL):
    call_command("nnUNetv2_train", number, configuration, fold, *model, *ON_CPU, *arguments)


def predict(number, configuration, source, output, *arguments, model=MODEL, folds=(0,)):
    """Labels every image of `source`; returns the label files in order."""
    fixed = ("-npp", 1, "-nps", 1, "--disable_progress_bar", *ON_CPU)
    call_command(
        "nnUNetv2_predict", "-i", source, "-o", output, "-d", number, "-c", configuration, *model, "-f", *folds, *fixed,
        *arguments,
    )  # fmt: skip
    return sorted(output.glob("*.nii.gz")) + sorted(output.glob("*.png"))


def plan_narrow(number, name, *configurations):
    plan(number, "SwIPEPlanner", "-c", *configurations)
    edit_json(plans_file(name), narrow)


def probabilities(label_file):
    return np.load(str(label_file).replace(".nii.gz", ".npz"))["probabilities"]


def results(root, name, configuration, trainer="SwIPETrainer", plans=PLANS):
    return root / "nnUNet_results" / name / f"{trainer}__{plans}__{configuration}"


@pytest.fixture(scope="module")
def models(root):
    """Folds 0 and 1 of 3d_fullres and, on the same volumes, of 2d."""
    plan(NUMBER, "ExperimentPlanner", "-c", "3d_fullres", "2d")
    plan_narrow(NUMBER, NAME, "3d_fullres", "2d")
    for configuration in ("3d_fullres", "2d"):
        for fold in (0, 1):
            train(NUMBER, configuration, fold, "--npz")
    return root


@pytest.fixture
def images(root):
    return root / "nnUNet_raw" / NAME / "imagesTs"


def image_of(label_file, images):
    return images / label_file.name.replace(".nii.gz", "_0000.nii.gz")


@pytest.mark.parametrize("arguments", [(), ("--disable_tta",), ("-step_size", 0.8), ("-chk", "checkpoint_best.pth")])
@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_prediction_options(models, images, tmp_path, configuration, arguments):
    assert models.is_dir()
    (labels,) = predict(NUMBER, configuration, images, tmp_path, *arguments)
    np.testing.assert_allclose(geometry(labels), geometry(image_of(labels, images)), rtol=1e-5, atol=1e-4)
    assert set(np.unique(read_labels(labels))) <= set(ORGANS.values())


def test_folds_are_averaged(models, images, tmp_path):
    model = results(models, NAME, "3d_fullres")
    for copy in (2, 3, 4):
        shutil.copytree(model / "fold_0", model / f"fold_{copy}")
    predicted = []
    for folds in ((0,), (1,), (0, 1), (0, 1, 2, 3, 4)):
        output = tmp_path / str(folds)
        (labels,) = predict(NUMBER, "3d_fullres", images, output, "--save_probabilities", "--disable_tta", folds=folds)
        predicted.append(probabilities(labels))
        np.testing.assert_array_equal(predicted[-1].argmax(0), read_labels(labels))
    first, second, *merged = predicted
    assert np.abs(first - second).max() > 0.01
    for probability, share_of_first in zip(merged, (1 / 2, 4 / 5), strict=True):
        mean_of_logits = first**share_of_first * second ** (1 - share_of_first)
        np.testing.assert_allclose(probability, mean_of_logits / mean_of_logits.sum(0), atol=0.02)


def test_parts_share_the_work(models, tmp_path):
    assert models.is_dir()
    images = models / "nnUNet_raw" / NAME / "imagesTr"
    parts = []
    for part in (0, 1):
        options = ("--disable_tta", "-num_parts", 2, "-part_id", part)
        parts.append({f.name for f in predict(NUMBER, "3d_fullres", images, tmp_path / str(part), *options)})
    assert [len(p) for p in parts] == [3, 2]
    assert {name.replace(".nii.gz", "_0000.nii.gz") for name in parts[0] | parts[1]} == {
        f.name for f in images.iterdir()
    }


@pytest.mark.parametrize("planner", ["ExperimentPlanner", "nnUNetPlannerResEncM"])
def test_prediction_by_a_model_of_a_stock_plan(models, images, tmp_path, planner):
    assert models.is_dir()
    plan(NUMBER, planner, "-c", "3d_fullres")
    plans = {"ExperimentPlanner": "nnUNetPlans", "nnUNetPlannerResEncM": "nnUNetResEncUNetMPlans"}[planner]
    model = ("-tr", "SwIPETrainer", "-p", plans)
    train(NUMBER, "3d_fullres", 0, model=model)
    (labels,) = predict(NUMBER, "3d_fullres", images, tmp_path, "--disable_tta", model=model)
    np.testing.assert_allclose(geometry(labels), geometry(image_of(labels, images)), rtol=1e-5, atol=1e-4)
    assert set(np.unique(read_labels(labels))) <= set(ORGANS.values())


def test_model_folder_predicts_the_same(models, images, tmp_path):
    (by_name,) = predict(NUMBER, "3d_fullres", images, tmp_path / "name", "--disable_tta")
    folder = results(models, NAME, "3d_fullres")
    arguments = ("-i", images, "-o", tmp_path / "folder", "-m", folder, "-f", 0, "--disable_tta", "-npp", 1, "-nps", 1)
    call_command("nnUNetv2_predict_from_modelfolder", *arguments, *ON_CPU)
    assert np.mean(read_labels(tmp_path / "folder" / by_name.name) == read_labels(by_name)) > 0.999


@pytest.mark.parametrize("checkpoint", [(), ("--val_best",)])
def test_validation_alone(models, checkpoint):
    summary = results(models, NAME, "3d_fullres") / "fold_0" / "validation" / "summary.json"
    before = json.loads(summary.read_text())["foreground_mean"]["Dice"]
    summary.unlink()
    train(NUMBER, "3d_fullres", 0, "--val", "--npz", *checkpoint)
    assert json.loads(summary.read_text())["foreground_mean"]["Dice"] == pytest.approx(before, abs=1e-2)


def test_pretrained_weights(models, capsys):
    model = results(models, NAME, "2d")
    train(NUMBER, "2d", 2, "-pretrained_weights", model / "fold_0" / "checkpoint_final.pth")
    assert "Loading pretrained weights from file" in capsys.readouterr().out
    assert (model / "fold_2" / "validation" / "summary.json").is_file()


def save_untrained_stock_model(plans):
    """A model of nnU-Net's own trainer, of random weights: to train it would take too long."""
    trainer = make_trainer(nnUNetTrainer, NAME, "3d_fullres", plans=plans)
    trainer.initialize()
    trainer.inference_allowed_mirroring_axes = (0, 1, 2)
    trainer.save_checkpoint(str(Path(trainer.output_folder, "checkpoint_final.pth")))
    for file, content in (("plans", trainer.plans_manager.plans), ("dataset", trainer.dataset_json)):
        Path(trainer.output_folder_base, f"{file}.json").write_text(json.dumps(content))
    return "-tr", "nnUNetTrainer", "-p", plans


def test_ensemble_with_a_stock_model(models, images, tmp_path):
    assert models.is_dir()
    stock = save_untrained_stock_model("nnUNetPlans")
    members = []
    for name, model in (("ours", MODEL), ("stock", stock)):
        options = ("--save_probabilities", "--disable_tta")
        members += predict(NUMBER, "3d_fullres", images, tmp_path / name, *options, model=model)
    call_command("nnUNetv2_ensemble", "-i", *(m.parent for m in members), "-o", tmp_path / "both", "--save_npz")
    merged = tmp_path / "both" / members[0].name
    np.testing.assert_allclose(probabilities(merged), sum(map(probabilities, members)) / 2, atol=1e-6)
    np.testing.assert_array_equal(read_labels(merged), probabilities(merged).argmax(0))


def test_our_plan_serves_the_stock_trainer(models, images, tmp_path):
    assert models.is_dir()
    stock = save_untrained_stock_model(PLANS)
    (labels,) = predict(NUMBER, "3d_fullres", images, tmp_path, "--disable_tta", model=stock)
    assert read_labels(labels).shape == read_labels(image_of(labels, images)).shape


def test_best_configuration_and_its_postprocessing(models, images, tmp_path):
    arguments = (NUMBER, "-p", PLANS, "-c", "3d_fullres", "2d", "-tr", "SwIPETrainer", "-f", 0, 1, "-np", 1)
    call_command("nnUNetv2_find_best_configuration", *arguments)
    found = json.loads((models / "nnUNet_results" / NAME / "inference_information.json").read_text())
    names = [f"SwIPETrainer__{PLANS}__{c}" for c in ("3d_fullres", "2d")]
    assert set(found["all_results"]) == {*names, f"ensemble___{'___'.join(names)}___0_1"}
    best = found["best_model_or_ensemble"]
    predict(NUMBER, "3d_fullres", images, tmp_path / "in", "--disable_tta")
    files = ("-pp_pkl_file", best["postprocessing_file"], "-plans_json", best["some_plans_file"])
    call_command("nnUNetv2_apply_postprocessing", "-i", tmp_path / "in", "-o", tmp_path / "out", *files, "-np", 1)
    (before,), (after,) = ((tmp_path / folder).glob("*.nii.gz") for folder in ("in", "out"))
    assert before.name == after.name
    np.testing.assert_allclose(geometry(after), geometry(before), rtol=1e-5, atol=1e-4)


def test_cascade(models, images, tmp_path):
    """A low resolution whose segmentations of all cases go to a second stage as further channels."""
    plans = json.loads(plans_file(NAME).read_text()) | {"plans_name": "CascadePlans"}
    low = deepcopy(plans["configurations"]["3d_fullres"]) | {
        "data_identifier": "CascadePlans_3d_lowres",
        "next_stage": "3d_cascade_fullres",
    }
    low["spacing"] = [2 * s for s in low["spacing"]]
    for key in ("patch_size", "median_image_size_in_voxels"):
        low[key] = [max(8, int(n) // 2) for n in low[key]]
    second = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    plans["configurations"] |= {"3d_lowres": low, "3d_cascade_fullres": second}
    plans_file(NAME, "CascadePlans").write_text(json.dumps(plans))
    model = ("-tr", "SwIPETrainer", "-p", "CascadePlans")

    call_command("nnUNetv2_preprocess", "-d", NUMBER, "-plans_name", "CascadePlans", "-c", "3d_lowres", "-np", 1)
    train(NUMBER, "3d_lowres", "all", model=model)
    stage = results(models, NAME, "3d_lowres", plans="CascadePlans") / "predicted_next_stage" / "3d_cascade_fullres"
    assert len(list(stage.glob("*.b2nd"))) == 5
    train(NUMBER, "3d_cascade_fullres", 0, model=model)
    fold = results(models, NAME, "3d_cascade_fullres", plans="CascadePlans") / "fold_0"
    weights = torch.load(fold / "checkpoint_final.pth", weights_only=False)["network_weights"]
    first_layer = next(iter(weights.values()))
    assert first_layer.shape[1] == 1 + len(ORGANS) - 1  # the image, and the foreground classes of the stage before

    predict(NUMBER, "3d_lowres", images, tmp_path / "low", "--disable_tta", model=model, folds=("all",))
    options = ("--disable_tta", "-prev_stage_predictions", tmp_path / "low")
    (labels,) = predict(NUMBER, "3d_cascade_fullres", images, tmp_path / "full", *options, model=model)
    np.testing.assert_allclose(geometry(labels), geometry(image_of(labels, images)), rtol=1e-5, atol=1e-4)

    fixed = ("-i", images, "-d", NUMBER, "-c", "3d_cascade_fullres", "-f", 0, "-npp", 2, "-nps", 2, *model, *ON_CPU)
    ours = tmp_path / "ours"
    call_command("nnUNetv2_swipe_predict", *fixed, "-o", ours, *options, function=predict_main)
    assert (
        np.mean(read_labels(ours / labels.name) == read_labels(labels)) > 0.7
    )  # noise of a network that learnt nothing
    page = tmp_path / "report.html"
    call_command("nnUNetv2_swipe_report", fold.parent, "-o", page, "-f", 0, "--cases", 1, *ON_CPU, function=report_main)
    assert '"name":"Error"' in page.read_text()
    assert '"name":"Attention' not in page.read_text()


REGIONS = {"background": 0, "organs": [1, 2, 3, 4], "liver": 1, "aorta": 4, "ignore": 5}


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("Dataset904_Ignore", {"labels": ORGANS | {"ignore": 5}}, {0, 1, 2, 3, 4}),
        ("Dataset905_Regions", {"labels": REGIONS, "regions_class_order": [2, 1, 4]}, {0, 1, 2, 4}),
        ("Dataset906_Channels", {"channels": 2, "channel_names": {"0": "MRI", "1": "CT"}}, set(range(6))),
    ],
)
def test_labels_and_channels(root, tmp_path, name, changes, expected):
    """The tumour is the ignored part, or a class like the others."""
    folder = write_variant(root / "nnUNet_raw" / ABDOMEN, name, **changes)
    number = int(name[len("Dataset") :].split("_")[0])
    plan_narrow(number, name, "3d_fullres")
    train(number, "3d_fullres", 0)
    model = results(root, name, "3d_fullres")
    classes = json.loads((model / "fold_0" / "validation" / "summary.json").read_text())["mean"]
    assert len(classes) == (3 if "Regions" in name else len(expected) - 1)
    (labels,) = predict(number, "3d_fullres", folder / "imagesTs", tmp_path, "--disable_tta")
    assert set(np.unique(read_labels(labels))) <= expected
    block = json.loads((model / "plans.json").read_text())["configurations"]["3d_fullres"]["swipe"]
    assert block["regions"] is ("Regions" in name)


def test_odd_cases_simply_work(root, tmp_path):
    """An empty label map, a single slice, and an image smaller than the crop in every direction."""
    name = "Dataset907_Odd"
    folder = write_variant(root / "nnUNet_raw" / ABDOMEN, name)
    crops = {"000": np.s_[:], "001": np.s_[6:7], "002": np.s_[5:9, 12:17, 10:16]}
    for case, crop in crops.items():
        for file in (
            folder / "imagesTr" / f"abdomen_{case}_0000.nii.gz",
            folder / "labelsTr" / f"abdomen_{case}.nii.gz",
        ):
            write_volume(read_labels(file)[crop], file, spacing=(7, 2.8, 2.8))
    empty = folder / "labelsTr" / "abdomen_000.nii.gz"
    write_volume(np.zeros_like(read_labels(empty)), empty, spacing=(7, 2.8, 2.8))
    plan_narrow(907, name, "3d_fullres")
    train(907, "3d_fullres", "all")
    summary = results(root, name, "3d_fullres") / "fold_all" / "validation" / "summary.json"
    assert len(json.loads(summary.read_text())["metric_per_case"]) == 5
    labels = predict(907, "3d_fullres", folder / "imagesTr", tmp_path, "--disable_tta", folds=("all",))
    shapes = {file.name.removesuffix(".nii.gz"): read_labels(file).shape for file in labels}
    assert (shapes["abdomen_001"][0], shapes["abdomen_002"]) == (1, (4, 5, 6))


def test_photographs(root, tmp_path):
    plan_narrow(902, FUNDUS, "2d")
    train(902, "2d", 0)
    images = root / "nnUNet_raw" / FUNDUS / "imagesTs"
    (labels,) = predict(902, "2d", images, tmp_path)
    image = np.array(Image.open(images / labels.name.replace(".png", "_0000.png")))
    predicted = np.array(Image.open(labels))
    assert predicted.shape == image.shape[:2]
    declared = json.loads(plans_file(FUNDUS, "dataset").read_text())["labels"].values()
    assert set(np.unique(predicted)) <= set(declared)


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        (("-overwrite_target_spacing", 6, 3, 3), "spacing", [6.0, 3.0, 3.0]),
        (("-preprocessor_name", "AnotherPreprocessor"), "preprocessor_name", "AnotherPreprocessor"),
    ],
)
def test_planner_options(models, options, key, value):
    """A plan of another preprocessing has another name, and data of its own."""
    assert models.is_dir()
    before = plans_file(NAME).read_text()
    plan(NUMBER, "SwIPEPlanner", "--no_pp", "-overwrite_plans_name", "Other", *options)
    assert plans_file(NAME).read_text() == before
    configuration = json.loads(plans_file(NAME, "Other").read_text())["configurations"]["3d_fullres"]
    assert configuration[key] == value
    assert configuration["data_identifier"] == "Other_3d_fullres"
    assert configuration["swipe"]["source_coordinates"] is (key == "spacing")
    plans_file(NAME, "Other").unlink()


def test_memory_target_is_that_of_nnunets_planner(models):
    """Here a crop smaller than the image."""
    assert models.is_dir()
    crops = {}
    for planner in ("ExperimentPlanner", "SwIPEPlanner"):
        options = ("--no_pp", "-gpu_memory_target", 0.03, "-overwrite_plans_name", planner)
        plan(NUMBER, planner, "-c", "3d_fullres", *options)
        crops[planner] = json.loads(plans_file(NAME, planner).read_text())["configurations"]["3d_fullres"]
        plans_file(NAME, planner).unlink()
    stock, ours = crops.values()
    usual = json.loads(plans_file(NAME).read_text())["configurations"]["3d_fullres"]
    assert (ours["patch_size"], ours["batch_size"]) == (stock["patch_size"], stock["batch_size"])
    assert np.prod(ours["patch_size"]) < np.prod(usual["patch_size"])


def test_undeclared_label_stops_the_planner_at_the_file(root):
    write_variant(root / "nnUNet_raw" / ABDOMEN, "Dataset908_Undeclared", labels=ORGANS)
    with pytest.raises(
        ValueError, match=r"abdomen_\d+\.nii\.gz holds the label 5, which dataset.json does not declare"
    ):
        plan(908, "SwIPEPlanner", "--no_pp")
