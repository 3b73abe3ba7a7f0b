"""Dense label fields from a continuous decoder, coarse to fine (MISE, after Mescheder et al., CVPR 2019)."""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_swipe.config import SwIPEConfig

_LINEAR = {2: "bilinear", 3: "trilinear"}
_POINTS_AT_ONCE = 1 << 17
"""Decoded at most before their logits are reduced to labels."""

Decode = Callable[[Tensor], Tensor]
"""Voxels (M,), numbered in raster order through all crops of a batch -> their logits (M, K), float32."""

Place = tuple[Tensor, ...]
"""Indices (M,) along each axis of a lattice (B, *shape)."""


class FieldDecoder(Protocol):
    """What decodes the points of lattices, one in each crop of a batch."""

    batch: int
    """Number of crops."""
    size: tuple[int, ...]
    """Points per axis."""
    device: torch.device

    def own(self, index: Tensor) -> Tensor:
        """Logits (M, K) float32 of points by the patch each lies in; index (M,) counts through all crops."""

    def blended(self, index: Tensor) -> Tensor:
        """Logits (M, K) of points, of the nearest patches with multilinear weights."""


def decode_field(decoder: FieldDecoder, config: SwIPEConfig, levels: int, *, labels_only: bool = False) -> Tensor:
    """Logits (B, K, *size) float32, decoded as the plan says: MISE of some levels, own or blended.

    Unless every point is decoded, blending is left to those next to a border between own-patch labels.

    Args:
        decoder: The decoder.
        config: The plan's settings.
        levels: Of MISE.
        labels_only: Find the labels alone, (B, R, *size), see `LabelField`: the same, with less memory and work.
    """
    blended = config.decoding == "blended"
    everywhere = blended and levels == 0
    field = coarse_to_fine(
        decoder.blended if everywhere else decoder.own,
        decoder.batch,
        decoder.size,
        levels=levels,
        kind=LabelField if labels_only else LogitField,
        margin=config.mise_margin,
        regions=config.regions,
        device=decoder.device,
    )
    if blended and not everywhere:
        redecode_borders(decoder.blended, field)
    return field.values


def levels_of_lattice(levels: int, positions: Sequence[Tensor]) -> int:
    """MISE levels whose coarsest step is no longer, in voxels, than that of `levels` on the lattice of voxels."""
    if levels == 0:
        return 0
    step = max((abs(float(p[1] - p[0])) for p in positions if len(p) > 1), default=1.0)
    return max(0, levels - math.ceil(math.log2(step) - 1e-6))


