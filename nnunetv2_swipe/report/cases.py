"""Which cases a report is about: those that a model's folds were validated on, or those of a prediction folder."""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2.paths import nnUNet_raw
from nnunetv2.utilities.utils import (
    create_lists_from_splitted_dataset_folder,
    get_filenames_of_train_images_and_targets,
)

from nnunetv2_swipe.files import read_json_object

ARGUMENTS_FILE = "predict_from_raw_data_args.json"
"""What nnU-Net keeps of a prediction's arguments."""


class Case(NamedTuple):
    """One predicted image."""

    name: str
    images: list[Path]
    """A file for each channel."""
    prediction: Path
    """Its label map."""
    truth: Path | None
    """The reference's, if there is one."""
    fold: str | None
    """The fold that it validates."""


def is_model_folder(folder: Path) -> bool:
    """Whether a folder is of a trained model."""
    return any(folder.glob("fold_*"))


def cases_of_model(model: Path, dataset_name: str, ending: str, folds: Sequence[str]) -> list[Case]:
    """The validation cases of some folds, as they were predicted at the end of the training.

    Args:
        model: Folder of the model.
        dataset_name: Name of its dataset.
        ending: Of the files.
        folds: Of the model.

    Raises:
        ValueError: A fold was not validated, or images or labels are not where nnU-Net's variables say.
    """
    if not nnUNet_raw.is_set():
        raise ValueError("The environment variable nnUNet_raw is not set; a model's report shows images from there.")
    raw = Path(nnUNet_raw) / dataset_name
    if not raw.is_dir():
        raise ValueError(f"{raw} is missing; a model's report needs the images and labels it was trained on.")
    files = _training_files(raw)
    cases = []
    for fold in folds:
        predictions = _label_maps(model / f"fold_{fold}" / "validation", ending)
        if not predictions:
            raise ValueError(
                f"{model} holds no validation of fold {fold}. Train it to the end, validate it by nnUNetv2_train with "
                "--val, or choose other folds by -f."
            )
        for prediction in predictions:
            name = prediction.name.removesuffix(ending)
            if name not in files:
                raise ValueError(f"{raw} holds no image of the case {name}, which {prediction} is a prediction of.")
            images, truth = list(map(Path, files[name]["images"])), Path(files[name]["label"])
            if not truth.is_file():
                raise ValueError(f"The label map {truth} is missing.")
            cases.append(Case(name, images, prediction, truth, fold))
    return cases


def cases_of_predictions(folder: Path, ending: str, images: Path | None, truth: Path | None) -> list[Case]:
    """The cases of a prediction folder.

    Args:
        folder: Where nnUNetv2_predict or nnUNetv2_swipe_predict wrote.
        ending: Of the files.
        images: The folder of the images; default: the one that was predicted.
        truth: The folder of the references, if there are any.

    Raises:
        ValueError: The folder holds no predictions, or files that belong to them are missing.
    """
    predictions = _label_maps(folder, ending)
    if not predictions:
        raise ValueError(f"{folder} holds no predictions that end in {ending}, and no folds of a model.")
    files = _images(folder, images, ending)
    cases = []
    for prediction in predictions:
        name = prediction.name.removesuffix(ending)
        if name not in files:
            raise ValueError(
                f"There is no image of {prediction}{'' if images is None else f' in {images}'}; name the folder of the "
                "images by -i."
            )
        reference = None if truth is None else truth / prediction.name
        found = reference if reference is not None and reference.is_file() else None
        cases.append(Case(name, files[name], prediction, found, None))
    if truth is not None and not any(case.truth for case in cases):
        raise ValueError(f"{truth} holds no label map of a predicted case, such as {predictions[0].name}.")
    return cases


def _label_maps(folder: Path, ending: str) -> list[Path]:
    """The label maps in a folder, without what macOS leaves beside files (`._CASE.nii.gz`)."""
    return sorted(file for file in folder.glob(f"*{ending}") if not file.name.startswith("._"))


def _training_files(raw: Path) -> Mapping[str, Any]:
    """The training cases of a raw dataset: case -> "images" (a list) and "label"."""
    file = raw / "dataset.json"
    try:
        return get_filenames_of_train_images_and_targets(str(raw), read_json_object(file, ["file_ending"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{file}: each case in "dataset" must have its "images" (a list) and "label" (found otherwise: {error}).'
        ) from error


def _images(folder: Path, images: Path | None, ending: str) -> Mapping[str, list[Path]]:
    """The image files of every case."""
    source = _predicted_images(folder) if images is None else str(images)
    if isinstance(source, str) and not Path(source).is_dir():
        raise ValueError(f"The folder of the images, {source}, does not exist; name another by -i.")
    if isinstance(source, str):
        source = create_lists_from_splitted_dataset_folder(source, ending)
    named = re.compile(rf"(.+)_\d{{4}}{re.escape(ending)}")
    result: dict[str, list[Path]] = {}
    for files in source:
        match = named.fullmatch(Path(files[0]).name) if files else None
        if match is None:  # it has another name than its label map
            continue
        name = match[1]
        if name in result:
            raise ValueError(
                f"Images of two cases {name} were predicted, {result[name][0]} and {files[0]}, but there is one label "
                "map. Name the folder of the images by -i."
            )
        result[name] = list(map(Path, files))
    return result


def _predicted_images(folder: Path) -> str | list[list[str]]:
    """The folder of the images that were predicted, or their files, as nnU-Net keeps them beside the label maps."""
    file = folder / ARGUMENTS_FILE
    source: Any = read_json_object(file).get("list_of_lists_or_source_folder") if file.is_file() else None
    is_list = isinstance(source, list) and all(isinstance(files, list) for files in source)
    is_list = is_list and all(isinstance(file, str) for file in itertools.chain(*source))
    if not (is_list or isinstance(source, str)):
        raise ValueError(f"{folder} does not say which images were predicted; name their folder by -i.")
    return source
