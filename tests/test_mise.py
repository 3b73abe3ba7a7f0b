"""MISE against decoding every voxel, on shapes whose labels are known everywhere."""

import math

import pytest
import torch

from nnunetv2_swipe.inference import mise
from nnunetv2_swipe.inference.mise import decode_dense
from nnunetv2_swipe.network.coordinates import voxel_centres
from nnunetv2_swipe.network.swipe_net import Embeddings

SIZES = [(21, 18), (16, 16), (1, 33), (33, 2), (9, 12, 17), (8, 8, 8), (1, 14, 11), (2, 3, 5)]


class AnalyticNetwork:
    """Stands for SwIPENet: its logits are a function of position and sample, and it notes what it was asked."""

    def __init__(self, config, field):
        self.config = config
        self.field = field
        self.asked = []

    def decode(self, _, points, sample):
        self.asked.append(torch.cat((sample[:, None].float(), points), 1))
        return self.field(points, sample)

    def decode_blended(self, _, points, sample):
        """Told apart from `decode` by its sign."""
        return -self.decode(_, points, sample)

    def decode_dense(self, size, batch=1):
        nothing = torch.zeros(batch, 1)
        return decode_dense(self, Embeddings(nothing, nothing, None, None, size))

    @property
    def n_decoded(self):
        return sum(map(len, self.asked))

    def every_voxel(self, size, batch=1):
        """The oracle: the function itself, (batch, K, *size)."""
        voxels = voxel_centres(size)
        samples = (torch.full((len(voxels),), b) for b in range(batch))
        return torch.stack([self.field(voxels, s).T.reshape(-1, *size) for s in samples])


def distance(points, centre):
    return (points - torch.as_tensor(centre)).square().sum(-1).sqrt()


def ball(size):
    """A ball (class 1), the logit being the depth in voxels."""

    def field(points, _):
        depth = 0.31 * max(size) - distance(points, [0.437 * n for n in size])
        return torch.stack((torch.zeros_like(depth), depth), -1)

    return field


def cells(size):
    """Four classes, each around its centre."""
    centres = torch.rand(4, len(size), generator=torch.Generator().manual_seed(0)) * torch.tensor(size)

    def field(points, _):
        return -torch.stack([distance(points, c) for c in centres], -1)

    return field


def shells(size):
    """Three nested regions."""

    def field(points, _):
        radii = max(size) * torch.tensor([0.41, 0.29, 0.13])
        return radii - distance(points, [0.437 * n for n in size])[:, None]

    return field


def rod(points, _):
    """A rod 1.6 voxels thick that meets the lattice of every eighth voxel once, in (8, 16) or (8, 8, 16)."""
    across = [(points[:, 0] - 4 - 0.25 * points[:, -1]) / math.hypot(1, 0.25)]
    if points.shape[1] == 3:
        across.append(points[:, 1] - 8)
    depth = 0.8 - torch.stack(across).square().sum(0).sqrt()
    return torch.stack((torch.zeros_like(depth), depth), -1)


def plate(place):
    """A plate one voxel thick across the first axis."""

    def field(points, _):
        depth = 0.6 - (points[:, 0] - place).abs()
        return torch.stack((torch.zeros_like(depth), depth), -1)

    return field


def labels(logits, regions=False):
    return logits > 0 if regions else logits.argmax(1)


