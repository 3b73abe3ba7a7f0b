"""Scores of a trained model on cases: on their own grid, and on finer and coarser ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.paths import nnUNet_raw
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from accuracy_study import Scale
from calibration import calibration, expected_calibration_error
from nnunetv2_swipe.geometry import Grid
from nnunetv2_swipe.inference.grid import predict_logits_on_grid
from nnunetv2_swipe.inference.tiles import plain_network
from nnunetv2_swipe.labels import declared_labels
from nnunetv2_swipe.network.coordinates import N_SOURCE_CHANNELS, with_source_channels
from nnunetv2_swipe.network.swipe_net import SwIPENet
from nnunetv2_swipe.planners.label_statistics import foreground_structures
from nnunetv2_swipe.report.scores import score_case
from nnunetv2_swipe.report.volumes import read_image, read_labels


class _Scores:
    """Collects the scores of cases and their expected calibration error; voxels of the ignore label count nowhere."""

    def __init__(self, predictor: nnUNetPredictor) -> None:
        self.labels = labels = predictor.label_manager
        self.structures = foreground_structures(labels)
        self.cases: dict[str, dict[str, dict[str, float]]] = {}
        self.bins: list[np.ndarray] = []

    def add(
        self, case: str, prediction: np.ndarray, probabilities: np.ndarray, truth: np.ndarray, spacing: Sequence[float]
    ) -> None:
        """Score label maps (z, y, x) and probabilities (K, z, y, x); one slice is an image in 2D."""
        labels = self.labels
        counted = truth != labels.ignore_label if labels.has_ignore_label else np.ones_like(truth, dtype=bool)
        regions = list(self.structures.values()) if labels.has_regions else []
        self.bins.append(calibration(probabilities[:, counted], truth[counted], regions=regions))
        self.cases[case] = score_case(
            prediction, truth, structures=self.structures, spacing=spacing, ignore_label=labels.ignore_label
        )

    def result(self) -> dict[str, Any]:
        return {"ECE": expected_calibration_error(np.sum(self.bins, 0)), "cases": self.cases}


def score_cases(predictor: nnUNetPredictor, cases: Sequence[str]) -> dict[str, Any]:
    """Predict training cases from their files, as `nnUNetv2_predict` does, and score them; the ECE is over all."""
    files = training_files(predictor)
    scores = _Scores(predictor)
    for case in cases:
        truth, grid = read_truth(predictor, files[case])
        ((prediction, probabilities),) = predictor.predict_from_files_sequential([files[case]["images"]], None, True)
        scores.add(case, prediction, probabilities, truth, grid.spacing)
    return scores.result()


def score_at_scale(predictor: nnUNetPredictor, cases: Sequence[str], scale: Scale) -> dict[str, Any]:
    """As `score_cases`, on a grid that is finer or coarser than the training resolution, the truth brought to it.

    SwIPE decodes the grid itself; of other networks the logits are interpolated.
    """
    plans, configuration, labels = predictor.plans_manager, predictor.configuration_manager, predictor.label_manager
    preprocessor = configuration.preprocessor_class(verbose=False)
    files = training_files(predictor)
    scores = _Scores(predictor)
    for case in cases:
        read_truth(predictor, files[case])  # is of the image
        data, seg, properties = preprocessor.run_case(
            files[case]["images"], files[case]["label"], plans, configuration, predictor.dataset_json
        )
        truth = np.maximum(seg, 0)  # nnU-Net marks what is outside the image's content by -1
        # of a 2D configuration, slices stay as they are
        spacing = [properties["spacing"][i] for i in plans.transpose_forward]
        spacing[-len(configuration.spacing) :] = configuration.spacing
        scaled = [False] * (3 - len(configuration.spacing)) + [True] * len(configuration.spacing)
        shape = [max(1, round(n * scale.factor)) if s else n for n, s in zip(data.shape[1:], scaled, strict=True)]
        spacing_of_grid = [s * n / m for s, n, m in zip(spacing, data.shape[1:], shape, strict=True)]
        if scale.resized == "output":
            logits = grid_logits(predictor, data, shape)
        else:
            resized = _resized(predictor, data, shape, spacing, spacing_of_grid)
            logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(resized)).float()
        scores.add(
            case,
            np.asarray(labels.convert_logits_to_segmentation(logits)),
            np.asarray(labels.apply_inference_nonlin(logits)),
            configuration.resampling_fn_seg(truth, shape, spacing, spacing_of_grid)[0],
            spacing_of_grid,
        )
    return scores.result()


def grid_logits(predictor: nnUNetPredictor, data: np.ndarray, shape: Sequence[int]) -> torch.Tensor:
    """Logits (K, *shape) of a preprocessed image (channels, z, y, x) on a grid of its extent."""
    image = torch.from_numpy(data)
    if isinstance(plain_network(predictor), SwIPENet):
        return predict_logits_on_grid(predictor, image, shape)
    native = predictor.predict_logits_from_preprocessed_data(image).float()
    return F.interpolate(native[None], tuple(shape), mode="trilinear", align_corners=False)[0]


def read_truth(predictor: nnUNetPredictor, files: Mapping[str, Any]) -> tuple[np.ndarray, Grid]:
    """The label map (z, y, x) of a training case and the grid of its image.

    Raises:
        ValueError: The label map is not on the image's grid or holds an undeclared label; the file is named.
    """
    reader = predictor.plans_manager.image_reader_writer_class()
    image = read_image(files["images"], reader)
    return read_labels(files["label"], reader, image, declared_labels(predictor.label_manager)), image.grid


def training_files(predictor: nnUNetPredictor) -> dict[str, Any]:
    """The training cases' files: case -> "images" (a list) and "label"."""
    return get_filenames_of_train_images_and_targets(
        str(Path(nnUNet_raw) / predictor.plans_manager.dataset_name), predictor.dataset_json
    )


def _resized(
    predictor: nnUNetPredictor,
    data: np.ndarray,
    shape: Sequence[int],
    spacing: Sequence[float],
    spacing_of_grid: Sequence[float],
) -> np.ndarray:
    """The image resampled to a grid as nnU-Net resamples, with the source channels of that grid if it had any."""
    resample = predictor.configuration_manager.resampling_fn_data
    network = plain_network(predictor)
    if not isinstance(network, SwIPENet) or not network.config.source_coordinates:
        return resample(data, shape, spacing, spacing_of_grid)
    image = resample(data[N_SOURCE_CHANNELS:], shape, spacing, spacing_of_grid)
    return with_source_channels(image)
