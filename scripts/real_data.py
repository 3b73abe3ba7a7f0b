"""Accuracy on real data, with nnU-Net's commands alone: prepare, plan, train fold 0, predict its validation cases.

    python scripts/real_data.py hippocampus --data DATA [--folder FOLDER] [--trainer SwIPETrainer] [--epochs 4]
        [--iterations 250]

DATA holds `Dataset004_Hippocampus` in nnU-Net's raw format (Medical Segmentation Decathlon) or `KvasirSEG` with
`images` and `masks` (JPEG). What an earlier run finished is not made again; trainings of other lengths lie beside each
other. Prints one line with the Dice of nnU-Net's own final validation and of `nnUNetv2_predict` on the same cases.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from nnunetv2.utilities.crossval_split import generate_crossval_split
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from PIL import Image

from demo import DemoError, run_step

DATASETS = {
    "hippocampus": ("Dataset004_Hippocampus", "3d_fullres"),
    "polyps": ("Dataset501_KvasirSEG", "2d"),
}
PLANNERS = {
    "nnUNetPlans": "ExperimentPlanner",
    "nnUNetResEncUNetMPlans": "nnUNetPlannerResEncM",
    "nnUNetSwIPEPlans": "SwIPEPlanner",
}
FOLD = 0


def prepare_raw(dataset: str, data: Path, raw: Path) -> None:
    """Bring a dataset into nnU-Net's raw format; polyp masks are thresholded at 127."""
    name = DATASETS[dataset][0]
    if (raw / name).is_dir():
        return
    source = data / (name if dataset == "hippocampus" else "KvasirSEG")
    if not source.is_dir():
        raise DemoError(f"{source} is missing; --data names the folder that holds it")
    with _whole(raw / name) as folder:
        if dataset == "hippocampus":
            shutil.copytree(source, folder, dirs_exist_ok=True)
        else:
            _convert_polyps(source, folder)


@contextlib.contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A new folder to fill; it gets its name when it is full, so that what was interrupted is made again."""
    unfinished = folder.with_name(f"unfinished_{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    unfinished.rename(folder)


def _convert_polyps(source: Path, folder: Path) -> None:
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir()
    images = sorted((source / "images").glob("*.jpg"))
    for path in images:
        mask = np.asarray(Image.open(source / "masks" / path.name).convert("L")) > 127
        Image.open(path).convert("RGB").save(folder / "imagesTr" / f"{path.stem}_0000.png")
        Image.fromarray(mask.astype(np.uint8)).save(folder / "labelsTr" / f"{path.stem}.png")
    description = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, "polyp": 1},
        "numTraining": len(images),
        "file_ending": ".png",
    }
    (folder / "dataset.json").write_text(json.dumps(description))


def validation_images(dataset: str, folder: Path) -> Path:
    """The folder with copies of the fold's validation images, made in the work folder unless it is there."""
    name = DATASETS[dataset][0]
    copies = folder / "validation_images" / name
    if not copies.is_dir():
        with _whole(copies) as unfinished:
            for case in validation_cases(dataset, folder):
                for image in (folder / "nnUNet_raw" / name / "imagesTr").glob(f"{case}_[0-9][0-9][0-9][0-9].*"):
                    shutil.copy(image, unfinished)
    return copies


def validation_cases(dataset: str, folder: Path) -> list[str]:
    """The fold's validation cases, sorted."""
    splits = folder / "nnUNet_preprocessed" / DATASETS[dataset][0] / "splits_final.json"
    return sorted(json.loads(splits.read_text())[FOLD]["val"])


def seconds_of_training(model: Path) -> float:
    """Sum of the epoch times in the newest training log, online validation included."""
    log = max((model / f"fold_{FOLD}").glob("training_log_*.txt"), key=lambda f: f.stat().st_mtime, default=None)
    return sum(map(float, re.findall(r"Epoch time: ([\d.]+)", log.read_text()))) if log else float("nan")


