"""`benchmark.py accuracy`: trainers on the same cases with the same budget, scored on the fold's validation cases.

Every cell of a study is trained and scored in processes of its own and kept, so that a study that was interrupted goes
on where it was, and studies share cells. One study at a time may work in a folder.
"""

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.file_path_utilities import get_output_folder
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from scipy.stats import bootstrap
from tqdm import tqdm

from accuracy_study import NATIVE, Cell, Scale, Study
from benchmark_speed import predictor_of, quiet, save_model
from demo import DemoError
from measure import device_name, isolated
from nnunetv2_swipe.config import PLAN_KEY, SwIPEConfig
from nnunetv2_swipe.precision import AMP_VARIABLE
from nnunetv2_swipe.report.scores import METRICS
from real_data import DATASETS
from score_model import score_at_scales, score_cases

NOMINAL_ITERATIONS = 1000
"""Length of the learning-rate schedule of a budget in seconds: only fractions of it count."""


class BudgetSchedule:
    """Sets a trainer's learning rate by the fraction of the budget that is spent, whatever step the trainer names."""

    def __init__(self, scheduler: Any) -> None:  # noqa: ANN401
        self.scheduler = scheduler
        self.spent = 0.0

    def step(self, *_: object) -> None:
        """Set the rate."""
        self.scheduler.step(self.spent)


def run_study(study: Study, folder: Path, device: str) -> dict[str, Any]:
    """Measure what is missing of a study; returns its results by cell key.

    Args:
        study: The study; its dataset is planned in nnU-Net's folders.
        folder: Holds the results and the model of every cell of any study, each in a folder named by its key.
        device: "cpu" or "cuda".

    Raises:
        DemoError: The plan cannot have a cell's settings, or a cell was measured with another plan; or cells failed:
            the others are kept, and the next run tries again.
    """
    cells = {cell.key: cell for cell in study.cells()}
    for cell in cells.values():
        _check_settings(cell)
    stored = {key: _checked_results(folder / key, cell) for key, cell in cells.items()}
    incomplete = {key: cell for key, cell in cells.items() if not _is_complete(study, stored[key])}
    failed = []
    with tqdm(incomplete.items(), unit="cell") as bar:
        for key, cell in bar:
            title = f"{cell.model.title}, seed {cell.seed}, fraction {cell.training_fraction}"
            bar.set_description(title)
            try:
                _complete(study, cell, folder / key, device)
            except Exception as error:  # whatever it was, the other cells are worth their hours
                failed.append(f"{title}: {error!r}")
    if failed:
        raise DemoError("\n".join(["some cells failed; the next run tries them again", *failed]))
    return {key: _read_results(folder / key) for key in cells}


def _complete(study: Study, cell: Cell, folder: Path, device: str) -> None:
    """Train a cell and score it on the study's grids, as far as its folder does not hold the results."""
    os.environ |= {"nnUNet_results": str(folder)}  # processes inherit it
    results = _read_results(folder)
    if not results:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
        about = {"cell": asdict(cell), "plan": _plan(cell), "scales": {}}
        results = about | isolated(train_cell, cell, device)
        _write_results(folder, results)
    if "cases" not in results:
        results |= isolated(score_cell, cell, device)
        _write_results(folder, results)
    scales = _missing_scales(study, results)
    if scales:
        results["scales"] |= isolated(measure_scales, cell, scales, list(results["cases"]), device)
        _write_results(folder, results)


def _is_complete(study: Study, results: Mapping[str, Any]) -> bool:
    return "cases" in results and not _missing_scales(study, results)


def _missing_scales(study: Study, results: Mapping[str, Any]) -> list[Scale]:
    return [scale for scale in study.scales if str(scale) not in results["scales"]]


def _check_settings(cell: Cell) -> None:
    """DemoError if the plan's `swipe` block cannot have the cell's settings."""
    try:
        if block := _plan(cell).get(PLAN_KEY):  # else the trainer derives it
            SwIPEConfig.from_dict(block).replace(**cell.model.settings)
    except ValueError as error:
        raise DemoError(f"{cell.model.title}: {error}") from error


def _checked_results(folder: Path, cell: Cell) -> dict[str, Any]:
    """DemoError if a cell was measured with another plan than there is now."""
    results = _read_results(folder)
    if results and results["plan"] != _plan(cell):
        raise DemoError(
            f"{cell.model.title} was measured with another plan of {cell.dataset}. Delete {folder} to measure it again."
        )
    return results


def _plan(cell: Cell) -> Any:  # noqa: ANN401
    """The configuration of the plan that a cell is trained with."""
    name, configuration = DATASETS[cell.dataset]
    plans = load_json(str(Path(nnUNet_preprocessed) / name / f"{cell.model.plans}.json"))
    return plans["configurations"][configuration]


