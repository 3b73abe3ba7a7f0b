"""Labels of any grid: geometry against an analytic shape, tiles and blocks against each other."""

import math
import warnings

import numpy as np
import pytest
import torch
from analytic_shapes import CENTRE, DIRECTIONS, SPACINGS, distance, rotation

from nnunetv2_swipe.geometry import Grid
from nnunetv2_swipe.inference import blocks, tiles
from nnunetv2_swipe.inference.output_grid import OutputGrid
from nnunetv2_swipe.network.coordinates import nearest_patches


def assert_right_but_for_a_tenth_of_a_voxel(labels, grid):
    index = np.indices(grid.shape).reshape(3, -1).T
    depth = distance(grid.position_of(index)).reshape(grid.shape)
    clear = np.abs(depth) > 0.1 * min(grid.spacing)
    assert (labels == 1).any()
    assert clear.mean() > 0.9
    np.testing.assert_array_equal((labels == 1)[clear], (depth > 0)[clear])


@pytest.mark.parametrize("spacing", SPACINGS.values(), ids=SPACINGS)
@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)], ids=str)
def test_shapes_lie_where_they_are_in_the_patient(ellipsoid, direction, spacing, transpose):
    """On the image's grid, on finer, coarser and turned ones: cropped, transposed and resampled in between."""
    image = ellipsoid(direction, spacing, transpose)
    own = image.grid
    turned = own.affine.copy()
    turned[:3, :3] = rotation(10, -15, 25) @ turned[:3, :3]
    turned[:3, 3] += CENTRE - turned[:3, :3] @ ((np.array(own.shape) - 1) / 2) - turned[:3, 3]
    flipped = own.affine.copy()
    flipped[:3, 3] += flipped[:3, 1] * (own.shape[1] - 1)
    flipped[:3, 1] *= -1
    swapped = own.affine[:, [1, 2, 0, 3]]
    grids = [
        own,
        OutputGrid(spacing=(0.9, 1.7, 0.6)).of(own),
        OutputGrid(size=(31, 40, 23)).of(own),
        Grid(own.shape, flipped),
        Grid((own.shape[1], own.shape[2], own.shape[0]), swapped),
        Grid(own.shape, turned),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the turned grid leaves the image
        for grid in grids:
            assert_right_but_for_a_tenth_of_a_voxel(image.labels(grid), grid)


def test_queries_agree_with_the_grid(ellipsoid):
    image = ellipsoid(DIRECTIONS["oblique"], SPACINGS["all different"])
    index = np.argwhere(image.labels() == 1)[::50].astype(float)
    probabilities = image.query(image.grid.position_of(index))
    assert probabilities.shape == (len(index), 2)
    assert (probabilities.argmax(1) == 1).all()
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    np.testing.assert_array_equal(image.query(np.array([[1e4, 0.0, 0.0]])), [[1.0, 0.0]])
    with pytest.raises(ValueError, match=r"\(points, 3\)"):
        image.query(np.zeros(3))


def test_probabilities_agree_with_the_labels(ellipsoid):
    image = ellipsoid(DIRECTIONS["sagittal"], SPACINGS["thick slices"])
    probabilities = image.probabilities()
    np.testing.assert_array_equal(probabilities.argmax(0), image.labels())
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)


def test_a_grid_elsewhere_is_background_and_warned_of(ellipsoid):
    image = ellipsoid(DIRECTIONS["axial"], SPACINGS["isotropic"])
    affine = image.grid.affine.copy()
    affine[:3, 3] += 1e4
    with pytest.warns(UserWarning, match="beyond the image"):
        labels = image.labels(Grid((5, 6, 7), affine))
    assert labels.shape == (5, 6, 7)
    assert not labels.any()


