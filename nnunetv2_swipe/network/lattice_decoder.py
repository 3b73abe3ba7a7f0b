"""D^P on a lattice of positions, where its first layer is the sum of three rows of tables.

A lattice has any positions along each axis: the voxel centres, or others. The first layer is linear, and what it is
given of a position (p^P with its Fourier features, p^I and p^S) is a sum over the axes. So there is one row per patch
(for z^P), one per position along the last axis, and one per position along the axes before.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_swipe.network.coordinates import (
    fourier_features,
    image_coordinates,
    nearest_patches,
    patch_coordinates,
    patch_index,
)
from nnunetv2_swipe.precision import full_precision, network_precision

if TYPE_CHECKING:
    from nnunetv2_swipe.network.swipe_net import FirstLayerTerms, SwIPENet

ROWS_PER_CHUNK = {"cpu": 1 << 12}
ROWS_PER_CHUNK_ELSEWHERE = 1 << 17
LENGTHS = 8
"""Different lengths of the chunks: oneDNN compiles, and keeps, a kernel for each."""


def rows_per_chunk(device: torch.device) -> int:
    """Patches embedded, or positions decoded, at once in evaluation: few on the CPU, to stay in its cache."""
    return ROWS_PER_CHUNK.get(device.type, ROWS_PER_CHUNK_ELSEWHERE)


def padding_of(n: int, device: torch.device) -> int:
    """By how much to lengthen a chunk of n positions to one of a few lengths."""
    return -n % (rows_per_chunk(device) // LENGTHS)


class _Part(NamedTuple):
    """Positions along the last axis, or (in raster order) along the axes before, each in the frame of one patch."""

    table: Tensor
    """First-layer terms, (B * positions, features)."""
    patch: Tensor
    """What they add to the patch's number, (positions,)."""


