"""A part of a lattice, decoded as the mean of all tiles around each position, of all folds and mirrored passes."""

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from nnunetv2_swipe.config import SwIPEConfig
from nnunetv2_swipe.inference.uncertainties import UNCERTAINTIES
from nnunetv2_swipe.network.coordinates import flat_index, unravel
from nnunetv2_swipe.network.lattice_decoder import LatticeDecoder

_NEGLIGIBLE = 0.03
"""Share of a position's weight below which a tile is left out: in 3D half of the tiles, hardly a change of logits."""


def mean_over_tiles(weights: Tensor, channels: int, values: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Mean (M, channels) over tiles of their values at M positions.

    Args:
        weights: Of the tiles at every position, (tiles, M), of at least one above zero. Negligible ones count as zero.
        channels: Values per position.
        values: A tile's number and those of some positions (m,) -> the tile's values there, (m, channels).
    """
    # where many tiles overlap all have little
    least = torch.minimum(_NEGLIGIBLE * weights.sum(0), weights.amax(0) / 2)
    weights = torch.where(weights > least, weights, 0)
    weights /= weights.sum(0)
    total = torch.zeros(weights.shape[1], channels, device=weights.device)
    for tile, weight in enumerate(weights):
        chosen = weight.nonzero()[:, 0]
        if len(chosen):
            total.index_add_(0, chosen, values(tile, chosen) * weight[chosen, None])
    return total


class TilePart(NamedTuple):
    """The part of a block that lies in a tile."""

    where: list[slice]
    """Which positions along each axis."""
    weights: list[Tensor]
    """Factors of the tile's weight at the positions of the block along each axis, (n,) each; zero outside the tile."""
    decoders: list[LatticeDecoder]
    """One for each pass."""


class Block:
    """Decodes the points of a lattice as means over tiles and passes: a `mise.FieldDecoder`.

    Args:
        parts: What of the lattice lies in each tile.
        size: Positions of the lattice along z, y and x.
        config: Settings of the network.
        num_classes: Segmentation heads K.
        n_mirrored: Mirrored passes of each fold, with the one that is not.
        device: Where it is decoded.
    """

    batch = 1

    def __init__(
        self,
        parts: Iterable[TilePart],
        size: tuple[int, ...],
        *,
        config: SwIPEConfig,
        num_classes: int,
        n_mirrored: int,
        device: torch.device,
    ) -> None:
        self.size, self.device = size, device
        self._parts = list(parts)
        self._dims, self._regions = config.dims, config.regions
        self._num_classes, self._n_mirrored = num_classes, n_mirrored

    def own(self, index: Tensor) -> Tensor:
        """Logits (M, K) float32 of points, numbered in raster order, by the patch each lies in."""
        return self._decode(index, LatticeDecoder.own)

    def blended(self, index: Tensor) -> Tensor:
        """Logits (M, K) of points, of the nearest patches with multilinear weights."""
        return self._decode(index, LatticeDecoder.blended)

    def variances(self, index: Tensor) -> Tensor:
        """Variances (M, 4) of points, one for each of `UNCERTAINTIES`, summed over classes."""
        return self._over_tiles(index, len(UNCERTAINTIES), self._variances_in_tile)

    def _variances_in_tile(self, decoders: Sequence[LatticeDecoder], number: Tensor) -> Tensor:
        means, squares = zip(*[self._moments(d, number) for d in decoders], strict=True)
        square = mean(squares)
        of_patches = square - mean(m.square().sum(1) for m in means)
        of_labels = mean(means).sum(1) - square
        by_fold = torch.stack(means).unflatten(0, (-1, self._n_mirrored))  # (folds, mirrored, M, K)
        of_mirroring = by_fold.var(1, correction=0).sum(-1).mean(0)
        of_folds = by_fold.mean(1).var(0, correction=0).sum(-1)
        return torch.stack((of_labels, of_patches, of_mirroring, of_folds), 1).clamp(min=0)

    def _moments(self, decoder: LatticeDecoder, number: Tensor) -> tuple[Tensor, Tensor]:
        """Mean probabilities (M, K) over the nearest patches, and the mean (M,) of their squares' sum over classes."""
        first, square = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        for logits, weight in decoder.of_nearest(number):
            p = logits.sigmoid() if self._regions else logits.softmax(1)
            first = first + weight[:, None] * p
            square = square + weight * p.square().sum(1)
        return first, square

    def _decode(self, index: Tensor, decode: Callable[[LatticeDecoder, Tensor], Tensor]) -> Tensor:
        return self._over_tiles(index, self._num_classes, lambda by, number: mean(decode(d, number) for d in by))

    def _over_tiles(
        self, index: Tensor, channels: int, values: Callable[[Sequence[LatticeDecoder], Tensor], Tensor]
    ) -> Tensor:
        """Mean (M, channels) over the tiles around points of their values in a tile, given its passes."""
        place = unravel(index, self.size)

        def values_in(tile: int, chosen: Tensor) -> Tensor:
            where, _, decoders = self._parts[tile]
            shape = [w.stop - w.start for w in where[-self._dims :]]
            first = torch.tensor([w.start for w in where[-self._dims :]], device=self.device)
            return values(decoders, flat_index(place[chosen, -self._dims :] - first, shape))

        axes = place.unbind(1)
        weights = [reduce(torch.mul, (f[p] for f, p in zip(w, axes, strict=True))) for _, w, _ in self._parts]
        return mean_over_tiles(torch.stack(weights), channels, values_in)


def mean(tensors: Iterable[Tensor]) -> Tensor:
    """Mean of tensors that come one after the other."""
    rest = iter(tensors)
    total, n = next(rest), 1
    for tensor in rest:
        total, n = total + tensor, n + 1
    return total / n
