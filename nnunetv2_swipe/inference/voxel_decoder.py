"""D^P at voxel centres, where its first layer is the sum of two rows of tables.

A voxel is a patch and a place within the patch, and the first layer is linear: what it makes of z^P, z^I and the place
of the patch in the crop and the image is one row per patch; what it makes of the place within the patch (p^P with its
Fourier features, and the rest of p^I and p^S) is one row per place, shared by all patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_swipe.network.coordinates import (
    axis_tensor,
    flat_index,
    fourier_features,
    grid_shape,
    nearest_patches,
    patch_coordinates,
    patch_index,
    voxel_centres,
)
from nnunetv2_swipe.precision import full_precision, network_precision

if TYPE_CHECKING:
    from nnunetv2_swipe.network.swipe_net import Embeddings, SwIPENet

POINTS_PER_CHUNK = 1 << 12
"""Points decoded at once; bounds the memory of a dense prediction, and stays in the processor's cache."""
LENGTHS = 8
"""Different lengths of the chunks."""


class VoxelRows(NamedTuple):
    """For each voxel of a crop the table rows of the patches that decode it: n = 1, or 2^D where blended."""

    patch: Tensor
    """Row of the patch within its crop, (n, voxels) int64."""
    place: Tensor
    """Row of the place within the patch, (n, voxels) int64."""
    weight: Tensor
    """Multilinear weights, (n, voxels)."""