class LatticeDecoder:
    """Decodes positions of a lattice in each crop of a batch, by their own patch or blended.

    Args:
        network: The network, in evaluation.
        terms: Output of its `first_layer_terms`.
        positions: Lattice positions along each axis, in voxels of the crop; default: the voxel centres.
        device: Where to decode; default: where the terms are. Only those that the lattice needs are brought there.

    Attributes:
        batch: Number of crops.
        size: Positions per axis.
        device: Where it works.
    """

    def __init__(
        self,
        network: SwIPENet,
        terms: FirstLayerTerms,
        positions: Sequence[Tensor] | None = None,
        device: torch.device | None = None,
    ) -> None:
        self._network = network
        self._crop, self.device = terms.size, device or terms.patch.device
        self.batch, *self._grid = terms.patch.shape[:-1]
        axes = positions or [torch.arange(n) for n in self._crop]
        self._positions = [p.to(self.device, torch.float32)[:, None] for p in axes]
        self.size = tuple(map(len, axes))
        sizes = zip(self._positions, network.config.patch_size, self._grid, strict=True)
        own = [patch_index(p, (s,), (g,)) for p, s, g in sizes]
        # the patches that decode the lattice, with their neighbours for blending
        spans = [torch.aminmax(index) for index in own]
        self._first = [max(0, int(low) - 1) for low, _ in spans]
        ends = [int(high) + 2 for _, high in spans]
        box = (slice(None), *[slice(first, end) for first, end in zip(self._first, ends, strict=True)])
        terms = terms._replace(patch=terms.patch[box]).to(self.device)
        self._table_shape = terms.patch.shape[1:-1]
        self._patch_table = terms.patch.flatten(0, -2)
        with full_precision(self.device):
            self._split_point_layer(terms.source_frame, terms.image)
        self._own = self._first_axes(own[:-1]), self._last_axis(own[-1])

    def _split_point_layer(self, frame: Tensor | None, image: Tensor | None) -> None:
        """The first layer's weights of p^P with its Fourier features, per axis, and of p^I and p^S.

        p^S is affine in p^I, so both are together: a slope (1 or B, D, features) and a constant (1 or B, features).
        """
        config, layer = self._network.config, self._network.patch_decoder.point_layer
        dims, n = config.dims, config.fourier_frequencies
        local, rest = layer.weight.float().tensor_split([dims * (1 + 2 * n)], 1)
        linear, waves = local[:, :dims], local[:, dims:].unflatten(1, (2, dims, n))
        self._local = [torch.cat((linear[:, a, None], waves[:, :, a].flatten(1)), 1) for a in range(dims)]
        self._slope = rest.new_zeros(1, dims, len(rest))
        self._constant = layer.bias.float()[None]
        n_image = dims if config.global_conditioning else 0
        if n_image:
            self._slope = self._slope + rest[:, :dims].T
        if frame is not None:
            source = rest[:, n_image:]
            self._slope = self._slope + frame[..., :-1].mT @ source.T
            self._constant = self._constant + frame[..., -1] @ source.T
        if image is not None:
            self._constant = self._constant + image.float()

    def _first_axes(self, patches: Sequence[Tensor]) -> _Part:
        """The axes before the last one, given the patch (n, 1) of every position along each."""
        table = self._terms(0, patches[0]) + self._constant[:, None]
        row = patches[0][:, 0] - self._first[0]
        for axis in range(1, len(patches)):
            table = (table[:, :, None] + self._terms(axis, patches[axis])[:, None]).flatten(1, 2)
            row = (row[:, None] * self._table_shape[axis] + patches[axis][:, 0] - self._first[axis]).flatten()
        return self._part(table, row * self._table_shape[-1])

    def _last_axis(self, patches: Tensor) -> _Part:
        """The part of the first layer that the last axis gives."""
        return self._part(self._terms(len(self._grid) - 1, patches), patches[:, 0] - self._first[-1])

    def _terms(self, axis: int, patches: Tensor) -> Tensor:
        """What the first layer makes of the positions along an axis, (1 or B, n, features) float32."""
        config, v = self._network.config, self._positions[axis]
        with full_precision(self.device):
            p_patch = patch_coordinates(v, patches, config.patch_size[axis : axis + 1])
            local = fourier_features(p_patch, config.fourier_frequencies) @ self._local[axis].T
            return local + image_coordinates(v, self._crop[axis : axis + 1]) * self._slope[:, axis, None]

    def _part(self, table: Tensor, patch: Tensor) -> _Part:
        """With a table (1 or B, positions, features) for each crop, in the patch table's precision."""
        table = table.to(self._patch_table.dtype).expand(self.batch, -1, -1)
        return _Part(table.flatten(0, 1), patch)

    @cached_property
    def _nearest(self) -> list[tuple[tuple[_Part, Tensor], tuple[_Part, Tensor]]]:
        """Two parts for each of the 2^D nearest patches (see `_own`), with the weights (positions,) of either."""
        sizes = zip(self._positions, self._network.config.patch_size, self._grid, strict=True)
        patches, weights = zip(*[nearest_patches(v, (s,), (g,)) for v, s, g in sizes], strict=True)
        first = []
        for corner in itertools.product((0, 1), repeat=len(self._grid) - 1):
            part = self._first_axes([p[side] for p, side in zip(patches, corner, strict=False)])
            weight = weights[0][corner[0]]
            for axis, side in enumerate(corner[1:], start=1):
                weight = (weight[:, None] * weights[axis][side]).flatten()
            first.append((part, weight))
        last = [(self._last_axis(patches[-1][side]), weights[-1][side]) for side in (0, 1)]
        return list(itertools.product(first, last))

    def own(self, index: Tensor) -> Tensor:
        """Logits (M, K) float32 of positions, each by the patch it lies in; index (M,) counts through all crops."""
        return torch.cat([self._decode(part, *self._own)[:n] for part, n in self._chunks(index)])

    def blended(self, index: Tensor) -> Tensor:
        """Logits (M, K) of points, the 2^D nearest patches blended with multilinear weights."""
        return torch.cat([self._blended(part)[:n] for part, n in self._chunks(index)])

    def _blended(self, index: Tensor) -> Tensor:
        total = torch.zeros((), device=self.device)
        for logits, weight in self._of_nearest(index):
            total = total + logits * weight[:, None]
        return total

    def of_nearest(self, index: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits (M, K) by each of the 2^D nearest patches, and its weight (M,); M no longer than a chunk."""
        ((part, n),) = self._chunks(index)
        for logits, weight in self._of_nearest(part):
            yield logits[:n], weight[:n]

    def _of_nearest(self, index: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for (first, first_weight), (last, last_weight) in self._nearest:
            row, column = index // len(last_weight), index % len(last_weight)
            weight = first_weight[row % len(first_weight)] * last_weight[column]
            yield self._decode(index, first, last), weight

    def _chunks(self, index: Tensor) -> list[tuple[Tensor, int]]:
        """Parts of the positions, filled up to one of a few lengths, and the positions in each."""
        parts = index.split(rows_per_chunk(self.device))
        return [(F.pad(part, (0, padding_of(len(part), self.device))), len(part)) for part in parts]

    def _decode(self, index: Tensor, first: _Part, last: _Part) -> Tensor:
        """Logits (M, K) of positions by the patches that the parts name."""
        n_first, n_last = len(first.patch), len(last.patch)
        row, column = index // n_last, index % n_last  # rows count through all crops
        sample = row // n_first
        n_patches = len(self._patch_table) // self.batch
        patch = first.patch[row % n_first] + last.patch[column] + sample * n_patches
        with network_precision(self.device):
            x = self._patch_table.index_select(0, patch)
            x += first.table.index_select(0, row)
            x += last.table.index_select(0, column + sample * n_last)
            return self._network.bounded(self._network.patch_decoder.from_first_layer(x))
