"""Dense label fields from a continuous decoder, coarse to fine (MISE, after Mescheder et al., CVPR 2019)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_swipe.network.coordinates import flat_index

if TYPE_CHECKING:
    from nnunetv2_swipe.config import SwIPEConfig

_LINEAR = {2: "bilinear", 3: "trilinear"}
_POINTS_AT_ONCE = 1 << 17
"""Decoded at most before their logits are reduced to labels."""

Decode = Callable[[Tensor], Tensor]
"""Voxels (M,), numbered in raster order through all crops of a batch -> their logits (M, K), float32."""

Place = tuple[slice | Tensor, ...]
"""Where in a lattice (B, *shape)."""


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
        """As `own`, by the nearest patches, blended."""


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


class LogitField:
    """Logits (B, K, *shape) at the points of a lattice; those that are not decoded are interpolated.

    Attributes:
        values: The logits.
        margin: Labels are uncertain below it.
        regions: One sigmoid per channel instead of exclusive classes.
    """

    def __init__(self, logits: Tensor, margin: float, regions: bool) -> None:
        self.values = logits
        self.margin, self.regions = margin, regions

    def judged(self) -> tuple[Tensor, Tensor]:
        """Labels (B, R, *shape), and whether they are uncertain (B, *shape)."""
        return _judged(self.values, self.margin, self.regions)

    def halve(self, ratio: Sequence[int]) -> None:
        """Interpolate to a lattice that is finer by a ratio along each axis."""
        shape = [(n - 1) * r + 1 for n, r in zip(self.values.shape[2:], ratio, strict=True)]
        self.values = F.interpolate(self.values, size=shape, mode=_LINEAR[len(shape)], align_corners=True)

    def put(self, place: Place, logits: Tensor) -> Tensor:
        """Set decoded logits (M, K); returns whether labels differ from those before, (M,)."""
        view = self.values.movedim(1, -1)
        before = view[place]
        differs = _labels(logits, self.regions) != _labels(before.flatten(0, -2), self.regions)
        view[place] = logits.view(before.shape)
        return differs.any(1)

    def crop(self, size: Sequence[int]) -> None:
        """Leave out what lies beyond the crop."""
        box = (slice(None), slice(None), *[slice(n) for n in size])
        self.values = self.values[box].contiguous()


class LabelField:
    """As `LogitField`, of labels alone: (B, 1, *shape) int16, or with regions (B, K, *shape) bool.

    What is refined, and the labels, are the same: where all corners of a cell have one label by more than a margin, so
    has, by more than it, what is interpolated between them; everywhere else every point is decoded.
    """

    def __init__(self, logits: Tensor, margin: float, regions: bool) -> None:
        self.margin, self.regions = margin, regions
        label, self._uncertain = _judged(logits, margin, regions)
        self.values = label if regions else label.to(torch.int16)

    def judged(self) -> tuple[Tensor, Tensor]:
        """Labels, and whether they are uncertain (B, *shape)."""
        return self.values, self._uncertain

    def halve(self, ratio: Sequence[int]) -> None:
        """Go to a lattice that is finer by a ratio along each axis; new points get the label of a corner."""
        before = self._uncertain
        for axis, (n, r) in enumerate(zip(before.shape[1:], ratio, strict=True), start=2):
            self.values = self.values.repeat_interleave(r, axis).narrow(axis, 0, (n - 1) * r + 1)
        self._uncertain = torch.zeros_like(self.values[:, 0], dtype=torch.bool)
        every_other = (slice(None), *[slice(None, None, r) for r in ratio])
        self._uncertain[every_other] = before

    def put(self, place: Place, logits: Tensor) -> Tensor:
        """Set the labels of decoded logits (M, K); returns as `LogitField.put`."""
        view = self.values.movedim(1, -1)
        before = view[place]
        label, uncertain = _judged(logits, self.margin, self.regions)
        label = label.to(view.dtype)
        differs = label != before.flatten(0, -2)
        view[place] = label.view(before.shape)
        self._uncertain[place] = uncertain.view(before.shape[:-1])
        return differs.any(1)

    def crop(self, size: Sequence[int]) -> None:
        """Leave out what lies beyond the crop."""
        box = [slice(n) for n in size]
        of_values, of_points = (slice(None), slice(None), *box), (slice(None), *box)
        self.values, self._uncertain = self.values[of_values], self._uncertain[of_points]


def coarse_to_fine(
    decode: Decode,
    batch: int,
    size: Sequence[int],
    *,
    levels: int,
    kind: type[LogitField] | type[LabelField],
    margin: float,
    regions: bool,
    device: torch.device,
) -> LogitField | LabelField:
    """Logits or labels at every voxel of a batch of crops, most of them not decoded.

    Voxels are the positions of any regular lattice, not only those of the image.
    A lattice of every 2^levels-th voxel is decoded first, and the centres of its cells: a plate across an axis is seen
    if it is half a cell thick. Level by level the lattice is halved; new points are decoded where a cell of the coarser
    lattice is active and interpolated elsewhere. A cell is active where the labels of its corners (or centre) differ or
    their margin is small. A decoded point that contradicts the interpolation makes the cells around it active too,
    until nothing changes.

    Args:
        decode: The decoder.
        batch: Number of crops.
        size: Their size in voxels.
        levels: Times the lattice is halved; 0: every voxel is decoded.
        kind: What is found.
        margin: A corner is uncertain if its smallest margin between two classes (in logits) is below this.
        regions: One sigmoid per channel instead of exclusive classes.
        device: Where the decoder works.
    """
    step = [1 << min(levels, max(n - 1, 0).bit_length()) for n in size]
    shape = [-(-(n - 1) // s) + 1 for n, s in zip(size, step, strict=True)]
    index = _lattice(batch, size, step, shape, device)
    field = kind(decode(index.flatten()).unflatten(0, index.shape).movedim(-1, 1).contiguous(), margin, regions)
    decoded = torch.ones(index.shape, dtype=torch.bool, device=device)
    coarsest = True
    while max(step) > 1:
        ratio = [min(s, 2) for s in step]
        step = [s // r for s, r in zip(step, ratio, strict=True)]
        active = _active_cells(*field.judged())
        field.halve(ratio)
        decoded = _halved(decoded, ratio)
        lattice = _lattice(batch, size, step, decoded.shape[1:], device)
        if coarsest:
            active |= _decode_centres(decode, field, decoded, ratio, lattice)
            coarsest = False
        _refine(decode, field, decoded, active, ratio, lattice)
    field.crop(size)
    return field


def redecode_borders(decode: Decode, field: LogitField | LabelField) -> None:
    """Decode anew, in place, the voxels next to which labels differ or are uncertain."""
    active = _active_cells(*field.judged())
    shape = field.values.shape[2:]
    near = _points_of_cells(active, [1] * len(shape), shape).nonzero()
    for points in near.split(_POINTS_AT_ONCE):
        field.put(tuple(points.unbind(1)), decode(flat_index(points, (len(active), *shape))))


def _lattice(
    batch: int, size: Sequence[int], step: Sequence[int], shape: Sequence[int], device: torch.device
) -> Tensor:
    """Voxel numbers (B, *shape) of every `step`-th voxel; beyond the crop, where its last cells end, the last one's."""
    index = torch.arange(batch, device=device).view(-1, *[1] * len(size))
    for axis, (n, s, n_points) in enumerate(zip(size, step, shape, strict=True), start=1):
        points = (torch.arange(n_points, device=device) * s).clamp(max=n - 1)
        index = index * n + points.view([-1 if i == axis else 1 for i in range(len(size) + 1)])
    return index


