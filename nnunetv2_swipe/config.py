"""SwIPE's settings: one flat block of plain JSON, stored in each configuration of an nnU-Net plan."""

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

PLAN_KEY = "swipe"
"""Key of SwIPE's block within a configuration of an nnU-Net plan."""

BACKBONES = ("Res2Net", "ResidualEncoder", "PlainConvEncoder")
NORM_OPS = ("InstanceNorm", "BatchNorm")
DECODINGS = ("own", "blended")
CONNECTIVITIES = {2: (4, 8), 3: (6, 18, 26)}
RES2NET_SCALE = 4

OF_TRAINING = (
    "dropout", "n_points", "background_share", "boundary_radius", "point_weight_exponent", "n_spo", "spo_connectivity",
    "patch_loss_weight", "spo_loss_weight", "embedding_loss_weight", "initial_lr", "weight_decay", "warmup_iterations",
)  # fmt: skip
"""Settings that a trained network does not depend on."""
OF_DECODING = ("mise_levels", "mise_margin", "decoding")
"""Likewise: they may change after training."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwIPEConfig:
    """Everything that SwIPE adds to nnU-Net's plan for one configuration.

    Lengths per axis are in voxels of the preprocessed image, in array order. `patch_size` below is the size S of a
    SwIPE patch; nnU-Net's key of that name, one level up in the plan, is the size of the training crop.

    Attributes:
        patch_size: Voxels per axis that one embedding describes (S); powers of two.
        embedding_dim: Width d of the patch and image embeddings.
        backbone: One of "Res2Net", "ResidualEncoder", "PlainConvEncoder".
        strides: Stride of each stage relative to the one before, per axis.
        kernel_sizes: Convolution kernel of each stage, per axis.
        features_per_stage: Output channels of each stage.
        n_blocks_per_stage: Blocks (convolutions for PlainConvEncoder) of each stage.
        norm_op: "InstanceNorm" or "BatchNorm".
        neck_features: Hidden channels h of the neck.
        rfb: Receptive field blocks in the neck; otherwise a 1x1 convolution.
        cascade: Add finer stages to coarser ones in the neck.
        pool_to_patch_grid: Bring each stage straight to the patch grid; False: the paper's way over the grid of the
            coarsest stage, from which stages are interpolated where patches are smaller.
        multi_stage_attention: Weigh the stages per patch (MEA); otherwise add them.
        patch_decoder_features: Hidden widths of the patch decoder D^P.
        image_decoder_features: Hidden widths of the image decoder D^I; empty: no image decoder.
        dropout: Dropout probability in D^P.
        fourier_frequencies: Frequencies of the Fourier features of p^P; 0: none.
        source_coordinates: Give D^P the position within the whole image (p^S).
        global_conditioning: Give D^P the position within the crop (p^I) and the image embedding (z^I).
        n_points: Points drawn per training crop (N).
        background_share: Points of the background relative to those of one foreground class.
        boundary_radius: Half of each class's points lie within so many voxels of its boundary, per axis.
        point_weight_exponent: Power of the points' weights: with 1 the losses estimate the dense ones, with 0 all
            points count alike (the paper's form).
        n_spo: Neighbouring patches each point is decoded from as well (N_SPO); 0: none.
        spo_connectivity: Which patches are neighbours: 4 or 8 in 2D; 6, 18 or 26 in 3D.
        patch_loss_weight: alpha, the balance of the patch decoder against the image decoder.
        spo_loss_weight: beta.
        embedding_loss_weight: lambda.
        initial_lr: Peak learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        warmup_iterations: Iterations of linear warm-up before the cosine decay.
        mise_levels: Times the decoding lattice is halved; 0: decode every voxel.
        mise_margin: Points whose margin between two classes (in logits), interpolated, is below this are decoded.
        regions: The dataset has overlapping regions, one sigmoid each, instead of exclusive classes.
        decoding: "own" (each voxel by its own patch) or "blended" (by the 2^D nearest, multilinear weights).
    """

    patch_size: tuple[int, ...]
    embedding_dim: int
    backbone: str
    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    features_per_stage: tuple[int, ...]
    n_blocks_per_stage: tuple[int, ...]
    norm_op: str
    neck_features: int
    rfb: bool
    cascade: bool
    pool_to_patch_grid: bool
    multi_stage_attention: bool
    patch_decoder_features: tuple[int, ...]
    image_decoder_features: tuple[int, ...]
    dropout: float
    fourier_frequencies: int
    source_coordinates: bool
    global_conditioning: bool
    n_points: int
    background_share: float
    boundary_radius: tuple[int, ...]
    point_weight_exponent: float
    n_spo: int
    spo_connectivity: int
    patch_loss_weight: float
    spo_loss_weight: float
    embedding_loss_weight: float
    initial_lr: float
    weight_decay: float
    warmup_iterations: int
    mise_levels: int
    mise_margin: float
    decoding: str
    regions: bool

    def __post_init__(self) -> None:
        """Reject impossible values: ValueError naming the key, the value and what is allowed."""
        for key, allowed, holds in _rules(self):
            if not holds:
                raise ValueError(f'SwIPE plan: "{key}" is {getattr(self, key)!r}; allowed: {allowed}.')

    @property
    def dims(self) -> int:
        """Number of spatial axes, 2 or 3."""
        return len(self.patch_size)

    def total_strides(self) -> list[tuple[int, ...]]:
        """Stride of each stage relative to the input."""
        return total_strides(self.strides)

    def to_dict(self) -> dict[str, Any]:
        """The block as plain JSON types."""
        return {key: _to_lists(value) for key, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, block: Mapping[str, Any]) -> "SwIPEConfig":
        """Read a block of a plan.

        Raises:
            ValueError: Unknown or missing key, wrong type or impossible value; the message names it and what is
                allowed.
        """
        hints = typing.get_type_hints(cls)
        unknown = sorted(set(block) - set(hints))
        if unknown:
            raise ValueError(f"SwIPE plan: unknown key {unknown[0]!r}; allowed keys: {', '.join(hints)}.")
        missing = [key for key in hints if key not in block]
        if missing:
            raise ValueError(
                f"SwIPE plan: key {missing[0]!r} is missing. Restore it, or delete the whole {PLAN_KEY!r} block and "
                "let SwIPETrainer derive a new one."
            )
        return cls(**{key: _read(key, block[key], hint) for key, hint in hints.items()})

    def differs_from(self, block: Mapping[str, Any]) -> str | None:
        """The first key, if any, by which a block is of another network; an older version's may lack some."""
        own = self.to_dict()
        keys = [key for key in own if key in block and key not in (*OF_TRAINING, *OF_DECODING)]
        return next((key for key in keys if block[key] != own[key]), None)

    def replace(self, **changes: Any) -> "SwIPEConfig":  # noqa: ANN401
        """A copy with some values changed, validated."""
        return self.from_dict({**self.to_dict(), **changes})


def total_strides(strides: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Stride of each stage relative to the input, from those relative to the stage before."""
    totals = [tuple(strides[0])]
    for stride in strides[1:]:
        totals.append(tuple(a * b for a, b in zip(totals[-1], stride, strict=True)))
    return totals


def _to_lists(value: Any) -> Any:  # noqa: ANN401
    return [_to_lists(v) for v in value] if isinstance(value, tuple) else value


def _read(key: str, value: Any, hint: Any) -> Any:  # noqa: ANN401
    """Convert a JSON value to the annotated type, tuples for lists; ValueError naming the key."""
    if isinstance(hint, types.GenericAlias):
        if not isinstance(value, (list, tuple)):
            raise ValueError(f'SwIPE plan: "{key}" must be a list, got {value!r}.')
        return tuple(_read(key, v, hint.__args__[0]) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ValueError(f'SwIPE plan: "{key}" must be of type {hint.__name__}, got {value!r}.')
    return value


def _is_power_of_two(n: int) -> bool:
    return n >= 1 and n & (n - 1) == 0


def _rules(c: SwIPEConfig) -> list[tuple[str, str, bool]]:
    """(key, what is allowed, whether it holds) for every rule a configuration must obey."""
    dims, n_stages = c.dims, len(c.strides)
    connectivities = CONNECTIVITIES.get(dims, ())

    def per_axis(values: tuple[int, ...], valid: Callable[[int], bool]) -> bool:
        return len(values) == dims and all(valid(v) for v in values)

    positive = ("embedding_dim", "neck_features", "n_points", "background_share", "initial_lr")
    not_negative = (
        "fourier_frequencies", "n_spo", "spo_loss_weight", "embedding_loss_weight", "weight_decay",
        "warmup_iterations", "mise_levels", "mise_margin",
    )  # fmt: skip
    rules = [
        ("patch_size", "2 or 3 powers of two", dims in (2, 3) and per_axis(c.patch_size, _is_power_of_two)),
        ("backbone", f"one of {BACKBONES}", c.backbone in BACKBONES),
        ("norm_op", f"one of {NORM_OPS}", c.norm_op in NORM_OPS),
        ("decoding", f"one of {DECODINGS}", c.decoding in DECODINGS),
        ("strides", f"at least one stage of {dims} powers of two",
         n_stages > 0 and all(per_axis(s, _is_power_of_two) for s in c.strides)),
        ("kernel_sizes", f"{n_stages} stages of {dims} odd numbers",
         len(c.kernel_sizes) == n_stages and all(per_axis(k, lambda v: v > 0 and v % 2 == 1) for k in c.kernel_sizes)),
        ("features_per_stage", f"{n_stages} positive numbers" + ", divisible by 8 for Res2Net",
         len(c.features_per_stage) == n_stages
         and all(f > 0 and (c.backbone != "Res2Net" or f % (2 * RES2NET_SCALE) == 0) for f in c.features_per_stage)),
        ("n_blocks_per_stage", f"{n_stages} positive numbers",
         len(c.n_blocks_per_stage) == n_stages and all(n > 0 for n in c.n_blocks_per_stage)),
        ("patch_decoder_features", "at least one positive number",
         len(c.patch_decoder_features) > 0 and all(n > 0 for n in c.patch_decoder_features)),
        ("image_decoder_features", "positive numbers, or an empty list", all(n > 0 for n in c.image_decoder_features)),
        ("boundary_radius", f"{dims} numbers, 0 or more", per_axis(c.boundary_radius, lambda v: v >= 0)),
        ("spo_connectivity", f"one of {connectivities}", c.spo_connectivity in connectivities),
        ("dropout", "0 to less than 1", 0 <= c.dropout < 1),
        ("point_weight_exponent", "0 to 1", 0 <= c.point_weight_exponent <= 1),
        ("patch_loss_weight", "more than 0, at most 1", 0 < c.patch_loss_weight <= 1),
    ]  # fmt: skip
    rules += [(key, "more than 0", getattr(c, key) > 0) for key in positive]
    rules += [(key, "0 or more", getattr(c, key) >= 0) for key in not_negative]
    return rules
