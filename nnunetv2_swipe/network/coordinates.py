"""Voxel, image, patch and source frames: the only place that knows how they relate.

Axis order is always array order (z, y, x). Voxel centres sit at integer indices, so voxel ``i`` covers
``[i - 1/2, i + 1/2]``. Positions are continuous voxel indices ``v`` in float32. A *patch* is SwIPE's patch (a cell
of the embedding grid, ``patch_size`` voxels wide), not nnU-Net's patch, which is called *crop* here.

The *source frame* tells where a voxel of the crop lies in the whole preprocessed image. It travels to the network
as leading input channels: three coordinates (z, y, x; each in [-1, 1]) and one channel of ones. Everything
nnU-Net does to a crop (rotation, scaling, mirroring, tiling) is affine, so the network recovers the exact affine map
from those channels; the ones tell which voxels were padded or interpolated across the image border, and are left out.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nnunetv2_swipe.precision import full_precision

N_SOURCE_AXES = 3
"""nnU-Net's preprocessed images always have three axes; a 2D image has one slice."""
N_SOURCE_CHANNELS = N_SOURCE_AXES + 1
"""Three coordinates and the ones that mark voxels of the image."""
_INSIDE_IMAGE = 0.999


def grid_shape(size: Sequence[int], patch_size: Sequence[int]) -> tuple[int, ...]:
    """Number of patches per axis of an image of ``size`` voxels."""
    return tuple(-(-n // s) for n, s in zip(size, patch_size, strict=True))


def axis_tensor(values: Sequence[int], like: Tensor) -> Tensor:
    """Per-axis integers as a (D,) tensor of the type and device of ``like``."""
    # filled there: a GPU would be waited for if they were copied to it
    return torch.stack([torch.full((), n, dtype=like.dtype, device=like.device) for n in values])


def voxel_centres(size: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """All voxel centres of an image in raster order, (prod(size), D)."""
    axes = [torch.arange(n, dtype=torch.float32, device=device) for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)


def image_coordinates(v: Tensor, size: Sequence[int]) -> Tensor:
    """p^I in [-1, 1]: position within the crop, cell-centred. ``v`` is (..., D)."""
    return (v + 0.5) * (2.0 / axis_tensor(size, v)) - 1.0


def patch_index(v: Tensor, patch_size: Sequence[int], grid: Sequence[int]) -> Tensor:
    """Grid index of the patch that holds each position, clamped to the grid; (..., D) int64."""
    index = torch.floor((v + 0.5) / axis_tensor(patch_size, v)).long()
    return index.clamp_(min=0).minimum(axis_tensor(grid, index) - 1)


def patch_coordinates(v: Tensor, index: Tensor, patch_size: Sequence[int]) -> Tensor:
    """p^P: position relative to the centre of patch ``index``, [-1, 1] inside it and [-3, 3] in its neighbours."""
    s = axis_tensor(patch_size, v)
    return (v + 0.5) * (2.0 / s) - (2 * index + 1).to(v.dtype)


def flat_index(index: Tensor, grid: Sequence[int]) -> Tensor:
    """Raster-order number of each grid index, (..., D) -> (...)."""
    flat = index[..., 0]
    for axis in range(1, len(grid)):
        flat = flat * grid[axis] + index[..., axis]
    return flat


def unravel(flat: Tensor, size: Sequence[int]) -> Tensor:
    """Indices per axis of raster-order numbers, (...) -> (..., D) int64."""
    axes = []
    for n in reversed(size):
        axes.append(flat % n)
        flat = flat // n
    return torch.stack(axes[::-1], -1)


def nearest_patches(v: Tensor, patch_size: Sequence[int], grid: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The 2^D patches whose centres surround each position, and their multilinear weights.

    The weights are a partition of unity: they sum to one, are continuous across patch borders, and a weight is zero
    where its patch enters or leaves the set. Beyond the outermost centres the outermost patch takes all the weight.

    Args:
        v: Positions (M, D) in voxels.
        patch_size: Patch size in voxels per axis.
        grid: Patches per axis.

    Returns:
        Patch indices (2^D, M, D), int64, and weights (2^D, M).
    """
    last = axis_tensor(grid, v) - 1
    position = ((v + 0.5) / axis_tensor(patch_size, v) - 0.5).clamp(min=0).minimum(last)
    lower = torch.floor(position)
    upper = (lower + 1).minimum(last)
    fraction = position - lower
    corners = torch.tensor(list(itertools.product((False, True), repeat=len(grid))), device=v.device)  # (2^D, D)
    index = torch.where(corners[:, None], upper, lower).long()
    weight = torch.where(corners[:, None], fraction, 1 - fraction).prod(-1)
    return index, weight


def fourier_features(p: Tensor, n_frequencies: int) -> Tensor:
    """Append sin and cos of 2^k pi p, k < n_frequencies: (..., D) -> (..., D (1 + 2 n_frequencies))."""
    if n_frequencies == 0:
        return p
    phase = p[..., None] * (torch.pi * 2.0 ** torch.arange(n_frequencies, dtype=p.dtype, device=p.device))
    return torch.cat((p, phase.sin().flatten(-2), phase.cos().flatten(-2)), -1)


def source_channels(shape: Sequence[int], box: Sequence[slice] | None = None) -> np.ndarray:
    """The source-frame channels of an image, or of a box of it.

    Args:
        shape: Spatial shape of the whole preprocessed image, three axes.
        box: The part wanted, one slice per axis (default: all of it).

    Returns:
        (4, *box shape) float32: the z, y and x coordinate in [-1, 1], then ones.
    """
    size = [len(range(n)[b]) for n, b in zip(shape, box, strict=True)] if box is not None else shape
    return with_source_channels(np.empty((0, *size), dtype=np.float32), shape, box)


def with_source_channels(
    image: np.ndarray, shape: Sequence[int] | None = None, box: Sequence[slice] | None = None
) -> np.ndarray:
    """An image, or a box of it, (C, *box shape), behind its source-frame channels: (4 + C, *box shape).

    Args:
        image: The image, or the box.
        shape: Spatial shape of the whole preprocessed image, three axes (default: that of `image`).
        box: The part that `image` is, one slice per axis (default: all of it).
    """
    shape = shape if shape is not None else image.shape[1:]
    box = box if box is not None else [slice(None)] * len(shape)
    result = np.empty((N_SOURCE_CHANNELS + len(image), *image.shape[1:]), dtype=image.dtype)
    for i, (n, part) in enumerate(zip(shape, box, strict=True)):
        axis = ((2 * np.arange(n) + 1) / n - 1)[part]
        result[i] = axis.reshape([-1 if j == i else 1 for j in range(len(shape))])
    result[N_SOURCE_CHANNELS - 1] = 1
    result[N_SOURCE_CHANNELS:] = image
    return result


def fit_source_frame(channels: Tensor) -> Tensor:
    """Least-squares affine map from image coordinates p^I to source coordinates, from the voxels inside the image.

    Args:
        channels: (B, 4, *size) source-frame channels as they arrive in a crop, D = 2 or 3 spatial axes.

    Returns:
        (B, 3, D + 1) float32: ``p_source = frame[..., :D] @ p_image + frame[..., D]``. An axis along which the crop
        holds a single slice of the image has slope zero; a crop without any image voxel has a frame of zeros.
    """
    size = channels.shape[2:]
    with full_precision(channels.device):
        channels = channels.float().flatten(2)  # (B, 4, V)
        position = image_coordinates(voxel_centres(size, channels.device), size)  # (V, D)
        inside = (channels[:, -1:] > _INSIDE_IMAGE).to(channels.dtype)
        source = channels[:, :-1]
        weight = inside.sum(-1, keepdim=True).clamp(min=1)  # (B, 1, 1)
        mean_position = (inside @ position) / weight  # (B, 1, D)
        mean_source = (source * inside).sum(-1, keepdim=True) / weight  # (B, 3, 1)
        # centred before squaring: the rounding of a difference of squares would outweigh the ridge
        centred = (position - mean_position) * inside.mT  # (B, V, D)
        # plane by plane: as one product over all voxels it would keep a GPU busy for milliseconds
        planes = centred.unflatten(1, (size[0], -1))  # (B, P, V / P, D)
        covariance = (planes.mT @ planes).sum(1) / weight
        source_planes = (source - mean_source).unflatten(2, (size[0], -1)).transpose(1, 2)  # (B, P, 3, V / P)
        cross = (source_planes @ planes).sum(1) / weight  # (B, 3, D)
        ridge = 1e-7 * torch.eye(len(size), device=channels.device)
        # `solve` would wait for a GPU to tell whether the ridge was enough
        slope, _ = torch.linalg.solve_ex(covariance + ridge, cross, left=False)
        return torch.cat((slope, mean_source - slope @ mean_position.mT), -1)


def source_coordinates(p_image: Tensor, frame: Tensor) -> Tensor:
    """p^S of positions (..., D) in image coordinates, frames (..., 3, D + 1) that broadcast; returns (..., 3)."""
    return (frame[..., :-1] * p_image[..., None, :]).sum(-1) + frame[..., -1]
