"""`benchmark.py accuracy`: trainers on the same cases with the same budget, scored on the fold's validation cases.

Every cell of a study is trained and scored in a process of its own and kept in the study's JSON file, so that a study
that was interrupted goes on where it was.
"""

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accuracy_study import Cell, Study
from benchmark_speed import predictor_of, quiet, save_model
from demo import DemoError
from measure import device_name, isolated
from nnunetv2.paths import nnUNet_raw
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from real_data import DATASETS
from scipy.stats import bootstrap
from scores import METRICS, calibration, expected_calibration_error, score_case
from tqdm import tqdm

from nnunetv2_swipe.planners.label_statistics import foreground_structures

TOLERANCE = {2: 2.0, 3: 1.0}
"""Of the NSD: 2 pixels in 2D, 1 mm in 3D."""
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


def run_study(study: Study, results_file: Path, device: str) -> dict[str, Any]:
    """Train and score the cells that are not in the JSON file yet; returns the study's results by cell key.

    Args:
        study: The study; its dataset is planned in nnU-Net's folders.
        results_file: JSON file; models go to a folder of its name.
        device: "cpu" or "cuda".

    Raises:
        DemoError: Cells failed; the others are kept, and the next run tries again.
    """
    models = results_file.with_suffix("")
    models.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = json.loads(results_file.read_text()) if results_file.is_file() else {}
    cells = {cell.key: cell for cell in study.cells()}
    failed = []
    with tqdm(total=len(cells), unit="cell", initial=len(cells.keys() & results.keys())) as bar:
        for key, cell in cells.items():
            if key in results:
                continue
            bar.set_description(f"{cell.model.title}, {cell.budget:,} {cell.unit}")
            shutil.rmtree(models / key, ignore_errors=True)  # of a run that was interrupted
            os.environ |= {"nnUNet_results": str(models / key)}  # the new process inherits it
            try:
                results[key] = isolated(measure_cell, cell, device)
            except Exception as error:  # whatever it was, the other cells are worth their hours
                failed.append(f"{cell.model.title}, seed {cell.seed}, fraction {cell.training_fraction}: {error!r}")
                continue
            unfinished = results_file.with_suffix(".tmp")
            unfinished.write_text(json.dumps(results, indent=1))
            unfinished.replace(results_file)
            bar.update()
    if failed:
        raise DemoError("\n".join(["some cells failed; the next run tries them again", *failed]))
    return {key: results[key] for key in cells}


def measure_cell(cell: Cell, device: str) -> dict[str, Any]:
    """Train one cell, predict the fold's validation cases with mirroring, and score them."""
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
        training, validation = trainer.do_split()
        n_cases = max(1, round(cell.training_fraction * len(training)))
        chosen = np.random.default_rng(cell.seed).permutation(sorted(training))[:n_cases].tolist()
        trainer.do_split = lambda: (chosen, validation)
        trained = train(trainer, cell)
        save_model(trainer)
    machine = f"{device_name(trainer.device)}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    return {**trained, "training cases": n_cases, "machine": machine, **score_cases(trainer, validation)}


def _seed(cell: Cell) -> None:
    torch.manual_seed(cell.seed)
    np.random.seed(cell.seed)  # noqa: NPY002  (what nnU-Net's loader draws from)


def train(trainer: nnUNetTrainer, cell: Cell) -> dict[str, Any]:
    """Train until the budget is spent; the learning rate of any trainer follows the fraction spent."""
    trainer.num_epochs = 1
    trainer.num_iterations_per_epoch = cell.budget if cell.unit == "iterations" else NOMINAL_ITERATIONS
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    trainer.on_train_epoch_start()
    _seed(cell)  # SwIPETrainer seeds by epoch, every training alike
    schedule = trainer.lr_scheduler = BudgetSchedule(trainer.lr_scheduler)
    done = {"iterations": 0, "seconds": 0.0}
    start = time.perf_counter()
    while done[cell.unit] < cell.budget:
        schedule.spent = done[cell.unit] / cell.budget
        schedule.step()
        trainer.train_step(next(loader))
        done["iterations"] += 1
        done["seconds"] = time.perf_counter() - start
    return {**done, "parameters": sum(p.numel() for p in trainer.network.parameters())}


def score_cases(trainer: nnUNetTrainer, cases: Sequence[str]) -> dict[str, Any]:
    """Predict cases as `nnUNetv2_predict` does and score them: each, and the ECE over all of them.

    Voxels of the ignore label count nowhere.
    """
    with quiet():
        predictor = predictor_of(Path(trainer.output_folder_base), trainer.device, mirroring=True, fold=trainer.fold)
    raw = Path(nnUNet_raw) / trainer.plans_manager.dataset_name / "imagesTr"
    truths = Path(trainer.preprocessed_dataset_folder_base) / "gt_segmentations"
    reader = trainer.plans_manager.image_reader_writer_class()
    labels = trainer.label_manager
    structures = foreground_structures(labels)
    regions = list(structures.values()) if labels.has_regions else []
    ending = trainer.dataset_json["file_ending"]
    scores, bins = {}, []
    for case in cases:
        images = [str(f) for f in sorted(raw.glob(f"{case}_[0-9][0-9][0-9][0-9]{ending}"))]
        with quiet():
            ((prediction, probabilities),) = predictor.predict_from_files_sequential([images], None, True)
        truth, properties = reader.read_seg(str(truths / f"{case}{ending}"))
        truth = truth[0]
        counted = truth != labels.ignore_label if labels.has_ignore_label else np.ones_like(truth, dtype=bool)
        bins.append(calibration(probabilities[:, counted], truth[counted], regions=regions))
        flat = truth.shape[0] == 1
        maps = [np.where(counted, m, 0)[0 if flat else slice(None)] for m in (prediction, truth)]
        dims = maps[0].ndim
        scores[case] = score_case(
            *maps, structures=structures, spacing=properties["spacing"][-dims:], tolerance=TOLERANCE[dims]
        )
    return {"ECE": expected_calibration_error(np.sum(bins, 0)), "cases": scores}


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
    return "\n".join([about, "", *_means(rows), "", *_differences(rows), "", *_by_class(rows, classes)])


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
