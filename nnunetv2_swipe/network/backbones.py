"""Encoders: Res2Net (Gao et al., TPAMI 2021; SwIPE section 3.1) and adapters of nnU-Net's own, in 2D and 3D."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from dynamic_network_architectures.building_blocks.helper import (
    convert_dim_to_conv_op,
    get_matching_batchnorm,
    get_matching_pool_op,
)
from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
from torch import Tensor, nn

from nnunetv2_swipe.config import RES2NET_SCALE, SwIPEConfig


class InstanceNorm(nn.Module):
    """Affine instance normalisation for 2D and 3D.

    PyTorch's own copies channels-last tensors to the other layout and back, on the CPU its slowest step by far;
    there, batch normalisation of each sample by itself is the same thing without the copies.

    Attributes:
        one_by_one_on_cpu: Whether the CPU normalises sample by sample; if not, it does what a GPU does.
    """

    one_by_one_on_cpu = True

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel of each sample; the shape is kept.

        A single voxel, which has no deviation, is only scaled and shifted.
        """
        if x[0, 0].numel() == 1:
            shape = (1, -1, *[1] * (x.ndim - 2))
            return x * self.weight.view(shape).to(x.dtype) + self.bias.view(shape).to(x.dtype)
        one_by_one = self.one_by_one_on_cpu and x.device.type == "cpu"
        return self.by_sample(x) if one_by_one else self.at_once(x)

    def by_sample(self, x: Tensor) -> Tensor:
        """Batch normalisation of each sample."""
        return torch.cat([F.batch_norm(s, None, None, self.weight, self.bias, True, 0.0, self.eps) for s in x.split(1)])

    def at_once(self, x: Tensor) -> Tensor:
        """Samples as further channels of one, as F.instance_norm does it, but one copy repeats the weights."""
        n, c = x.shape[:2]
        weight, bias = (p.expand(n, c).reshape(-1) for p in (self.weight, self.bias))
        channels = x.reshape(1, n * c, -1)
        return F.batch_norm(channels, None, None, weight, bias, True, 0.0, self.eps).view(x.shape)


def norm_op(name: str, dims: int) -> type[nn.Module]:
    """The normalisation class that a plan's `norm_op` names."""
    return InstanceNorm if name == "InstanceNorm" else get_matching_batchnorm(dimension=dims)