def lattice_points(size, step):
    """Points of the lattice of every `step`-th voxel that covers the crop."""
    return math.prod(-(-(n - 1) // step) + 1 for n in size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize(("shape", "steepness"), [(ball, 1), (cells, 2), (shells, 1)])
def test_labels_are_those_of_every_voxel(tiny_config, size, levels, shape, steepness):
    """Certain if no margin can vanish within half a cell's diagonal: the margin changes by `steepness` per voxel."""
    margin = 1.01 * steepness * 2**levels * math.sqrt(len(size)) / 2
    regions = shape is shells
    config = tiny_config(len(size), mise_levels=levels, mise_margin=margin, regions=regions)
    network = AnalyticNetwork(config, shape(size))
    found, expected = network.decode_dense(size), network.every_voxel(size)
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    assert torch.equal(labels(found, regions), labels(expected, regions))


@pytest.mark.parametrize("size", SIZES)
def test_without_levels_every_voxel_is_decoded_once(tiny_config, size):
    network = AnalyticNetwork(tiny_config(len(size), mise_levels=0), ball(size))
    torch.testing.assert_close(network.decode_dense(size), network.every_voxel(size))
    assert network.n_decoded == math.prod(size)


@pytest.mark.parametrize("size", [(17, 17, 17), (14, 11)])
def test_a_large_margin_decodes_the_whole_lattice(tiny_config, size):
    network = AnalyticNetwork(tiny_config(len(size), mise_levels=2, mise_margin=1e9), ball(size))
    torch.testing.assert_close(network.decode_dense(size), network.every_voxel(size))
    # it may reach beyond the crop, to the next multiple of four
    assert network.n_decoded == math.prod(4 * -(-(n - 1) // 4) + 1 for n in size)


@pytest.mark.parametrize("levels", [1, 2])
def test_few_points_are_decoded_and_none_twice(tiny_config, levels):
    size = (33, 33, 33)
    n_decoded = []
    for margin in (0.0, 1.0, 4.0):
        network = AnalyticNetwork(tiny_config(mise_levels=levels, mise_margin=margin), ball(size))
        found = network.decode_dense(size)
        assert len(torch.cat(network.asked).unique(dim=0)) == network.n_decoded
        n_decoded.append(network.n_decoded)
    assert torch.equal(labels(found), labels(network.every_voxel(size)))
    assert lattice_points(size, 2**levels) < n_decoded[0] < n_decoded[1] < n_decoded[2]
    assert n_decoded[1] < 0.5 * math.prod(size)


def test_each_sample_is_refined_by_itself(tiny_config):
    size, step = (13, 17), 4
    centres, radii = torch.tensor([[6.0, 8.0], [3.3, 4.1], [8.2, 12.7]]), torch.tensor([-50.0, 3.4, 4.6])

    def field(points, sample):
        depth = radii[sample] - distance(points, centres[sample])
        return torch.stack((torch.zeros_like(depth), depth), -1)

    network = AnalyticNetwork(tiny_config(2, mise_levels=2, mise_margin=3.0), field)
    found, expected = labels(network.decode_dense(size, batch=3)), labels(network.every_voxel(size, batch=3))
    assert torch.equal(found, expected)
    assert expected.flatten(1).any(1).tolist() == [False, True, True]
    # the empty one is not refined
    assert (torch.cat(network.asked)[:, 0] == 0).sum() == lattice_points(size, step)


class TestThinStructures:
    @pytest.mark.parametrize("levels", [1, 2, 3])
    def test_a_plate_on_the_lattice_is_found_by_its_labels(self, tiny_config, levels):
        size = (21, 10, 9)
        network = AnalyticNetwork(tiny_config(mise_levels=levels, mise_margin=0.0), plate(8))
        assert torch.equal(labels(network.decode_dense(size)), labels(network.every_voxel(size)))

    @pytest.mark.parametrize(("margin", "found"), [(0.0, False), (1.5, True)])
    def test_a_plate_between_lattice_planes_is_found_by_its_margin(self, tiny_config, margin, found):
        """On the planes nearest to it, two voxels away, the margin is 1.4."""
        size = (21, 10, 9)
        network = AnalyticNetwork(tiny_config(mise_levels=2, mise_margin=margin), plate(10))
        result, expected = labels(network.decode_dense(size)), labels(network.every_voxel(size))
        assert torch.equal(result, expected if found else torch.zeros_like(expected))

    @pytest.mark.parametrize("size", [(16, 24), (16, 9, 24)])
    @pytest.mark.parametrize("levels", [1, 2, 3])
    def test_a_rod_is_followed_from_where_it_was_seen(self, tiny_config, size, levels):
        """Points that were interpolated on a coarse level are decoded once a finer level contradicts them."""
        network = AnalyticNetwork(tiny_config(len(size), mise_levels=levels, mise_margin=0.0), rod)
        assert torch.equal(labels(network.decode_dense(size)), labels(network.every_voxel(size)))


@pytest.mark.parametrize("levels", [0, 2])
@pytest.mark.parametrize(("decoding", "sign"), [("own", 1), ("blended", -1)])
def test_the_plan_says_how_points_are_decoded(tiny_config, levels, decoding, sign):
    size = (9, 10)
    network = AnalyticNetwork(tiny_config(2, mise_levels=levels, mise_margin=1e9, decoding=decoding), ball(size))
    torch.testing.assert_close(network.decode_dense(size), sign * network.every_voxel(size))


@pytest.mark.parametrize("levels", [0, 2])
def test_chunks_bound_the_points_and_change_nothing(tiny_config, levels, monkeypatch):
    size = (9, 14, 11)
    config = tiny_config(mise_levels=levels)
    whole = AnalyticNetwork(config, ball(size))
    expected = whole.decode_dense(size)
    monkeypatch.setattr(mise, "POINTS_PER_CHUNK", 50)
    chunked = AnalyticNetwork(config, ball(size))
    torch.testing.assert_close(chunked.decode_dense(size), expected)
    assert max(map(len, chunked.asked)) <= 50 < max(map(len, whole.asked))
    assert chunked.n_decoded == whole.n_decoded


def test_blending_counts_every_patch_as_a_point(tiny_config, monkeypatch):
    """Each point is decoded by eight patches at once."""
    monkeypatch.setattr(mise, "POINTS_PER_CHUNK", 80)
    network = AnalyticNetwork(tiny_config(decoding="blended"), ball((5, 6, 7)))
    network.decode_dense((5, 6, 7))
    assert max(map(len, network.asked)) == 10


@pytest.mark.parametrize("decoding", ["own", "blended"])
@pytest.mark.parametrize("size", [(13, 9), (1, 12), (7, 10, 5), (1, 9, 6)])
def test_the_real_network_refined_everywhere_equals_its_dense_output(
    tiny_config, tiny_network, tiny_input, size, decoding, monkeypatch
):
    dense, refined = (
        tiny_config(len(size), decoding=decoding, mise_levels=levels, mise_margin=1e9) for levels in (0, 2)
    )
    x = tiny_input(dense, size)
    with torch.no_grad():
        expected = tiny_network(dense).eval()(x)
        found = tiny_network(refined).eval()(x)
        monkeypatch.setattr(mise, "POINTS_PER_CHUNK", 64)
        chunked = tiny_network(refined).eval()(x)
    assert expected.flatten(2).std(-1).min() > 1e-3  # otherwise any interpolation would do
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(chunked, expected, atol=1e-4, rtol=1e-4)
