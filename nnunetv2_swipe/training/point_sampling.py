"""Training points of a label crop: class- and boundary-balanced, stratified in space, sub-voxel (SwIPE, section 3.3).

The voxels of a crop fall into strata: for every class, those near its boundary and the others. Each stratum gets a
number of points, and within it the points are stratified in space: voxels are visited along a Morton curve, on which
equal steps are compact blocks of the image, one point per step. The position within the voxel is a Latin hypercube
over all points of the crop. Everything is batched tensor code of constant shape.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from nnunetv2_swipe.config import SwIPEConfig
from nnunetv2_swipe.network.coordinates import axis_tensor, grid_shape, patch_index, unravel


class PointSample(NamedTuple):
    """Points of a batch of crops."""

    points: Tensor
    """Positions (B, N, D) in voxels, float32."""
    target: Tensor
    """Labels (B, N) int64; of region-based training, memberships (B, N, R) float32."""
    weight: Tensor
    """Voxels that each point stands for (B, N); 0 in a crop without annotated voxels."""
    neighbours: Tensor | None
    """Grid indices (B, N, n_spo, D) of the neighbouring patches of SPO."""


def sample_points(
    target: Tensor, config: SwIPEConfig, *, num_classes: int, ignore_label: int | None = None
) -> PointSample:
    """Draw the training points of a batch of label crops.

    Args:
        target: Label crops (B, 1, *size), integers; or of region-based training (B, R, *size), boolean or 0/1, where
            with an ignore label one more channel marks the voxels to ignore.
        config: SwIPE's block of the plan.
        num_classes: Segmentation heads: classes with background, or regions.
        ignore_label: The label never to draw, if the dataset has one.

    Returns:
        The points, their targets, weights and neighbours, on the device of `target`.
    """
    size = target.shape[2:]
    classes, near = _classes_and_boundary(target, config, num_classes, ignore_label)
    n_strata = 2 * (num_classes + config.regions)
    order = _morton_order(tuple(size), target.device)
    strata = torch.where(classes >= 0, 2 * classes + near, n_strata).flatten(1)[:, order]
    ordered, by_stratum = strata.sort(dim=1, stable=True)  # along the curve within each stratum
    counts = _count(ordered, n_strata)
    stratum = _allocate(counts, config.n_points, config.background_share)
    rank, drawn = _rank_within(stratum, n_strata)
    volume = counts.gather(1, stratum)
    first = (counts.cumsum(1) - counts).gather(1, stratum)
    voxel = order[by_stratum.gather(1, first + _draw_within(volume, rank, drawn))]
    points = unravel(voxel, size).float() + _latin_hypercube_offsets(voxel.shape, len(size), target.device)
    if config.regions:
        members = target[:, :num_classes].flatten(2)
        point_target = members.gather(2, voxel[:, None].expand(-1, num_classes, -1)).movedim(1, 2).float()
    else:
        # below 0: nothing is annotated, weight 0
        point_target = classes.flatten(1).gather(1, voxel).clamp(min=0).long()
    return PointSample(
        points,
        point_target,
        volume / drawn,
        _draw_neighbours(points, config, size) if config.n_spo else None,
    )


def tempered_weights(sample: PointSample, exponent: float) -> Tensor:
    """Weights between the unbiased ones (1) and the paper's, alike for all points (0): the former's power, (B, N).

    Points of crops without annotation count nothing.
    """
    return torch.where(sample.weight > 0, sample.weight.pow(exponent), 0.0)


def _classes_and_boundary(
    target: Tensor, config: SwIPEConfig, num_classes: int, ignore_label: int | None
) -> tuple[Tensor, Tensor]:
    """Exclusive class of each voxel, (B, *size) int16, -1 where ignored, and whether it is near its class's boundary.

    What is ignored is no boundary. A voxel of several regions belongs to the one with the fewest voxels in its crop;
    class 0 is the background.
    """
    if config.regions:
        members = target[:, :num_classes].bool()
        rank = members.flatten(2).sum(-1).argsort(dim=1, stable=True).argsort(1).short()
        rank = rank.view(*members.shape[:2], *[1] * (target.ndim - 2))
        smallest = torch.where(members, rank, torch.iinfo(rank.dtype).max).argmin(1)
        classes = torch.where(members.any(1), smallest + 1, 0).short()
        if ignore_label is not None:
            classes = torch.where(target[:, num_classes].bool(), -1, classes)
    else:
        classes = target[:, 0].short()
        if ignore_label is not None:
            classes = torch.where(classes == ignore_label, -1, classes)
    highest = lowest = classes
    if ignore_label is not None:
        lowest = torch.where(classes < 0, torch.iinfo(classes.dtype).max, classes)
    for axis, radius in enumerate(config.boundary_radius, start=1):
        highest = _running(torch.maximum, highest, axis, radius)
        lowest = _running(torch.minimum, lowest, axis, radius)
    return classes, highest != lowest


def _running(extreme: Callable[[Tensor, Tensor], Tensor], x: Tensor, axis: int, radius: int) -> Tensor:
    """Extreme of the 2 radius + 1 voxels around each along one axis, by windows of twice the width each time."""
    n = x.shape[axis]
    radius = min(radius, n - 1)
    first, last = x.narrow(axis, 0, 1), x.narrow(axis, n - 1, 1)
    x = torch.cat((*[first] * radius, x, *[last] * radius), axis)
    width, wanted = 1, 2 * radius + 1
    while width < wanted:
        step = min(width, wanted - width)
        n_windows = x.shape[axis] - step
        x = extreme(x.narrow(axis, 0, n_windows), x.narrow(axis, step, n_windows))
        width += step
    return x


@cache  # a CUDA graph holds its address
def _morton_order(size: tuple[int, ...], device: torch.device) -> Tensor:
    """Raster indices of all voxels in the order of a Morton (Z-order) curve."""
    code = torch.zeros(size, dtype=torch.int64)
    bits = max(n - 1 for n in size).bit_length()
    for axis, n in enumerate(size):
        index = torch.arange(n).view([-1 if i == axis else 1 for i in range(len(size))])
        for bit in range(bits):
            code = code | ((index >> bit & 1) << (bit * len(size) + len(size) - 1 - axis))
    return code.flatten().argsort().to(device)


def _count(ordered: Tensor, n: int) -> Tensor:
    """How often each of 0 to n - 1 occurs in rows of ascending numbers, (B, V) -> (B, n)."""
    numbers = torch.arange(n, dtype=ordered.dtype, device=ordered.device).expand(len(ordered), -1)
    ends = torch.searchsorted(ordered, numbers.contiguous(), right=True)
    return ends.diff(dim=1, prepend=torch.zeros_like(ends[:, :1]))


def _allocate(counts: Tensor, n_points: int, background_share: float) -> Tensor:
    """The stratum of each point, (B, n strata) -> (B, N), in order of strata.

    Every class present gets the same share, the background `background_share` times that; half of a class's share
    goes to its boundary. Empty strata pass theirs on.
    """
    present = (counts > 0).float().unflatten(1, (-1, 2))  # (B, classes, [interior, near])
    share = present / present.sum(-1, keepdim=True).clamp(min=1)
    share[:, 0] *= background_share
    share = share.flatten(1)
    ends = (share.cumsum(1) / share.sum(1, keepdim=True).clamp(min=1e-9) * n_points).round()
    rank = torch.arange(n_points, device=counts.device, dtype=ends.dtype) + 0.5
    stratum = torch.searchsorted(ends, rank.expand(len(counts), -1).contiguous())
    return stratum.clamp_(max=counts.shape[1] - 1)


def _rank_within(stratum: Tensor, n_strata: int) -> tuple[Tensor, Tensor]:
    """For each point its number within its stratum, and how many points the stratum got; both (B, N)."""
    drawn = _count(stratum, n_strata)
    first = drawn.cumsum(1) - drawn
    rank = torch.arange(stratum.shape[1], device=stratum.device) - first.gather(1, stratum)
    return rank, drawn.gather(1, stratum)


def _draw_within(volume: Tensor, rank: Tensor, drawn: Tensor) -> Tensor:
    """For each point a voxel of its stratum (of `volume` voxels): one from each of as many equal parts as points."""
    part = (rank + torch.rand(rank.shape, device=rank.device)) / drawn
    return (part * volume).long().minimum((volume - 1).clamp(min=0))


def _latin_hypercube_offsets(shape: Sequence[int], dims: int, device: torch.device) -> Tensor:
    """Positions within a voxel, (B, N, D) in [-1/2, 1/2): along each axis one point per N-th part of the voxel."""
    permutation = torch.rand(*shape, dims, device=device).argsort(1)
    return (permutation + torch.rand(permutation.shape, device=device)) / shape[1] - 0.5


@cache  # likewise
def neighbour_offsets(connectivity: int, dims: int, device: torch.device) -> Tensor:
    """Grid offsets (connectivity, D) of a patch's neighbours: 4 or 8 in 2D; 6, 18 or 26 in 3D."""
    steps = [o for o in itertools.product((-1, 0, 1), repeat=dims) if any(o)]
    steps.sort(key=lambda o: sum(map(abs, o)))
    return torch.tensor(steps[:connectivity], device=device)


def _draw_neighbours(points: Tensor, config: SwIPEConfig, size: Sequence[int]) -> Tensor:
    """Random existing neighbours of each point's patch, (B, N, n_spo, D); the patch itself where it has none."""
    grid = grid_shape(size, config.patch_size)
    offsets = neighbour_offsets(config.spo_connectivity, config.dims, points.device)
    own = patch_index(points, config.patch_size, grid)
    candidates = own[..., None, :] + offsets
    exists = ((candidates >= 0) & (candidates < axis_tensor(grid, candidates))).all(-1)
    score = torch.rand(*exists.shape[:2], config.n_spo, exists.shape[-1], device=points.device)
    choice = torch.where(exists[:, :, None], score, -1.0).argmax(-1)
    chosen = candidates.gather(2, choice[..., None].expand(-1, -1, -1, config.dims))
    return torch.where(exists.any(-1)[..., None, None], chosen, own[:, :, None])