class LabelField:
    """Labels at the points of a lattice; those that are not decoded have that of the coarser points around them.

    Attributes:
        label: Labels, (B, 1, *shape) int16, or with regions (B, K, *shape) bool.
        certainty: How far logits are from another label, (B, *shape); interpolated where they are not decoded.
        decoded: Which points are decoded, (B, *shape) bool.
    """

    def __init__(self, logits: Tensor, margin: float, regions: bool) -> None:
        self._margin, self._regions = margin, regions
        self.label, self.certainty = self._judged(logits)
        self.decoded = torch.ones_like(self.certainty, dtype=torch.bool)

    @property
    def uncertain(self) -> Tensor:
        """Where the certainty is below the margin, (B, *shape)."""
        return self.certainty < self._margin

    @property
    def values(self) -> Tensor:
        """What `decode_field` returns."""
        return self.label

    def halve(self, ratio: Sequence[int]) -> None:
        """Go to a lattice that is finer by a ratio along each axis.

        New points get the label of a neighbour; where their neighbours differ they are to be decoded.
        """
        for axis, (n, r) in enumerate(zip(self.label.shape[2:], ratio, strict=True), start=2):
            self.label = self.label.repeat_interleave(r, axis).narrow(axis, 0, (n - 1) * r + 1)
        self.certainty = _interpolated(self.certainty[:, None], self.label.shape[2:])[:, 0]
        decoded = torch.zeros_like(self.certainty, dtype=torch.bool)
        every_other = (slice(None), *[slice(None, None, r) for r in ratio])
        decoded[every_other] = self.decoded
        self.decoded = decoded

    def put(self, place: Place, logits: Tensor) -> None:
        """Set what decoded logits (M, K) say."""
        self.label.movedim(1, -1)[place], self.certainty[place] = self._judged(logits)
        self.decoded[place] = True

    def crop(self, size: Sequence[int]) -> None:
        """Leave out what lies beyond the crop."""
        self.label = _cropped(self.label, size)
        self.certainty = _cropped(self.certainty[:, None], size)[:, 0]
        self.decoded = _cropped(self.decoded[:, None], size)[:, 0]

    def _judged(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Labels of logits (B, K, ...), and their certainty, (B, ...)."""
        if self._regions:
            return logits > 0, logits.abs().amin(1)
        # torch.argmax takes thirty times as long on the CPU
        highest, label = logits.max(1, keepdim=True)
        second = logits.scatter(1, label, -torch.inf).amax(1)
        return label.to(torch.int16), highest[:, 0] - second


class LogitField(LabelField):
    """A `LabelField` that holds logits (B, K, *shape), too; those that are not decoded are interpolated.

    Where all points around one have a label, so has what is interpolated between them: labels, and which points are
    decoded, are those of `LabelField`.
    """

    def __init__(self, logits: Tensor, margin: float, regions: bool) -> None:
        super().__init__(logits, margin, regions)
        self._logits = logits

    @property
    def values(self) -> Tensor:
        """The logits."""
        return self._logits

    def halve(self, ratio: Sequence[int]) -> None:
        """Halve the lattice, labels and logits."""
        super().halve(ratio)
        self._logits = _interpolated(self._logits, self.label.shape[2:])

    def put(self, place: Place, logits: Tensor) -> None:
        """Put decoded logits in their place, and their labels."""
        super().put(place, logits)
        self._logits.movedim(1, -1)[place] = logits

    def crop(self, size: Sequence[int]) -> None:
        """Leave out what is beyond the field's size, of labels and logits."""
        super().crop(size)
        self._logits = _cropped(self._logits, size)


def coarse_to_fine(
    decode: Decode,
    batch: int,
    size: Sequence[int],
    *,
    levels: int,
    kind: type[LabelField],
    margin: float,
    regions: bool,
    device: torch.device,
) -> LabelField:
    """Logits or labels at every voxel of a batch of crops, most of them not decoded.

    Voxels are the positions of any regular lattice, not only those of the image.
    A lattice of every 2^levels-th voxel is decoded first, and the centres of its cells: a plate across an axis is seen
    if it is half a cell thick. Level by level the lattice is halved; new points are decoded where the points between
    which they lie have different labels, or little certainty in the mean, and next to an uncertain centre. Then points
    next to another label are decoded until there are none left, so that what was seen once is followed within the crop:
    in the end every voxel with a neighbour of another label has been decoded. All labels are right if the certainty
    nowhere changes faster than by the margin in half the diagonal of a cell of the first lattice.

    Args:
        decode: The decoder.
        batch: Number of crops.
        size: Their size in voxels.
        levels: Times the lattice is halved; 0: every voxel is decoded.
        kind: What is found.
        margin: Certainty, in logits to the next class, below which a point is decoded.
        regions: One sigmoid per channel instead of exclusive classes.
        device: Where the decoder works.
    """
    step = [1 << min(levels, max(n - 1, 0).bit_length()) for n in size]
    shape = [-(-(n - 1) // s) + 1 for n, s in zip(size, step, strict=True)]
    index = _lattice(batch, size, step, shape, device)
    field = kind(decode(index.flatten()).unflatten(0, index.shape).movedim(-1, 1).contiguous(), margin, regions)
    coarsest = True
    while max(step) > 1:
        ratio = [min(s, 2) for s in step]
        step = [s // r for s, r in zip(step, ratio, strict=True)]
        wanted = _between_labels(field.label, ratio)
        field.halve(ratio)
        lattice = _lattice(batch, size, step, field.decoded.shape[1:], device)
        if coarsest:
            centres = torch.zeros_like(field.decoded)
            middle = (slice(None), *[slice(r // 2, None, r) for r in ratio])
            centres[middle] = True
            _decode_where(centres, decode, field, lattice)
            wanted |= _at_borders((centres & field.uncertain)[:, None])  # they, and what is next to them
            coarsest = False
        _decode_where((wanted | field.uncertain) & ~field.decoded, decode, field, lattice)
        while (wanted := _at_borders(field.label) & ~field.decoded).any():
            _decode_where(wanted, decode, field, lattice)
    field.crop(size)
    return field


def redecode_borders(decode: Decode, field: LabelField) -> None:
    """Decode anew, in place, the voxels of uncertain labels and those with a neighbour of another label."""
    voxels = torch.arange(field.certainty.numel(), device=field.certainty.device).view(field.certainty.shape)
    _decode_where(_at_borders(field.label) | field.uncertain, decode, field, voxels)


def _lattice(
    batch: int, size: Sequence[int], step: Sequence[int], shape: Sequence[int], device: torch.device
) -> Tensor:
    """Voxel numbers (B, *shape) of every `step`-th voxel; beyond the crop, where its last cells end, the last one's."""
    index = torch.arange(batch, device=device).view(-1, *[1] * len(size))
    for axis, (n, s, n_points) in enumerate(zip(size, step, shape, strict=True), start=1):
        points = (torch.arange(n_points, device=device) * s).clamp(max=n - 1)
        index = index * n + points.view([-1 if i == axis else 1 for i in range(len(size) + 1)])
    return index


def _between_labels(label: Tensor, ratio: Sequence[int]) -> Tensor:
    """Points (B, *finer) of the finer lattice around which labels (B, R, *shape) differ."""
    highest = lowest = label.to(torch.int16)
    for axis, r in enumerate(ratio, start=2):
        if r > 1:
            highest, lowest = _between(torch.maximum, highest, axis), _between(torch.minimum, lowest, axis)
    return (highest != lowest).any(1)


def _between(reduce: Callable[[Tensor, Tensor], Tensor], x: Tensor, axis: int) -> Tensor:
    """Add, between any two neighbours along an axis, what they are reduced to: n points become 2n - 1."""
    n = x.shape[axis]
    first, second = x.narrow(axis, 0, n - 1), x.narrow(axis, 1, n - 1)
    pairs = torch.stack((first, reduce(first, second)), axis + 1).flatten(axis, axis + 1)
    return torch.cat((pairs, x.narrow(axis, n - 1, 1)), axis)


def _decode_where(wanted: Tensor, decode: Decode, field: LabelField, lattice: Tensor) -> None:
    """Decode the points of a lattice that are wanted, (B, *shape) bool, in place, not too many at once."""
    for points in wanted.nonzero().split(_POINTS_AT_ONCE):
        if len(points):
            place = tuple(points.unbind(1))
            field.put(place, decode(lattice[place]))


def _at_borders(label: Tensor) -> Tensor:
    """Points with a neighbour, along an axis, of another label: (B, R, *shape) -> (B, *shape) bool."""
    found = torch.zeros_like(label[:, 0], dtype=torch.bool)
    for axis in range(2, label.ndim):
        n = label.shape[axis] - 1
        differs = (label.narrow(axis, 0, n) != label.narrow(axis, 1, n)).any(1)
        for first in (0, 1):
            found.narrow(axis - 1, first, n).logical_or_(differs)
    return found


def _interpolated(field: Tensor, shape: Sequence[int]) -> Tensor:
    """A field (B, C, *coarser) on a finer lattice."""
    return F.interpolate(field, size=tuple(shape), mode=_LINEAR[len(shape)], align_corners=True)


def _cropped(field: Tensor, size: Sequence[int]) -> Tensor:
    """A field (B, C, *shape) without what lies beyond the crop."""
    box = (slice(None), slice(None), *[slice(n) for n in size])
    return field[box].contiguous()
