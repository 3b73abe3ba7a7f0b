"""Training points: balance, weights, stratification and neighbours, against counts and brute force in NumPy."""

import itertools

import numpy as np
import pytest
import torch
from scipy.ndimage import maximum_filter, minimum_filter
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunetv2_swipe.network.coordinates import grid_shape
from nnunetv2_swipe.training import point_sampling
from nnunetv2_swipe.training.losses import SwIPELoss, occupancy_loss
from nnunetv2_swipe.training.point_sampling import sample_points, tempered_weights

SIZE = (12, 14, 10)
IGNORE = 3


def boxes(size=SIZE):
    """Labels of a crop, (1, 1, *size): a background, a large class and a small one."""
    label = torch.zeros(1, 1, *size, dtype=torch.int16)  # nnU-Net's type
    if len(size) == 3:
        label[..., 2:8, 3:9, 2:8] = 1
        label[..., 8:11, 9:13, 2:6] = 2
    else:
        label[..., 2:9, 3:9] = 1
        label[..., 9:11, 9:13] = 2
    return label


def near_boundary(label, radius):
    """Voxels within `radius` (per axis) of another label, by brute force, (*size)."""
    window = [2 * r + 1 for r in radius]
    label = label.numpy()
    return (maximum_filter(label, window) != label) | (minimum_filter(label, window) != label)


def voxels(points):
    """The voxel that holds each point."""
    return (points + 0.5).floor().long()


def lookup(field, points):
    """Values of a field (*size) at the voxels of points (..., D)."""
    return torch.as_tensor(field)[tuple(voxels(points).movedim(-1, 0))]


def at_points(logits, sample):
    """Dense logits (1, K, *size) at the voxels of the points, (1, N, K)."""
    return lookup(logits[0].movedim(0, -1), sample.points)


@pytest.mark.parametrize("size", [SIZE, (13, 11, 9), (1, 14, 10), (16, 15), (1, 20)])
@pytest.mark.parametrize("n_spo", [0, 1, 3])
def test_shapes_and_types_and_all_inside(tiny_config, size, n_spo):
    dims = len(size)
    target = torch.randint(0, 3, (2, 1, *size), generator=torch.Generator().manual_seed(0), dtype=torch.int16)
    sample = sample_points(target, tiny_config(dims, n_spo=n_spo, n_points=100), num_classes=3)
    assert sample.points.shape == (2, 100, dims)
    assert sample.points.dtype == sample.weight.dtype == torch.float32
    assert sample.target.shape == sample.weight.shape == (2, 100)
    assert sample.target.dtype == torch.int64
    assert (sample.neighbours is None) == (n_spo == 0)
    assert n_spo == 0 or sample.neighbours.shape == (2, 100, n_spo, dims)
    assert torch.all((sample.points >= -0.5) & (sample.points <= torch.tensor(size) - 0.5))


@pytest.mark.parametrize("size", [SIZE, (12, 14)])
def test_targets_are_the_labels_of_the_voxels(tiny_config, size):
    label = boxes(size)
    sample = sample_points(label, tiny_config(len(size), n_points=500), num_classes=3)
    assert torch.equal(sample.target[0], lookup(label[0, 0], sample.points[0]).long())


def test_positions_are_continuous(tiny_config):
    sample = sample_points(boxes(), tiny_config(n_points=500), num_classes=3)
    offset = sample.points - voxels(sample.points)
    assert offset.unique().numel() > 1000


