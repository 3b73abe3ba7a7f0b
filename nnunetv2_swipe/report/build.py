"""Gathers what a report shows, from the files of a model and of its predictions."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tqdm import tqdm

from nnunetv2_swipe.inference.predictor import SwIPEPredictor
from nnunetv2_swipe.labels import named_structures
from nnunetv2_swipe.planners.label_statistics import STATISTICS_FILE
from nnunetv2_swipe.planners.plan_block import read_block
from nnunetv2_swipe.report.case_views import read_case, scores_of, slices_of, surfaces_of
from nnunetv2_swipe.report.cases import Case
from nnunetv2_swipe.report.page import CaseRow, Report, worst_first
from nnunetv2_swipe.report.plan_in_words import plan_in_words
from nnunetv2_swipe.report.training import crop_with_points, training_curves


def case_rows(
    cases: Sequence[Case],
    plans: PlansManager,
    dataset: Mapping[str, Any],
    predictor_of: Callable[[Case], SwIPEPredictor | None],
    *,
    details: int,
    quiet: bool = False,
) -> list[CaseRow]:
    """Score all cases, and show those of the lowest Dice.

    Args:
        cases: The cases.
        plans: Names the reader of their files.
        dataset: Their dataset.json.
        predictor_of: The model that predicts a case, if there is one.
        details: How many are shown.
        quiet: Without progress bars.

    Raises:
        ValueError: The files of a case do not fit together.
    """
    reader, structures = plans.image_reader_writer_class(), named_structures(dataset)
    ignore_label = plans.get_label_manager(dict(dataset)).ignore_label
    rows = []
    for case in tqdm(cases, desc="Scoring", unit="case", disable=quiet):
        scores = scores_of(read_case(case, reader), structures, ignore_label)
        rows.append(CaseRow(case, scores))
    ordered = worst_first(rows)
    for row in tqdm(ordered[:details], desc="Drawing", unit="case", disable=quiet):
        case = row.case
        volumes, predictor = read_case(case, reader), predictor_of(case)
        encoded = None if predictor is None else predictor.encode(case.images)
        row.view = slices_of(case, volumes, encoded, ignore_label)
        row.surfaces = surfaces_of(volumes, encoded, structures)
    return ordered


def describe_model(report: Report, model: Path, folds: Sequence[str], checkpoint: str, cases: Sequence[Case]) -> None:
    """Add to a report what there is to say of a SwIPE model: its training and its plan.

    Raises:
        ValueError: The model is of another trainer.
    """
    plans, dataset = PlansManager(str(model / "plans.json")), load_json(str(model / "dataset.json"))
    configuration = plans.get_configuration(configuration_of(model))
    config, labels = read_block(configuration), plans.get_label_manager(dataset)
    report.curves = training_curves({fold: model / f"fold_{fold}" / checkpoint for fold in folds})
    statistics = None
    if nnUNet_preprocessed.is_set():
        folder = Path(nnUNet_preprocessed) / model.parent.name
        if (folder / STATISTICS_FILE).is_file():
            statistics = load_json(str(folder / STATISTICS_FILE))["classes"]
        data = folder / configuration.data_identifier
        if data.is_dir():
            names = infer_dataset_class(str(data)).get_identifiers(str(data))
            predicted = {case.name for case in cases}
            trained = next((name for name in sorted(names) if name not in predicted), min(names))
            report.crop = crop_with_points(data, configuration.configuration, config, labels, trained)
    names_of = {str(v[0] if len(v) == 1 else v): name for name, v in named_structures(dataset).items()}
    report.plan = plan_in_words(
        configuration.configuration, config, statistics, names_of, labels.num_segmentation_heads
    )


def configuration_of(model: Path) -> str:
    """The configuration in a model folder's name, TRAINER__PLANS__CONFIGURATION; ValueError if it has none."""
    parts = model.name.split("__")
    if len(parts) != 3:
        raise ValueError(f"{model} is no model folder: its name is not TRAINER__PLANS__CONFIGURATION.")
    return parts[2]


def subtitle(rows: Sequence[CaseRow]) -> str:
    """How many cases there are, and their mean Dice."""
    dice = [d for d in (row.mean("Dice") for row in rows) if d is not None]
    scored = f", mean Dice {np.mean(dice):.3f}" if dice else ", without truth"
    return f"{len(rows)} case{'s' if len(rows) > 1 else ''}{scored}"
