"""A short training on real data: S as the planner derives it, a falling loss, labels on the image's grid.

Runs where the environment variable SWIPE_TEST_DATA names a folder with Dataset004_Hippocampus in nnU-Net's raw format
and KvasirSEG, its images and masks as JPEG.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunet_helpers import geometry, make_trainer, nnunet_folders, plan, read_labels
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from PIL import Image

from nnunetv2_swipe.precision import AMP_VARIABLE
from nnunetv2_swipe.trainers import SwIPETrainer

DATA = os.environ.get("SWIPE_TEST_DATA", "")
CASES = 12

pytestmark = pytest.mark.skipif(not DATA, reason="SWIPE_TEST_DATA names no folder with real data")


@pytest.fixture(autouse=True)
def precision_of_the_hardware(monkeypatch):
    """As in everyday use; the other tests compute in float32."""
    monkeypatch.setenv(AMP_VARIABLE, "auto")
    yield
    monkeypatch.undo()


@pytest.fixture
def raw(tmp_path):
    with nnunet_folders(tmp_path, SWIPE_NUM_EPOCHS="1") as root:
        yield root / "nnUNet_raw"


def train(trainer):
    """One epoch; the loss of each step."""
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    steps = range(trainer.num_iterations_per_epoch)
    return [float(trainer.train_step(next(trainer.dataloader_train))["loss"]) for _ in steps]


def write_dataset_json(folder, **description):
    (folder / "dataset.json").write_text(json.dumps({"numTraining": CASES, **description}))


def test_hippocampus(raw, tmp_path, monkeypatch):
    name = "Dataset004_Hippocampus"
    source = Path(DATA) / name
    for folder in ("imagesTr", "labelsTr"):
        (raw / name / folder).mkdir(parents=True)
    for labels in sorted((source / "labelsTr").glob("*.nii.gz"))[:CASES]:
        shutil.copy(labels, raw / name / "labelsTr")
        image = labels.name.replace(".nii.gz", "_0000.nii.gz")
        shutil.copy(source / "imagesTr" / image, raw / name / "imagesTr")
    write_dataset_json(
        raw / name,
        channel_names={"0": "MRI"},
        labels={"background": 0, "Anterior": 1, "Posterior": 2},
        file_ending=".nii.gz",
    )
    plan(4, "SwIPEPlanner", "-c", "3d_fullres")

    monkeypatch.setenv("SWIPE_ITERATIONS_PER_EPOCH", "30")
    torch.manual_seed(0)
    trainer = make_trainer(SwIPETrainer, name, "3d_fullres")
    assert trainer.config.patch_size == (2, 2, 2)
    losses = train(trainer)
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])

    trainer.save_checkpoint(str(Path(trainer.output_folder, "checkpoint_final.pth")))
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, use_folds=(0,))
    _, (case, *_) = trainer.do_split()
    image, output = raw / name / "imagesTr" / f"{case}_0000.nii.gz", tmp_path / "predicted"
    output.mkdir()
    predictor.predict_from_files_sequential([[str(image)]], [str(output / case)])
    predicted = output / f"{case}.nii.gz"
    np.testing.assert_allclose(geometry(predicted), geometry(image), rtol=1e-5, atol=1e-4)
    assert set(np.unique(read_labels(predicted))) <= {0, 1, 2}


def test_polyps(raw, monkeypatch):
    name = "Dataset501_KvasirSEG"
    for folder in ("imagesTr", "labelsTr"):
        (raw / name / folder).mkdir(parents=True)
    for image in sorted((Path(DATA) / "KvasirSEG" / "images").glob("*.jpg"))[:CASES]:
        Image.open(image).convert("RGB").save(raw / name / "imagesTr" / f"{image.stem}_0000.png")
        mask = np.asarray(Image.open(Path(DATA) / "KvasirSEG" / "masks" / image.name).convert("L")) > 127
        Image.fromarray(mask.astype(np.uint8)).save(raw / name / "labelsTr" / f"{image.stem}.png")
    write_dataset_json(
        raw / name,
        channel_names={"0": "R", "1": "G", "2": "B"},
        labels={"background": 0, "polyp": 1},
        file_ending=".png",
    )
    plan(501, "SwIPEPlanner", "-c", "2d")

    monkeypatch.setenv("SWIPE_ITERATIONS_PER_EPOCH", "24")
    torch.manual_seed(0)
    trainer = make_trainer(SwIPETrainer, name, "2d")
    assert trainer.config.patch_size == (8, 8)
    losses = train(trainer)
    assert np.mean(losses[-6:]) < 0.9 * np.mean(losses[:6])
