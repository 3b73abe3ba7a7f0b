"""Logits of a whole image on a grid of any resolution: nnU-Net's sliding window and mirroring, decoded on that grid."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor, nn

from nnunetv2_swipe.network.swipe_net import SwIPENet

_GAUSSIAN_WIDTH = 1 / 8
"""Standard deviation of the tiles' weights, in tiles: nnU-Net's."""


class _TileAxis(NamedTuple):
    """The grid points that lie in a tile, along one axis."""

    where: slice
    """In the grid."""
    positions: Tensor
    """In voxels of the tile, (n,)."""
    weight: Tensor
    """Their factor of the tile's weight, (n,)."""


@torch.inference_mode()
def predict_logits_on_grid(predictor: nnUNetPredictor, image: Tensor, shape: Sequence[int]) -> Tensor:
    """Decode a preprocessed image on a grid, without resampling logits; folds are averaged.

    Args:
        predictor: nnU-Net's predictor, holding a model of a SwIPE trainer.
        image: Preprocessed image with its source channels, (channels, z, y, x), what SwIPE's preprocessor returns as a
            tensor; of a cascade, with the previous stage's segmentation one-hot behind it.
        shape: Points of the grid along z, y and x. They are the centres of as many equal parts of the image's extent.
            A 2D configuration predicts the slices that are there, so their number must be the image's.

    Returns:
        (K, *shape) float32, on the CPU.

    Raises:
        ValueError: The model is not of a SwIPE trainer, or the shape is impossible.
    """
    network = plain_network(predictor)
    if not isinstance(network, SwIPENet):
        raise ValueError(
            f"Only models of SwIPE trainers decode a grid of any resolution, not {type(network).__name__}."
        )
    n_slices = image.shape[1] if network.config.dims == 2 else None
    if len(shape) != 3 or min(shape) < 1 or n_slices not in (None, shape[0]):
        slices = f", the first {n_slices} (the image's slices)" if n_slices else ""
        raise ValueError(f"The shape of the grid is {tuple(shape)}; it must be three numbers above 0{slices}.")
    network.to(predictor.device).eval()
    padded, inside = pad_nd_image(
        image, predictor.configuration_manager.patch_size, "constant", {"value": 0}, return_slicer=True
    )
    axes = zip(shape, image.shape[1:], inside[1:], strict=True)
    positions = [(torch.arange(n) + 0.5) * (size / n) - 0.5 + part.start for n, size, part in axes]
    logits = torch.zeros(predictor.label_manager.num_segmentation_heads, *shape)
    weights = torch.zeros(tuple(shape))
    mirrored = _mirrored(predictor)
    for parameters in predictor.list_of_parameters:
        network.load_state_dict(parameters)
        for tile in predictor._internal_get_sliding_window_slicers(padded.shape[1:]):
            parts = [
                _tile_axis(p, part, gaussian=predictor.use_gaussian)
                for p, part in zip(positions, tile[1:], strict=True)
            ]
            if not all(len(part.positions) for part in parts):
                continue  # a coarse grid has no point there
            lattice = [part.positions for part in parts[-network.config.dims :]]
            found = _predict_tile(network, padded[tile][None].to(predictor.device), lattice, mirrored)
            box = tuple(part.where for part in parts)
            weight = torch.einsum("i,j,k->ijk", *[part.weight for part in parts])
            weights[box] += weight
            box = (slice(None), *box)
            logits[box] += found.cpu().reshape(-1, *weight.shape) * weight
    logits /= weights
    return logits


def plain_network(predictor: nnUNetPredictor) -> nn.Module:
    """The predictor's network, not compiled."""
    return getattr(predictor.network, "_orig_mod", predictor.network)


def _tile_axis(positions: Tensor, part: slice | int, *, gaussian: bool) -> _TileAxis:
    """Grid points within a tile along one axis; of a slice, itself."""
    if isinstance(part, int):
        return _TileAxis(slice(part, part + 1), torch.zeros(1), torch.ones(1))
    size = part.stop - part.start
    first, end = torch.searchsorted(positions, torch.tensor([part.start - 0.5, part.stop - 0.5])).tolist()
    within = positions[first:end] - part.start
    weight = torch.exp(-0.5 * ((within - size // 2) / (size * _GAUSSIAN_WIDTH)).square())
    return _TileAxis(slice(first, end), within, weight if gaussian else torch.ones_like(within))


def _mirrored(predictor: nnUNetPredictor) -> list[tuple[int, ...]]:
    """Every set of axes that the predictor mirrors at once, none first."""
    axes = (predictor.allowed_mirroring_axes or ()) if predictor.use_mirroring else ()
    return [c for n in range(len(axes) + 1) for c in itertools.combinations(axes, n)]


def _predict_tile(
    network: SwIPENet, tile: Tensor, positions: Sequence[Tensor], mirrored: Sequence[tuple[int, ...]]
) -> Tensor:
    """Logits (K, *lattice) of a tile (1, channels, *size) on a lattice, averaged over mirrored passes."""
    total = torch.zeros((), device=tile.device)
    for axes in mirrored:
        embeddings = network.encode(tile.flip([a + 2 for a in axes]))
        sizes = enumerate(zip(positions, tile.shape[2:], strict=True))
        lattice = [n - 1 - p if axis in axes else p for axis, (p, n) in sizes]
        total = total + network.decode_dense(embeddings, lattice)[0]
    return total / len(mirrored)
