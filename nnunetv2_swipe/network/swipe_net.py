"""SwIPE: an encoder that embeds patches, and decoders that give the class of any continuous position (MICCAI 2023)."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_swipe.config import SwIPEConfig
from nnunetv2_swipe.network.backbones import build_backbone
from nnunetv2_swipe.network.coordinates import (
    N_SOURCE_AXES,
    N_SOURCE_CHANNELS,
    fit_source_frame,
    flat_index,
    fourier_features,
    grid_shape,
    image_coordinates,
    nearest_patches,
    patch_coordinates,
    patch_index,
    source_coordinates,
)
from nnunetv2_swipe.network.decoders import OccupancyDecoder
from nnunetv2_swipe.network.lattice_decoder import LatticeDecoder, rows_per_chunk
from nnunetv2_swipe.network.mise import decode_field
from nnunetv2_swipe.network.neck import Neck
from nnunetv2_swipe.precision import full_precision, network_precision

_MAX_LOGIT = 50.0


class Embeddings(NamedTuple):
    """What the encoder knows about a batch of crops; see `SwIPENet.decode_dense` and `first_layer_terms`."""

    patch: Tensor
    """z^P, (B, *grid, d)."""
    image: Tensor
    """z^I, (B, d)."""
    attention: Tensor | None
    """MEA weights per patch and stage, (B, *grid, n stages)."""
    source_frame: Tensor | None
    """Affine map from image to source coordinates, (B, 3, D + 1)."""
    size: tuple[int, ...]
    """Size of the crop in voxels."""


class FirstLayerTerms(NamedTuple):
    """What the first layer of D^P makes of the embeddings of a batch of crops; query it with `SwIPENet.decode`."""

    patch: Tensor
    """Terms of z^P, (B, *grid, features)."""
    image: Tensor | None
    """Terms of z^I, (B, features), with global conditioning."""
    source_frame: Tensor | None
    """As in `Embeddings`."""
    size: tuple[int, ...]
    """As in `Embeddings`."""

    def to(self, device: torch.device | str) -> "FirstLayerTerms":
        """A copy on a device."""
        image, frame = (None if t is None else t.to(device) for t in (self.image, self.source_frame))
        return self._replace(patch=self.patch.to(device), image=image, source_frame=frame)


class PointLogits(NamedTuple):
    """Outputs of a training step."""

    patch: Tensor
    """D^P, each point decoded by its own patch, (B, N, K)."""
    image: Tensor | None
    """D^I, (B, N, K)."""
    neighbours: Tensor | None
    """D^P, each point decoded by neighbouring patches (SPO), (B, N * n_spo, K)."""
    embedding_norm: Tensor
    """Mean squared norm of the points' z^P plus that of z^I, a scalar."""


