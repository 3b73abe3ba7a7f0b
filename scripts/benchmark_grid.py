"""`benchmark.py grid`: labels decoded on the images' grids beside nnU-Net's, and how uncertainty ranks errors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from benchmark_speed import quiet
from nnunetv2_swipe.inference.predictor import SwIPEPredictor
from nnunetv2_swipe.inference.tiles import swipe_network
from nnunetv2_swipe.inference.uncertainties import UNCERTAINTIES
from nnunetv2_swipe.planners.label_statistics import foreground_structures
from nnunetv2_swipe.report.scores import score_case
from score_model import read_truth, training_files


def measure_grid(model: Path, folds: Sequence[int], cases: Sequence[str], device: torch.device) -> dict[str, Any]:
    """Predict training cases that a model was not trained on, and compare.

    Args:
        model: Folder of a SwIPE model.
        folds: Its folds.
        cases: Cases of the dataset.
        device: Where.

    Returns:
        Mean Dice of nnU-Net's path and of ours, mean Dice between the two, and the area under the ROC curve (AUROC)
        of wrong voxels, by the variances and by the entropy of the first fold's probabilities, decoded without
        mirroring at every voxel.
    """
    stock = _loaded(nnUNetPredictor, model, folds, device, mirroring=True)
    ours = _loaded(SwIPEPredictor, model, folds, device, mirroring=True)
    single = _loaded(SwIPEPredictor, model, folds[:1], device, mirroring=False)
    network = swipe_network(single)
    network.config = network.config.replace(mise_levels=0)
    files = training_files(ours)
    structures = foreground_structures(ours.label_manager)
    dice: dict[str, list[float]] = {key: [] for key in ("nnU-Net", "decoded", "between")}
    errors, rankings = [], []
    between = "patches, mirroring and folds"
    keys = ("all variances", between, *UNCERTAINTIES, "entropy of a single own-patch pass")
    for case in tqdm(cases, unit="case"):
        images = files[case]["images"]
        truth, grid = read_truth(ours, files[case])
        with quiet():
            (resampled,) = stock.predict_from_files_sequential([images], None)
        image = ours.encode(images)
        labels = image.labels()
        pairs = {"nnU-Net": (resampled, truth), "decoded": (labels, truth), "between": (labels, resampled)}
        for key, maps in pairs.items():
            scores = score_case(*map(np.asarray, maps), structures=structures, spacing=grid.spacing, metrics=["Dice"])
            dice[key] += [s["Dice"] for s in scores.values()]
        errors.append((labels != truth).flatten())
        variances = image.uncertainty()
        p = single.encode(images).probabilities()
        entropy = -(p * np.log(np.maximum(p, 1e-12))).sum(0)
        all_but_the_labels = variances[1:].sum(0)
        rankings.append(np.stack([variances.sum(0), all_but_the_labels, *variances, entropy]).reshape(len(keys), -1))
    wrong, ranked = np.concatenate(errors), np.concatenate(rankings, 1)
    return {
        "cases": len(cases),
        "dice": {key: float(np.mean(values)) for key, values in dice.items()},
        "AUROC": {key: float(roc_auc_score(wrong, r)) for key, r in zip(keys, ranked, strict=True)},
    }


def report(result: dict[str, Any]) -> str:
    """The comparison in two Markdown tables."""
    dice, auroc = result["dice"], result["AUROC"]
    return "\n".join(
        [
            f"| Dice, {result['cases']} cases | resampled by nnU-Net | decoded on the image's grid | between them |",
            "|---|---|---|---|",
            f"| | {dice['nnU-Net']:.4f} | {dice['decoded']:.4f} | {dice['between']:.4f} |",
            "",
            f"| AUROC of voxel errors | {' | '.join(auroc)} |",
            "|---" * (len(auroc) + 1) + "|",
            f"| | {' | '.join(f'{value:.4f}' for value in auroc.values())} |",
        ]
    )


def _loaded(kind: type, model: Path, folds: Sequence[int], device: torch.device, *, mirroring: bool) -> Any:  # noqa: ANN401
    with quiet():
        predictor = kind(device=device, use_mirroring=mirroring, allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(model), tuple(folds), "checkpoint_final.pth")
    return predictor
