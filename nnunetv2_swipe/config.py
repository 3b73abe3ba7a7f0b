"""SwIPE's settings: one flat block of plain JSON, stored in each configuration of an nnU-Net plan."""

import dataclasses
import math
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

MAX_PATCH_SIZE, MAX_STRIDE, MAX_KERNEL_SIZE = 64, 64, 15
MAX_STAGES, MAX_BLOCKS, MAX_LAYERS, MAX_WIDTH = 16, 64, 16, 2048
MAX_BOUNDARY_RADIUS = 1000
RANGES: dict[str, tuple[float, float]] = {
    "embedding_dim": (1, MAX_WIDTH),
    "neck_features": (1, MAX_WIDTH),
    "fourier_frequencies": (0, 16),
    "n_points": (1, 1 << 20),
    "n_spo": (0, 26),  # the neighbours that a patch has in 3D
    "background_share": (0.001, 1000),
    "point_weight_exponent": (0, 1),
    "spo_loss_weight": (0, 1000),
    "embedding_loss_weight": (0, 1000),
    "initial_lr": (1e-9, 1),
    "weight_decay": (0, 10),
    "warmup_iterations": (0, 10**6),
    "mise_levels": (0, 8),
    "mise_margin": (0, 100),
}
"""Least and greatest value of single numbers: far beyond what is of use, but short of what no memory holds."""

OF_TRAINING = (
    "dropout", "n_points", "background_share", "boundary_radius", "point_weight_exponent", "n_spo", "spo_connectivity",
    "patch_loss_weight", "spo_loss_weight", "embedding_loss_weight", "initial_lr", "weight_decay", "warmup_iterations",
)  # fmt: skip
"""Settings that a trained network does not depend on."""
OF_DECODING = ("mise_levels", "mise_margin", "decoding")
"""Settings of decoding, which may change after training."""


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
    def from_dict(cls, block: object) -> "SwIPEConfig":
        """Read a block of a plan.

        Args:
            block: What the plan holds; a dictionary if it is valid.

        Raises:
            ValueError: No dictionary, unknown or missing key, wrong type or impossible value; the message names it and
                what is allowed.
        """
        if not isinstance(block, Mapping):
            kind = type(block).__name__
            raise ValueError(
                f'SwIPE plan: "{PLAN_KEY}" must be an object (in braces), got a value of type {kind}. Restore it, or '
                "delete it and let SwIPETrainer derive a new one."
            )
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
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return _finite(key, value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ValueError(f'SwIPE plan: "{key}" must be of type {hint.__name__}, got {value!r}.')
    return value


def _finite(key: str, value: float) -> float:
    """A float; ValueError naming the key if it is none that can be computed with."""
    try:
        number = float(value)
    except OverflowError:  # JSON's whole numbers may be of any length
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f'SwIPE plan: "{key}" must be a finite number, got {number}.')
    return number


def _is_power_of_two(n: int, highest: int) -> bool:
    return 1 <= n <= highest and n & (n - 1) == 0


def _rules(c: SwIPEConfig) -> list[tuple[str, str, bool]]:
    """(key, what is allowed, whether it holds) for every rule a configuration must obey."""
    connectivities = CONNECTIVITIES.get(c.dims, ())
    rules = [
        *_rules_of_stages(c),
        ("backbone", f"one of {BACKBONES}", c.backbone in BACKBONES),
        ("norm_op", f"one of {NORM_OPS}", c.norm_op in NORM_OPS),
        ("decoding", f"one of {DECODINGS}", c.decoding in DECODINGS),
        ("patch_decoder_features", f"1 to {MAX_LAYERS} numbers, each 1 to {MAX_WIDTH}",
         len(c.patch_decoder_features) > 0 and _are_widths(c.patch_decoder_features)),
        ("image_decoder_features", f"an empty list, or up to {MAX_LAYERS} numbers, each 1 to {MAX_WIDTH}",
         _are_widths(c.image_decoder_features)),
        ("boundary_radius", f"{c.dims} numbers, each 0 to {MAX_BOUNDARY_RADIUS}",
         len(c.boundary_radius) == c.dims and all(0 <= r <= MAX_BOUNDARY_RADIUS for r in c.boundary_radius)),
        ("spo_connectivity", f"one of {connectivities}", c.spo_connectivity in connectivities),
        ("dropout", "0 to less than 1", 0 <= c.dropout < 1),
        ("patch_loss_weight", "more than 0, at most 1", 0 < c.patch_loss_weight <= 1),
    ]  # fmt: skip
    rules += [(key, f"{low} to {high}", low <= getattr(c, key) <= high) for key, (low, high) in RANGES.items()]
    return rules


def _are_widths(features: Sequence[int]) -> bool:
    return len(features) <= MAX_LAYERS and all(1 <= n <= MAX_WIDTH for n in features)


def _rules_of_stages(c: SwIPEConfig) -> list[tuple[str, str, bool]]:
    """The rules, as `_rules` gives them, for patches and stages of the backbone."""
    dims, n_stages = c.dims, len(c.strides)

    def per_axis(values: tuple[int, ...], valid: Callable[[int], bool]) -> bool:
        return len(values) == dims and all(valid(v) for v in values)

    def per_stage(values: tuple[Any, ...], valid: Callable[[Any], bool]) -> bool:
        return len(values) == n_stages and all(valid(v) for v in values)

    multiple = 2 * RES2NET_SCALE if c.backbone == "Res2Net" else 1
    powers = f"powers of two, each 1 to {MAX_STRIDE}"
    strides_hold = 1 <= n_stages <= MAX_STAGES and per_stage(
        c.strides, lambda stage: per_axis(stage, lambda v: _is_power_of_two(v, MAX_STRIDE))
    )
    return [
        ("patch_size", f"2 or 3 powers of two, each 1 to {MAX_PATCH_SIZE}",
         dims in (2, 3) and per_axis(c.patch_size, lambda v: _is_power_of_two(v, MAX_PATCH_SIZE))),
        ("strides", f"1 to {MAX_STAGES} stages of {dims} {powers}; along each axis their product, too",
         strides_hold and max(c.total_strides()[-1]) <= MAX_STRIDE),
        ("kernel_sizes", f"{n_stages} stages of {dims} odd numbers, each 1 to {MAX_KERNEL_SIZE}",
         per_stage(c.kernel_sizes, lambda k: per_axis(k, lambda v: 1 <= v <= MAX_KERNEL_SIZE and v % 2 == 1))),
        ("features_per_stage", f"{n_stages} numbers, each 1 to {MAX_WIDTH}, divisible by 8 for Res2Net",
         per_stage(c.features_per_stage, lambda f: 1 <= f <= MAX_WIDTH and f % multiple == 0)),
        ("n_blocks_per_stage", f"{n_stages} numbers, each 1 to {MAX_BLOCKS}",
         per_stage(c.n_blocks_per_stage, lambda n: 1 <= n <= MAX_BLOCKS)),
    ]  # fmt: skip
