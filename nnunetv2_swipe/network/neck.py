"""The neck E_n: receptive field blocks, cascade, multi-stage embedding attention (SwIPE, section 3.1)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from dynamic_network_architectures.building_blocks.helper import convert_dim_to_conv_op
from torch import Tensor, nn

from nnunetv2_swipe.config import SwIPEConfig
from nnunetv2_swipe.network.backbones import ConvNorm

_AVG_POOL = {2: F.avg_pool2d, 3: F.avg_pool3d}
_LINEAR = {2: "bilinear", 3: "trilinear"}


class RFBLite(nn.Module):
    """Receptive field block: branches of growing kernel and dilation, each of half width.

    They are merged by a 1x1 convolution as in the original (Liu et al., ECCV 2018): a 3x3x3 one takes a fifth of a
    training step and was not measurably more accurate in 3D (docs/results.md).
    """

    def __init__(self, *, dims: int, in_channels: int, features: int, norm: str) -> None:
        super().__init__()
        width = max(features // 2, 1)
        one, three = (1,) * dims, (3,) * dims

        def conv(channels: int, kernel: Sequence[int], dilation: int = 1) -> ConvNorm:
            return ConvNorm(
                dims=dims, in_channels=channels, out_channels=width, kernel_size=kernel, norm=norm, dilation=dilation
            )

        def asymmetric(k: int) -> list[ConvNorm]:
            return [conv(width, [k if i == axis else 1 for i in range(dims)]) for axis in range(dims)]

        self.branches = nn.ModuleList(
            [conv(in_channels, one)]
            + [nn.Sequential(conv(in_channels, one), *asymmetric(k), conv(width, three, k)) for k in (3, 5)]
        )
        self.merge = ConvNorm(
            dims=dims, in_channels=3 * width, out_channels=features, kernel_size=one, norm=norm, nonlin=False
        )
        self.shortcut = convert_dim_to_conv_op(dims)(in_channels, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *size) -> (B, features, *size)."""
        return F.relu(self.merge(torch.cat([b(x) for b in self.branches], 1)) + self.shortcut(x))


class MultiStageAttention(nn.Module):
    """MEA: weighs the stages' embeddings against each other, per patch."""

    def __init__(self, n_stages: int, embedding_dim: int) -> None:
        super().__init__()
        hidden = max(embedding_dim // 8, 1)
        self.reduce = nn.Linear(embedding_dim, hidden)
        self.weigh = nn.Linear(n_stages * hidden, n_stages)

    def forward(self, embeddings: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """n embeddings (..., d) -> their attentive sum (..., d) and the weights W (..., n)."""
        weights = torch.softmax(self.weigh(torch.cat([F.relu(self.reduce(e)) for e in embeddings], -1)), -1)
        factors = 1 + weights.to(embeddings[0].dtype)
        total = embeddings[0] * factors[..., :1]
        for i, e in enumerate(embeddings[1:], start=1):
            total = torch.addcmul(total, e, factors[..., i : i + 1])
        return total, weights


def resize_to_grid(x: Tensor, stride: Sequence[int], patch_size: Sequence[int]) -> Tensor:
    """Bring a stage of the given total stride to the patch grid: mean over a patch, or linear interpolation."""
    dims = len(stride)
    kernel = tuple(max(p // s, 1) for p, s in zip(patch_size, stride, strict=True))
    if max(kernel) > 1:
        x = _AVG_POOL[dims](x, kernel)
    scale = [float(max(s // p, 1)) for p, s in zip(patch_size, stride, strict=True)]
    if max(scale) > 1:
        x = F.interpolate(x, scale_factor=scale, mode=_LINEAR[dims], align_corners=False)
    return x


class Neck(nn.Module):
    """Feature maps of the backbone -> stage features on the patch grid -> patch embeddings z^P.

    The second half works on any selection of patches: a training step embeds only those that its points need.
    """

    def __init__(self, config: SwIPEConfig) -> None:
        super().__init__()
        channels = config.features_per_stage
        dims, h, d = config.dims, config.neck_features, config.embedding_dim
        self.patch_size = config.patch_size
        self.strides = config.strides
        self.total_strides = config.total_strides()
        self.cascade = config.cascade
        self.direct = config.pool_to_patch_grid
        self.receptive_fields = nn.ModuleList(
            RFBLite(dims=dims, in_channels=c, features=h, norm=config.norm_op)
            if config.rfb
            else ConvNorm(dims=dims, in_channels=c, out_channels=h, kernel_size=(1,) * dims, norm=config.norm_op)
            for c in channels
        )
        self.project = nn.ModuleList(nn.Linear(h, d) for _ in channels)
        self.attention = MultiStageAttention(len(channels), d) if config.multi_stage_attention else None
        self.output = nn.Linear(d, d)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Receptive fields, cascade, and the way to the patch grid.

        Args:
            features: One feature map per stage, finest first.

        Returns:
            Stage features on the patch grid, each (B, *grid, h), and the image embedding z^I (B, d).
        """
        pool = _AVG_POOL[len(self.patch_size)]
        stages: list[Tensor] = []
        x = features[0]
        for i, feature in enumerate(features):
            finer, x = x, self.receptive_fields[i](feature)
            if self.cascade and i > 0:
                x = x + pool(finer, self.strides[i])
            stage, stride = x, self.total_strides[i]
            if not self.direct:  # the paper's way; loses resolution where patches are smaller than the coarsest stride
                stage, stride = resize_to_grid(x, stride, self.total_strides[-1]), self.total_strides[-1]
            # (B, h, *grid) -> (B, *grid, h)
            stages.append(resize_to_grid(stage, stride, self.patch_size).movedim(1, -1))
        return stages, self.project[-1](x.mean(tuple(range(2, x.ndim))))

    def embed(self, stages: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Stage features of some patches, each (..., h) -> z^P (..., d) and the attention W (..., n stages) or None."""
        embeddings = [p(s) for p, s in zip(self.project, stages, strict=True)]
        if self.attention is None:
            return self.output(sum(embeddings[1:], embeddings[0])), None
        total, weights = self.attention(embeddings)
        return self.output(total), weights