class ConvNorm(nn.Sequential):
    """Convolution with "same" padding, normalisation and, unless `nonlin` is False, ReLU."""

    def __init__(
        self,
        *,
        dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: Sequence[int],
        norm: str,
        stride: Sequence[int] | int = 1,
        dilation: int = 1,
        nonlin: bool = True,
    ) -> None:
        conv = convert_dim_to_conv_op(dims)(
            in_channels,
            out_channels,
            tuple(kernel_size),
            stride=stride if isinstance(stride, int) else tuple(stride),
            padding=tuple(dilation * (k // 2) for k in kernel_size),
            dilation=dilation,
            bias=False,
        )
        layers = [conv, norm_op(norm, dims)(out_channels)]
        super().__init__(*layers, *([nn.ReLU(inplace=True)] if nonlin else []))


class Res2NetBlock(nn.Module):
    """Bottleneck whose middle convolution is split into groups, each fed with the one before (Res2Net, section 3.1).

    The first block of a stage does not chain its groups (there is nothing of its own scale to pass on) and carries
    the stride, as average pooling of the shortcut and of the last group.
    """

    expansion = 2

    def __init__(
        self,
        *,
        dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        norm: str,
        first: bool,
    ) -> None:
        super().__init__()
        width = out_channels // self.expansion
        group = width // RES2NET_SCALE
        one = (1,) * dims
        self.group = group
        self.chained = not first
        self.reduce = ConvNorm(dims=dims, in_channels=in_channels, out_channels=width, kernel_size=one, norm=norm)
        self.convs = nn.ModuleList(
            ConvNorm(
                dims=dims, in_channels=group, out_channels=group, kernel_size=kernel_size, stride=stride, norm=norm
            )
            for _ in range(RES2NET_SCALE - 1)
        )
        strided = any(s > 1 for s in stride)
        self.pool = get_matching_pool_op(dimension=dims, pool_type="avg")(tuple(stride)) if strided else nn.Identity()
        self.expand = ConvNorm(
            dims=dims, in_channels=width, out_channels=out_channels, kernel_size=one, norm=norm, nonlin=False
        )
        self.shortcut: nn.Module = nn.Identity()
        if strided or in_channels != out_channels:
            project = ConvNorm(
                dims=dims, in_channels=in_channels, out_channels=out_channels, kernel_size=one, norm=norm, nonlin=False
            )
            self.shortcut = nn.Sequential(self.pool, project)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *size) -> (B, out_channels, *size / stride)."""
        *groups, last = self.reduce(x).split(self.group, dim=1)
        outputs: list[Tensor] = []
        for conv, g in zip(self.convs, groups, strict=True):
            outputs.append(conv(g + outputs[-1] if self.chained and outputs else g))
        y = self.expand(torch.cat((*outputs, self.pool(last)), dim=1))
        return F.relu(y + self.shortcut(x))


class Res2NetBackbone(nn.Module):
    """Stem of three convolutions, then stages of Res2Net blocks.

    The stem takes (at most) a stride of two; what is left of the first stage's stride is pooling.
    """

    def __init__(self, config: SwIPEConfig, input_channels: int) -> None:
        super().__init__()
        dims, norm = config.dims, config.norm_op
        stem_stride = tuple(min(2, s) for s in config.strides[0])
        left = tuple(s // t for s, t in zip(config.strides[0], stem_stride, strict=True))
        width = config.features_per_stage[0] // Res2NetBlock.expansion
        kernel = config.kernel_sizes[0]
        stem = [
            ConvNorm(
                dims=dims,
                in_channels=input_channels if i == 0 else width,
                out_channels=width,
                kernel_size=kernel,
                stride=stem_stride if i == 0 else 1,
                norm=norm,
            )
            for i in range(3)
        ]
        pool = get_matching_pool_op(dimension=dims, pool_type="avg")(left) if max(left) > 1 else nn.Identity()
        self.stem = nn.Sequential(*stem, pool)
        stages = []
        channels = width
        for i, (features, n_blocks) in enumerate(
            zip(config.features_per_stage, config.n_blocks_per_stage, strict=True)
        ):
            blocks = [
                Res2NetBlock(
                    dims=dims,
                    in_channels=channels if b == 0 else features,
                    out_channels=features,
                    kernel_size=config.kernel_sizes[i],
                    stride=config.strides[i] if b == 0 and i > 0 else (1,) * dims,
                    norm=norm,
                    first=b == 0,
                )
                for b in range(n_blocks)
            ]
            stages.append(nn.Sequential(*blocks))
            channels = features
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, *size) -> one feature map per stage, finest first."""
        x = self.stem(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class StandardEncoder(nn.Module):
    """nnU-Net's own encoders with the plan's stages.

    Their convolutions carry the stride and would skip voxels where it exceeds two. What is more in the first stage is
    taken beforehand, in steps of two, each by one block of half the next one's width.
    """

    def __init__(self, config: SwIPEConfig, input_channels: int) -> None:
        super().__init__()
        first = _steps_of_two(config.strides[0])
        n_before = len(first) - 1
        features = config.features_per_stage
        before = [max(features[0] >> (n_before - i), 1) for i in range(n_before)]
        residual = config.backbone == "ResidualEncoder"
        blocks = "n_blocks_per_stage" if residual else "n_conv_per_stage"
        kernels = [list(k) for k in (*[config.kernel_sizes[0]] * n_before, *config.kernel_sizes)]
        self.n_before = n_before
        self.encoder = (ResidualEncoder if residual else PlainConvEncoder)(
            input_channels=input_channels,
            n_stages=n_before + len(config.strides),
            features_per_stage=[*before, *features],
            conv_op=convert_dim_to_conv_op(config.dims),
            kernel_sizes=kernels,
            strides=[*first, *[list(s) for s in config.strides[1:]]],
            conv_bias=True,
            norm_op=norm_op(config.norm_op, config.dims),
            norm_op_kwargs={},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
            return_skips=True,
            **{blocks: [1] * n_before + list(config.n_blocks_per_stage)},
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, *size) -> one feature map per stage, finest first."""
        return self.encoder(x)[self.n_before :]


def _steps_of_two(stride: Sequence[int]) -> list[list[int]]:
    """A stride as steps of at most two per axis: (4, 2) -> [[2, 2], [2, 1]]."""
    steps = []
    left = list(stride)
    while max(left) > 2:
        steps.append([min(2, s) for s in left])
        left = [max(s // 2, 1) for s in left]
    return [*steps, left]


def build_backbone(config: SwIPEConfig, input_channels: int) -> nn.Module:
    """The backbone E_b that the plan names: (B, C, *size) -> a list of feature maps, finest first."""
    if config.backbone == "Res2Net":
        return Res2NetBackbone(config, input_channels)
    return StandardEncoder(config, input_channels)
