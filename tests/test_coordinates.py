"""Frames: values derived by hand, brute force, and nnU-Net's own loader and augmentation as the oracle of p^S."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from scipy.ndimage import map_coordinates

from nnunetv2_swipe.network.coordinates import (
    N_SOURCE_CHANNELS,
    fit_source_frame,
    flat_index,
    fourier_features,
    grid_shape,
    image_coordinates,
    nearest_patches,
    patch_coordinates,
    patch_index,
    source_channels,
    source_coordinates,
    voxel_centres,
)
from nnunetv2_swipe.preprocessing.source_coordinates import ImageWithSourceFrame, OnImageOnly, keep_source_frame

GRIDS = [
    ((12, 16), (4, 4)),
    ((13, 9), (4, 2)),
    ((7, 10, 5), (2, 4, 4)),
    ((1, 12, 9), (4, 8, 1)),
    ((3, 2, 2), (4, 4, 4)),
    ((13,), (4,)),
]
"""Crop and patch size; most do not divide, some patches are larger than the crop."""


def random_positions(size, n=200):
    """Anywhere in the crop, up to the outer faces of its voxels."""
    return torch.rand(n, len(size), generator=torch.Generator().manual_seed(0)) * torch.tensor(size) - 0.5


class TestImageAndPatchFrame:
    def test_image_coordinates_reach_one_at_the_outer_faces(self):
        v = torch.tensor([[-0.5, -0.5, -0.5], [0.0, 0.0, 0.0], [1.5, 4.5, 0.0], [3.5, 9.5, 0.5]])
        expected = [[-1, -1, -1], [-0.75, -0.9, 0], [0, 0, 0], [1, 1, 1]]
        np.testing.assert_allclose(image_coordinates(v, (4, 10, 1)), expected, atol=1e-6)

    def test_patches_begin_at_the_faces_of_voxels(self):
        v = torch.tensor([[-0.5], [0.0], [3.0], [3.49], [3.5], [4.0], [9.0]])
        assert patch_index(v, (4,), (3,)).flatten().tolist() == [0, 0, 0, 0, 1, 1, 2]

    def test_positions_outside_belong_to_the_outermost_patch(self):
        assert patch_index(torch.tensor([[-3.0], [50.0]]), (4,), (3,)).flatten().tolist() == [0, 2]

    def test_patch_coordinates(self):
        """Patch 1 of four voxels covers [3.5, 7.5] and its centre is 5.5; its neighbours see it from -3 to 3."""
        v = torch.tensor([[5.5], [3.5], [7.5], [-0.5], [11.5]])
        found = patch_coordinates(v, torch.ones(5, 1, dtype=torch.int64), (4,))
        assert found.flatten().tolist() == [0, -1, 1, -3, 3]

    @pytest.mark.parametrize(("size", "patch"), GRIDS)
    def test_round_trip(self, size, patch):
        v = random_positions(size)
        index = patch_index(v, patch, grid_shape(size, patch))
        p_patch = patch_coordinates(v, index, patch)
        assert p_patch.abs().max() <= 1 + 1e-5
        patch, size = torch.tensor(patch), torch.tensor(size)
        centre = (index + 0.5) * patch - 0.5
        np.testing.assert_allclose(centre + p_patch * patch / 2, v, atol=1e-5)
        np.testing.assert_allclose((image_coordinates(v, size.tolist()) + 1) / 2 * size - 0.5, v, atol=1e-5)

    def test_grid_holds_every_voxel(self):
        assert grid_shape((10, 8, 1), (4, 4, 1)) == (3, 2, 1)
        assert grid_shape((7, 5), (2, 8)) == (4, 1)

    @pytest.mark.parametrize("size", [(3, 4), (2, 1, 5)])
    def test_voxels_and_flat_indices_are_in_raster_order(self, size):
        voxels = voxel_centres(size)
        np.testing.assert_array_equal(voxels, np.argwhere(np.ones(size)))
        assert flat_index(voxels.long(), size).tolist() == list(range(math.prod(size)))


class TestNearestPatches:
    @pytest.mark.parametrize(("size", "patch"), GRIDS)
    def test_weights_are_a_partition_of_unity(self, size, patch):
        index, weight = nearest_patches(random_positions(size), patch, grid_shape(size, patch))
        assert index.shape == (2 ** len(size), 200, len(size))
        assert weight.min() >= 0
        np.testing.assert_allclose(weight.sum(0), 1, atol=1e-6)

    @pytest.mark.parametrize(("size", "patch"), GRIDS)
    def test_equals_multilinear_interpolation_clamped_at_the_border(self, size, patch):
        grid = grid_shape(size, patch)
        v = random_positions(size)
        values = np.random.default_rng(0).normal(size=grid)
        index, weight = nearest_patches(v, patch, grid)
        found = (weight.numpy() * values[tuple(index.movedim(-1, 0).numpy())]).sum(0)
        position = (v.double().numpy() + 0.5) / patch - 0.5
        expected = map_coordinates(values, position.T, order=1, mode="nearest")
        np.testing.assert_allclose(found, expected, atol=1e-5)

    def test_reproduces_positions_between_the_outermost_centres(self):
        size, patch = (16, 12, 20), (4, 2, 8)
        grid = grid_shape(size, patch)
        patch_sizes = torch.tensor(patch)
        lowest, highest = patch_sizes / 2 - 0.5, torch.tensor(grid) * patch_sizes - patch_sizes / 2 - 0.5
        v = lowest + torch.rand(100, 3, generator=torch.Generator().manual_seed(0)) * (highest - lowest)
        index, weight = nearest_patches(v, patch, grid)
        centres = (index + 0.5) * patch_sizes - 0.5
        np.testing.assert_allclose((weight[..., None] * centres).sum(0), v, atol=1e-5)

    @pytest.mark.parametrize("place", [3.5, 7.5, 5.5, 9.5, 1.5])
    def test_blends_are_continuous_at_borders_and_centres(self, place):
        """Where the set of nearest patches changes (at 1.5 + 4 k) the one that leaves has no weight."""
        values = np.random.default_rng(1).normal(size=(3, 3))
        other = torch.linspace(-0.5, 11.5, 50)
        blends = []
        for side in (-1e-4, 1e-4):
            v = torch.stack((torch.full_like(other, place + side), other), 1)
            index, weight = nearest_patches(v, (4, 4), (3, 3))
            blends.append((weight.numpy() * values[tuple(index.movedim(-1, 0).numpy())]).sum(0))
        np.testing.assert_allclose(blends[0], blends[1], atol=1e-3)


class TestFourierFeatures:
    def test_hand_derived_values(self):
        found = fourier_features(torch.tensor([[0.5]]), 2)
        np.testing.assert_allclose(found, [[0.5, 1, 0, 0, -1]], atol=1e-6)

    @pytest.mark.parametrize("n", [1, 3])
    def test_layout(self, n):
        p = torch.rand(5, 3, generator=torch.Generator().manual_seed(0)) * 6 - 3
        phase = (p.double().numpy()[..., None] * np.pi * 2.0 ** np.arange(n)).reshape(5, -1)
        expected = np.concatenate((p.numpy(), np.sin(phase), np.cos(phase)), -1)
        assert expected.shape == (5, 3 * (1 + 2 * n))
        np.testing.assert_allclose(fourier_features(p, n), expected, atol=1e-5)

    def test_none_wanted(self):
        p = torch.rand(5, 2)
        assert torch.equal(fourier_features(p, 0), p)


def index_image(shape):
    """An image whose three channels hold each voxel's own z, y and x index: intensities say where a voxel came from."""
    return np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij"))


