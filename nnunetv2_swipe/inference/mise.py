"""Dense label fields from a continuous decoder, coarse to fine (MISE, after Mescheder et al., CVPR 2019)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from nnunetv2_swipe.config import SwIPEConfig

_LINEAR = {2: "bilinear", 3: "trilinear"}

Decode = Callable[[Tensor], Tensor]
"""Voxels (M,), numbered in raster order through all crops of a batch -> their logits (M, K), float32."""


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


def decode_field(decoder: FieldDecoder, config: SwIPEConfig, levels: int) -> Tensor:
    """Logits (B, K, *size) float32, decoded as the plan says: MISE of some levels, own or blended.

    Unless every point is decoded, blending is left to those next to a border between own-patch labels.
    """
    blended = config.decoding == "blended"
    everywhere = blended and levels == 0
    logits = decode_coarse_to_fine(
        decoder.blended if everywhere else decoder.own,
        decoder.batch,
        decoder.size,
        levels=levels,
        margin=config.mise_margin,
        regions=config.regions,
        device=decoder.device,
    )
    if blended and not everywhere:
        redecode_borders(decoder.blended, logits, margin=config.mise_margin, regions=config.regions)
    return logits


def levels_of_lattice(levels: int, positions: Sequence[Tensor]) -> int:
    """MISE levels whose coarsest step is no longer, in voxels, than that of `levels` on the lattice of voxels."""
    if levels == 0:
        return 0
    step = max((abs(float(p[1] - p[0])) for p in positions if len(p) > 1), default=1.0)
    return max(0, levels - math.ceil(math.log2(step) - 1e-6))


def decode_coarse_to_fine(
    decode: Decode, batch: int, size: Sequence[int], *, levels: int, margin: float, regions: bool, device: torch.device
) -> Tensor:
    """Logits at every voxel of a batch of crops, most of them interpolated.

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
        margin: A corner is uncertain if its smallest margin between two classes (in logits) is below this.
        regions: One sigmoid per channel instead of exclusive classes.
        device: Where the decoder works.

    Returns:
        (B, K, *size) float32, contiguous.
    """
    step = [1 << min(levels, max(n - 1, 0).bit_length()) for n in size]
    shape = [-(-(n - 1) // s) + 1 for n, s in zip(size, step, strict=True)]
    index = _lattice(batch, size, step, shape, device)
    logits = decode(index.flatten()).unflatten(0, index.shape).movedim(-1, 1).contiguous()
    decoded = torch.ones(index.shape, dtype=torch.bool, device=device)
    coarsest = True
    while max(step) > 1:
        ratio = [min(s, 2) for s in step]
        step = [s // r for s, r in zip(step, ratio, strict=True)]
        active = _active_cells(logits, margin, regions)
        logits, decoded = _interpolate(logits, decoded, ratio)
        lattice = _lattice(batch, size, step, decoded.shape[1:], device)
        if coarsest:
            active |= _decode_centres(decode, logits, decoded, ratio, lattice, margin, regions)
            coarsest = False
        _refine(decode, logits, decoded, active, ratio, lattice, regions)
    crop = (slice(None), slice(None), *[slice(n) for n in size])
    return logits[crop].contiguous()


def redecode_borders(decode: Decode, logits: Tensor, *, margin: float, regions: bool) -> None:
    """Decode anew, in place, the voxels of (B, K, *size) next to which labels differ or are uncertain."""
    shape = logits.shape[2:]
    near = _points_of_cells(_active_cells(logits, margin, regions), [1] * len(shape), shape)
    index = near.flatten().nonzero()[:, 0]
    if len(index):
        logits.movedim(1, -1)[near] = decode(index)


def _lattice(
    batch: int, size: Sequence[int], step: Sequence[int], shape: Sequence[int], device: torch.device
) -> Tensor:
    """Voxel numbers (B, *shape) of every `step`-th voxel; beyond the crop, where its last cells end, the last one's."""
    index = torch.arange(batch, device=device).view(-1, *[1] * len(size))
    for axis, (n, s, n_points) in enumerate(zip(size, step, shape, strict=True), start=1):
        points = (torch.arange(n_points, device=device) * s).clamp(max=n - 1)
        index = index * n + points.view([-1 if i == axis else 1 for i in range(len(size) + 1)])
    return index


def _interpolate(logits: Tensor, decoded: Tensor, ratio: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Halve the lattice: linear interpolation, and which points of the finer lattice are decoded already."""
    shape = [(n - 1) * r + 1 for n, r in zip(logits.shape[2:], ratio, strict=True)]
    finer = F.interpolate(logits, size=shape, mode=_LINEAR[len(shape)], align_corners=True)
    known = torch.zeros((len(logits), *shape), dtype=torch.bool, device=logits.device)
    every_other = (slice(None), *[slice(None, None, r) for r in ratio])
    known[every_other] = decoded
    return finer, known


def _decode_centres(
    decode: Decode,
    logits: Tensor,
    decoded: Tensor,
    ratio: Sequence[int],
    lattice: Tensor,
    margin: float,
    regions: bool,
) -> Tensor:
    """Decode the centre of every cell, in place; which are uncertain or otherwise than interpolated: (B, *cells)."""
    centres = (slice(None), *[slice(r // 2, None, r) for r in ratio])
    field = logits.movedim(1, -1)[centres]
    values = decode(lattice[centres].flatten())
    label = _labels(values, regions)
    differs = (label != _labels(field.flatten(0, -2), regions)).any(1)
    active = differs | (_certainty(values, label, regions) < margin)
    field.copy_(values.view(field.shape))
    decoded[centres] = True
    return active.view(field.shape[:-1])


def _refine(
    decode: Decode,
    logits: Tensor,
    decoded: Tensor,
    active: Tensor,
    ratio: Sequence[int],
    lattice: Tensor,
    regions: bool,
) -> None:
    """Decode the points of active cells, and of those around points that turn out otherwise; in place."""
    field = logits.movedim(1, -1)
    visited = active
    while True:
        index = (_points_of_cells(active, ratio, decoded.shape[1:]) & ~decoded).nonzero()
        if len(index) == 0:
            return
        place = tuple(index.unbind(1))
        decoded[place] = True
        values = decode(lattice[place])
        wrong = (_labels(values, regions) != _labels(field[place], regions)).any(1)
        field[place] = values
        if not wrong.any():
            return
        active = _cells_around(index[wrong], ratio, visited) & ~visited
        visited = visited | active


def _active_cells(logits: Tensor, margin: float, regions: bool) -> Tensor:
    """Cells, between two points along every axis, whose corners differ or are uncertain: (B, *cells) bool."""
    label = _labels(logits, regions)
    uncertain = _certainty(logits, label, regions) < margin
    highest = lowest = label.to(torch.int16)
    for axis in range(2, logits.ndim):
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


def _labels(logits: Tensor, regions: bool) -> Tensor:
    """Labels (B, 1, ...), or per region (B, K, ...), of logits (B, K, ...)."""
    # torch.argmax takes thirty times as long on the CPU
    return logits > 0 if regions else logits.max(1, keepdim=True).indices


def _certainty(logits: Tensor, label: Tensor, regions: bool) -> Tensor:
    """How far the logits (B, K, ...) are from a label other than theirs (of `_labels`), (B, ...)."""
    if regions:
        return logits.abs().amin(1)
    return logits.gather(1, label)[:, 0] - logits.scatter(1, label, -torch.inf).amax(1)