class TestBalance:
    @pytest.mark.parametrize("n_points", [64, 257, 1000])
    @pytest.mark.parametrize("background_share", [1.0, 2.0, 5.0])
    def test_classes_get_equal_counts_and_the_background_its_share(self, tiny_config, n_points, background_share):
        config = tiny_config(n_points=n_points, background_share=background_share)
        sample = sample_points(boxes(), config, num_classes=3)
        one = n_points / (background_share + 2)
        expected = np.array([background_share * one, one, one])
        assert np.abs(np.bincount(sample.target[0]) - expected).max() <= 1

    @pytest.mark.parametrize("radius", [(1, 1, 1), (1, 1, 0)])
    def test_half_of_each_class_is_near_its_boundary(self, tiny_config, radius):
        label = boxes()
        sample = sample_points(label, tiny_config(n_points=400, boundary_radius=radius), num_classes=3)
        near = lookup(near_boundary(label[0, 0], radius), sample.points[0])
        for c, n in enumerate(np.bincount(sample.target[0])):
            assert abs(int(near[sample.target[0] == c].sum()) - n / 2) <= 1

    def test_absent_classes_leave_their_share_to_the_others(self, tiny_config):
        label = boxes().clamp(max=1)
        sample = sample_points(label, tiny_config(n_points=300), num_classes=3)
        assert np.abs(np.bincount(sample.target[0]) - (200, 100)).max() <= 1

    def test_background_alone(self, tiny_config):
        sample = sample_points(torch.zeros(1, 1, *SIZE), tiny_config(), num_classes=3)
        assert sample.target.eq(0).all()
        assert sample.weight.sum().item() == pytest.approx(np.prod(SIZE), rel=1e-5)

    def test_a_class_of_one_voxel_gets_its_share(self, tiny_config):
        label = boxes().clamp(max=1)
        label[0, 0, 11, 13, 9] = 2
        sample = sample_points(label, tiny_config(n_points=400), num_classes=3)
        chosen = sample.target[0] == 2
        assert chosen.sum().item() == pytest.approx(100, abs=1)
        assert (voxels(sample.points[0, chosen]) == torch.tensor([11, 13, 9])).all()
        assert sample.weight[0, chosen].sum().item() == pytest.approx(1, rel=1e-5)


class TestIgnoreLabel:
    def test_is_never_drawn_and_does_not_count(self, tiny_config):
        label = boxes()
        label[0, 0, :, :5] = IGNORE
        sample = sample_points(label, tiny_config(n_points=400), num_classes=3, ignore_label=IGNORE)
        assert sample.target.max() == 2
        assert sample.weight.sum().item() == pytest.approx((label != IGNORE).sum().item(), rel=1e-5)

    @pytest.mark.parametrize("regions", [False, True])
    def test_what_is_ignored_is_no_boundary(self, tiny_config, regions):
        """Where a single slice is annotated, its voxels are as near a boundary as if all slices were like it."""
        alike = boxes()[..., 8:9, :, :].expand(1, 1, *SIZE)
        target = torch.where(torch.arange(SIZE[0]).view(-1, 1, 1) == 8, alike, IGNORE)
        if regions:
            alike, target = (torch.cat([t == 1, t == 2, t == IGNORE], 1) for t in (alike, target))
        config = tiny_config(boundary_radius=(2, 1, 1), regions=regions)
        (classes, expected), (found_classes, found) = (
            point_sampling._classes_and_boundary(t, config, 3 - regions, IGNORE) for t in (alike, target)
        )
        assert torch.equal(found_classes[:, 8], classes[:, 8])
        assert torch.equal(found[:, 8], expected[:, 8])
        assert 0 < found[:, 8].sum() < found[:, 8].numel() / 2

    def test_a_crop_without_annotation_counts_nothing(self, tiny_config):
        """Beside one that has some; its targets must still be classes, or the cross-entropy fails."""
        label = torch.cat((boxes(), torch.full((1, 1, *SIZE), IGNORE, dtype=torch.int16)))
        config = tiny_config(n_points=200)
        sample = sample_points(label, config, num_classes=3, ignore_label=IGNORE)
        assert sample.weight[1].eq(0).all()
        assert tempered_weights(sample, 0.0)[1].eq(0).all()
        assert sample.weight[0].sum().item() == pytest.approx(np.prod(SIZE), rel=1e-5)
        assert sample.target.min() >= 0
        assert sample.target.max() < 3
        assert torch.isfinite(occupancy_loss(torch.zeros(2, 200, 3), sample.target, sample.weight, regions=False))

    def test_a_label_of_that_value_is_a_class_without_ignore_label(self, tiny_config):
        label = boxes() + 1
        sample = sample_points(label, tiny_config(), num_classes=4)
        assert set(sample.target.flatten().tolist()) == {1, 2, 3}


