"""How a model was trained: its curves, and the points that were drawn in a crop."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
import torch.nn.functional as F
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from plotly.subplots import make_subplots

from nnunetv2_swipe.config import SwIPEConfig
from nnunetv2_swipe.preprocessing.datasets import PLAIN_DATASETS
from nnunetv2_swipe.report.pictures import image_layer, label_layer, view
from nnunetv2_swipe.report.structures import Structures
from nnunetv2_swipe.training.point_sampling import sample_points

CURVES = {
    "train_losses": ("training", 1),
    "val_losses": ("validation", 1),
    "mean_fg_dice": ("Dice of validation crops", 2),
    "ema_fg_dice": ("its moving average", 2),
    "lrs": ("learning rate", 3),
}
"""nnU-Net's logged values: what they are called, and in which diagram they are."""


def training_curves(logged: Mapping[str, Mapping[str, Any]]) -> go.Figure:
    """Losses, Dice and learning rate of every epoch.

    Args:
        logged: Fold -> what nnU-Net logged, as a checkpoint holds it: name -> a value for each epoch.
    """
    figure = make_subplots(1, 3, subplot_titles=("Loss", "Dice", "Learning rate"))
    for fold, of_fold in logged.items():
        for key, (name, column) in CURVES.items():
            values = [float(v) for v in of_fold.get(key, ())]
            mode = "lines" if len(values) > 1 else "markers"
            title = name if len(logged) == 1 else f"{name}, fold {fold}"
            figure.add_trace(go.Scatter(y=values, name=title, mode=mode), row=1, col=column)
    figure.update_xaxes(title="Epoch")
    figure.update_layout(height=320, margin={"l": 40, "r": 10, "t": 40, "b": 40})
    return figure


def crop_with_points(
    folder: Path,
    configuration: Mapping[str, Any],
    config: SwIPEConfig,
    labels: LabelManager,
    structures: Structures,
    case: str,
) -> dict[str, Any]:
    """A crop as nnU-Net's loader draws it, not augmented, and the points that SwIPE draws in it, for the slice viewer.

    Args:
        folder: The configuration's preprocessed data.
        configuration: nnU-Net's configuration.
        config: SwIPE's settings.
        labels: Of the dataset.
        structures: Likewise.
        case: Which case to crop.
    """
    size, flat = configuration["patch_size"], (1,) * (3 - config.dims)
    dataset = PLAIN_DATASETS[infer_dataset_class(str(folder))](str(folder), [case])
    loader = nnUNetDataLoader(dataset, 1, size, size, labels, oversample_foreground_percent=1.0)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  (what nnU-Net's loader draws from)
    batch = loader.generate_train_batch()
    image, segmentation = batch["data"][0], batch["target"][0]
    to_target = nnUNetTrainer.get_validation_transforms(
        None, regions=labels.foreground_regions if labels.has_regions else None, ignore_label=labels.ignore_label
    )
    target = to_target(image=image, segmentation=segmentation)["segmentation"]
    sample = sample_points(
        target[None], config, num_classes=labels.num_segmentation_heads, ignore_label=labels.ignore_label
    )
    volume = image.numpy().reshape(-1, *flat, *size)
    found = segmentation[0].clamp(min=0).numpy().reshape(*flat, *size)
    found = np.where(found == labels.ignore_label, 0, found)
    points = F.pad(sample.points[0], (3 - config.dims, 0)).numpy()
    voxels = np.clip(points.round().astype(int), 0, np.array(found.shape) - 1)
    drawn = np.concatenate((points, found[tuple(voxels.T)][:, None]), 1)
    layers = [image_layer(volume), label_layer("Labels", found, structures.label_colours, shown=True)]
    spacing = [1.0] * len(flat) + list(configuration["spacing"])
    result = view(layers, spacing, np.arange(len(found)), len(found), found > 0)
    return {**result, "points": [[round(float(v), 2) for v in point] for point in drawn]}