def to_source(index, shape):
    """Source coordinates of voxel indices (3, ...) of an image of that shape."""
    n = torch.tensor(shape).view(3, *[1] * (index.ndim - 1))
    return (2 * torch.as_tensor(index) + 1) / n - 1


def computed_source(crop):
    """p^S at every voxel of a crop (channels, *size), as the network computes it: (3, *size)."""
    size = crop.shape[1:]
    p_image = image_coordinates(voxel_centres(size), size)
    frame = fit_source_frame(crop[None, :N_SOURCE_CHANNELS])
    return source_coordinates(p_image, frame.expand(len(p_image), -1, -1)).T.reshape(3, *size)


def random_transforms(pipeline):
    """Those of intensity."""
    steps = [t for t in pipeline.transforms if isinstance(t, OnImageOnly)]
    found = [t for step in steps for t in step.transform.transforms if isinstance(t, RandomTransform)]
    assert len(found) > 3
    return found


def augmented_crop(shape, crop, seed, *, rotation, dummy_2d):
    """A crop of an index image as nnU-Net's training loader makes it, always rotated and scaled, intensities kept."""
    pipeline = keep_source_frame(
        nnUNetTrainer.get_training_transforms(crop, rotation, None, tuple(range(len(crop))), dummy_2d)
    )
    for transform in random_transforms(pipeline):
        transform.apply_probability = 0
    for step in pipeline.transforms:
        if isinstance(step, SpatialTransform):
            step.p_rotation = step.p_scaling = 1
    before_augmentation = get_patch_size(crop, rotation, rotation, rotation, (0.85, 1.25))
    if dummy_2d:
        before_augmentation[0] = crop[0]
    case = ImageWithSourceFrame(index_image(shape)), np.zeros((1, *shape), np.int16), None, {"class_locations": None}
    loader = nnUNetDataLoader(
        SimpleNamespace(identifiers=["case"], load_case=lambda _: case),
        1,
        before_augmentation.tolist(),
        crop,
        SimpleNamespace(all_labels=[0, 1], has_ignore_label=False),
        transforms=pipeline,
    )
    np.random.seed(seed)  # noqa: NPY002  (what nnU-Net draws from)
    torch.manual_seed(seed)
    return loader.generate_train_batch()["data"][0]