def _read_results(folder: Path) -> dict[str, Any]:
    file = folder / "results.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def _write_results(folder: Path, results: Mapping[str, Any]) -> None:
    unfinished = folder / "results.tmp"
    unfinished.write_text(json.dumps(results, indent=1))
    unfinished.replace(folder / "results.json")


def train_cell(cell: Cell, device: str) -> dict[str, Any]:
    """Train one cell and leave its model; what it cost, and on what machine."""
    name, configuration = DATASETS[cell.dataset]
    torch.backends.cudnn.benchmark = device == "cuda"  # as nnUNetv2_train sets it
    _seed(cell)
    if cell.model.settings:
        trainer_class: Any = recursive_find_trainer_class_by_name(cell.model.trainer)
        trainer_class.config_changes = {**trainer_class.config_changes, **cell.model.settings}
    with quiet():
        trainer = get_trainer_from_args(
            name, configuration, cell.fold, cell.model.trainer, cell.model.plans, device=torch.device(device)
        )
        if cell.model.batch_size:
            trainer.configuration_manager.configuration["batch_size"] = cell.model.batch_size
        training, validation = trainer.do_split()
        n_cases = max(1, round(cell.training_fraction * len(training)))
        chosen = np.random.default_rng(cell.seed).permutation(sorted(training))[:n_cases].tolist()
        trainer.do_split = lambda: (chosen, validation)
        cost = train(trainer, cell)
        save_model(trainer)
    machine = f"{device_name(trainer.device)}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    if AMP_VARIABLE in os.environ:
        machine += f", {AMP_VARIABLE}={os.environ[AMP_VARIABLE]}"
    return {**cost, "training cases": n_cases, "machine": machine}


def score_cell(cell: Cell, device: str) -> dict[str, Any]:
    """Predict the fold's validation cases with a trained cell and mirroring, and score them."""
    splits = load_json(str(Path(nnUNet_preprocessed) / DATASETS[cell.dataset][0] / "splits_final.json"))
    with quiet():
        return score_cases(_predictor(cell, device), splits[cell.fold]["val"])


def measure_scales(cell: Cell, scales: Sequence[Scale], cases: Sequence[str], device: str) -> dict[str, Any]:
    """Score a trained cell on other grids."""
    with quiet():
        return score_at_scales(_predictor(cell, device), cases, scales)


def _predictor(cell: Cell, device: str) -> nnUNetPredictor:
    name, configuration = DATASETS[cell.dataset]
    model = get_output_folder(name, cell.model.trainer, cell.model.plans, configuration)
    return predictor_of(Path(model), torch.device(device), mirroring=True, fold=cell.fold)


def _seed(cell: Cell) -> None:
    torch.manual_seed(cell.seed)
    np.random.seed(cell.seed)  # noqa: NPY002  (what nnU-Net's loader draws from)


def train(trainer: nnUNetTrainer, cell: Cell) -> dict[str, Any]:
    """Train until the budget is spent; the learning rate of any trainer follows the fraction spent."""
    trainer.num_epochs = 1
    trainer.num_iterations_per_epoch = cell.budget if cell.unit == "iterations" else NOMINAL_ITERATIONS
    trainer.initialize()
    start = time.perf_counter()  # a GPU compiles or records the step hereafter
    loader, _ = trainer.get_dataloaders()
    trainer.on_train_epoch_start()
    _seed(cell)  # SwIPETrainer seeds by epoch, every training alike
    schedule = trainer.lr_scheduler = BudgetSchedule(trainer.lr_scheduler)
    done = {"iterations": 0, "seconds": 0.0}
    while done[cell.unit] < cell.budget:
        schedule.spent = done[cell.unit] / cell.budget
        schedule.step()
        trainer.train_step(next(loader))
        done["iterations"] += 1
        done["seconds"] = time.perf_counter() - start
    return {**done, "parameters": sum(p.numel() for p in trainer.network.parameters())}


class Row(NamedTuple):
    """A model, trained on a fraction of the cases with every seed."""

    title: str
    runs: list[Mapping[str, Any]]
    scores: dict[str, np.ndarray]
    """Metric -> (cases, classes), means over seeds; NaN where a class is in neither map."""
    reference: dict[str, np.ndarray]
    """The first model's."""


