"""`scripts/real_data.py` with nnU-Net's commands replaced: what is interrupted is made again, what is done is not."""

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import real_data
from demo import DemoError

HIPPOCAMPUS = real_data.DATASETS["hippocampus"][0]
N_CASES = 10


@pytest.fixture
def data(tmp_path):
    """A folder with both datasets, without content worth training on."""
    source = tmp_path / "data" / HIPPOCAMPUS
    for folder in ("imagesTr", "labelsTr"):
        (source / folder).mkdir(parents=True)
    for i in range(N_CASES):
        (source / "imagesTr" / f"case_{i}_0000.nii.gz").touch()
        (source / "labelsTr" / f"case_{i}.nii.gz").touch()
    (source / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz", "numTraining": N_CASES}))
    polyps = tmp_path / "data" / "KvasirSEG"
    for folder in ("images", "masks"):
        (polyps / folder).mkdir(parents=True)
    Image.new("RGB", (8, 6), (10, 20, 30)).save(polyps / "images" / "a.jpg")
    mask = np.zeros((8, 16), dtype=np.uint8)
    mask[:, 8:] = 200
    Image.fromarray(mask).save(polyps / "masks" / "a.jpg", quality=100)
    return tmp_path / "data"


@pytest.fixture
def commands(monkeypatch):
    """Replaces nnU-Net's commands by what they leave; yields the list of those that were called."""
    called = []

    def run_step(_title, command, _log, environment):
        called.append(command[0])
        preprocessed = Path(environment["nnUNet_preprocessed"]) / HIPPOCAMPUS
        summary = json.dumps({"foreground_mean": {"Dice": 0.5}, "mean": {"1": {"Dice": 0.5}}})
        if command[0] == "nnUNetv2_plan_and_preprocess":
            preprocessed.mkdir(exist_ok=True)
            (preprocessed / "nnUNetSwIPEPlans.json").touch()
        elif command[0] == "nnUNetv2_train":
            model = Path(environment["nnUNet_results"]) / HIPPOCAMPUS / "SwIPETrainer__nnUNetSwIPEPlans__3d_fullres"
            (model / "fold_0" / "validation").mkdir(parents=True)
            (model / "fold_0" / "validation" / "summary.json").write_text(summary)
        elif command[0] == "nnUNetv2_evaluate_folder":
            Path(command[2]).mkdir(parents=True)
            (Path(command[2]) / "summary.json").write_text(summary)

    monkeypatch.setattr(real_data, "run_step", run_step)
    return called


def prepare(data, folder):
    return real_data.prepare("hippocampus", data, folder, "nnUNetSwIPEPlans")


def test_data_plan_and_split_are_made_once(data, tmp_path, commands):
    folder = tmp_path / "work"
    for _ in range(2):
        prepare(data, folder)
    assert commands == ["nnUNetv2_plan_and_preprocess"]
    assert len(list((folder / "nnUNet_raw" / HIPPOCAMPUS / "imagesTr").iterdir())) == N_CASES
    splits = json.loads((folder / "nnUNet_preprocessed" / HIPPOCAMPUS / "splits_final.json").read_text())
    assert sorted(case for fold in splits for case in fold["val"]) == [f"case_{i}" for i in range(N_CASES)]
    images = sorted(f.name for f in real_data.validation_images("hippocampus", folder).iterdir())
    assert images == [f"{case}_0000.nii.gz" for case in real_data.validation_cases("hippocampus", folder)]
    assert len(images) == N_CASES // 5


@pytest.mark.usefixtures("commands")
def test_a_copy_that_was_interrupted_is_made_again(data, tmp_path, monkeypatch):
    def interrupted(source, target, **_):
        shutil.copy(source / "dataset.json", target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(real_data.shutil, "copytree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(data, tmp_path / "work")
    prepare(data, tmp_path / "work")
    assert len(list((tmp_path / "work" / "nnUNet_raw" / HIPPOCAMPUS / "labelsTr").iterdir())) == N_CASES


def test_preprocessing_that_was_interrupted_is_done_again(data, tmp_path, commands, monkeypatch):
    complete = real_data.run_step

    def interrupted(*arguments):
        complete(*arguments)
        raise DemoError("killed")

    monkeypatch.setattr(real_data, "run_step", interrupted)
    with pytest.raises(DemoError, match="killed"):
        prepare(data, tmp_path / "work")
    monkeypatch.setattr(real_data, "run_step", complete)
    prepare(data, tmp_path / "work")
    assert commands == ["nnUNetv2_plan_and_preprocess"] * 2


def test_trainings_of_other_lengths_lie_beside_each_other(data, tmp_path, commands, capsys):
    arguments = {"dataset": "hippocampus", "data": data, "folder": tmp_path / "work", "plans": "nnUNetSwIPEPlans"}
    lengths = [(4, 250), (2, 50), (4, 250)]
    for epochs, iterations in lengths:
        options = {"trainer": "SwIPETrainer", "device": "cpu", "epochs": epochs, "iterations": iterations}
        real_data.run(argparse.Namespace(**arguments, **options))
    assert commands.count("nnUNetv2_train") == commands.count("nnUNetv2_predict") == 2
    lines = capsys.readouterr().out.splitlines()
    assert [f"{e}x{i} iterations" in line for line, (e, i) in zip(lines, lengths, strict=True)] == [True] * 3


def test_missing_data_are_named(tmp_path):
    with pytest.raises(DemoError, match=rf"{HIPPOCAMPUS} is missing; --data"):
        prepare(tmp_path / "nowhere", tmp_path / "work")


def test_polyps_become_png_with_masks_of_one_class(data, tmp_path):
    real_data.prepare_raw("polyps", data, tmp_path / "raw")
    folder = tmp_path / "raw" / real_data.DATASETS["polyps"][0]
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == 1
    labels = np.asarray(Image.open(folder / "labelsTr" / "a.png"))
    assert labels[:, :8].max() == 0
    assert labels[:, 8:].min() == labels.max() == 1
    assert Image.open(folder / "imagesTr" / "a_0000.png").size == (8, 6)