class TestRegions:
    """Nested regions, as of a tumour: the whole, and its core."""

    @pytest.fixture
    def members(self):
        label = boxes()[:, 0]
        core = torch.zeros_like(label)
        core[..., 4:6, 4:7, 3:6] = 1
        return torch.stack((label > 0, core > 0), 1)

    def test_targets_are_memberships_and_the_smallest_region_counts(self, tiny_config, members):
        sample = sample_points(members, tiny_config(n_points=400, regions=True), num_classes=2)
        assert sample.target.shape == (1, 400, 2)
        assert sample.target.dtype == torch.float32
        for region in range(2):
            assert torch.equal(sample.target[0, :, region], lookup(members[0, region], sample.points[0]).float())
        whole, core = sample.target[0].unbind(-1)
        assert core.sum().item() == pytest.approx(100, abs=1)
        assert (whole * (1 - core)).sum().item() == pytest.approx(100, abs=1)

    def test_weights_count_the_voxels_of_each_region(self, tiny_config, members):
        sample = sample_points(members, tiny_config(n_points=400, regions=True), num_classes=2)
        np.testing.assert_allclose(
            (sample.weight[..., None] * sample.target).sum(1), members.flatten(2).sum(-1), rtol=1e-5
        )
        assert sample.weight.sum().item() == pytest.approx(np.prod(SIZE), rel=1e-5)

    def test_the_last_channel_marks_what_to_ignore(self, tiny_config, members):
        ignored = torch.zeros_like(members[:, :1])
        ignored[..., :7, :, :] = True
        target = torch.cat((members & ~ignored, ignored), 1)
        sample = sample_points(target, tiny_config(n_points=400, regions=True), num_classes=2, ignore_label=IGNORE)
        assert sample.target.shape[-1] == 2
        assert not lookup(ignored[0, 0], sample.points[0]).any()
        assert sample.weight.sum().item() == pytest.approx((~ignored).sum().item(), rel=1e-5)


class TestWeights:
    @pytest.mark.parametrize("size", [SIZE, (12, 14)])
    @pytest.mark.parametrize("n_points", [64, 1000])
    def test_sum_to_the_voxels_of_each_class(self, tiny_config, size, n_points):
        label = boxes(size)
        sample = sample_points(label, tiny_config(len(size), n_points=n_points), num_classes=3)
        found = np.bincount(sample.target[0], weights=sample.weight[0])
        np.testing.assert_allclose(found, np.bincount(label.flatten()), rtol=1e-5)

    def test_estimate_the_dense_mean_without_bias(self, tiny_config):
        """Many crops of the same labels: the average estimate is within four standard errors."""
        torch.manual_seed(0)
        label, n_crops = boxes(), 400
        sample = sample_points(label.expand(n_crops, -1, -1, -1, -1), tiny_config(), num_classes=3)
        field = torch.randn(SIZE, dtype=torch.float64) + label[0, 0]
        values = lookup(field, sample.points)
        weighted = (sample.weight * values).sum(1) / field.numel()
        error = abs(weighted.mean() - field.mean())
        assert 0 < error < 4 * weighted.std() / n_crops**0.5
        assert abs(values.mean() - field.mean()) > 10 * error  # without weights the classes count too much

    def test_weighted_loss_approaches_the_dense_loss(self, tiny_config):
        """On easy background and hard foreground, which unweighted points make look worse than it is."""
        torch.manual_seed(0)
        label, config = boxes(), tiny_config(n_points=8192)
        logits = 0.5 * torch.randn(1, 3, *SIZE)
        logits[:, 0] += 4.0 * (label[:, 0] == 0)
        dense = SwIPELoss(config, num_classes=3)(logits, label)
        sample = sample_points(label, config, num_classes=3)
        drawn = at_points(logits, sample)
        weighted = occupancy_loss(drawn, sample.target, sample.weight, regions=False)
        unweighted = occupancy_loss(drawn, sample.target, tempered_weights(sample, 0.0), regions=False)
        assert abs(weighted - dense) < 0.01
        assert abs(unweighted - dense) > 0.1

    def test_drawing_every_voxel_once_is_the_dense_loss(self, tiny_config):
        """Four strata of 32 voxels and 128 points: interior and boundary of the background and of one class."""
        torch.manual_seed(0)
        label = torch.zeros(1, 1, 8, 4, 4, dtype=torch.int16)
        label[:, :, 2:6] = 1
        config = tiny_config(n_points=128, background_share=1.0)
        sample = sample_points(label, config, num_classes=2)
        assert len(voxels(sample.points[0]).unique(dim=0)) == 128
        logits = torch.randn(1, 2, 8, 4, 4)
        drawn = at_points(logits, sample)
        found = occupancy_loss(drawn, sample.target, sample.weight, regions=False)
        assert found.item() == pytest.approx(SwIPELoss(config, num_classes=2)(logits, label).item(), rel=1e-5)