class VoxelDecoder:
    """Decodes voxels of a batch of crops, by their own patch or blended.

    Args:
        network: The network, in evaluation.
        embeddings: Output of its encoder.
    """

    def __init__(self, network: SwIPENet, embeddings: Embeddings) -> None:
        config = network.config
        self._network = network
        self.size, self.device = embeddings.size, embeddings.patch.device
        self.batch = len(embeddings.patch)
        self._n_voxels = math.prod(self.size)
        self._n_patches = math.prod(embeddings.patch.shape[1:-1])
        # blended patches decode places up to half a patch outside
        self._beyond = tuple(s // 2 if config.decoding == "blended" else 0 for s in config.patch_size)
        self._patch_table, self._place_table = self._tables(embeddings)
        self._n_places = len(self._place_table) // self.batch

    def _tables(self, embeddings: Embeddings) -> tuple[Tensor, Tensor]:
        """First-layer terms (B * patches, features) and (B * places, features)."""
        network, config, device = self._network, self._network.config, self.device
        decoder, frame = network.patch_decoder, embeddings.source_frame
        grid = embeddings.patch.shape[1:-1]
        with network_precision(device):
            patch_table = decoder.patch_layer(embeddings.patch)  # (B, *grid, features)
            image = network.image_term(embeddings.image)
        with full_precision(device):
            weight = decoder.point_layer.weight.float()
            window = [s + 2 * b for s, b in zip(config.patch_size, self._beyond, strict=True)]
            place = voxel_centres(window, device) - axis_tensor(self._beyond, weight)
            p_patch = patch_coordinates(place, torch.zeros_like(place, dtype=torch.int64), config.patch_size)
            local = fourier_features(p_patch, config.fourier_frequencies)
            slope, constant = self._image_position(weight[:, local.shape[1] :], frame)
            # p^I of a voxel is that of its patch's lower corner and that of the place added up
            per_voxel = 2 / axis_tensor(self.size, weight)
            place_table = local @ weight[:, : local.shape[1]].T + ((place + 0.5) * per_voxel) @ slope
            constant = constant + decoder.point_layer.bias
            if image is not None:
                constant = constant + image.float()
            axes = [
                (torch.arange(n, device=device)[:, None] * (s * per_voxel[i]) - 1) * slope[:, i, None]
                for i, (n, s) in enumerate(zip(grid, config.patch_size, strict=True))
            ]  # (1 or B, n, features) each
            axes[0] = axes[0] + constant[:, None]
        # in place and in the table's own precision, the last two axes at once: the table is long
        dtype = patch_table.dtype
        plane = (axes[-2][:, :, None] + axes[-1][:, None]).to(dtype)
        if len(grid) == 2:
            patch_table += plane
        else:
            patch_table += plane[:, None]
            patch_table += axes[0][:, :, None, None].to(dtype)
        place_table = place_table.to(dtype).expand(self.batch, -1, -1)
        return patch_table.flatten(0, -2), place_table.flatten(0, 1)

    def _image_position(self, weight: Tensor, frame: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the first layer makes of [p^I, p^S], as an affine function of p^I: (1 or B, D, features) and a constant.

        p^S is itself affine in p^I.
        """
        dims = len(self.size)
        n_image = dims if self._network.config.global_conditioning else 0
        slope = weight.new_zeros(1, dims, len(weight))
        constant = weight.new_zeros(1, len(weight))
        if n_image:
            slope = slope + weight[:, :dims].T
        if frame is not None:
            source = weight[:, n_image:]
            slope = slope + frame[..., :-1].mT @ source.T
            constant = frame[..., -1] @ source.T
        return slope, constant

    def own(self, index: Tensor) -> Tensor:
        """Logits (M, K) float32 of voxels, each by the patch it lies in; index (M,) counts through all crops."""
        return self._in_chunks(index, own_rows(self.size, self._network.config.patch_size, self._beyond, self.device))

    def blended(self, index: Tensor) -> Tensor:
        """As `own`, blending the 2^D nearest patches with multilinear weights."""
        rows = blended_rows(self.size, self._network.config.patch_size, self._beyond, self.device)
        return self._in_chunks(index, rows)

    def _in_chunks(self, index: Tensor, rows: VoxelRows) -> Tensor:
        """Decode in chunks of few different lengths: oneDNN compiles and keeps a kernel for each."""
        longest = max(POINTS_PER_CHUNK // len(rows.weight), 1)
        multiple = max(longest // LENGTHS, 1)
        parts = index.split(longest)
        return torch.cat([self._decode(F.pad(part, (0, -len(part) % multiple)), rows)[: len(part)] for part in parts])

    def _decode(self, index: Tensor, rows: VoxelRows) -> Tensor:
        sample = index // self._n_voxels
        voxel = index - sample * self._n_voxels
        patch = (rows.patch[:, voxel] + self._n_patches * sample).flatten()
        place = (rows.place[:, voxel] + self._n_places * sample).flatten()
        with network_precision(self.device):
            x = self._patch_table.index_select(0, patch).add_(self._place_table.index_select(0, place))
            logits = self._network.bounded(self._network.patch_decoder.from_first_layer(x))
        if len(rows.weight) == 1:
            return logits
        return (logits.unflatten(0, (-1, len(voxel))) * rows.weight[:, voxel, None]).sum(0)


@lru_cache(maxsize=8)
def own_rows(
    size: tuple[int, ...], patch_size: tuple[int, ...], beyond: tuple[int, ...], device: torch.device
) -> VoxelRows:
    """Rows of the patch each voxel lies in."""
    voxels = voxel_centres(size, device)
    patch = patch_index(voxels, patch_size, grid_shape(size, patch_size))
    return _rows(voxels, patch[None], torch.ones(1, len(voxels), device=device), size, patch_size, beyond)


@lru_cache(maxsize=4)
def blended_rows(
    size: tuple[int, ...], patch_size: tuple[int, ...], beyond: tuple[int, ...], device: torch.device
) -> VoxelRows:
    """Rows and weights of the 2^D patches nearest to each voxel."""
    voxels = voxel_centres(size, device)
    patch, weight = nearest_patches(voxels, patch_size, grid_shape(size, patch_size))
    return _rows(voxels, patch, weight, size, patch_size, beyond)


def _rows(
    voxels: Tensor,
    patch: Tensor,
    weight: Tensor,
    size: Sequence[int],
    patch_size: Sequence[int],
    beyond: Sequence[int],
) -> VoxelRows:
    window = [s + 2 * b for s, b in zip(patch_size, beyond, strict=True)]
    place = voxels.long() - patch * axis_tensor(patch_size, patch) + axis_tensor(beyond, patch)
    # at the crop's border a patch without weight may lie farther off
    place = place.clamp(min=0).minimum(axis_tensor(window, place) - 1)
    return VoxelRows(flat_index(patch, grid_shape(size, patch_size)), flat_index(place, window), weight)
