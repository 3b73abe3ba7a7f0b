"""Dense label fields from a continuous decoder, coarse to fine (MISE, after Mescheder et al., CVPR 2019)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from nnunetv2_swipe.network.swipe_net import Embeddings, SwIPENet

POINTS_PER_CHUNK = 1 << 16
"""Points decoded at once; bounds the memory of a dense prediction."""
_LINEAR = {2: "bilinear", 3: "trilinear"}
_MAX_POOL = {2: F.max_pool2d, 3: F.max_pool3d}


def decode_points(network: SwIPENet, embeddings: Embeddings, index: Tensor) -> Tensor:
    """Decode lattice points, as the plan says (own or blended), in chunks.

    Args:
        network: The network.
        embeddings: Output of its encoder.
        index: (M, 1 + D) int64, the sample and the voxel index of each point.

    Returns:
        Logits (M, K), float32.
    """
    blended = network.config.decoding == "blended"
    decode = network.decode_blended if blended else network.decode
    size = POINTS_PER_CHUNK >> network.config.dims if blended else POINTS_PER_CHUNK  # blending decodes 2^D patches
    chunks = [decode(embeddings, part[:, 1:].float(), part[:, 0]) for part in index.split(size)]
    return torch.cat(chunks)


@torch.compiler.disable  # data-dependent shapes
def decode_dense(network: SwIPENet, embeddings: Embeddings) -> Tensor:
    """Logits at every voxel of the crop, (B, K, *size).

    With `mise_levels` L > 0 a lattice of every 2^L-th voxel is decoded first. Level by level the lattice is halved;
    new points are decoded where a cell of the coarser lattice is active and interpolated elsewhere. A cell is active
    where the labels of its corners differ or their margin is small. A decoded point that contradicts the
    interpolation makes the neighbouring cells active too, until nothing changes.
    """
    size = embeddings.size
    levels = network.config.mise_levels
    step = [1 << min(levels, max(n - 1, 0).bit_length()) for n in size]
    if max(step) == 1:
        return _decode_lattice(network, embeddings, size, step)
    # the lattice may end up to one step outside the crop: every voxel then lies inside a cell
    shape = [-(-(n - 1) // s) + 1 for n, s in zip(size, step, strict=True)]
    logits = _decode_lattice(network, embeddings, shape, step)
    decoded = torch.ones((len(logits), *shape), dtype=torch.bool, device=logits.device)
    while max(step) > 1:
        finer = [max(s // 2, 1) for s in step]
        logits, decoded = _refine(network, embeddings, logits, decoded, step, finer)
        step = finer
    crop = (slice(None), slice(None), *[slice(n) for n in size])
    return logits[crop].contiguous()


def _decode_lattice(network: SwIPENet, embeddings: Embeddings, shape: Sequence[int], step: Sequence[int]) -> Tensor:
    """Decode a whole lattice: (B, K, *shape)."""
    batch, device = embeddings.image.shape[0], embeddings.image.device
    axes = [torch.arange(batch, device=device)]
    axes += [torch.arange(n, device=device) * s for n, s in zip(shape, step, strict=True)]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
    return decode_points(network, embeddings, index).view(batch, *shape, -1).movedim(-1, 1).contiguous()


def _refine(
    network: SwIPENet,
    embeddings: Embeddings,
    coarse: Tensor,
    decoded: Tensor,
    step: Sequence[int],
    finer: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Halve the lattice: decode the points of active cells, interpolate the others.

    Returns:
        Logits (B, K, *finer shape), and which of them were decoded on this level or before, (B, *finer shape).
    """
    dims = len(step)
    ratio = [s // f for s, f in zip(step, finer, strict=True)]
    shape = [(n - 1) * r + 1 for n, r in zip(coarse.shape[2:], ratio, strict=True)]
    logits = F.interpolate(coarse, size=shape, mode=_LINEAR[dims], align_corners=True)
    known = torch.zeros((len(coarse), *shape), dtype=torch.bool, device=coarse.device)
    coarse_points = (slice(None), *[slice(None, None, r) for r in ratio])
    known[coarse_points] = decoded
    offset = torch.tensor([1, *finer], device=coarse.device)
    while True:
        wanted = _active_cells(logits, ratio, network) & ~known
        index = wanted.nonzero()
        if len(index) == 0:
            return logits, known
        values = decode_points(network, embeddings, index * offset)
        logits.movedim(1, -1).index_put_(tuple(index.unbind(1)), values)
        known |= wanted


def _active_cells(logits: Tensor, ratio: Sequence[int], network: SwIPENet) -> Tensor:
    """Points of cells whose labels differ or are uncertain: (B, *shape) bool.

    A cell is the `ratio + 1` points between two coarse lattice points per axis, borders included.
    """
    pool: Callable[..., Tensor] = _MAX_POOL[len(ratio)]
    shape = logits.shape[2:]
    label, margin = _labels_and_margin(logits, network.config.regions)
    # an axis with a single point has no second corner
    kernel = [r + 1 if n > 1 else 1 for r, n in zip(ratio, shape, strict=True)]
    mixed = (pool(label, kernel, ratio) + pool(-label, kernel, ratio)).amax(1, keepdim=True) > 0
    uncertain = -pool(-margin, kernel, ratio) < network.config.mise_margin
    # every point of an active cell, borders included: spread the cells over their points
    spread = F.interpolate((mixed | uncertain).float(), scale_factor=[float(r) for r in ratio], mode="nearest")
    for axis, n in enumerate(shape, start=2):
        if n > 1:
            zero = torch.zeros_like(spread.narrow(axis, 0, 1))
            spread = torch.maximum(torch.cat((spread, zero), axis), torch.cat((zero, spread), axis))
    return spread[:, 0] > 0


def _labels_and_margin(logits: Tensor, regions: bool) -> tuple[Tensor, Tensor]:
    """What a lattice point is labelled, (B, 1 or K, *shape) float, and by how much, (B, 1, *shape)."""
    if regions:
        return (logits > 0).float(), logits.abs().amin(1, keepdim=True)
    top, label = logits.max(1, keepdim=True)
    second = logits.scatter(1, label, -torch.inf).amax(1, keepdim=True)
    return label.float(), top - second
