"""Logits of a whole preprocessed image on a grid of any resolution, decoded on that grid."""

from collections.abc import Sequence

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor

from nnunetv2_swipe.inference.tiles import TiledImage


def predict_logits_on_grid(predictor: nnUNetPredictor, image: Tensor, shape: Sequence[int]) -> Tensor:
    """Decode a preprocessed image on a grid, without resampling logits; folds are averaged.

    Args:
        predictor: nnU-Net's predictor, holding a model of a SwIPE trainer.
        image: Preprocessed image with its source channels, (channels, z, y, x), see `TiledImage`.
        shape: Points of the grid along z, y and x. They are the centres of as many equal parts of the image's extent.
            A 2D configuration predicts the slices that are there, so their number must be the image's.

    Returns:
        (K, *shape) float32, on the CPU.

    Raises:
        ValueError: The model is not of a SwIPE trainer, or the shape is impossible.
    """
    tiled = TiledImage(predictor, image)
    n_slices = image.shape[1] if tiled.config.dims == 2 else None
    if len(shape) != 3 or min(shape) < 1 or n_slices not in (None, shape[0]):
        slices = f", the first {n_slices} (the image's slices)" if n_slices else ""
        raise ValueError(f"The shape of the grid is {tuple(shape)}; it must be three numbers above 0{slices}.")
    positions = [(torch.arange(n) + 0.5) * (size / n) - 0.5 for n, size in zip(shape, tiled.shape, strict=True)]
    logits = torch.empty(tiled.num_classes, *shape)
    for box in tiled.blocks(positions):
        where = (slice(None), *box)
        logits[where] = tiled.decode_lattice([p[part] for p, part in zip(positions, box, strict=True)])
    return logits
