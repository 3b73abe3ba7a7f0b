"""From nnU-Net's plan and the labels to SwIPE's settings: pure functions, one per rule.

Anchor points are the paper's two settings (2D, crop 384^2, one class: d = 128; 3D, crop 96^3, 13 classes: S = 8,
d = 512), the hippocampus set (3D, structures 4.5 voxels thick: S = 2) and polyps (2D, 89 pixels thick: S = 8).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nnunetv2_swipe.config import PLAN_KEY, SwIPEConfig, total_strides
from nnunetv2_swipe.planners.label_statistics import thickness_mm
from nnunetv2_swipe.planners.nnunet_plan import check_geometry

LARGEST_PATCH = 8
"""In voxels of the finest spacing; the paper's 32 in 2D was less accurate with one backbone (docs/results.md)."""
LARGEST_PATCH_OF_LARGE_CROPS = 32
"""What patches may grow to in a crop that would have too many."""
MAX_PATCHES_PER_CROP = 1 << 15
MAX_STAGES = 4
POINTS_PER_CLASS = 64
BACKBONE = {2: "Res2Net", 3: "PlainConvEncoder"}
"""In 2D the paper's; in 3D plain convolutions are as accurate, or more, in less time (docs/results.md, ablations)."""
FEATURES_AT_STRIDE = {
    2: {1: 32, 2: 64, 4: 128, 8: 160, 16: 192, 32: 256},
    3: {1: 32, 2: 64, 4: 96, 8: 128, 16: 160, 32: 160},
}
"""In 2D the paper's widths at the paper's strides (4 to 32), halved towards the input."""
BLOCKS_PER_STAGE = 2
NECK_FEATURES = {2: 32, 3: 64}
PATCH_DECODER_FEATURES = {2: (256, 256, 256), 3: (256, 256)}
"""In 2D the paper's; in 3D two hidden layers are as accurate as its deeper decoder, and faster (docs/results.md)."""
POINT_WEIGHT_EXPONENT = 0.5
"""Half-way between unbiased weights (1), of lower Dice but in short trainings in 3D, and the paper's none (0)
(docs/results.md)."""
INITIAL_LR = 2e-3
"""The paper's 7.5e-4 in 3D learns slower, its 5e-4 in 2D probably, too (docs/results.md)."""


def derive_config(
    configuration: Mapping[str, Any], statistics: Mapping[str, Mapping[str, Any]], *, num_classes: int, regions: bool
) -> SwIPEConfig:
    """SwIPE's settings for one configuration of an nnU-Net plan.

    Args:
        configuration: nnU-Net's configuration, inheritance resolved: uses spacing, patch_size (the crop) and
            architecture.
        statistics: Output of `label_statistics`; empty if the labels are.
        num_classes: Segmentation heads.
        regions: Region-based training.

    Raises:
        ValueError: The configuration lacks a key or holds an impossible value, as of another version of nnU-Net or
            after editing.
    """
    check_geometry(configuration)
    spacing = [float(s) for s in configuration["spacing"]]
    crop = [int(n) for n in configuration["patch_size"]]
    dims = len(crop)
    thickness = structure_thickness_mm(statistics, spacing, crop)
    patch = choose_patch_size(thickness, spacing, crop)
    architecture = configuration["architecture"]["arch_kwargs"]
    strides, kernels = choose_stages(architecture, patch)
    totals = total_strides(strides)
    voxels_thick = [thickness / s for s in spacing]
    return SwIPEConfig(
        patch_size=patch,
        embedding_dim=choose_embedding_dim(patch, num_classes),
        backbone=BACKBONE[dims],
        strides=strides,
        kernel_sizes=kernels,
        features_per_stage=tuple(_at_stride(FEATURES_AT_STRIDE[dims], max(t)) for t in totals),
        n_blocks_per_stage=(BLOCKS_PER_STAGE,) * len(strides),
        norm_op="BatchNorm" if "batchnorm" in str(architecture.get("norm_op")).lower() else "InstanceNorm",
        neck_features=NECK_FEATURES[dims],
        rfb=True,
        cascade=True,
        pool_to_patch_grid=True,
        multi_stage_attention=True,
        patch_decoder_features=PATCH_DECODER_FEATURES[dims],
        image_decoder_features=(256, 128) if dims == 2 else (256, 256, 128),
        dropout=0.1,
        fourier_frequencies=max(patch).bit_length(),
        source_coordinates=True,
        global_conditioning=True,
        n_points=choose_n_points(crop, num_classes),
        background_share=2.0,
        boundary_radius=choose_boundary_radius(voxels_thick, crop),
        point_weight_exponent=POINT_WEIGHT_EXPONENT,
        n_spo=1,
        spo_connectivity=8 if dims == 2 else 6,
        patch_loss_weight=0.5,
        spo_loss_weight=0.1,
        embedding_loss_weight=1e-4,
        initial_lr=INITIAL_LR,
        weight_decay=1e-2,
        warmup_iterations=500,
        mise_levels=choose_mise_levels(voxels_thick),
        mise_margin=1.0,
        decoding="own",
        regions=regions,
    )


