"""The whole of nnU-Net with SwIPE on two synthetic datasets, in minutes on a laptop: `make demo`.

Writes the phantoms, then runs nnU-Net's own commands for each dataset: plan and preprocess, train one fold, predict the
test cases, evaluate. Prints a table of Dice scores and writes `prediction.png`. The training is far too short for good
scores; SWIPE_NUM_EPOCHS and SWIPE_ITERATIONS_PER_EPOCH in the environment make it longer.

    python scripts/demo.py [--folder demo]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from demo_figure import write_figure
from nnunetv2_swipe.limits import available_cpus
from phantom import ABDOMEN_NAME, FUNDUS_NAME, write_phantoms

# (epochs, iterations per epoch), for about two minutes in 3D and one in 2D on two CPU cores.
TRAINING_3D = (2, 80)
TRAINING_2D = (2, 60)
SIZE_SCALE = 0.6  # smaller volumes and images than `phantom.py` makes by default

PLANNER, PLANS, TRAINER = "SwIPEPlanner", "nnUNetSwIPEPlans", "SwIPETrainer"
FOLD = "0"
LOG_LINES_ON_FAILURE = 30
CPUS = available_cpus()
PROCESSES = str(min(4, CPUS))
# Suited to a laptop; the defaults of nnU-Net are for a workstation. Compiling would take longer than the training.
ENVIRONMENT_DEFAULTS = {
    "nnUNet_n_proc_DA": "2" if CPUS > 4 else "0",  # with few cores loaders only compete
    "nnUNet_def_n_proc": PROCESSES,
    "nnUNet_compile": "f",
    "MPLBACKEND": "Agg",
}
MARKER = ".swipe-demo"
OWN_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "predictions", "logs")
FIGURE = "prediction.png"


class DemoError(RuntimeError):
    """The demo cannot go on; the message is for the user."""


@dataclass(frozen=True)
class Dataset:
    """One dataset of the demo and how it is trained."""

    name: str  # DatasetXXX_Name
    configuration: str
    training: tuple[int, int]

    @property
    def number(self) -> str:
        """The dataset's number, as nnU-Net's commands take it."""
        return self.name.removeprefix("Dataset").split("_")[0]


DATASETS = (Dataset(ABDOMEN_NAME, "3d_fullres", TRAINING_3D), Dataset(FUNDUS_NAME, "2d", TRAINING_2D))


def prepare_folder(folder: Path) -> None:
    """Make the work folder, or empty it of what an earlier demo left there.

    Args:
        folder: The work folder.

    Raises:
        DemoError: The folder holds files and was not made by the demo.
    """
    if folder.exists() and not folder.is_dir():
        raise DemoError(f"{folder} is not a folder")
    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).exists():
        raise DemoError(f"{folder} is not empty and was not made by this demo: choose another with --folder")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text("Made by scripts/demo.py, which empties this folder when it runs again.\n")
    for name in OWN_FOLDERS:
        if (folder / name).exists():
            shutil.rmtree(folder / name)
        (folder / name).mkdir()
    (folder / FIGURE).unlink(missing_ok=True)


def find_command(name: str) -> str:
    """Path of a console command, preferably the one of the running Python's environment."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise DemoError(f"{name} not found: install the package into this environment first (pip install -e .)")
    return found


def run_step(title: str, command: list[str], log_file: Path, environment: dict[str, str]) -> None:
    """Run one command with its output in a log file, and print one line about it.

    Args:
        title: What to print.
        command: Name of a console command and its arguments.
        log_file: Where its output goes.
        environment: Its whole environment.

    Raises:
        DemoError: The command failed; the end of its log is printed before.
    """
    if command[0] == "nnUNetv2_plan_and_preprocess" and environment.get("nnUNet_n_proc_DA") == "0":
        environment = environment | {"nnUNet_n_proc_DA": "1"}  # nnU-Net's memory estimate sets as many threads
    print(f"  {title:<52}", end="", flush=True)
    start = time.monotonic()
    with log_file.open("w") as log:
        log.write("$ " + " ".join(command) + "\n")
        log.flush()
        arguments = [find_command(command[0]), *command[1:]]
        code = subprocess.run(arguments, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False).returncode
    print(f"{time.monotonic() - start:7.1f} s" if code == 0 else f" failed after {time.monotonic() - start:.1f} s")
    if code != 0:
        lines = log_file.read_text(errors="replace").splitlines()[-LOG_LINES_ON_FAILURE:]
        print(f"\nThe last lines of {log_file}:\n" + "\n".join(f"  | {line}" for line in lines))
        raise DemoError(f"{command[0]} failed with exit code {code} ({title}); its whole output is in {log_file}")


