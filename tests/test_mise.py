"""MISE against decoding every voxel, on shapes whose labels are known everywhere."""

import itertools
import math

import pytest
import torch

from nnunetv2_swipe.network import lattice_decoder, mise
from nnunetv2_swipe.network.coordinates import voxel_centres
from nnunetv2_swipe.network.mise import LabelField, LogitField, coarse_to_fine, redecode_borders

SIZES = [(21, 18), (16, 16), (1, 33), (33, 2), (9, 12, 17), (8, 8, 8), (1, 14, 11), (2, 3, 5)]


class AnalyticDecoder:
    """Its logits are a function of position and sample, and it notes which voxels it was asked for."""

    def __init__(self, field, size, batch=1):
        self.field, self.size, self.batch = field, size, batch
        self.voxels = voxel_centres(size)
        self.asked = []

    def __call__(self, index):
        self.asked.append(index)
        return self.field(self.voxels[index % len(self.voxels)], index // len(self.voxels))

    def dense(self, levels, margin=1.0, regions=False, kind=LogitField):
        options = {"levels": levels, "margin": margin, "regions": regions, "device": torch.device("cpu")}
        return coarse_to_fine(self, self.batch, self.size, kind=kind, **options).values

    @property
    def n_decoded(self):
        return sum(map(len, self.asked))

    def every_voxel(self):
        """The oracle: the function itself, (batch, K, *size)."""
        samples = (torch.full((len(self.voxels),), b) for b in range(self.batch))
        return torch.stack([self.field(self.voxels, s).T.reshape(-1, *self.size) for s in samples])


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


def plate(normal, place, thickness=1.2):
    """A plate through `place`, its depth being the logit."""
    normal = torch.as_tensor(normal) / torch.as_tensor(normal).norm()

    def field(points, _):
        depth = thickness / 2 - ((points - torch.as_tensor(place)) @ normal).abs()
        return torch.stack((torch.zeros_like(depth), depth), -1)

    return field


def labels(logits, regions=False):
    return logits > 0 if regions else logits.argmax(1)


def lattice_points(size, step):
    """Points of the lattice of every `step`-th voxel that covers the crop, and centres of its cells."""
    cells = [-(-(n - 1) // step) for n in size]
    return math.prod(n + 1 for n in cells) + math.prod(cells)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize(("shape", "steepness"), [(ball, 1), (cells, 2), (shells, 1)])
def test_labels_are_those_of_every_voxel(size, levels, shape, steepness):
    """Certain if no margin can vanish within half a cell's diagonal: the margin changes by `steepness` per voxel."""
    margin = 1.01 * steepness * 2**levels * math.sqrt(len(size)) / 2
    regions = shape is shells
    decoder = AnalyticDecoder(shape(size), size)
    found, expected = decoder.dense(levels, margin, regions), decoder.every_voxel()
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    assert torch.equal(labels(found, regions), labels(expected, regions))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("levels", [0, 1, 2, 3])
@pytest.mark.parametrize("margin", [0.0, 0.7, 3.0])
@pytest.mark.parametrize("shape", [ball, cells, shells])
def test_labels_alone_are_those_of_the_logits(size, levels, margin, shape):
    """And the same points are decoded for them."""
    regions = shape is shells
    of_logits, of_labels = AnalyticDecoder(shape(size), size, 2), AnalyticDecoder(shape(size), size, 2)
    expected = labels(of_logits.dense(levels, margin, regions), regions)
    found = of_labels.dense(levels, margin, regions, LabelField)
    assert torch.equal(found if regions else found[:, 0].long(), expected)
    assert torch.equal(torch.cat(of_labels.asked), torch.cat(of_logits.asked))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("shape", [ball, cells, shells])
def test_every_voxel_at_a_border_has_been_decoded(size, levels, shape):
    """Whatever the margin."""
    decoder = AnalyticDecoder(shape(size), size)
    found = decoder.dense(levels, 0.0, shape is shells, LabelField)
    asked = torch.zeros(size, dtype=torch.bool)
    asked.view(-1)[torch.cat(decoder.asked)] = True
    assert asked.any()
    for axis, n in enumerate(size):
        differs = (found.narrow(axis + 2, 0, n - 1) != found.narrow(axis + 2, 1, n - 1)).any(1)[0]
        for first in (0, 1):
            assert asked.narrow(axis, first, n - 1)[differs].all()


@pytest.mark.parametrize("size", SIZES)
def test_without_levels_every_voxel_is_decoded_once(size):
    decoder = AnalyticDecoder(ball(size), size)
    torch.testing.assert_close(decoder.dense(levels=0), decoder.every_voxel())
    assert decoder.n_decoded == math.prod(size)


@pytest.mark.parametrize("size", [(17, 17, 17), (14, 11), (40, 2)])
def test_a_large_margin_decodes_the_whole_lattice(size):
    decoder = AnalyticDecoder(ball(size), size)
    torch.testing.assert_close(decoder.dense(levels=2, margin=1e9), decoder.every_voxel())
    # it may reach beyond the crop, to the next whole cell
    assert decoder.n_decoded == math.prod(min(4, n) * -(-(n - 1) // min(4, n)) + 1 for n in size)


@pytest.mark.parametrize("levels", [1, 2])
def test_few_points_are_decoded_and_none_twice(levels):
    size = (33, 33, 33)
    n_decoded = []
    for margin in (0.0, 1.0, 4.0):
        decoder = AnalyticDecoder(ball(size), size)
        found = decoder.dense(levels, margin)
        assert len(torch.cat(decoder.asked).unique()) == decoder.n_decoded
        assert all(map(len, decoder.asked))
        n_decoded.append(decoder.n_decoded)
    assert torch.equal(labels(found), labels(decoder.every_voxel()))
    assert lattice_points(size, 2**levels) < n_decoded[0] < n_decoded[1] < n_decoded[2]
    assert n_decoded[1] < 0.5 * math.prod(size)


def test_each_sample_is_refined_by_itself():
    size, step = (13, 17), 4
    centres, radii = torch.tensor([[6.0, 8.0], [3.3, 4.1], [8.2, 12.7]]), torch.tensor([-50.0, 3.4, 4.6])

    def field(points, sample):
        depth = radii[sample] - distance(points, centres[sample])
        return torch.stack((torch.zeros_like(depth), depth), -1)

    decoder = AnalyticDecoder(field, size, batch=3)
    found, expected = labels(decoder.dense(levels=2, margin=3.0)), labels(decoder.every_voxel())
    assert torch.equal(found, expected)
    assert expected.flatten(1).any(1).tolist() == [False, True, True]
    # the empty one is not refined
    assert (torch.cat(decoder.asked) < math.prod(size)).sum() == lattice_points(size, step)


def test_no_more_points_at_once_than_allowed(monkeypatch):
    """But for the first lattice."""
    size = (21, 22, 23)
    expected = AnalyticDecoder(cells(size), size).dense(2, 2.0)
    monkeypatch.setattr(mise, "_POINTS_AT_ONCE", 50)
    decoder = AnalyticDecoder(cells(size), size)
    assert torch.equal(decoder.dense(2, 2.0), expected)
    assert max(map(len, decoder.asked[1:])) == 50


class TestThinStructures:
    @pytest.mark.parametrize("levels", [1, 2, 3])
    @pytest.mark.parametrize(
        "normal", [(1, 0), (0, 1), (1, 1), (1, -2), (1, 0, 0), (0, 0, 1), (1, 1, 0), (0, 1, -1), (1, 1, 1), (3, -1, 2)]
    )
    def test_no_plate_of_the_planned_thickness_slips_through(self, levels, normal):
        """Of a plate, 4 V/S is twice its thickness; measured on voxel faces its surface is |normal|_1 times as large.

        The lattice and its centres have a point in each, and some have none once they are a fifth thinner.
        """
        size = (33, 33, 33)[: len(normal)]  # whole cells
        normal = torch.tensor(normal, dtype=torch.float32)
        planned = normal.abs().sum() / normal.norm() * 2**levels / 2
        middle = (torch.tensor(size) - 1) / 2
        missed = dict.fromkeys((1.001, 0.8), 0)
        for thickness in missed:
            for offset in torch.linspace(-planned, planned, 24):
                place = middle + offset * normal / normal.norm()
                decoder = AnalyticDecoder(plate(normal, place, thickness * planned), size)
                found, expected = labels(decoder.dense(levels, margin=0.0)), labels(decoder.every_voxel())
                missed[thickness] += not torch.equal(found, expected)
        assert missed[1.001] == 0
        if levels > 1 and normal.abs().max() == 1 and normal.count_nonzero() < 3:
            assert missed[0.8] > 0

    @pytest.mark.parametrize(("margin", "found"), [(0.0, False), (0.5, True)])
    def test_a_thinner_plate_is_found_by_its_margin(self, margin, found):
        """On the planes of corners and centres next to it, a voxel away, the margin is 0.4."""
        decoder = AnalyticDecoder(plate([1.0, 0.0, 0.0], [9.0, 0.0, 0.0]), (21, 10, 9))
        result, expected = labels(decoder.dense(2, margin)), labels(decoder.every_voxel())
        assert torch.equal(result, expected if found else torch.zeros_like(expected))

    @pytest.mark.parametrize(("margin", "found"), [(0.2, False), (0.5, True)])
    def test_what_is_next_to_an_uncertain_centre_is_looked_at(self, margin, found):
        """A single voxel beside the centre of a cell, where the margin is 0.3; at the corners it is 2.3 and more."""
        size = (9, 9, 9)

        def field(points, _):
            depth = 0.7 - distance(points, [3.0, 2.0, 2.0])
            return torch.stack((torch.zeros_like(depth), depth), -1)

        decoder = AnalyticDecoder(field, size)
        assert labels(decoder.every_voxel()).sum() == 1
        assert labels(decoder.dense(2, margin)).any() == found

    @pytest.mark.parametrize("size", [(16, 24), (16, 9, 24)])
    @pytest.mark.parametrize("levels", [1, 2, 3])
    def test_a_rod_is_followed_from_where_it_was_seen(self, size, levels):
        """Points that were interpolated on a coarse level are decoded once a finer level contradicts them."""
        decoder = AnalyticDecoder(rod, size)
        assert torch.equal(labels(decoder.dense(levels, margin=0.0)), labels(decoder.every_voxel()))

    @pytest.mark.parametrize("n", [20, 21, 22])
    @pytest.mark.parametrize("levels", [1, 2, 3])
    def test_the_last_plane_of_the_crop_is_seen(self, n, levels):
        """The lattice's last point stands for the last voxel, wherever the lattice ends."""
        decoder = AnalyticDecoder(plate([1.0, 0.0, 0.0], [n - 1.0, 0.0, 0.0]), (n, 10, 9))
        assert torch.equal(labels(decoder.dense(levels, margin=0.0)), labels(decoder.every_voxel()))


@pytest.mark.parametrize("size", [(21, 18), (9, 12, 17), (1, 14, 11), (2, 9, 5)])
@pytest.mark.parametrize("shape", [ball, cells, shells])
@pytest.mark.parametrize("margin", [0.0, 1.5])
def test_borders_and_what_is_uncertain_are_decoded_anew_and_nothing_else(size, shape, margin):
    regions = shape is shells
    decoder = AnalyticDecoder(shape(size), size)
    first = decoder.every_voxel()
    again = AnalyticDecoder(lambda points, sample: decoder.field(points, sample) + 100, size)
    logits = first.clone()
    redecode_borders(again, LogitField(logits, margin, regions))
    changed = (logits != first).any(1)
    torch.testing.assert_close(logits, torch.where(changed[:, None], first + 100, first))
    label = labels(first, regions).float().reshape(1, -1, *size)
    two = first.topk(2, 1).values
    near = (first.abs().amin(1) if regions else two[:, 0] - two[:, 1]) < margin
    for axis, o in itertools.product(range(len(size)), (-1, 1)):
        shifted = label.roll(o, axis + 2)
        inside = torch.ones(size, dtype=torch.bool)
        inside.select(axis, 0 if o == 1 else size[axis] - 1).fill_(False)
        near |= (shifted != label).any(1) & inside
    assert near.any()
    assert torch.equal(changed, near)


@pytest.mark.parametrize("decoding", ["own", "blended"])
@pytest.mark.parametrize("size", [(13, 9), (1, 12), (7, 10, 5), (1, 9, 6)])
def test_the_real_network_refined_everywhere_equals_its_dense_output(
    tiny_config, tiny_network, tiny_input, size, decoding, monkeypatch
):
    dense, refined = (
        tiny_config(len(size), decoding=decoding, mise_levels=levels, mise_margin=100.0) for levels in (0, 2)
    )
    x = tiny_input(dense, size)
    with torch.no_grad():
        expected = tiny_network(dense).eval()(x)
        found = tiny_network(refined).eval()(x)
        monkeypatch.setitem(lattice_decoder.ROWS_PER_CHUNK, "cpu", 64)
        chunked = tiny_network(refined).eval()(x)
    assert expected.flatten(2).std(-1).min() > 1e-3  # otherwise any interpolation would do
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(chunked, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("decoding", ["own", "blended"])
def test_chunks_bound_the_rows_decoded_at_once(tiny_config, tiny_network, tiny_input, decoding, monkeypatch):
    """The lengths are few: a new one costs time and memory."""
    config = tiny_config(decoding=decoding, mise_levels=1)
    network, lengths = tiny_network(config).eval(), []
    first_layer = network.patch_decoder.from_first_layer
    monkeypatch.setattr(network.patch_decoder, "from_first_layer", lambda x: lengths.append(len(x)) or first_layer(x))
    monkeypatch.setitem(lattice_decoder.ROWS_PER_CHUNK, "cpu", 128)
    with torch.no_grad():
        network(tiny_input(config, (9, 14, 11)))
    assert max(lengths) == 128
    assert {n % (128 // lattice_decoder.LENGTHS) for n in lengths} == {0}