class SwIPENet(nn.Module):
    """Swift implicit patch embeddings, in 2D and 3D.

    In evaluation the module is what nnU-Net expects of a network: a crop in, dense logits (B, K, *size) out. In
    training it is called with points and returns the logits at those points.

    Args:
        config: SwIPE's block of the plan.
        input_channels: Image channels (of a cascade: with those of the previous stage), source channels not counted.
        num_classes: Segmentation heads K.
    """

    def __init__(self, config: SwIPEConfig, input_channels: int, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.input_channels = input_channels
        self.backbone = build_backbone(config, input_channels)
        self.neck = Neck(config)
        dims, d = config.dims, config.embedding_dim
        position = dims * (1 + 2 * config.fourier_frequencies)
        if config.global_conditioning:
            position += dims
        if config.source_coordinates:
            position += N_SOURCE_AXES
        self.patch_decoder = OccupancyDecoder(
            point_features=position,
            patch_features=d,
            image_features=d if config.global_conditioning else 0,
            hidden_features=config.patch_decoder_features,
            num_classes=num_classes,
            dropout=config.dropout,
        )
        self.image_decoder = (
            OccupancyDecoder(
                point_features=dims,
                patch_features=0,
                image_features=d,
                hidden_features=config.image_decoder_features,
                num_classes=num_classes,
            )
            if config.image_decoder_features
            else None
        )

    @property
    def expected_channels(self) -> int:
        """Channels of the input tensor, source channels included."""
        return self.input_channels + (N_SOURCE_CHANNELS if self.config.source_coordinates else 0)

    def encode(self, x: Tensor) -> Embeddings:
        """Embed every patch of a batch of crops.

        Args:
            x: (B, channels, *size); with source coordinates the first four channels are the source frame
                (see `coordinates.source_channels`), the others the image.

        Raises:
            ValueError: The number of channels or axes is not what the plan says.
        """
        stages, image, frame = self._encode_stages(x)
        grid = stages[0].shape[:-1]
        chunks = zip(*[s.flatten(0, -2).split(rows_per_chunk(x.device)) for s in stages], strict=True)
        with network_precision(x.device):
            patches, attentions = zip(*[self.neck.embed(chunk) for chunk in chunks], strict=True)
        attention = None if self.neck.attention is None else torch.cat(attentions).unflatten(0, grid)
        return Embeddings(torch.cat(patches).unflatten(0, grid), image, attention, frame, tuple(x.shape[2:]))

    def _encode_stages(self, x: Tensor) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """Stage features on the patch grid (B, *grid, h) each, z^I (B, d), and the source frame."""
        dims = self.config.dims
        if x.ndim != dims + 2 or x.shape[1] != self.expected_channels:
            raise ValueError(
                f"SwIPENet expects (batch, {self.expected_channels} channels, {dims} axes), got {tuple(x.shape)}. With "
                "source coordinates the first four channels are the frame that SwIPEPreprocessor adds: was the image "
                "preprocessed as the model's plan says?"
            )
        frame = None
        if self.config.source_coordinates:
            frame = fit_source_frame(x[:, :N_SOURCE_CHANNELS])
            x = x[:, N_SOURCE_CHANNELS:]
        grid = grid_shape(x.shape[2:], self.config.patch_size)
        with network_precision(x.device):
            stages, image = self.neck(self.backbone(self._pad(x)))
        whole_patches = (slice(None), *[slice(g) for g in grid])
        return [s[whole_patches] for s in stages], image, frame

    def _pad(self, x: Tensor) -> Tensor:
        """Pad to whole patches and strides, so that every stage lies exactly on the patch grid."""
        coarsest = self.config.total_strides()[-1]
        multiple = [max(s, p) for s, p in zip(coarsest, self.config.patch_size, strict=True)]
        padding = [(-n) % m for n, m in zip(x.shape[2:], multiple, strict=True)]
        if any(padding):
            x = F.pad(x, [p for after in reversed(padding) for p in (0, after)])
        return x.to(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)

    def first_layer_terms(self, embeddings: Embeddings) -> FirstLayerTerms:
        """What all positions of a patch, or of a crop, have in common, computed once.

        Args:
            embeddings: Output of `encode`.
        """
        with network_precision(embeddings.patch.device):
            patch = self.patch_decoder.patch_layer(embeddings.patch)
            return FirstLayerTerms(patch, self._image_term(embeddings.image), embeddings.source_frame, embeddings.size)

    def decode(self, terms: FirstLayerTerms, points: Tensor, sample: Tensor, patches: Tensor | None = None) -> Tensor:
        """Class logits at continuous positions, by D^P.

        Args:
            terms: Output of `first_layer_terms`.
            points: Positions (M, D) in voxels of the crop, voxel centres at integers.
            sample: Which crop of the batch each point is in, (M,) int64.
            patches: Grid index (M, D) of the patch that decodes each point; default: the patch it lies in.

        Returns:
            Logits (M, K), float32, bounded.
        """
        if patches is None:
            patches = patch_index(points, self.config.patch_size, terms.patch.shape[1:-1])
        row = flat_index(torch.cat((sample[:, None], patches), 1), terms.patch.shape[:-1])
        logits = self._decode_patch(
            points,
            patches,
            terms.size,
            patch_term=terms.patch.flatten(0, -2).index_select(0, row),
            image_term=None if terms.image is None else terms.image.index_select(0, sample),
            frame=None if terms.source_frame is None else terms.source_frame.index_select(0, sample),
        )
        return self.bounded(logits)

    def decode_blended(self, terms: FirstLayerTerms, points: Tensor, sample: Tensor) -> Tensor:
        """Logits (M, K) of points, the 2^D nearest patches blended: continuous across the borders of patches."""
        patches, weights = nearest_patches(points, self.config.patch_size, terms.patch.shape[1:-1])
        n = len(patches)
        logits = self.decode(terms, points.repeat(n, 1), sample.repeat(n), patches.flatten(0, 1))
        return (logits.unflatten(0, (n, -1)) * weights[..., None]).sum(0)

    @torch.compiler.disable  # data-dependent shapes
    def decode_dense(self, embeddings: Embeddings) -> Tensor:
        """Logits of the voxels of the crops, (B, K, *size) float32, decoded as the plan says: MISE, own or blended.

        Args:
            embeddings: Output of `encode`.
        """
        decoder = LatticeDecoder(self, self.first_layer_terms(embeddings))
        return decode_field(decoder, self.config, self.config.mise_levels)

    def _image_term(self, z_image: Tensor) -> Tensor | None:
        """What z^I (B, d) adds to the first layer of D^P, (B, features), if anything."""
        return self.patch_decoder.image_layer(z_image) if self.config.global_conditioning else None

    def _decode_patch(
        self,
        points: Tensor,
        patches: Tensor,
        size: tuple[int, ...],
        *,
        patch_term: Tensor,
        image_term: Tensor | None,
        frame: Tensor | None,
    ) -> Tensor:
        """D^P of points (..., D) whose first-layer terms of z^P and z^I are given: (..., K) float32.

        The term of z^I and the frame may be those of all points, (..., 1, features) and (..., 1, 3, D + 1).
        """
        config = self.config
        with full_precision(points.device):
            p_patch = patch_coordinates(points, patches, config.patch_size)
            position = [fourier_features(p_patch, config.fourier_frequencies)]
            p_image = image_coordinates(points, size)
            if config.global_conditioning:
                position.append(p_image)
            if frame is not None:
                position.append(source_coordinates(p_image, frame))
        with network_precision(points.device):
            terms = [patch_term] if image_term is None else [patch_term, image_term]
            logits = self.patch_decoder(torch.cat(position, -1), *terms)
        return logits.float()  # not bounded: the loss of training must see all of them

    @staticmethod
    def bounded(logits: Tensor) -> Tensor:
        """Logits in float32, within bounds that keep nnU-Net's sums in half precision finite."""
        return logits.float().clamp(-_MAX_LOGIT, _MAX_LOGIT)

    def forward(
        self, x: Tensor, points: Tensor | None = None, neighbours: Tensor | None = None
    ) -> Tensor | PointLogits:
        """Dense logits of a crop, or, given points, the logits at those points.

        Args:
            x: (B, channels, *size), see `encode`.
            points: Training points (B, N, D) in voxels.
            neighbours: Grid indices (B, N, n_spo, D) of the patches that decode the points as well (SPO).

        Returns:
            Without points a fresh float32 tensor (B, K, *size); with points `PointLogits`.
        """
        if points is None:
            return self.decode_dense(self.encode(x))
        return self._forward_points(x, points, neighbours)

    def _forward_points(self, x: Tensor, points: Tensor, neighbours: Tensor | None) -> PointLogits:
        """A training step's outputs; embeds all patches, or only those that the points need if they are fewer."""
        stages, z_image, frame = self._encode_stages(x)
        size, grid = tuple(x.shape[2:]), stages[0].shape[1:-1]
        batch, n = points.shape[:2]
        queries, patches = points, patch_index(points, self.config.patch_size, grid)
        n_spo = 0 if neighbours is None else neighbours.shape[2]
        if neighbours is not None:
            # own and neighbouring patches in one pass: one call per layer
            queries = torch.cat((points, points.repeat_interleave(n_spo, 1)), 1)
            patches = torch.cat((patches, neighbours.flatten(1, 2)), 1)
        first_row = math.prod(grid) * torch.arange(batch, device=points.device)
        row = (flat_index(patches, grid) + first_row[:, None]).flatten()
        rows = [s.flatten(0, -2) for s in stages]
        embed_all = len(rows[0]) <= len(row)  # else only those that the points need
        with network_precision(points.device):
            z_patch, _ = self.neck.embed(rows if embed_all else [r.index_select(0, row) for r in rows])
            patch_term = self.patch_decoder.patch_layer(z_patch)
            image_term = self._image_term(z_image)
        norm = z_patch.float().square().sum(-1)
        if embed_all:
            patch_term, norm = patch_term.index_select(0, row), norm.index_select(0, row)
        logits = self._decode_patch(
            queries,
            patches,
            size,
            patch_term=patch_term.unflatten(0, (batch, -1)),
            image_term=None if image_term is None else image_term[:, None],
            frame=None if frame is None else frame[:, None],
        )
        return PointLogits(
            logits[:, :n],
            self._decode_image(z_image, points, size),
            logits[:, n:] if n_spo else None,
            norm.unflatten(0, (batch, -1))[:, :n].mean() + z_image.float().square().sum(-1).mean(),
        )

    def _decode_image(self, z_image: Tensor, points: Tensor, size: tuple[int, ...]) -> Tensor | None:
        """D^I at points (B, N, D): (B, N, K) float32."""
        if self.image_decoder is None:
            return None
        p_image = image_coordinates(points, size)
        with network_precision(points.device):
            term = self.image_decoder.image_layer(z_image)[:, None]
            return self.image_decoder(p_image, term).float()