def _halved(decoded: Tensor, ratio: Sequence[int]) -> Tensor:
    """Which points of the finer lattice are decoded already."""
    shape = [(n - 1) * r + 1 for n, r in zip(decoded.shape[1:], ratio, strict=True)]
    known = torch.zeros((len(decoded), *shape), dtype=torch.bool, device=decoded.device)
    every_other = (slice(None), *[slice(None, None, r) for r in ratio])
    known[every_other] = decoded
    return known


def _decode_centres(
    decode: Decode, field: LogitField | LabelField, decoded: Tensor, ratio: Sequence[int], lattice: Tensor
) -> Tensor:
    """Decode the centre of every cell, in place; which are uncertain or otherwise than interpolated: (B, *cells)."""
    centres = (slice(None), *[slice(r // 2, None, r) for r in ratio])
    index = lattice[centres]
    logits = decode(index.flatten())
    differs = field.put(centres, logits)
    decoded[centres] = True
    _, uncertain = _judged(logits, field.margin, field.regions)
    return (differs | uncertain).view(index.shape)


def _refine(
    decode: Decode,
    field: LogitField | LabelField,
    decoded: Tensor,
    active: Tensor,
    ratio: Sequence[int],
    lattice: Tensor,
) -> None:
    """Decode the points of active cells, and of those around points that turn out otherwise; in place."""
    visited = active
    while True:
        index = (_points_of_cells(active, ratio, decoded.shape[1:]) & ~decoded).nonzero()
        if len(index) == 0:
            return
        wrong = torch.cat(
            [_decode_at(place, decode, field, decoded, lattice) for place in index.split(_POINTS_AT_ONCE)]
        )
        if not wrong.any():
            return
        active = _cells_around(index[wrong], ratio, visited) & ~visited
        visited = visited | active


def _decode_at(
    points: Tensor, decode: Decode, field: LogitField | LabelField, decoded: Tensor, lattice: Tensor
) -> Tensor:
    """Decode points (M, 1 + D) of the lattice, in place; whether they turn out otherwise, (M,)."""
    place = tuple(points.unbind(1))
    decoded[place] = True
    return field.put(place, decode(lattice[place]))


def _active_cells(label: Tensor, uncertain: Tensor) -> Tensor:
    """Cells, between two points along every axis, whose corners differ or are uncertain: (B, *cells) bool."""
    highest = lowest = label.to(torch.int16)
    for axis in range(2, label.ndim):
        highest, lowest = _of_neighbours(torch.maximum, highest, axis), _of_neighbours(torch.minimum, lowest, axis)
        uncertain = _of_neighbours(torch.logical_or, uncertain, axis - 1)
    return (highest != lowest).any(1) | uncertain


def _of_neighbours(reduce: Callable[[Tensor, Tensor], Tensor], x: Tensor, axis: int) -> Tensor:
    """Combine neighbours along an axis, n points to n - 1 cells; a single point is a cell of its own."""
    n = x.shape[axis]
    return reduce(x.narrow(axis, 0, n - 1), x.narrow(axis, 1, n - 1)) if n > 1 else x


def _points_of_cells(active: Tensor, ratio: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Points of the finer lattice that lie in active cells, borders included: (B, *cells) -> (B, *shape) bool."""
    for axis, (r, n) in enumerate(zip(ratio, shape, strict=True), start=1):
        if n == 1:
            continue
        active = active.repeat_interleave(r, axis)
        none = torch.zeros_like(active.narrow(axis, 0, 1))
        active = torch.cat((active, none), axis) | torch.cat((none, active), axis)
    return active


def _cells_around(points: Tensor, ratio: Sequence[int], cells: Tensor) -> Tensor:
    """Cells (as `cells`, bool) that hold any of the points (M, 1 + D) of the finer lattice, borders included."""
    result = torch.zeros_like(cells)
    last = torch.tensor(cells.shape[1:], device=points.device) - 1
    sample, points = points[:, 0], points[:, 1:]
    r = torch.tensor(ratio, device=points.device)
    for side in itertools.product((0, 1), repeat=len(ratio)):
        # a point between two cells belongs to both
        cell = ((points - torch.tensor(side, device=points.device)).clamp(min=0) // r).minimum(last)
        where = (sample, *cell.unbind(1))
        result[where] = True
    return result


def _judged(logits: Tensor, margin: float, regions: bool) -> tuple[Tensor, Tensor]:
    """Labels of logits (B, K, ...), as `_labels`, and whether their margin is too small, (B, ...)."""
    label = _labels(logits, regions)
    return label, _certainty(logits, label, regions) < margin


def _labels(logits: Tensor, regions: bool) -> Tensor:
    """Labels (B, 1, ...), or per region (B, K, ...), of logits (B, K, ...)."""
    # torch.argmax takes thirty times as long on the CPU
    return logits > 0 if regions else logits.max(1, keepdim=True).indices


def _certainty(logits: Tensor, label: Tensor, regions: bool) -> Tensor:
    """How far the logits (B, K, ...) are from a label other than theirs (of `_labels`), (B, ...)."""
    if regions:
        return logits.abs().amin(1)
    return logits.gather(1, label)[:, 0] - logits.scatter(1, label, -torch.inf).amax(1)
