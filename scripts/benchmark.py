"""Benchmarks on real data, SwIPETrainer beside nnUNetTrainer.

    python scripts/benchmark.py speed hippocampus --data DATA [--folder FOLDER] [--steps 10] [--cases 5] [--growth]
    python scripts/benchmark.py grid hippocampus --data DATA [--folder FOLDER] [--model MODEL] [--cases 40]
    python scripts/benchmark.py export [--folder FOLDER] [--slices 300] [--classes 60]
    python scripts/benchmark.py accuracy scripts/studies/STUDY.toml --data DATA [--folder FOLDER]

`speed`: parameters, FLOPs, time and memory of training and prediction. `real_data.py` first trains the SwIPE model to
predict with, unless FOLDER holds one or --model names one. `grid`: that model's labels decoded on the images' grids
beside nnU-Net's resampled ones, and how its uncertainty ranks errors. `export`: from embeddings, or logits, to the
label file of a large synthetic image of many classes. `accuracy`: the trainings that a study file lists, scored; what
FOLDER holds of them is not run again. All print Markdown tables and write them, and all numbers as JSON, to FOLDER
(`accuracy`: to FOLDER/accuracy/DEVICE). FOLDER keeps the plans of its first run: after a change of the planner take
another one. DATA is as for `real_data.py`.
"""

import argparse
import itertools
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

import real_data
from benchmark_speed import Task, measure_all
from demo import DemoError
from speed_report import report as speed_report


def speed(arguments: argparse.Namespace) -> None:
    """Measure, print and write."""
    folder = arguments.folder.resolve()
    name, configuration = real_data.DATASETS[arguments.dataset]
    environment = real_data.prepare(arguments.dataset, arguments.data, folder, arguments.plans)
    model = (arguments.model or real_data.run(arguments)).resolve()
    images_folder = real_data.validation_images(arguments.dataset, folder)
    work = folder / "speed"
    os.environ |= environment | {"nnUNet_results": str(work / "nnUNet_results")}
    os.environ.setdefault("nnUNet_n_proc_DA", "0")
    shutil.rmtree(work, ignore_errors=True)  # an earlier run's plans would be used again
    task = Task(name, configuration, arguments.plans, arguments.device)
    files = sorted(str(f) for f in images_folder.iterdir())
    cases = [list(group) for _, group in itertools.groupby(files, key=lambda f: f.rpartition("_")[0])]
    images = cases[: arguments.cases]
    result: dict[str, Any] = {}
    try:
        measure_all(result, task, model, images, work / "predictions", steps=arguments.steps, growth=arguments.growth)
    finally:  # what was measured is kept, whatever happens
        (folder / f"speed_{arguments.dataset}.json").write_text(json.dumps(result, indent=2))
    text = speed_report(result)
    (folder / f"speed_{arguments.dataset}.md").write_text(text + "\n")
    print(text)


def grid(arguments: argparse.Namespace) -> None:
    """Measure, print and write."""
    from benchmark_grid import measure_grid
    from benchmark_grid import report as grid_report

    folder = arguments.folder.resolve()
    os.environ |= real_data.prepare(arguments.dataset, arguments.data, folder, arguments.plans)
    model = (arguments.model or real_data.run(arguments)).resolve()
    cases = real_data.validation_cases(arguments.dataset, folder)[: arguments.cases]
    result = measure_grid(model, [real_data.FOLD], cases, torch.device(arguments.device))
    _write(folder / f"grid_{arguments.dataset}", result, grid_report(result))


def export(arguments: argparse.Namespace) -> None:
    """Measure, print and write."""
    from benchmark_export import RESAMPLING, Case, measure_export
    from benchmark_export import report as export_report

    arguments.folder.mkdir(parents=True, exist_ok=True)
    result = measure_export(
        Case((arguments.slices, 512, 512), arguments.classes), [] if arguments.alone else list(RESAMPLING)
    )
    _write(arguments.folder / f"export_{arguments.slices}_{arguments.classes}", result, export_report(result))


def accuracy(arguments: argparse.Namespace) -> None:
    """Run what is missing of a study, print and write its tables."""
    from accuracy_study import read_study
    from benchmark_accuracy import report, run_study

    try:
        study = read_study(arguments.study)
    except ValueError as error:
        raise DemoError(str(error)) from error
    folder = arguments.folder.resolve()
    for plans in dict.fromkeys(model.plans for model in study.models):
        os.environ |= real_data.prepare(study.dataset, arguments.data, folder, plans)
    os.environ |= {"nnUNet_n_proc_DA": "0"}  # nnU-Net's loader processes would not repeat their draws
    folder = folder / "accuracy" / arguments.device
    results, failures = run_study(study, folder / "cells", arguments.device)
    command = f"python scripts/benchmark.py accuracy {arguments.study} --data DATA"
    if arguments.device != "cpu":
        command += f" --device {arguments.device}"
    if results:
        text = f"# {arguments.study.stem}\n\n`{command}`: {report(study, results)}"
        _write(folder / arguments.study.stem, results, text)
    if failures:
        raise DemoError("\n".join(["some cells failed; the next run tries them again", *failures]))


def _write(file: Path, result: dict[str, Any], text: str) -> None:
    """Write numbers and tables to files of this name, and print the tables."""
    Path(f"{file}.json").write_text(json.dumps(result, indent=2))
    Path(f"{file}.md").write_text(text + "\n")
    print(text)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("speed", help="time, memory and work beside nnUNetTrainer")
    real_data.add_arguments(command)
    command.add_argument("--model", type=Path, help="trained model folder to predict with (default: train one)")
    command.add_argument("--steps", type=int, default=10, help="training steps to time")
    command.add_argument("--cases", type=int, default=5, help="validation cases to predict")
    command.add_argument("--growth", action="store_true", help="also with growing crops, classes, points, images")
    command.set_defaults(run=speed, plans="nnUNetPlans", trainer="SwIPETrainer")
    command = commands.add_parser("grid", help="labels decoded on the images' grids, uncertainty")
    real_data.add_arguments(command)
    command.add_argument("--model", type=Path, help="trained model folder (default: train one)")
    command.add_argument("--cases", type=int, default=40, help="validation cases")
    command.set_defaults(run=grid, trainer="SwIPETrainer")
    command = commands.add_parser("export", help="from embeddings or logits to label files, beside nnU-Net")
    command.add_argument("--folder", type=Path, default=Path("real_data"), help="work folder")
    command.add_argument("--slices", type=int, default=300, help="of 512 x 512 at 0.8 x 0.8 x 3 mm")
    command.add_argument("--classes", type=int, default=60)
    command.add_argument("--alone", action="store_true", help="without nnU-Net, which needs tens of GB")
    command.set_defaults(run=export)
    command = commands.add_parser("accuracy", help="Dice, NSD, HD95 and calibration of the trainings of a study")
    command.add_argument("study", type=Path, help="study file")
    real_data.add_places(command)
    command.set_defaults(run=accuracy)
    arguments = parser.parse_args()
    try:
        arguments.run(arguments)
    except DemoError as error:
        sys.exit(f"\nStopped: {error}")
    except ModuleNotFoundError as error:
        sys.exit(f"\nStopped: {error.name} is missing: pip install '.[benchmark]'")


if __name__ == "__main__":
    main()