class TestStratification:
    @pytest.mark.parametrize(("size", "block"), [((16, 16, 16), 4), ((8, 8, 8), 2), ((16, 16), 4)])
    def test_one_point_in_each_block(self, tiny_config, size, block):
        """Equal steps on the Morton curve are blocks of the image where its sides are powers of two."""
        n_blocks = (size[0] // block) ** len(size)
        config = tiny_config(len(size), n_points=n_blocks)
        sample = sample_points(torch.zeros(3, 1, *size), config, num_classes=2)
        for points in sample.points:
            assert len((voxels(points) // block).unique(dim=0)) == n_blocks

    @pytest.mark.parametrize("size", [(13, 11, 9), (22, 17)])
    def test_points_spread_more_evenly_than_independent_ones(self, tiny_config, size):
        """How many points fall into one part of the crop varies less than a binomial count, whatever the sides."""
        torch.manual_seed(0)
        n, n_crops = 64, 200
        sample = sample_points(torch.zeros(n_crops, 1, *size), tiny_config(len(size), n_points=n), num_classes=2)
        for axis, length in enumerate(size):
            share = (length // 2) / length
            counts = (voxels(sample.points)[..., axis] < length // 2).sum(1).double()
            assert counts.mean().item() == pytest.approx(n * share, abs=1)
            assert counts.var() < 0.7 * n * share * (1 - share)

    @pytest.mark.parametrize("dims", [2, 3])
    def test_offsets_are_a_latin_hypercube(self, tiny_config, dims):
        """Along each axis one point in each N-th part of the voxel."""
        torch.manual_seed(0)
        points = sample_points(boxes(SIZE[:dims]), tiny_config(dims), num_classes=3).points[0]
        part = ((points - voxels(points) + 0.5) * 64).floor()
        for axis in range(dims):
            assert part[:, axis].sort().values.tolist() == list(range(64))


def is_neighbour(step, connectivity):
    """Whether a step between patches is one of that connectivity, by its definition: how many axes change."""
    axes = {4: 1, 8: 2, 6: 1, 18: 2, 26: 3}[connectivity]
    return max(map(abs, step)) == 1 and sum(map(abs, step)) <= axes


class TestNeighbours:
    @pytest.mark.parametrize(
        ("size", "connectivity"),
        [((12, 12), 4), ((12, 12), 8), ((10, 3), 8), ((12, 11, 9), 6), ((12, 12, 12), 18), ((12, 12, 12), 26)],
    )
    def test_are_all_that_exist_and_no_others(self, tiny_config, size, connectivity):
        torch.manual_seed(0)
        config = tiny_config(len(size), n_points=512, n_spo=8, spo_connectivity=connectivity)
        sample = sample_points(torch.zeros(8, 1, *size), config, num_classes=2)
        grid = grid_shape(size, config.patch_size)
        own = (voxels(sample.points) // torch.tensor(config.patch_size))[:, :, None].expand_as(sample.neighbours)
        pairs = torch.stack((own, sample.neighbours), -2).flatten(0, 2).unique(dim=0).tolist()
        found = {(tuple(a), tuple(b)) for a, b in pairs}
        cells = list(itertools.product(*map(range, grid)))
        expected = {
            (a, b)
            for a, b in itertools.product(cells, cells)
            if is_neighbour([i - j for i, j in zip(a, b, strict=True)], connectivity)
        }
        assert found == expected

    def test_are_drawn_anew_for_each_of_a_points_neighbours(self, tiny_config):
        torch.manual_seed(0)
        sample = sample_points(boxes(), tiny_config(n_spo=2, spo_connectivity=26), num_classes=3)
        assert (sample.neighbours[:, :, 0] != sample.neighbours[:, :, 1]).any()

    @pytest.mark.parametrize("size", [(4, 3), (4, 4, 1)])
    def test_a_lone_patch_is_its_own(self, tiny_config, size):
        sample = sample_points(torch.zeros(1, 1, *size), tiny_config(len(size), n_spo=2), num_classes=2)
        assert sample.neighbours.eq(0).all()


def test_nothing_waits_for_the_device(tiny_config):
    """Tensors without data: reading one, or a shape that depends on data, would fail."""
    point_sampling._morton_order.cache_clear()
    point_sampling.neighbour_offsets.cache_clear()
    with FakeTensorMode():
        for config, target in (
            (tiny_config(), torch.empty(2, 1, 9, 12, 7, dtype=torch.int16)),
            (tiny_config(regions=True), torch.empty(2, 4, 9, 12, 7, dtype=torch.bool)),
        ):
            sample = sample_points(target, config, num_classes=3, ignore_label=3)
            assert sample.points.shape == (2, config.n_points, 3)
    point_sampling._morton_order.cache_clear()  # of tensors without data
    point_sampling.neighbour_offsets.cache_clear()


def test_the_seed_decides(tiny_config):
    samples = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        samples.append(sample_points(boxes(), tiny_config(), num_classes=3))
    first, same, other = samples
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not torch.equal(first.points, other.points)
    assert not torch.equal(first.neighbours, other.neighbours)
