"""Prediction of whole images on grids of any resolution, against nnU-Net's sliding window where both can."""

from types import SimpleNamespace

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import nn

from nnunetv2_swipe.inference import blocks
from nnunetv2_swipe.inference.grid import predict_logits_on_grid

CPU = torch.device("cpu")
IMAGES = {
    "several tiles": ((8, 12, 8), (13, 15, 20)),
    "smaller than a tile along an axis": ((8, 12, 8), (5, 15, 9)),
    "slices in 2D": ((12, 8), (3, 17, 6)),
}


@pytest.fixture
def predicted(tiny_config, tiny_network, tiny_input):
    """Factory make(tile, image size, **changes) of nnU-Net's predictor with a network, and an image."""

    def make(tile, size, *, mirrored=(), folds=1, **changes):
        config = tiny_config(len(tile), **changes)
        network = tiny_network(config)
        network.patch_decoder.seg_layers.weight.data *= 50
        predictor = nnUNetPredictor(
            use_mirroring=bool(mirrored), perform_everything_on_device=False, device=CPU, allow_tqdm=False
        )
        predictor.network = network
        predictor.allowed_mirroring_axes = mirrored
        predictor.configuration_manager = SimpleNamespace(patch_size=tile)
        predictor.label_manager = SimpleNamespace(num_segmentation_heads=3)
        predictor.list_of_parameters = [
            {key: value * (1 + 0.5 * fold) for key, value in network.state_dict().items()} for fold in range(folds)
        ]
        return predictor, tiny_input(tiny_config(3), size)[0]

    return make


def close(a, b, tolerance=1e-4):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("tile", "size"), IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("mirrored", [(), (0, 1)])
@pytest.mark.parametrize("folds", [1, 2])
@pytest.mark.parametrize("gaussian", [True, False])
def test_on_the_images_grid_it_is_nnunets_sliding_window(predicted, monkeypatch, tile, size, mirrored, folds, gaussian):
    """All tiles used. nnU-Net sums in half precision, in which its Gaussian vanishes in the corners of tiles."""
    monkeypatch.setattr(blocks, "_NEGLIGIBLE", 0.0)
    predictor, image = predicted(tile, size, mirrored=mirrored, folds=folds)
    predictor.use_gaussian = gaussian
    found = predict_logits_on_grid(predictor, image, size)
    expected = predictor.predict_logits_from_preprocessed_data(image).float()
    assert expected.flatten(1).std(-1).min() > 1
    difference = (found - expected).abs() / expected.std()
    assert difference.quantile(0.95 if gaussian else 1.0) < 0.02


@pytest.mark.parametrize(("tile", "size"), IMAGES.values(), ids=IMAGES)
def test_tiles_of_little_weight_hardly_count(predicted, tile, size):
    """Even those of a network that says something else in every tile."""
    predictor, image = predicted(tile, size)
    predictor.use_gaussian = True
    found = predict_logits_on_grid(predictor, image, size)
    expected = predictor.predict_logits_from_preprocessed_data(image).float()
    assert ((found - expected).abs() / expected.std()).mean() < 0.02
    assert (found.argmax(0) == expected.argmax(0)).float().mean() > 0.98


@pytest.mark.parametrize(("tile", "size"), IMAGES.values(), ids=IMAGES)
def test_a_grid_three_times_as_fine_passes_through_the_voxels(predicted, tile, size):
    predictor, image = predicted(tile, size, mirrored=(0, 1))
    n_slices = [1] * (3 - len(tile))
    fine = [*size[: len(n_slices)], *[3 * n for n in size[len(n_slices) :]]]
    found = predict_logits_on_grid(predictor, image, fine)
    voxels = [slice(None)] * len(n_slices) + [slice(1, None, 3)] * len(tile)
    close(found[(slice(None), *voxels)], predict_logits_on_grid(predictor, image, size))
    assert not torch.allclose(found[..., ::3], found[..., 1::3], atol=0.1)


def test_a_grid_of_a_third_passes_through_every_third_voxel(predicted):
    predictor, image = predicted((8, 12, 8), (15, 15, 21))
    found = predict_logits_on_grid(predictor, image, (5, 5, 7))
    close(found, predict_logits_on_grid(predictor, image, (15, 15, 21))[:, 1::3, 1::3, 1::3])


def test_a_grid_of_one_point_lies_in_the_middle(predicted):
    predictor, image = predicted((8, 12, 8), (15, 15, 21))
    found = predict_logits_on_grid(predictor, image, (1, 1, 1))
    close(found, predict_logits_on_grid(predictor, image, (15, 15, 21))[:, 7:8, 7:8, 10:11])


def test_a_model_of_another_trainer_is_refused(predicted):
    predictor, image = predicted((8, 12, 8), (8, 12, 8))
    predictor.network = nn.Conv3d(1, 3, 1)
    with pytest.raises(ValueError, match=r"SwIPE trainers.*Conv3d"):
        predict_logits_on_grid(predictor, image, (8, 12, 8))


@pytest.mark.parametrize(
    ("tile", "shape", "message"),
    [((8, 12, 8), (8, 12), "three numbers"), ((8, 12, 8), (8, 0, 8), "above 0"), ((12, 8), (4, 12, 8), "the first 8")],
)
def test_an_impossible_shape_is_named(predicted, tile, shape, message):
    predictor, image = predicted(tile, (8, 12, 8))
    with pytest.raises(ValueError, match=message):
        predict_logits_on_grid(predictor, image, shape)