def test_no_warning_of_the_images_own_box(ellipsoid):
    image = ellipsoid(DIRECTIONS["oblique"], SPACINGS["thick slices"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image.labels()
        image.labels(OutputGrid(size=(90, 80, 70)).of(image.grid))


TILES = {"3D": ((8, 12, 8), (13, 15, 20)), "2D": ((12, 8), (3, 17, 11))}


@pytest.mark.parametrize(("tile", "size"), TILES.values(), ids=TILES)
@pytest.mark.parametrize("decoding", ["own", "blended"])
def test_points_agree_with_lattices(tiled, tile, size, decoding):
    image = tiled(tile, size, mirrored=(0, 1), decoding=decoding)
    positions = [torch.linspace(-0.4, n - 0.6, n + 3) for n in size]
    expected = image.decode_lattice(positions).flatten(1).T
    found = image.decode(torch.cartesian_prod(*positions))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("tile", "size"), TILES.values(), ids=TILES)
@pytest.mark.parametrize("values", [1 << 24, 300])
def test_blocks_make_the_whole(tiled, monkeypatch, tile, size, values):
    monkeypatch.setattr(tiles, "_VALUES_PER_BLOCK", values)
    image = tiled(tile, size)
    positions = [torch.arange(n).float() for n in size]
    whole = image.decode_lattice(positions)
    found = torch.full_like(whole, torch.nan)
    for box in image.blocks(positions):
        part = (slice(None), *box)
        assert found[part].isnan().all()
        assert found[part].numel() <= values
        found[part] = image.decode_lattice([p[b] for p, b in zip(positions, box, strict=True)])
    torch.testing.assert_close(found, whole, atol=1e-4, rtol=1e-4)


def test_every_tile_is_embedded_once(tiled, monkeypatch):
    """However small the blocks are, and although tiles that are passed are forgotten."""
    monkeypatch.setattr(tiles, "_VALUES_PER_BLOCK", 300)
    image = tiled((8, 12, 8), (20, 20, 20), mirrored=(2,))
    (network,) = image._networks
    calls = {"encode": [], "first_layer_terms": []}
    for name, noted in calls.items():
        method = getattr(network, name)
        monkeypatch.setattr(network, name, lambda x, noted=noted, method=method: noted.append(x) or method(x))
    positions = [torch.arange(2 * n) / 2 - 0.25 for n in (20, 20, 20)]
    for box in image.blocks(positions):
        image.decode_lattice([p[b] for p, b in zip(positions, box, strict=True)])
    assert [len(noted) for noted in calls.values()] == [2 * len(image._tiles)] * 2
    assert len(image._tiles) > 8


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("levels", [0, 1, 2])
def test_blocks_for_labels_alone_are_larger_by_what_is_not_decoded_at_once(tiled, monkeypatch, levels, regions):
    """A large margin decodes everything: cut anywhere, labels are the same."""
    monkeypatch.setattr(tiles, "_VALUES_PER_BLOCK", 300)
    image = tiled((8, 12, 8), (13, 15, 20), mise_levels=levels, mise_margin=100.0, regions=regions)
    positions = [torch.arange(n).float() for n in image.shape]
    blocks_of = {labels_only: image.blocks(positions, labels_only=labels_only) for labels_only in (False, True)}
    largest = {key: max(math.prod(b.stop - b.start for b in box) for box in boxes) for key, boxes in blocks_of.items()}
    most = 300 // image.num_classes
    assert largest[False] <= most
    assert largest[True] <= (most if regions else most << levels)
    assert (largest[True] > largest[False]) == (levels > 0 and not regions)
    whole = image.decode_lattice(positions, labels_only=True)
    for box in blocks_of[True]:
        part = [p[b] for p, b in zip(positions, box, strict=True)]
        assert torch.equal(image.decode_lattice(part, labels_only=True), whole[(slice(None), *box)])


def test_points_of_one_tile_embed_no_other(tiled):
    image = tiled((8, 12, 8), (30, 12, 8))
    image.decode(torch.tensor([[1.0, 2.0, 3.0], [2.0, 11.0, 0.0]]))
    assert len(image._embedded) == 1


def test_embeddings_are_forgotten_unless_kept(tiled):
    for keep in (False, True):
        image = tiled((8, 12, 8), (30, 12, 8), keep=keep)
        positions = [torch.arange(n).float() for n in (30, 12, 8)]
        held = 0
        for box in image.blocks(positions):
            image.decode_lattice([p[b] for p, b in zip(positions, box, strict=True)])
            held = max(held, len(image._embedded))
        assert held == (len(image._tiles) if keep else 3)


def test_embeddings_that_do_not_fit_are_made_again(tiled, monkeypatch):
    positions = [torch.arange(n).float() for n in (30, 12, 8)]
    image = tiled((8, 12, 8), (30, 12, 8), mirrored=(0,), keep=True)
    expected = image.decode_lattice(positions)
    n_tiles = len(image._embedded)
    (n_bytes,) = {sum(p.terms.patch.nbytes for p in passes) for passes in image._embedded.values()}
    monkeypatch.setattr(tiles, "spare_memory", lambda: 3.5 * n_bytes)
    small = tiled((8, 12, 8), (30, 12, 8), mirrored=(0,), keep=True)
    with pytest.warns(UserWarning, match="embeddings of 3 tiles are all that fits"):
        found = small.decode_lattice(positions)
    assert len(small._embedded) == 3 < n_tiles
    torch.testing.assert_close(found, expected)


def test_coarse_to_fine_agrees_with_every_point(tiled):
    """Sharp logits: where cells are skipped, nothing changes."""
    size = (16, 24, 16)
    positions = [torch.arange(2 * n) / 2 - 0.25 for n in size]
    every = tiled((8, 12, 8), size).decode_lattice(positions).argmax(0)
    fine = tiled((8, 12, 8), size, mise_levels=2, mise_margin=20.0).decode_lattice(positions).argmax(0)
    assert (every == fine).float().mean() > 0.999


@torch.inference_mode()
@pytest.mark.parametrize("tile", [(8, 12, 8), (12, 8)], ids=TILES)
def test_variances_add_up(tiled, tile):
    """Against those of all patches, passes and folds of a single tile, one by one."""
    whole = tile if len(tile) == 3 else (1, *tile)
    image = tiled(tile, whole, mirrored=(0, 1), folds=2)
    positions = [torch.linspace(-0.4, n - 0.6, n + 1) if n > 1 else torch.zeros(1) for n in whole]
    found = image.variance_lattice(positions)
    assert found.shape == (4, *map(len, positions))
    (one,) = image._tiles
    points = torch.cartesian_prod(*positions)[:, -len(tile) :]
    square, by_fold = 0.0, []
    for network in image._networks:
        by_pass = []
        for part in (p for p in image.passes(one) if p.network is network):
            mirrored = torch.stack([part.mirror(axis, p) for axis, p in enumerate(points.unbind(1))], 1)
            patches, weights = nearest_patches(mirrored, image.config.patch_size, part.terms.patch.shape[1:-1])
            sample = torch.zeros(len(points), dtype=torch.int64)
            p = torch.stack([network.decode(part.terms, mirrored, sample, each).softmax(1) for each in patches])
            by_pass.append((weights[..., None] * p).sum(0))
            square = square + (weights[..., None] * p.square()).sum(0)
        by_fold.append(torch.stack(by_pass))
    probabilities = torch.stack(by_fold)  # (folds, mirrored, M, K)
    mean = probabilities.mean((0, 1))
    expected = [
        1 - square.sum(1) / (2 * 4),
        (square / (2 * 4) - probabilities.square().mean((0, 1))).sum(1),
        probabilities.var(1, correction=0).mean(0).sum(-1),
        probabilities.mean(1).var(0, correction=0).sum(-1),
    ]
    torch.testing.assert_close(found.flatten(1), torch.stack(expected), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found.sum(0).flatten(), 1 - mean.square().sum(1), atol=1e-4, rtol=1e-3)
    assert (found.flatten(1).mean(1) > 1e-5).all()


def test_without_mirroring_and_folds_only_labels_and_patches_vary(tiled):
    found = tiled((8, 12, 8), (8, 12, 8)).variance_lattice([torch.arange(n).float() for n in (8, 12, 8)])
    assert (found[:2] > 0).flatten(1).any(1).all()
    assert not found[2:].any()


@pytest.mark.parametrize(("tile", "size"), TILES.values(), ids=TILES)
@pytest.mark.parametrize("decoding", ["own", "blended"])
@pytest.mark.parametrize("levels", [1, 2])
def test_labels_alone_are_those_of_the_logits(tiled, tile, size, decoding, levels):
    image = tiled(tile, size, mirrored=(1,), decoding=decoding, mise_levels=levels, mise_margin=0.5)
    positions = [torch.arange(2 * n) / 2 - 0.25 if n > 3 else torch.arange(n).float() for n in size]
    expected = image.decode_lattice(positions).argmax(0)
    assert len(expected.unique()) == 3
    assert torch.equal(image.decode_lattice(positions, labels_only=True)[0].long(), expected)


@torch.inference_mode()
@pytest.mark.parametrize("tile", [(8, 12, 8), (12, 8)], ids=TILES)
def test_attention_is_that_of_the_patch_around_a_voxel(tiled, tile):
    whole = tile if len(tile) == 3 else (1, *tile)
    image = tiled(tile, whole)
    found = image.attention()
    (one,) = image._tiles
    weights = image._networks[0].encode(image._crop(one)).attention[0]
    n_stages = weights.shape[-1]
    assert found.shape == (n_stages, *whole)
    for index in np.ndindex(whole):
        patch = tuple(i // s for i, s in zip(index[-len(tile) :], image.config.patch_size, strict=True))
        torch.testing.assert_close(found[(slice(None), *index)], weights[patch].float())


@pytest.mark.parametrize(("tile", "size"), TILES.values(), ids=TILES)
def test_attention_of_overlapping_tiles_and_folds_adds_up_to_one(tiled, tile, size):
    found = tiled(tile, size, folds=2).attention()
    assert found.shape[1:] == size
    torch.testing.assert_close(found.sum(0), torch.ones(size), atol=1e-4, rtol=0)
    assert found.std() > 0


def test_without_multi_stage_attention_there_is_none(tiled):
    assert tiled((8, 12, 8), (8, 12, 8), multi_stage_attention=False).attention() is None


def test_attention_and_uncertainty_need_a_grid_along_the_image(ellipsoid):
    image = ellipsoid(DIRECTIONS["axial"], SPACINGS["isotropic"])
    affine = image.grid.affine.copy()
    affine[:3, :3] = rotation(10, -15, 25) @ affine[:3, :3]
    for ask in (image.attention, image.uncertainty):
        with pytest.raises(ValueError, match="parallel to the image"):
            ask(Grid(image.grid.shape, affine))


def test_negligible_tiles_are_left_out_but_never_all():
    """Around the first position two tiles, one of them of little weight; around the second fifty, all of little."""
    weights = torch.zeros(50, 2)
    weights[:2, 0] = torch.tensor([1.0, 0.01])
    weights[:, 1] = 0.02
    asked = {}

    def values(tile, chosen):
        asked[tile] = chosen.tolist()
        return torch.full((len(chosen), 1), float(tile))

    found = blocks.mean_over_tiles(weights, 1, values)
    torch.testing.assert_close(found[:, 0], torch.tensor([0.0, 24.5]))
    assert asked == {0: [0, 1], **{tile: [1] for tile in range(1, 50)}}