def demo_environment(folder: Path, dataset: Dataset) -> dict[str, str]:
    """Environment of nnU-Net's commands; what the user has set goes first, but for nnU-Net's folders."""
    epochs, iterations = dataset.training
    length = {"SWIPE_NUM_EPOCHS": str(epochs), "SWIPE_ITERATIONS_PER_EPOCH": str(iterations)}
    folders = {name: str(folder / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    return ENVIRONMENT_DEFAULTS | length | dict(os.environ) | folders


def run_dataset(folder: Path, dataset: Dataset, device: str) -> None:
    """Run nnU-Net's commands on one dataset, from the plan to the evaluation of the test cases."""
    environment = demo_environment(folder, dataset)
    raw, predictions = folder / "nnUNet_raw" / dataset.name, folder / "predictions" / dataset.name
    number, configuration = dataset.number, dataset.configuration
    model = ["-tr", TRAINER, "-p", PLANS, "-device", device]
    plan = ["-d", number, "-c", configuration, "-pl", PLANNER, "--verify_dataset_integrity"]
    predict = ["-i", str(raw / "imagesTs"), "-o", str(predictions), "-d", number, "-c", configuration, "-f", FOLD]
    evaluate = [str(raw / "labelsTs"), str(predictions), "-djfile", str(predictions / "dataset.json")]
    length = f"{environment['SWIPE_NUM_EPOCHS']} x {environment['SWIPE_ITERATIONS_PER_EPOCH']} iterations"
    steps = (
        ("plan and preprocess", "nnUNetv2_plan_and_preprocess", [*plan, "-npfp", PROCESSES, "-np", PROCESSES]),
        (f"train fold {FOLD}, {length}", "nnUNetv2_train", [number, configuration, FOLD, *model]),
        ("predict the test cases", "nnUNetv2_predict", [*predict, *model, "-npp", "1", "-nps", "1"]),
        ("evaluate", "nnUNetv2_evaluate_folder", [*evaluate, "-pfile", str(predictions / "plans.json")]),
    )
    print(f"\n{dataset.name}, {configuration}")
    for title, command, arguments in steps:
        log_file = folder / "logs" / f"{number}_{command.removeprefix('nnUNetv2_')}.log"
        run_step(title, [command, *arguments], log_file, environment)


def print_scores(folder: Path) -> None:
    """Print the mean Dice of the test cases, per class and per dataset."""
    print("\nDice on the test cases")
    for dataset in DATASETS:
        labels = json.loads((folder / "nnUNet_raw" / dataset.name / "dataset.json").read_text())["labels"]
        summary = json.loads((folder / "predictions" / dataset.name / "summary.json").read_text())
        print(f"  {dataset.name}")
        for label, number in labels.items():
            if label != "background":
                print(f"    {label:<24}{summary['mean'][str(number)]['Dice']:.3f}")
        print(f"    {'mean':<24}{summary['foreground_mean']['Dice']:.3f}")


def choose_device() -> str:
    """`cuda` where there is one, else `cpu`."""
    try:
        import torch
    except ImportError as error:
        raise DemoError("PyTorch is missing: install the package into this environment (pip install -e .)") from error
    return "cuda" if torch.cuda.is_available() else "cpu"


def run_demo(folder: Path) -> None:
    """Run the whole demo in a folder."""
    start = time.monotonic()
    device = choose_device()
    prepare_folder(folder)
    print(f"SwIPE for nnU-Net on two synthetic datasets, on {device}, in {folder}")
    write_phantoms(folder / "nnUNet_raw", size_scale=SIZE_SCALE)
    for dataset in DATASETS:
        run_dataset(folder, dataset, device)
    print_scores(folder)
    write_figure(folder, ABDOMEN_NAME, FUNDUS_NAME, folder / FIGURE)
    print(f"\nDone in {time.monotonic() - start:.0f} s. Picture: {folder / FIGURE}")


def main() -> None:
    """Parse the command line, run the demo, and turn a failure into a message and an exit code."""
    parser = argparse.ArgumentParser(description="Train and apply SwIPE with nnU-Net's commands on synthetic data.")
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="work folder (default: demo)")
    try:
        run_demo(parser.parse_args().folder.resolve())
    except DemoError as error:
        sys.exit(f"\nThe demo stopped: {error}")


if __name__ == "__main__":
    main()
