"""A model's settings, and why they are what they are."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nnunetv2_swipe.config import SwIPEConfig, total_strides
from nnunetv2_swipe.planners.label_statistics import thickness_mm
from nnunetv2_swipe.planners.self_configuration import derive_config


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
    patches = " x ".join(str(-(-n // s)) for n, s in zip(crop, config.patch_size, strict=True))
    voxels = math.prod(crop)
    rows = [
        (
            "Crop",
            None,
            _times(crop),
            f"nnU-Net's, from image size and memory; voxels of {_times(spacing)} mm.",
        ),
        ("Batch size", None, str(configuration["batch_size"]), "nnU-Net's, smaller if SwIPE needed more memory."),
        (
            "Patch size S",
            "patch_size",
            _times(config.patch_size),
            f"Not more than half the thickness of the thinnest class{thinnest}, nor 8 voxels of the finest spacing, in "
            f"powers of two: small enough that a vector describes a patch. A crop has {patches} patches.",
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
            f"About one of 40 of its {voxels:,} voxels, at least 64 for each class, in powers of two.",
        ),
        (
            "Points count as near a boundary up to",
            "boundary_radius",
            f"{_times(config.boundary_radius)} voxels",
            f"A quarter of the thickness of the thinnest class{thinnest}, within bounds. Half of a class's points are "
            "there.",
        ),
        (
            "Backbone",
            "backbone",
            config.backbone,
            f"Stages at strides {', '.join(_times(t) for t in total_strides(config.strides))}, of "
            f"{', '.join(map(str, config.features_per_stage))} channels: nnU-Net's stages from the last that is "
            "nowhere coarser than a patch.",
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
            "Coarse-to-fine decoding begins at",
            "mise_levels",
            f"every {2**config.mise_levels}. voxel",
            f"The thickness of the thinnest class{thinnest}, 8 at most: nothing of it lies between the points.",
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
    return f" The plan was edited, or made by another version: today's rule gives {getattr(derived, key)}."


def _times(values: Sequence[float]) -> str:
    return " x ".join(f"{v:g}" for v in values)
