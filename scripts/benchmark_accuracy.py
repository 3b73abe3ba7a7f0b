"""`benchmark.py accuracy`: trainers on the same cases with the same budget, scored on the fold's validation cases.

Every cell of a study is trained and scored in processes of its own and kept, so that a study that was interrupted goes
on where it was, and studies share cells. One study at a time may work in a folder.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
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
from measure import device_name, isolated, versions
from nnunetv2_swipe.config import PLAN_KEY, SwIPEConfig
from nnunetv2_swipe.precision import AMP_VARIABLE
from nnunetv2_swipe.report.scores import METRICS
from real_data import DATASETS
from score_model import score_at_scale, score_cases

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


def run_study(study: Study, folder: Path, device: str) -> tuple[dict[str, Any], list[str]]:
    """Measure what is missing of a study.

    Args:
        study: The study; its dataset is planned in nnU-Net's folders.
        folder: Holds the results and the model of every cell of any study, each in a folder named by its key.
        device: "cpu" or "cuda".

    Returns:
        Results by cell key, of the cells that were trained and scored, and what failed: the next run tries it again.

    Raises:
        DemoError: The plan cannot have a cell's settings, or a cell was measured with another plan.
    """
    cells = {cell.key: cell for cell in study.cells()}
    for cell in cells.values():
        _check_settings(cell)
    stored = {key: _checked_results(folder / key, cell) for key, cell in cells.items()}
    incomplete = {key: cell for key, cell in cells.items() if not _is_complete(study, stored[key])}
    failures = []
    with Progress(len(cells), len(cells) - len(incomplete)) as progress:
        for key, cell in incomplete.items():
            progress.begin(cell.title)
            try:
                _complete(study, cell, folder / key, partial(isolated, waiting=progress.show, device=device))
            except Exception as error:  # whatever it was, the other cells are worth their hours
                failures.append(f"{cell.title}: {error!r}")
                tqdm.write(failures[-1])
            progress.end()
    results = {key: _read_results(folder / key) for key in cells}
    return {key: result for key, result in results.items() if "cases" in result}, failures


class Progress:
    """A bar of the cells that are done, with the time left if the others take as long as those of this run."""

    def __init__(self, n_cells: int, n_done: int) -> None:
        self._bar = tqdm(
            total=n_cells,
            initial=n_done,
            bar_format="{desc}{percentage:.0f}%|{bar}| {n_fmt}/{total_fmt} cells [{elapsed}{postfix}]",
        )
        self._seconds: list[float] = []
        self._start = 0.0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def begin(self, title: str) -> None:
        """Name the cell that begins."""
        self._start = time.monotonic()
        self._bar.set_description(title)

    def show(self) -> None:
        """Show the time left; from time to time, while a cell is measured."""
        if self._seconds:
            n_left = self._bar.total - self._bar.n
            left = float(np.mean(self._seconds)) * n_left - (time.monotonic() - self._start)
            self._bar.set_postfix_str(f"{tqdm.format_interval(max(left, 0))} left", refresh=False)
        self._bar.refresh()

    def end(self) -> None:
        """Count the cell."""
        self._seconds.append(time.monotonic() - self._start)
        self._bar.update()


def _complete(study: Study, cell: Cell, folder: Path, call: Callable[..., dict[str, Any]]) -> None:
    """Train a cell and score it on the study's grids, as far as its folder does not hold the results."""
    os.environ |= {"nnUNet_results": str(folder)}  # processes inherit it
    results = _read_results(folder)
    if not results:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
        about = {"cell": asdict(cell), "plan": _plan(cell), "scales": {}}
        results = about | call(train_cell, cell)
        _write_results(folder, results)
    if "cases" not in results:
        results |= call(score_cell, cell)
        _write_results(folder, results)
    for scale in _missing_scales(study, results):
        results["scales"][str(scale)] = call(score_cell_at_scale, cell, scale, list(results["cases"]))
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
    found = versions()  # those that train, whatever is changed meanwhile
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
    machine = f"{device_name(trainer.device)}, {torch.get_num_threads()} threads, {found}"
    if AMP_VARIABLE in os.environ:
        machine += f", {AMP_VARIABLE}={os.environ[AMP_VARIABLE]}"
    return {**cost, "training cases": n_cases, "machine": machine}