def report(study: Study, results: Mapping[str, Any]) -> str:
    """The study as Markdown tables: scores, differences to the first model, scores of each class."""
    chosen = [results[cell.key] for cell in study.cells()]
    classes = sorted({name for result in chosen for scores in result["cases"].values() for name in scores})
    rows = []
    for fraction in study.training_fractions:
        runs = [[results[study.cell(model, seed, fraction).key] for seed in study.seeds] for model in study.models]
        scores = [_scores(r, classes) for r in runs]
        rows += [
            Row(f"{model.title} | {r[0]['training cases']}", r, s, scores[0])
            for model, r, s in zip(study.models, runs, scores, strict=True)
        ]
    budget, unit = study.budget
    machines = "; ".join(sorted({result["machine"] for result in chosen}))
    about = (
        f"{study.dataset}, fold {study.fold}, {budget:,} {unit} of training, seeds {', '.join(map(str, study.seeds))}; "
        f"{machines}. Scores are means over cases and classes; differences are to the first model, with the 95% "
        "bootstrap interval over cases of the paired difference (of the seeds' mean)."
    )
    tables = [_means(rows), _differences(rows), _by_class(rows, classes)]
    if study.scales:
        tables.append(_by_scale(rows, study.scales, classes))
    return "\n".join([about, *[line for table in tables for line in ("", *table)]])


def _scores(runs: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> dict[str, np.ndarray]:
    cases = sorted(runs[0]["cases"])
    missing = dict.fromkeys(METRICS, np.nan)
    found = np.array(
        [[[[run["cases"][c].get(k, missing)[m] for m in METRICS] for k in classes] for c in cases] for run in runs]
    )
    means = np.ma.masked_invalid(found).mean(0).filled(np.nan)
    return {metric: means[..., i] for i, metric in enumerate(METRICS)}


def _means(rows: Sequence[Row]) -> list[str]:
    columns = ("Iterations", "Seconds", "Parameters (M)", *METRICS, "ECE")
    lines = _head(columns)
    for row in rows:
        cells = [f"{np.mean([run[key] for run in row.runs]):,.0f}" for key in ("iterations", "seconds")]
        cells.append(f"{row.runs[0]['parameters'] / 1e6:.2f}")
        cells += [_number(metric, float(np.nanmean(np.nanmean(row.scores[metric], axis=0)))) for metric in METRICS]
        cells.append(_ece(row.runs))
        lines.append(f"| {row.title} | {' | '.join(cells)} |")
    return lines


def _differences(rows: Sequence[Row]) -> list[str]:
    lines = _head(METRICS)
    for row in rows:
        if row.scores is not row.reference:
            cells = [_difference(row.scores[metric], row.reference[metric]) for metric in METRICS]
            lines.append(f"| {row.title} | {' | '.join(cells)} |")
    return lines


def _by_class(rows: Sequence[Row], classes: Sequence[str]) -> list[str]:
    lines = _head([f"{metric} {name}" for metric in METRICS for name in classes])
    for row in rows:
        cells = [_number(metric, v) for metric in METRICS for v in np.nanmean(row.scores[metric], axis=0)]
        lines.append(f"| {row.title} | {' | '.join(cells)} |")
    return lines


def _by_scale(rows: Sequence[Row], scales: Sequence[Scale], classes: Sequence[str]) -> list[str]:
    """Dice and NSD on every grid, with their differences to those at the training resolution, and the ECE."""
    lines = ["On other grids, with the difference to the same model at the training resolution:", ""]
    lines += _head([f"{metric}, {scale}" for metric in ("Dice", "NSD", "ECE") for scale in scales])
    for row in rows:
        scores = {scale: _scores([run["scales"][str(scale)] for run in row.runs], classes) for scale in scales}
        cells = []
        for metric in ("Dice", "NSD"):
            for scale in scales:
                found, native = scores[scale][metric], scores[NATIVE][metric]
                mean = _number(metric, float(np.nanmean(np.nanmean(found, axis=0))))
                cells.append(mean if scale == NATIVE else f"{mean}, {_difference(found, native)}")
        cells += [_ece([run["scales"][str(scale)] for run in row.runs]) for scale in scales]
        lines.append(f"| {row.title} | {' | '.join(cells)} |")
    return lines


def _ece(runs: Sequence[Mapping[str, Any]]) -> str:
    return f"{np.mean([run['ECE'] for run in runs]):.4f}"


def _head(columns: Sequence[str]) -> list[str]:
    return [f"| Model | Cases | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]


def _number(metric: str, value: float) -> str:
    return f"{value:.2f}" if metric == "HD95" else f"{value:.4f}"


def _difference(scores: np.ndarray, reference: np.ndarray) -> str:
    """Mean paired difference of (cases, classes) with its 95% bootstrap interval, where cases differ at all."""
    paired = np.ma.masked_invalid(scores - reference).mean(1).compressed()
    text = f"{paired.mean():+.4f}"
    if np.ptp(paired) == 0:
        return text
    interval = bootstrap((paired,), np.mean, rng=np.random.default_rng(0)).confidence_interval
    return f"{text} ({interval.low:+.4f} to {interval.high:+.4f})"
