"""Shared fixtures: networks and crops small enough for hundreds of tests, in float32."""

import os
import shutil
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from nnunetv2_swipe.config import SwIPEConfig
from nnunetv2_swipe.network.coordinates import source_channels
from nnunetv2_swipe.network.swipe_net import SwIPENet

# tests compare in float32; bfloat16 keeps two to three digits
os.environ["SWIPE_AMP"] = "off"


@pytest.fixture(scope="session")
def tiny_config():
    """Factory make(dims=3, **changes) of a small valid configuration: two stages, S = 4, decodes every voxel."""

    def make(dims=3, **changes):
        config = SwIPEConfig(
            patch_size=(4,) * dims,
            embedding_dim=16,
            backbone="Res2Net",
            strides=((2,) * dims,) * 2,
            kernel_sizes=((3,) * dims,) * 2,
            features_per_stage=(16, 16),
            n_blocks_per_stage=(1, 2),
            norm_op="InstanceNorm",
            neck_features=8,
            rfb=True,
            cascade=True,
            pool_to_patch_grid=True,
            multi_stage_attention=True,
            patch_decoder_features=(32, 32),
            image_decoder_features=(32,),
            dropout=0.0,
            fourier_frequencies=2,
            source_coordinates=True,
            global_conditioning=True,
            n_points=64,
            background_share=2.0,
            boundary_radius=(1,) * dims,
            point_weight_exponent=1.0,
            n_spo=1,
            spo_connectivity=8 if dims == 2 else 6,
            patch_loss_weight=0.5,
            spo_loss_weight=0.1,
            embedding_loss_weight=1e-4,
            initial_lr=1e-3,
            weight_decay=1e-2,
            warmup_iterations=2,
            mise_levels=0,
            mise_margin=1.0,
            decoding="own",
            regions=False,
        )
        return config.replace(**changes)

    return make


@pytest.fixture(scope="session")
def tiny_network():
    """Factory make(config, input_channels=1, num_classes=3) of a network with the same weights every time."""

    def make(config, input_channels=1, num_classes=3):
        torch.manual_seed(0)
        return SwIPENet(config, input_channels, num_classes)

    return make


@pytest.fixture(scope="session")
def tiny_input():
    """Factory make(config, size, batch=2, input_channels=1) of what such a network reads: frame and random image."""

    def make(config, size, batch=2, input_channels=1):
        image = torch.randn(batch, input_channels, *size, generator=torch.Generator().manual_seed(1))
        if not config.source_coordinates:
            return image
        whole = (1,) * (3 - len(size)) + tuple(size)
        frame = torch.from_numpy(source_channels(whole)).view(-1, *size)
        return torch.cat((frame.expand(batch, *frame.shape), image), 1)

    return make


@pytest.fixture
def full_disk():
    """Factory of a context in which writing a file fails after 4,000 bytes, as it does on a full disk."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def limited():
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture(scope="session")
def trained_models(tmp_path_factory):
    """nnU-Net's folders with phantoms and narrow models of them."""
    from nnunet_helpers import train_models

    return train_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def hardly_trained(tmp_path_factory):
    """nnU-Net's folders with a phantom and a narrow model of two folds, for what does not look at its labels."""
    from nnunet_helpers import train_hardly

    return train_hardly(tmp_path_factory.mktemp("hardly_trained"))


@pytest.fixture
def model(hardly_trained, tmp_path, monkeypatch):
    """The folder of a copy of that model, which a test may change; nnU-Net's variables are set."""
    from nnunet_helpers import ABDOMEN, model_folder, nnunet_folders

    with nnunet_folders(hardly_trained, SWIPE_NUM_EPOCHS="1", SWIPE_ITERATIONS_PER_EPOCH="1"):
        shutil.copytree(hardly_trained / "nnUNet_results", tmp_path / "nnUNet_results")
        monkeypatch.setenv("nnUNet_results", str(tmp_path / "nnUNet_results"))
        yield model_folder(tmp_path, ABDOMEN)


@pytest.fixture
def ellipsoid(tmp_path, monkeypatch):
    """Factory make(direction, spacing, transpose) of an encoded image of `analytic_shapes`' ellipsoid."""
    from analytic_shapes import Interpolated, preprocessed, write_ellipsoid

    from nnunetv2_swipe.inference import encoded_image

    monkeypatch.setattr(encoded_image, "TiledImage", Interpolated)

    def make(direction, spacing, transpose=(0, 1, 2)):
        file = tmp_path / "ellipsoid_0000.nii.gz"
        write_ellipsoid(file, direction, spacing)
        return encoded_image.EncodedImage(*preprocessed(file, transpose))

    return make


@pytest.fixture
def tiled(tiny_config, tiny_network, tiny_input):
    """Factory make(tile, image size, **changes) of a TiledImage, with random weights that decide sharply."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    from nnunetv2_swipe.inference.tiles import TiledImage

    def make(tile, size, *, mirrored=(), folds=1, keep=False, device="cpu", **changes):
        config = tiny_config(len(tile), **changes)
        network = tiny_network(config)
        network.patch_decoder.seg_layers.weight.data *= 50
        predictor = SimpleNamespace(
            network=network,
            device=torch.device(device),
            use_gaussian=True,
            use_mirroring=bool(mirrored),
            allowed_mirroring_axes=mirrored,
            tile_step_size=0.5,
            verbose=False,
            configuration_manager=SimpleNamespace(patch_size=tile),
            label_manager=SimpleNamespace(num_segmentation_heads=3),
            list_of_parameters=[
                {key: value * (1 + 0.5 * fold) for key, value in network.state_dict().items()} for fold in range(folds)
            ],
        )
        predictor._internal_get_sliding_window_slicers = lambda shape: (
            nnUNetPredictor._internal_get_sliding_window_slicers(predictor, shape)
        )
        return TiledImage(predictor, tiny_input(tiny_config(3), size)[0], keep=keep)

    return make