def score_cell(cell: Cell, device: str) -> dict[str, Any]:
    """Predict the fold's validation cases with a trained cell and mirroring, and score them."""
    splits = load_json(str(Path(nnUNet_preprocessed) / DATASETS[cell.dataset][0] / "splits_final.json"))
    with quiet():
        return score_cases(_predictor(cell, device), splits[cell.fold]["val"])


def score_cell_at_scale(cell: Cell, scale: Scale, cases: Sequence[str], device: str) -> dict[str, Any]:
    """Score a trained cell on another grid."""
    with quiet():
        return score_at_scale(_predictor(cell, device), cases, scale)


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
    reference: dict[str, np.ndarray] | None
    """What differences are to: the first model's, or the model's own at the training resolution; None: nothing."""


def report(study: Study, results: Mapping[str, Any]) -> str:
    """The study as Markdown tables, of the models of which every seed was measured.

    Scores, differences to the first model, and scores of each class; likewise on every other grid, with the
    differences to the same model at the training resolution.
    """
    cells = list(study.cells())
    chosen = [results[cell.key] for cell in cells if cell.key in results]
    classes = sorted({name for result in chosen for scores in result["cases"].values() for name in scores})
    budget, unit = study.budget
    machines = "; ".join(sorted({result["machine"] for result in chosen}))
    about = (
        f"{study.dataset}, fold {study.fold}, {budget:,} {unit} of training, seeds {', '.join(map(str, study.seeds))}; "
        f"{machines}. Scores are means over cases and classes; differences are to the first model, with the 95% "
        "bootstrap interval over cases of the paired difference (of the seeds' mean)."
    )
    if missing := list(_missing(study, results)):
        about += f" Not measured, so that there are no rows of these models: {'; '.join(missing)}."
    rows = _rows(study, results, classes)
    tables = _tables(rows, classes)
    grids = {
        scale: _rows(
            study,
            {key: run | run["scales"][str(scale)] for key, run in results.items() if str(scale) in run["scales"]},
            classes,
        )
        for scale in study.scales
    }
    for scale, on_grid in grids.items():
        tables += [[f"## {str(scale).capitalize()}"], *_tables(on_grid, classes)]
        if scale != NATIVE:
            native = {row.title: row.scores for row in grids[NATIVE]}
            falls = [row._replace(reference=native.get(row.title)) for row in on_grid]
            tables += [["Differences to the same model at the training resolution:"], _differences(falls)]
    return "\n".join([about, *[line for table in tables for line in ("", *table)]])


def _missing(study: Study, results: Mapping[str, Any]) -> Iterator[str]:
    """Cells, or cells and grids, that were not measured."""
    for cell in study.cells():
        if cell.key not in results:
            yield cell.title
        else:
            for scale in _missing_scales(study, results[cell.key]):
                yield f"{cell.title}, {scale}"


def _rows(study: Study, results: Mapping[str, Any], classes: Sequence[str]) -> list[Row]:
    rows = []
    for fraction in study.training_fractions:
        reference = None
        for i, model in enumerate(study.models):
            keys = [study.cell(model, seed, fraction).key for seed in study.seeds]
            if all(key in results for key in keys):
                runs = [results[key] for key in keys]
                scores = _scores(runs, classes)
                rows.append(Row(f"{model.title} | {runs[0]['training cases']}", runs, scores, reference))
                if i == 0:
                    reference = scores
    return rows


def _tables(rows: Sequence[Row], classes: Sequence[str]) -> list[list[str]]:
    differences = [_differences(rows)] if any(row.reference is not None for row in rows) else []
    return [_means(rows), *differences, _by_class(rows, classes)]


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
        cells.append(f"{np.mean([run['ECE'] for run in row.runs]):.4f}")
        lines.append(f"| {row.title} | {' | '.join(cells)} |")
    return lines


def _differences(rows: Sequence[Row]) -> list[str]:
    lines = _head(METRICS)
    for row in rows:
        if row.reference is not None:
            cells = [_difference(row.scores[metric], row.reference[metric]) for metric in METRICS]
            lines.append(f"| {row.title} | {' | '.join(cells)} |")
    return lines


def _by_class(rows: Sequence[Row], classes: Sequence[str]) -> list[str]:
    lines = _head([f"{metric} {name}" for metric in METRICS for name in classes])
    for row in rows:
        cells = [_number(metric, v) for metric in METRICS for v in np.nanmean(row.scores[metric], axis=0)]
        lines.append(f"| {row.title} | {' | '.join(cells)} |")
    return lines


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
