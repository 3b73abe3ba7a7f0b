"""A model's settings, and why they are what they are."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nnunetv2_swipe.config import SwIPEConfig, total_strides
from nnunetv2_swipe.planners.label_statistics import thickness_mm
from nnunetv2_swipe.planners.self_configuration import LARGEST_PATCH, MAX_PATCHES_PER_CROP, MAX_STAGES, derive_config


class Setting(NamedTuple):
    """A row of the table."""

    name: str
    """In words, with its key in the plan."""
    value: str
    reason: str


def plan_in_words(
    configuration: Mapping[str, Any],
    config: SwIPEConfig,
    statistics: Mapping[str, Mapping[str, Any]] | None,
    names: Mapping[str, str],
    num_classes: int,
) -> list[Setting]:
    """What was chosen for a model, and why.

    Args:
        configuration: nnU-Net's configuration of the plan.
        config: Its `swipe` block.
        statistics: Of the labels, if they are at hand.
        names: What the classes of the statistics are called.
        num_classes: Segmentation heads.
    """
    spacing, crop = configuration["spacing"], configuration["patch_size"]
    derived = None
    if statistics is not None:
        derived = derive_config(configuration, statistics, num_classes=num_classes, regions=config.regions)
    thinnest = _thinnest(statistics, names, spacing)
    patches = _times([-(-n // s) for n, s in zip(crop, config.patch_size, strict=True)])
    strides = ", ".join(_times(total) for total in total_strides(config.strides))
    widths = ", ".join(map(str, config.features_per_stage))
    rows = [
        ("Crop", None, _times(crop), f"nnU-Net's, from image size and memory; voxels of {_times(spacing)} mm."),
        ("Batch size", None, str(configuration["batch_size"]), "nnU-Net's, smaller if SwIPE needed more memory."),
        (
            "Patch size S",
            "patch_size",
            _times(config.patch_size),
            f"Half the thickness of the thinnest class{thinnest}, at most {LARGEST_PATCH} voxels of the finest "
            "spacing, in powers of two; less where a crop would have less than four patches along an axis, more where "
            f"it would have more than {MAX_PATCHES_PER_CROP:,}. A crop has {patches} patches.",
        ),
        (
            "Width of the embeddings d",
            "embedding_dim",
            str(config.embedding_dim),
            f"128, doubled for more than four classes (here {num_classes}) and for 3D patches of 512 voxels or more.",
        ),
        (
            "Training points N of a crop",
            "n_points",
            f"{config.n_points:,}",
            f"A fortieth of its {math.prod(crop):,} voxels, as a power of two from 1,024 to 16,384, and at least 64 "
            "for each class.",
        ),
        (
            "Points count as near a boundary up to",
            "boundary_radius",
            f"{_times(config.boundary_radius)} voxels",
            f"A quarter of the thickness of the thinnest class{thinnest}, at least one voxel, at most 10 of 384 of the "
            "crop. Half of a class's points are there.",
        ),
        (
            "Backbone",
            "backbone",
            config.backbone,
            f"Stages at strides {strides}, of {widths} channels: of nnU-Net's, from the last that is nowhere coarser "
            f"than a patch or 4 voxels, {MAX_STAGES} at most.",
        ),
        (
            "Fourier frequencies",
            "fourier_frequencies",
            str(config.fourier_frequencies),
            "log2(S) + 1: the shortest wave is as long as a voxel.",
        ),
        (
            "Weights of points",
            "point_weight_exponent",
            f"voxels to the power of {config.point_weight_exponent:g}",
            "Between all points alike (0, the paper's) and an unbiased estimate of the dense loss (1); measured.",
        ),
        (
            "Coarse-to-fine decoding begins with steps of",
            "mise_levels",
            f"{2**config.mise_levels} voxels",
            "The thickness of the thinnest class, in voxels along the coarsest axis, as a power of two, 8 at most: "
            "what is thinner may be missed.",
        ),
        (
            "Learning rate",
            "initial_lr",
            f"{config.initial_lr:g}",
            "One for all datasets; AdamW, warm-up, cosine decay; measured.",
        ),
    ]
    return [Setting(name, value, reason + _edited(key, config, derived)) for name, key, value, reason in rows]


def _thinnest(
    statistics: Mapping[str, Mapping[str, Any]] | None, names: Mapping[str, str], spacing: Sequence[float]
) -> str:
    """In parentheses, the thinnest class and its thickness."""
    if not statistics:
        return ""
    thickness, key = min((thickness_mm(s), key) for key, s in statistics.items())
    return f" ({names.get(key, key)}: {thickness:.1f} mm, {thickness / min(spacing):.1f} voxels of the finest spacing)"


def _edited(key: str | None, config: SwIPEConfig, derived: SwIPEConfig | None) -> str:
    """Said of a setting that the rules would choose otherwise."""
    if key is None or derived is None or getattr(derived, key) == getattr(config, key):
        return ""
    return f" Here the plan or the trainer says otherwise: today's rule gives {getattr(derived, key)}."


def _times(values: Sequence[float]) -> str:
    return " x ".join(f"{v:g}" for v in values)