def prepare(dataset: str, data: Path, folder: Path, plans: str) -> dict[str, str]:
    """Raw data, plan, preprocessed data and split, unless they are there; returns nnU-Net's environment.

    Raises:
        DemoError: The dataset is not in `data`, or nnU-Net's command fails.
    """
    name, configuration = DATASETS[dataset]
    folders = {key: folder / key for key in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for path in (*folders.values(), folder / "logs"):
        path.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {key: str(path) for key, path in folders.items()}
    prepare_raw(dataset, data, folders["nnUNet_raw"])
    preprocessed = folders["nnUNet_preprocessed"] / name
    done = preprocessed / f"{plans}.done"  # the plan itself is written before anything is preprocessed
    if not done.is_file():
        command = ["nnUNetv2_plan_and_preprocess", "-d", number_of(name), "-c", configuration]
        options = ["-pl", PLANNERS[plans], "-np", "2"]
        run_step(f"plan {plans}", command + options, folder / "logs" / f"{name}_{plans}.log", environment)
        done.touch()
    splits = preprocessed / "splits_final.json"
    if not splits.is_file():  # as nnU-Net's first training would
        cases = sorted(get_filenames_of_train_images_and_targets(str(folders["nnUNet_raw"] / name)))
        splits.write_text(json.dumps(generate_crossval_split(cases, seed=12345, n_splits=5)))
    return environment


def number_of(dataset_name: str) -> str:
    """Dataset004_Hippocampus -> 004."""
    return dataset_name.removeprefix("Dataset").split("_")[0]


def run(arguments: argparse.Namespace) -> Path:
    """Run every step that is not done and print the line of results; returns the model folder."""
    name, configuration = DATASETS[arguments.dataset]
    plans = arguments.plans
    environment = prepare(arguments.dataset, arguments.data, arguments.folder, plans)
    length = f"{arguments.epochs}x{arguments.iterations}"
    environment |= {"SWIPE_NUM_EPOCHS": str(arguments.epochs), "SWIPE_ITERATIONS_PER_EPOCH": str(arguments.iterations)}
    environment["nnUNet_results"] += f"/{length}"
    preprocessed, results = (Path(environment[key]) for key in ("nnUNet_preprocessed", "nnUNet_results"))
    number = number_of(name)
    model = results / name / f"{arguments.trainer}__{plans}__{configuration}"
    predictions = arguments.folder / "predictions" / length / model.name / name

    def step(title: str, command: str, *options: str) -> None:
        log = arguments.folder / "logs" / f"{number}_{arguments.trainer}_{length}_{command}.log"
        run_step(title, [command, *options], log, environment)

    choice = ("-tr", arguments.trainer, "-p", plans, "-device", arguments.device)
    if not (model / f"fold_{FOLD}" / "validation" / "summary.json").is_file():
        step("train and validate", "nnUNetv2_train", number, configuration, str(FOLD), *choice)
    if not (predictions / "summary.json").is_file():
        images = validation_images(arguments.dataset, arguments.folder)
        where = ("-i", str(images), "-o", str(predictions), "-d", number, "-c", configuration, "-f", str(FOLD))
        step("predict", "nnUNetv2_predict", *where, *choice)
        truth = (str(preprocessed / name / "gt_segmentations"), str(predictions))
        files = ("-djfile", str(predictions / "dataset.json"), "-pfile", str(predictions / "plans.json"))
        step("evaluate", "nnUNetv2_evaluate_folder", *truth, *files, "--chill")  # the truth is of all folds
    scores = {}
    for key, summary in (("validation", model / f"fold_{FOLD}" / "validation"), ("nnUNetv2_predict", predictions)):
        scores[key] = json.loads((summary / "summary.json").read_text())
    per_class = ", ".join(f"{label}: {s['Dice']:.4f}" for label, s in scores["nnUNetv2_predict"]["mean"].items())
    dice = ", ".join(f"{key} Dice {s['foreground_mean']['Dice']:.4f}" for key, s in scores.items())
    cost = f"{length} iterations, {seconds_of_training(model):.0f} s"
    print(f"{arguments.dataset} {configuration} {arguments.trainer} ({plans}), {cost}: {dice} (per class {per_class})")
    return model


def add_places(parser: argparse.ArgumentParser) -> None:
    """The options that say where, and on what, a script works."""
    parser.add_argument("--data", type=Path, required=True, help="folder with the real datasets")
    parser.add_argument("--folder", type=Path, default=Path("real_data"), help="work folder")
    parser.add_argument("--device", default="cpu")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a training on real data."""
    parser.add_argument("dataset", choices=DATASETS)
    add_places(parser)
    parser.add_argument("--plans", default="nnUNetSwIPEPlans", choices=PLANNERS)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=250, help="per epoch")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--trainer", default="SwIPETrainer")
    try:
        run(parser.parse_args())
    except DemoError as error:
        sys.exit(f"\nStopped: {error}")


if __name__ == "__main__":
    main()
