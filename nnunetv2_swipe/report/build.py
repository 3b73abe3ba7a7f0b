"""Gathers what a report shows, from the files of a model and of its predictions."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from tqdm import tqdm

from nnunetv2_swipe.inference.predictor import SwIPEPredictor
from nnunetv2_swipe.planners.label_statistics import STATISTICS_FILE, structure_key
from nnunetv2_swipe.planners.plan_block import read_block
from nnunetv2_swipe.report.case_views import Volumes, read_case, scores_of, slices_of, surfaces_of
from nnunetv2_swipe.report.cases import Case
from nnunetv2_swipe.report.page import CaseRow, ModelDescription, worst_first
from nnunetv2_swipe.report.plan_in_words import plan_in_words
from nnunetv2_swipe.report.structures import Structures
from nnunetv2_swipe.report.training import crop_with_points, training_curves

LARGE = 1 << 22
"""Voxels; of larger images not all tiles are kept (here, with S = 2, some 7 GB), and surfaces are the label map's."""


def case_rows(
    cases: Sequence[Case],
    reader: BaseReaderWriter,
    structures: Structures,
    predictor_of: Callable[[Case], SwIPEPredictor] | None,
    *,
    details: int,
    quiet: bool = False,
) -> list[CaseRow]:
    """Score all cases, and show those of the lowest Dice.

    Args:
        cases: The cases.
        reader: Of their files.
        structures: Their classes or regions.
        predictor_of: The model that predicts a case, if it can be asked.
        details: How many are shown.
        quiet: Without progress bars.

    Raises:
        ValueError: The files of a case do not fit together.
    """

    def read(case: Case) -> Volumes:
        return read_case(case, reader, structures.ignore_label)

    rows = []
    for case in tqdm(cases, desc="Scoring", unit="case", disable=quiet):
        volumes = read(case)
        rows.append(CaseRow(case, scores_of(volumes, structures), volumes.is_slice))
    ordered = worst_first(rows)
    for row in tqdm(ordered[:details], desc="Drawing", unit="case", disable=quiet):
        volumes = read(row.case)
        keep = volumes.prediction.size <= LARGE
        encoded = None if predictor_of is None else predictor_of(row.case).encode(row.case.images, keep=keep)
        row.view = slices_of(volumes, encoded, structures)
        row.surfaces = surfaces_of(volumes, encoded if keep else None, structures)
    return ordered


def describe_model(
    predictor: SwIPEPredictor, logged: Mapping[str, Mapping[str, Any]], structures: Structures, cases: Sequence[Case]
) -> ModelDescription:
    """What there is to say of a SwIPE model: its training and its plan.

    Args:
        predictor: Holds the model.
        logged: What the checkpoint of each fold holds as "logging".
        structures: Classes or regions of its dataset.
        cases: Those that the report shows; another one's crop is shown, if there is one.
    """
    configuration, labels = predictor.configuration_manager, predictor.label_manager
    config, statistics, crop = read_block(configuration), None, None
    if nnUNet_preprocessed.is_set():
        folder = Path(nnUNet_preprocessed) / predictor.plans_manager.dataset_name
        if (folder / STATISTICS_FILE).is_file():
            statistics = load_json(str(folder / STATISTICS_FILE))["classes"]
        data = folder / configuration.data_identifier
        if any(data.glob("*.pkl")):
            names = sorted(infer_dataset_class(str(data)).get_identifiers(str(data)))
            shown = {case.name for case in cases}
            case = next((name for name in names if name not in shown), names[0])
            crop = crop_with_points(data, configuration.configuration, config, labels, structures, case)
    names_of = {structure_key(tuple(labels)): name for name, labels in structures.labels.items()}
    return ModelDescription(
        training_curves(logged),
        crop,
        plan_in_words(configuration.configuration, config, statistics, names_of, labels.num_segmentation_heads),
    )