def structure_thickness_mm(
    statistics: Mapping[str, Mapping[str, Any]], spacing: Sequence[float], crop: Sequence[int]
) -> float:
    """Thickness of the thinnest class, or, without labels, a sixteenth of the crop."""
    if not statistics:
        return min(n * s for n, s in zip(crop, spacing, strict=True)) / 16
    return min(thickness_mm(s) for s in statistics.values())


def choose_patch_size(thickness: float, spacing: Sequence[float], crop: Sequence[int]) -> tuple[int, ...]:
    """S per axis: half the thinnest structure, eight voxels at most, about isotropic in millimetres.

    Half of 4.5 voxels gives S = 2 on the hippocampus set (measured best of 2, 4, 8 and 16, docs/results.md); polyps, 89
    voxels thick, get S = 8. At least four patches per axis where the crop allows; the length grows until the crop has
    no more than 32,768 patches.
    """
    finest = min((s for n, s in zip(crop, spacing, strict=True) if n > 1), default=min(spacing))
    # of axes about as fine none shall fall to the next lower power of two
    length = min(thickness / 2, math.sqrt(2) * LARGEST_PATCH * finest)
    longest = LARGEST_PATCH_OF_LARGE_CROPS * max(spacing)
    while True:
        sizes = zip(crop, spacing, strict=True)
        patch = tuple(_power_of_two(length / s, 1, min(LARGEST_PATCH_OF_LARGE_CROPS, max(n // 4, 1))) for n, s in sizes)
        n_patches = math.prod(-(-n // p) for n, p in zip(crop, patch, strict=True))
        if n_patches <= MAX_PATCHES_PER_CROP or length > longest:
            return patch
        length *= 2**0.25


def choose_stages(
    architecture: Mapping[str, Any], patch: Sequence[int]
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """Strides and kernel sizes per stage: nnU-Net's, from the last one nowhere coarser than min(S, 4), four at most.

    nnU-Net's finer stages are merged into the first one; its kernel is that of the last stage merged.
    """
    strides = [_per_axis(s, len(patch)) for s in architecture["strides"]]
    kernels = [_per_axis(k, len(patch)) for k in architecture["kernel_sizes"]]
    totals = total_strides(strides)
    # the last stage that is nowhere coarser than a patch, or than the paper's first
    fine = [i for i, total in enumerate(totals) if all(t <= min(p, 4) for t, p in zip(total, patch, strict=True))]
    first = fine[-1] if fine else 0
    return (totals[first], *strides[first + 1 : first + MAX_STAGES]), tuple(kernels[first : first + MAX_STAGES])


def choose_embedding_dim(patch: Sequence[int], num_classes: int) -> int:
    """d: 128, doubled for many classes and for large 3D patches (paper: 128 for one class in 2D, 512 for 13 in 3D)."""
    dim = 128
    if num_classes > 4:
        dim *= 2
    if len(patch) == 3 and math.prod(patch) >= 512:
        dim *= 2
    return dim


def choose_n_points(crop: Sequence[int], num_classes: int) -> int:
    """N: one point per 40 voxels, 1,024 to 16,384, and at least 64 per class."""
    return max(_power_of_two(math.prod(crop) / 40, 1 << 10, 1 << 14), POINTS_PER_CLASS * num_classes)


def few_points(config: SwIPEConfig, crop: Sequence[int], num_classes: int) -> str | None:
    """What to say where a block has fewer points per class than the rule gives, as one of a dataset of fewer classes.

    A wider embedding, which the rules also give for many classes, is no matter: pretrained weights would not fit.
    """
    if config.n_points >= POINTS_PER_CLASS * num_classes:
        return None
    return (
        f'The plan\'s "n_points" is {config.n_points}, less than {POINTS_PER_CLASS} for each of {num_classes} classes. '
        f"For a plan of this dataset the rule gives {choose_n_points(crop, num_classes)}: set it in the {PLAN_KEY!r} "
        "block of the plan. Pretrained weights fit with either."
    )


def choose_boundary_radius(voxels_thick: Sequence[float], crop: Sequence[int]) -> tuple[int, ...]:
    """A quarter of the thinnest structure, at most the paper's 10 voxels of a 384-voxel image, at least one voxel."""
    return tuple(
        max(1, min(round(t / 4), math.ceil(10 * n / 384))) if n > 1 else 0
        for t, n in zip(voxels_thick, crop, strict=True)
    )


def choose_mise_levels(voxels_thick: Sequence[float]) -> int:
    """Coarsest lattice step 2^levels: the thickness (4 V/S) of the thinnest class, at most eight voxels.

    A plate of that V/S, measured on voxel faces, lies on a point of the lattice or on a centre of its cells wherever
    and however it lies: it is half as thick along an axis, and so are the gaps. A class's V/S is that of its median
    case; what is thinner is found by its margin or not at all.
    """
    return _power_of_two(min(voxels_thick), 1, 8).bit_length() - 1


def _power_of_two(value: float, lowest: int, highest: int) -> int:
    """Largest power of two not above `value`, within bounds."""
    return 1 << math.floor(math.log2(max(lowest, min(value, highest))))


def _per_axis(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    return (int(value),) * dims if isinstance(value, int) else tuple(int(v) for v in value)


def _at_stride(table: Mapping[int, int], stride: int) -> int:
    return table[min(stride, max(table))]