HALF_TURN, SOME = (-math.pi, math.pi), (-math.pi / 6, math.pi / 6)
"""nnU-Net's ranges of rotation, for 2D and dummy 2D, and for 3D."""
AUGMENTATIONS = {
    "3D": ((30, 28, 26), (12, 16, 14), SOME, False),
    "3D, image smaller than the crop": ((10, 30, 14), (16, 16, 16), SOME, False),
    "dummy 2D": ((9, 28, 25), (6, 20, 16), HALF_TURN, True),
    "dummy 2D, image smaller than the crop": ((4, 28, 25), (6, 20, 16), HALF_TURN, True),
    "slices of a 3D image": ((5, 30, 27), (16, 20), HALF_TURN, False),
    "2D image": ((1, 30, 27), (16, 20), HALF_TURN, False),
}


@pytest.mark.parametrize(("shape", "crop", "rotation", "dummy_2d"), AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_source_coordinates_follow_nnunets_augmentation(shape, crop, rotation, dummy_2d):
    for seed in range(8):
        data = augmented_crop(shape, crop, seed, rotation=rotation, dummy_2d=dummy_2d)
        inside = data[3] > 1 - 1e-5  # elsewhere the intensities are blends with the padding
        assert inside.sum() > 50
        error = (computed_source(data) - to_source(data[N_SOURCE_CHANNELS:], shape)).abs()
        assert error[:, inside].max() < 5e-4


@pytest.mark.parametrize(
    "box",
    [
        [[0, 8], [2, 12], [3, 9]],
        [[-3, 9], [2, 12], [-5, 14]],
        [[5, 15], [-4, 18], [0, 12]],
    ],
)
def test_padded_voxels_are_extrapolated(box):
    shape = (8, 14, 12)
    crop = torch.from_numpy(crop_and_pad_nd(ImageWithSourceFrame(index_image(shape)), box, 0))
    index = np.stack(np.meshgrid(*(np.arange(*b, dtype=np.float32) for b in box), indexing="ij"))
    np.testing.assert_allclose(computed_source(crop), to_source(index, shape), atol=2e-4)


@pytest.mark.parametrize(("length", "place"), [(1, 0), (8, 4), (10, 0), (7, 5), (12, 11)])
def test_a_single_slice_has_slope_zero_across(length, place):
    """Whatever the crop's size: nothing is known about the way out of the slice."""
    shape = (1, 21, 13)
    box = [[-place, length - place], [0, 19], [2, 13]]
    crop = torch.from_numpy(crop_and_pad_nd(ImageWithSourceFrame(index_image(shape)), box, 0))
    frame = fit_source_frame(crop[None, :N_SOURCE_CHANNELS])
    assert frame[0, :, 0].abs().max() < 1e-3
    computed, expected = computed_source(crop), to_source(crop[N_SOURCE_CHANNELS:], shape)
    np.testing.assert_allclose(computed[:, place], expected[:, place], atol=2e-4)


def test_a_crop_without_image_has_a_frame_of_zeros():
    assert fit_source_frame(torch.zeros(1, N_SOURCE_CHANNELS, 4, 5, 6)).abs().max() == 0


def test_frames_of_a_batch_are_fitted_one_by_one():
    boxes = [slice(0, 6), slice(2, 8), slice(5, 11)], [slice(3, 9), slice(0, 6), slice(1, 7)]
    crops = torch.stack([torch.from_numpy(source_channels((12, 10, 11), box)) for box in boxes])
    crops[1, :, :2] = 0  # padding
    frames = fit_source_frame(crops)
    assert not torch.allclose(frames[0], frames[1])
    for crop, frame in zip(crops, frames, strict=True):
        np.testing.assert_allclose(frame, fit_source_frame(crop[None])[0], atol=1e-5)


@pytest.mark.parametrize("size", [(6, 9), (5, 8, 7)])
def test_mirroring_all_channels_mirrors_the_coordinates(size):
    """What nnU-Net does at test time."""
    shape = (1,) * (3 - len(size)) + size
    channels = torch.from_numpy(source_channels(shape)).view(N_SOURCE_CHANNELS, *size)
    axes = range(1, len(size) + 1)
    for chosen in itertools.chain.from_iterable(itertools.combinations(axes, n) for n in axes):
        mirrored = torch.flip(channels, chosen)
        np.testing.assert_allclose(computed_source(mirrored), torch.flip(channels[:3], chosen), atol=3e-5)


@pytest.mark.parametrize("origin", [(0, 0, 0), (4, 9, 2), (12, 10, 14)])
@pytest.mark.parametrize("tile", [(8, 10, 6), (10, 6)])
def test_a_tile_knows_its_place_in_the_whole_image(origin, tile):
    """What the sliding window hands to the network: a box, or in 2D a part of a slice."""
    shape = (20, 20, 20)
    image = torch.from_numpy(np.concatenate((source_channels(shape), index_image(shape))))
    box = [slice(o, o + n) for o, n in zip(origin[-len(tile) :], tile, strict=True)]
    part = image[(slice(None), *box)] if len(tile) == 3 else image[(slice(None), origin[0], *box)]
    expected = to_source(part[N_SOURCE_CHANNELS:], shape)
    np.testing.assert_allclose(computed_source(part), expected, atol=3e-5)


def test_reading_a_box_adds_the_frame_of_that_box():
    shape = (6, 7, 8)
    image = ImageWithSourceFrame(index_image(shape))
    assert image.shape == (7, *shape)
    whole = image[:]
    np.testing.assert_allclose(whole[:3], to_source(whole[N_SOURCE_CHANNELS:], shape), atol=1e-6)
    np.testing.assert_array_equal(whole[3], 1)
    np.testing.assert_array_equal(image[:, 2:5, :, 1:4], whole[:, 2:5, :, 1:4])
    with pytest.raises(IndexError, match="all its channels"):
        image[0]


@pytest.mark.parametrize("size", [(12, 14), (9, 12, 10)])
def test_intensity_transforms_change_the_image_and_not_the_frame(size):
    pipeline = keep_source_frame(nnUNetTrainer.get_training_transforms(size, HALF_TURN, None, (0, 1), False))
    steps = [t for t in pipeline.transforms if isinstance(t, OnImageOnly)]
    for transform in random_transforms(pipeline):
        transform.apply_probability = 1
    before = torch.rand(N_SOURCE_CHANNELS + 2, *size, generator=torch.Generator().manual_seed(0))
    after = ComposeTransforms(steps)(image=before.clone())["image"]
    assert torch.equal(after[:N_SOURCE_CHANNELS], before[:N_SOURCE_CHANNELS])
    assert not torch.isclose(after[N_SOURCE_CHANNELS:], before[N_SOURCE_CHANNELS:]).flatten(1).all(1).any()
    # without the wrapping they do change it
    bare = ComposeTransforms([step.transform for step in steps])(image=before.clone())["image"]
    assert not torch.equal(bare[:N_SOURCE_CHANNELS], before[:N_SOURCE_CHANNELS])
