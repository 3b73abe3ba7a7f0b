"""Gathers what a report shows, from the files of a model and of its predictions."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.paths import nnUNet_preprocessed
from tqdm import tqdm

from nnunetv2_swipe.files import read_json_object
from nnunetv2_swipe.inference.predictor import SwIPEPredictor
from nnunetv2_swipe.planners.label_statistics import STATISTICS_FILE, structure_key
from nnunetv2_swipe.planners.plan_block import read_block
from nnunetv2_swipe.report.case_views import scores_of, slices_of, surfaces_of
from nnunetv2_swipe.report.cases import Case
from nnunetv2_swipe.report.page import CaseRow, ModelDescription, worst_first
from nnunetv2_swipe.report.plan_in_words import plan_in_words
from nnunetv2_swipe.report.structures import Structures
from nnunetv2_swipe.report.training import crop_with_points, training_curves
from nnunetv2_swipe.report.volumes import read_case
from nnunetv2_swipe.stored_cases import stored_cases

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
        ValueError: A file of a case cannot be read, or does not fit to the others; it is named.
    """
    rows = []
    for case in tqdm(cases, desc="Scoring", unit="case", disable=quiet):
        volumes = read_case(case, reader, structures)
        rows.append(CaseRow(case, scores_of(volumes, structures), volumes.is_slice))
    ordered = worst_first(rows)
    for row in tqdm(ordered[:details], desc="Drawing", unit="case", disable=quiet):
        volumes = read_case(row.case, reader, structures)
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

    Raises:
        ValueError: The dataset's statistics or preprocessed data, which need not be there, cannot be read.
    """
    configuration, labels = predictor.configuration_manager, predictor.label_manager
    config, statistics, crop = read_block(configuration), None, None
    if nnUNet_preprocessed.is_set():
        folder = Path(nnUNet_preprocessed) / predictor.plans_manager.dataset_name
        if (folder / STATISTICS_FILE).is_file():
            statistics = read_json_object(folder / STATISTICS_FILE, ["classes"])["classes"]
        data = folder / configuration.data_identifier
        if any(data.glob("*.pkl")):
            try:
                name = _case_to_crop(data, {case.name for case in cases})
                crop = crop_with_points(data, configuration.configuration, config, labels, structures, name)
            except Exception as error:  # nnU-Net's datasets raise all kinds
                raise ValueError(
                    f"No training crop can be made of {data} ({error or type(error).__name__}). Preprocess again, or "
                    "unset nnUNet_preprocessed: the page is then made without one."
                ) from error
    names_of = {structure_key(tuple(labels)): name for name, labels in structures.labels.items()}
    return ModelDescription(
        training_curves(logged),
        crop,
        plan_in_words(configuration.configuration, config, statistics, names_of, labels.num_segmentation_heads),
    )


def _case_to_crop(data: Path, shown: Collection[str]) -> str:
    """A case of the preprocessed data, of which the report shows nothing else if there is such a case."""
    names = stored_cases(data)
    return next((name for name in names if name not in shown), names[0])
