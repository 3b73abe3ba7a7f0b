"""D^P at voxel centres, where its first layer is the sum of two rows of tables.

A voxel is a patch and a place within the patch, and the first layer is linear: what it makes of z^P, z^I and the place
of the patch in the crop and the image is one row per patch; what it makes of the place within the patch (p^P with its
Fourier features, and the rest of p^I and p^S) is one row per place, shared by all patches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_swipe.network.coordinates import (
    axis_tensor,
    flat_index,
    fourier_features,
    nearest_patches,
    patch_coordinates,
    unravel,
    voxel_centres,
)
from nnunetv2_swipe.precision import full_precision, network_precision

if TYPE_CHECKING:
    from nnunetv2_swipe.network.swipe_net import Embeddings, SwIPENet

ROWS_PER_CHUNK = {"cpu": 1 << 12}
ROWS_PER_CHUNK_ELSEWHERE = 1 << 17
LENGTHS = 8
"""Different lengths of the chunks: oneDNN compiles, and keeps, a kernel for each."""


def rows_per_chunk(device: torch.device) -> int:
    """Patches embedded, or table rows decoded, at once in evaluation: few on the CPU, to stay in its cache."""
    return ROWS_PER_CHUNK.get(device.type, ROWS_PER_CHUNK_ELSEWHERE)


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
        self.batch, *self._grid = embeddings.patch.shape[:-1]
        # blended patches decode places up to half a patch outside
        self._beyond = [s // 2 if config.decoding == "blended" else 0 for s in config.patch_size]
        self._window = [s + 2 * b for s, b in zip(config.patch_size, self._beyond, strict=True)]
        self._patch_table, self._place_table = self._tables(embeddings)
        self._own_patch, self._own_place = self._own_rows()

    def _tables(self, embeddings: Embeddings) -> tuple[Tensor, Tensor]:
        """First-layer terms (B * patches, features) and (B * places, features)."""
        network, config, device = self._network, self._network.config, self.device
        decoder, frame = network.patch_decoder, embeddings.source_frame
        with network_precision(device):
            patch_table = decoder.patch_layer(embeddings.patch)  # (B, *grid, features)
            image = network.image_term(embeddings.image)
        with full_precision(device):
            weight = decoder.point_layer.weight.float()
            place = voxel_centres(self._window, device) - axis_tensor(self._beyond, weight)
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
                for i, (n, s) in enumerate(zip(self._grid, config.patch_size, strict=True))
            ]  # (1 or B, n, features) each
            axes[0] = axes[0] + constant[:, None]
        # in place and in the table's own precision, the last two axes at once: the table is long
        dtype = patch_table.dtype
        plane = (axes[-2][:, :, None] + axes[-1][:, None]).to(dtype)
        if len(self._grid) == 2:
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

    def _own_rows(self) -> tuple[Tensor, Tensor]:
        """Rows of the patch that each voxel of a crop lies in, and of its place there: (voxels,) int32 each."""
        patch = place = torch.zeros(1, dtype=torch.int32, device=self.device)
        axes = zip(self.size, self._network.config.patch_size, self._grid, self._window, self._beyond, strict=True)
        for n, s, n_patches, window, beyond in axes:
            voxel = torch.arange(n, dtype=torch.int32, device=self.device)
            patch = (patch[:, None] * n_patches + voxel // s).flatten()
            place = (place[:, None] * window + voxel % s + beyond).flatten()
        return patch, place

    def own(self, index: Tensor) -> Tensor:
        """Logits (M, K) float32 of voxels, each by the patch it lies in; index (M,) counts through all crops."""
        return torch.cat([self._own(part)[:n] for part, n in self._chunks(index, 1)])

    def _own(self, index: Tensor) -> Tensor:
        sample = index // len(self._own_patch)
        voxel = index - sample * len(self._own_patch)
        return self._decode(self._own_patch[voxel], self._own_place[voxel], sample)

    def blended(self, index: Tensor) -> Tensor:
        """As `own`, blending the 2^D nearest patches with multilinear weights."""
        return torch.cat([self._blended(part)[:n] for part, n in self._chunks(index, 1 << len(self.size))])

    def _blended(self, index: Tensor) -> Tensor:
        sample, voxel = unravel(index, (self.batch, *self.size)).tensor_split([1], -1)
        patch, weight = nearest_patches(voxel.float(), self._network.config.patch_size, self._grid)
        place = voxel - patch * axis_tensor(self._network.config.patch_size, patch) + axis_tensor(self._beyond, patch)
        # at the crop's border a patch without weight may lie farther off
        place = place.clamp(min=0).minimum(axis_tensor(self._window, place) - 1)
        rows = (flat_index(patch, self._grid), flat_index(place, self._window), sample.expand(-1, len(patch)).T)
        logits = self._decode(*[r.flatten() for r in rows])
        return (logits.unflatten(0, weight.shape) * weight[..., None]).sum(0)

    def _chunks(self, index: Tensor, rows_per_voxel: int) -> list[tuple[Tensor, int]]:
        """Parts of the voxels, filled up to one of a few lengths, and the voxels in each."""
        longest = max(rows_per_chunk(self.device) // rows_per_voxel, 1)
        multiple = max(longest // LENGTHS, 1)
        return [(F.pad(part, (0, -len(part) % multiple)), len(part)) for part in index.split(longest)]

    def _decode(self, patch: Tensor, place: Tensor, sample: Tensor) -> Tensor:
        """Logits (M, K) of rows of the tables; `sample` (M,) is the crop."""
        patch = patch + len(self._patch_table) // self.batch * sample
        place = place + len(self._place_table) // self.batch * sample
        with network_precision(self.device):
            x = self._patch_table.index_select(0, patch).add_(self._place_table.index_select(0, place))
            return self._network.bounded(self._network.patch_decoder.from_first_layer(x))
