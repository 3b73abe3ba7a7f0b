"""Benchmarks on real data, SwIPETrainer beside nnUNetTrainer.

    python scripts/benchmark.py speed hippocampus --data DATA [--folder FOLDER] [--steps 10] [--cases 5] [--growth]

`speed`: parameters, FLOPs, time and memory of training and prediction. Prints Markdown tables and writes them, and
all numbers as JSON, to FOLDER. DATA is as for `real_data.py`, which first trains the SwIPE model to predict with,
unless FOLDER holds one.
"""

import argparse
import itertools
import json
import os
import shutil
import sys
from typing import Any

import real_data
from demo import DemoError


def speed(arguments: argparse.Namespace) -> None:
    """Measure, print and write."""
    model = real_data.run(arguments).resolve()
    name, configuration = real_data.DATASETS[arguments.dataset]
    folder = arguments.folder.resolve()
    work = folder / "speed"
    os.environ |= {
        "nnUNet_raw": str(folder / "nnUNet_raw"),
        "nnUNet_preprocessed": str(folder / "nnUNet_preprocessed"),
        "nnUNet_results": str(work / "nnUNet_results"),
        "nnUNet_n_proc_DA": "0",
    }
    shutil.rmtree(work, ignore_errors=True)  # an earlier run's plans would be used again
    # nnU-Net reads its folders when it is imported
    from benchmark_speed import Task, measure_all, report

    task = Task(name, configuration, arguments.plans, arguments.device)
    files = sorted(str(f) for f in (folder / "validation_images" / name).iterdir())
    cases = [list(group) for _, group in itertools.groupby(files, key=lambda f: f.rpartition("_")[0])]
    images = cases[: arguments.cases]
    result: dict[str, Any] = {}
    try:
        measure_all(result, task, model, images, work / "predictions", steps=arguments.steps, growth=arguments.growth)
    finally:  # what was measured is kept, whatever happens
        (folder / f"speed_{arguments.dataset}.json").write_text(json.dumps(result, indent=2))
    text = report(result)
    (folder / f"speed_{arguments.dataset}.md").write_text(text + "\n")
    print(text)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("speed", help="time, memory and work beside nnUNetTrainer")
    real_data.add_arguments(command)
    command.add_argument("--steps", type=int, default=10, help="training steps to time")
    command.add_argument("--cases", type=int, default=5, help="validation cases to predict")
    command.add_argument("--growth", action="store_true", help="also with growing crops, classes, points, images")
    command.set_defaults(run=speed, plans="nnUNetPlans", trainer="SwIPETrainer")
    arguments = parser.parse_args()
    try:
        arguments.run(arguments)
    except DemoError as error:
        sys.exit(f"\nStopped: {error}")


if __name__ == "__main__":
    main()
