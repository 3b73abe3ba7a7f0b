"""The network: what it returns, its parts against brute force, and what depends on what."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnunetv2_swipe import precision
from nnunetv2_swipe.network.backbones import InstanceNorm, build_backbone
from nnunetv2_swipe.network.coordinates import N_SOURCE_CHANNELS, patch_index, source_channels, voxel_centres
from nnunetv2_swipe.network.decoders import Dropout, OccupancyDecoder
from nnunetv2_swipe.network.lattice_decoder import LatticeDecoder
from nnunetv2_swipe.network.mise import decode_field, levels_of_lattice
from nnunetv2_swipe.network.neck import MultiStageAttention, Neck, resize_to_grid
from nnunetv2_swipe.trainers import ablations
from nnunetv2_swipe.training.losses import SwIPELoss
from nnunetv2_swipe.training.point_sampling import sample_points

SIZES = [(12, 16), (13, 9), (1, 12), (3, 2), (8, 12, 8), (7, 10, 5), (1, 12, 9), (2, 3, 1)]
"""Multiples of patch and stride, and not; one voxel along an axis; less than a patch."""

ANISOTROPIC = {
    "patch_size": (1, 4, 2),
    "strides": ((1, 2, 2), (2, 2, 1)),
    "kernel_sizes": ((1, 3, 3), (3, 3, 5)),
}
LAYOUTS = {
    "patches of one stage's stride": (3, {}),
    "anisotropic": (3, ANISOTROPIC),
    "long anisotropic stride": (3, ANISOTROPIC | {"strides": ((1, 4, 4), (2, 2, 1))}),
    "patches smaller than the stride": (3, {"patch_size": (2,) * 3, "strides": ((4,) * 3, (2,) * 3)}),
    "patches larger than the stride": (2, {"patch_size": (16, 8)}),
    "patches of one voxel": (2, {"patch_size": (1, 1)}),
    "no stride in the first stage": (2, {"strides": ((1, 1), (2, 2))}),
    "one stage": (
        3,
        {"strides": ((2,) * 3,), "kernel_sizes": ((3,) * 3,), "features_per_stage": (16,), "n_blocks_per_stage": (2,)},
    ),
}
BACKBONES = ["Res2Net", "ResidualEncoder", "PlainConvEncoder"]
VARIANTS = {c.__name__: c.config_changes for c in vars(ablations).values() if isinstance(c, type)}
"""SwIPETrainer's and every ablation's."""


@pytest.fixture
def evaluated(tiny_config, tiny_network, tiny_input):
    """Factory make(size, **changes) of a network in evaluation, its input and what it encodes."""

    def make(size, **changes):
        config = tiny_config(len(size), **changes)
        network = tiny_network(config).eval()
        x = tiny_input(config, size)
        return network, x, network.encode(x)

    with torch.no_grad():
        yield make


def random_points(size, batch, n=60):
    """Positions (batch * n, D) anywhere in the crops, and the crop of each."""
    generator = torch.Generator().manual_seed(2)
    points = torch.rand(batch * n, len(size), generator=generator) * torch.tensor(size) - 0.5
    return points, torch.arange(batch).repeat_interleave(n)


def labels_for(size, batch=2, num_classes=3):
    return torch.randint(0, num_classes, (batch, 1, *size), generator=torch.Generator().manual_seed(3))


def close(a, b, atol=1e-4):
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-4)


class TestEvaluation:
    @pytest.mark.parametrize("decoding", ["own", "blended"])
    @pytest.mark.parametrize("size", SIZES)
    def test_logits_of_every_voxel(self, evaluated, size, decoding):
        network, x, _ = evaluated(size, decoding=decoding)
        before = x.clone()
        for batch in (2, 1):
            logits = network(x[:batch])
            assert logits.shape == (batch, 3, *size)
            assert logits.dtype == torch.float32
            assert torch.isfinite(logits).all()
        assert torch.equal(x, before)

    @pytest.mark.parametrize("backbone", BACKBONES)
    @pytest.mark.parametrize(("dims", "changes"), LAYOUTS.values(), ids=LAYOUTS)
    def test_any_layout_of_stages_and_patches(self, evaluated, backbone, dims, changes):
        size = (5, 19, 6)[:dims]
        network, x, embeddings = evaluated(size, backbone=backbone, **changes)
        patch = network.config.patch_size
        assert embeddings.patch.shape == (2, *(-(-n // p) for n, p in zip(size, patch, strict=True)), 16)
        logits = network(x)
        assert logits.shape == (2, 3, *size)
        assert torch.isfinite(logits).all()

    def test_logits_are_bounded(self, evaluated):
        network, x, _ = evaluated((8, 8))
        network.patch_decoder.seg_layers.weight *= 1e6
        assert network(x).abs().max() == 50

    def test_those_of_training_are_not(self, evaluated):
        """Or no gradient would bring back what has gone too far."""
        network, x, _ = evaluated((8, 8))
        network.patch_decoder.seg_layers.weight *= 1e6
        assert network(x, torch.rand(len(x), 5, 2) * 7).patch.abs().max() > 50

    @pytest.mark.parametrize("mise_levels", [0, 1])
    def test_the_output_is_the_callers(self, evaluated, mise_levels):
        """nnU-Net adds to it in place."""
        network, x, _ = evaluated((8, 12, 8), mise_levels=mise_levels)
        first = network(x)
        kept = first.clone()
        first.zero_()
        assert torch.equal(network(x), kept)

    @pytest.mark.parametrize("shape", [(1, 1, 8, 8, 8), (1, 6, 8, 8, 8), (1, 5, 8, 8)])
    def test_an_input_of_another_shape_is_named(self, tiny_config, tiny_network, shape):
        network = tiny_network(tiny_config())
        with pytest.raises(ValueError, match=r"\(batch, 5 channels, 3 axes\), got \(1, .*source\s+coordinates"):
            network(torch.zeros(shape))

    def test_samples_do_not_depend_on_each_other(self, evaluated):
        network, x, _ = evaluated((8, 12, 8))
        alone = network(x[:1])
        x[1, N_SOURCE_CHANNELS:] *= 100
        close(network(x)[:1], alone, atol=1e-3)

    @pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.1), (torch.float16, 0.01)])
    @pytest.mark.parametrize("decoding", ["own", "blended"])
    def test_half_precision_is_close(self, evaluated, monkeypatch, decoding, dtype, error):
        network, x, _ = evaluated((16, 16, 16), decoding=decoding)
        expected = network(x)
        monkeypatch.setattr(precision, "amp_dtype", lambda _: dtype)  # float16 is not offered on a CPU
        found = network(x)
        assert found.dtype == torch.float32
        assert 0 < (found - expected).norm() / expected.norm() < error

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_positions_are_not_rounded_to_half_precision(self, dtype):
        """They enter as two parts: the difference of two coordinates is not lost."""
        decoder = OccupancyDecoder(
            point_features=2, patch_features=1, image_features=0, hidden_features=(1,), num_classes=2
        )
        decoder.point_layer.weight.data = torch.tensor([[1.0, -1.0]])
        decoder.point_layer.bias.data = torch.zeros(1)
        difference = 2.0 ** -torch.arange(4, 15)
        points = torch.stack((1 + difference, torch.ones_like(difference)), -1)
        with torch.autocast("cpu", dtype=dtype):
            found = decoder._point_term(points, dtype)
        torch.testing.assert_close(found[:, 0].float(), difference, rtol=0.01, atol=0)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_statistics_of_normalisation_are_float32(self, dtype):
        """A mean far above the deviation: sums in half precision would lose the deviation."""
        x = (30 + torch.randn(2, 6, 24, 20, 16, generator=torch.Generator().manual_seed(0))).to(dtype)
        single = x.float()
        axes = (2, 3, 4)
        expected = (single - single.mean(axes, keepdim=True)) / single.std(axes, correction=0, keepdim=True)
        close(InstanceNorm(6)(x).float(), expected, atol=0.02)

    def test_dropout_is_for_training(self, evaluated):
        network, _, embeddings = evaluated((8, 8), dropout=0.5)
        terms = network.first_layer_terms(embeddings)
        points, sample = random_points((8, 8), 2)
        assert torch.equal(network.decode(terms, points, sample), network.decode(terms, points, sample))
        network.train()
        assert not torch.equal(network.decode(terms, points, sample), network.decode(terms, points, sample))


class TestDropout:
    @pytest.mark.parametrize(("p", "expected"), [(0.1, 26 / 256), (0.5, 0.5), (0.999, 255 / 256)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_drops_and_scales(self, p, expected, dtype):
        x = torch.ones(40, 33, 101, dtype=dtype, requires_grad=True)
        y = Dropout(p)(x)
        kept = y != 0
        assert y.dtype == dtype
        assert (~kept).float().mean().item() == pytest.approx(expected, abs=0.01)
        torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - expected)), atol=0, rtol=0.01)
        y.sum().backward()
        assert torch.equal(x.grad != 0, kept)

    def test_leaves_evaluation_alone(self):
        x = torch.randn(5, 7)
        assert Dropout(0.5).eval()(x) is x
        assert torch.equal(Dropout(0.0)(x), x)

    def test_draws_follow_the_seed(self):
        draws = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            draws.append(Dropout(0.5)(torch.ones(100)))
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])


class TestDecoding:
    @pytest.mark.parametrize("size", [(13, 9), (7, 10, 5)])
    @pytest.mark.parametrize("decoding", ["own", "blended"])
    @pytest.mark.parametrize(
        "changes",
        [{}, {"fourier_frequencies": 0}, {"global_conditioning": False}, {"source_coordinates": False},
         {"global_conditioning": False, "source_coordinates": False}],
        ids=str,
    )  # fmt: skip
    def test_dense_logits_are_those_at_voxel_centres(self, evaluated, size, decoding, changes):
        network, x, embeddings = evaluated(size, decoding=decoding, **changes)
        terms = network.first_layer_terms(embeddings)
        decode = network.decode_blended if decoding == "blended" else network.decode
        voxels = voxel_centres(size)
        dense = network(x)
        for b in range(2):
            found = decode(terms, voxels, torch.full((len(voxels),), b))
            close(found, dense[b].flatten(1).T)

    @pytest.mark.parametrize("mise_levels", [0, 2])
    @pytest.mark.parametrize("decoding", ["own", "blended"])
    @pytest.mark.parametrize("n_axes", [2, 3])
    def test_a_lattice_of_any_positions(self, evaluated, n_axes, decoding, mise_levels):
        """Finer, coarser, backwards, between voxel centres; with MISE, refined everywhere."""
        size = (13, 9, 6)[:n_axes]
        network, _, embeddings = evaluated(size, decoding=decoding, mise_levels=mise_levels, mise_margin=100.0)
        terms = network.first_layer_terms(embeddings)
        lattice = [torch.arange(0, 12, 0.4), torch.arange(8.0, -1, -3), torch.tensor([0.3, 2.8])][:n_axes]
        positions = torch.cartesian_prod(*lattice)
        found = decode_field(LatticeDecoder(network, terms, lattice), network.config, mise_levels)
        assert found.shape == (2, 3, *map(len, lattice))
        decode = network.decode_blended if decoding == "blended" else network.decode
        for b in range(2):
            expected = decode(terms, positions, torch.full((len(positions),), b))
            close(found[b].flatten(1).T, expected)

    @pytest.mark.parametrize(
        ("planned", "step", "levels"),
        [(2, 1, 2), (2, 0.5, 3), (2, 0.4, 3), (2, 2, 1), (2, 3, 0), (2, 8, 0), (0, 0.5, 0)],
    )
    def test_mise_begins_no_coarser_on_another_lattice(self, planned, step, levels):
        """In voxels: two levels begin with every fourth."""
        assert levels_of_lattice(planned, [torch.arange(0, 16, step), torch.arange(15, -1, -step)]) == levels

    @pytest.mark.parametrize("size", [(13, 9), (7, 10, 5)])
    def test_blending_is_the_multilinear_sum_over_the_nearest_patches(self, evaluated, size):
        network, _, embeddings = evaluated(size)
        terms = network.first_layer_terms(embeddings)
        points, sample = random_points(size, 2, n=20)
        last = np.array(embeddings.patch.shape[1:-1]) - 1
        expected = []
        for v, b in zip(points.numpy(), sample, strict=True):
            position = np.clip((v + 0.5) / 4 - 0.5, 0, last)
            total = torch.zeros(3)
            for corner in itertools.product((0, 1), repeat=len(size)):
                patch = np.floor(position).astype(int) + corner
                weight = float(np.prod(1 - np.abs(position - patch)))
                if weight > 0:
                    here = torch.from_numpy(v)[None]
                    total += weight * network.decode(terms, here, b[None], torch.from_numpy(patch)[None])[0]
            expected.append(total)
        close(network.decode_blended(terms, points, sample), torch.stack(expected))

    def test_only_blending_is_continuous_across_patch_borders(self, evaluated):
        network, _, embeddings = evaluated((12, 12))
        terms = network.first_layer_terms(embeddings)
        other = torch.linspace(-0.5, 11.5, 40)
        sample = torch.zeros(40, dtype=torch.int64)

        def jump(decode, place):
            sides = [torch.stack((torch.full_like(other, place + side), other), 1) for side in (-1e-4, 1e-4)]
            return (decode(terms, sides[0], sample) - decode(terms, sides[1], sample)).abs().max()

        for border in (3.5, 7.5):
            assert jump(network.decode, border) > 1e-3
            assert jump(network.decode_blended, border) < 0.1 * jump(network.decode, border)
        # at a patch's centre the set of blended patches changes
        assert jump(network.decode_blended, 5.5) < 0.1 * jump(network.decode, 3.5)

    @pytest.mark.parametrize("size", [(13, 9), (7, 10, 5)])
    @pytest.mark.parametrize("n", [64, 2])
    def test_a_training_step_decodes_the_same(self, evaluated, size, n):
        """It embeds all patches, or with few points those of the points alone."""
        network, x, embeddings = evaluated(size, n_spo=2, n_points=n)
        terms = network.first_layer_terms(embeddings)
        assert (embeddings.patch[..., 0].numel() < 2 * 3 * n) == (n == 64)
        sample = sample_points(labels_for(size), network.config, num_classes=3)
        outputs = network(x, sample.points, sample.neighbours)
        crop = torch.arange(2).repeat_interleave(n)
        points = sample.points.flatten(0, 1)
        close(outputs.patch.flatten(0, 1), network.decode(terms, points, crop))
        for i in range(2):
            patches = sample.neighbours[:, :, i].flatten(0, 1)
            found = outputs.neighbours.unflatten(1, (n, 2))[:, :, i].flatten(0, 1)
            close(found, network.decode(terms, points, crop, patches))
        own = patch_index(points, network.config.patch_size, embeddings.patch.shape[1:-1])
        z_patch = embeddings.patch[(crop, *own.T)]
        norms = z_patch.square().sum(-1).mean() + embeddings.image.square().sum(-1).mean()
        close(outputs.embedding_norm, norms)

    def test_the_image_decoder_sees_position_and_image_embedding(self, evaluated):
        network, x, embeddings = evaluated((8, 12, 8), n_spo=0)
        points = random_points((8, 12, 8), 2)[0].unflatten(0, (2, -1))
        outputs = network(x, points)
        assert outputs.neighbours is None
        decoder = network.image_decoder
        position = 2 * (points + 0.5) / torch.tensor([8, 12, 8]) - 1
        hidden = decoder.point_layer(position) + decoder.image_layer(embeddings.image)[:, None]
        close(outputs.image, decoder.seg_layers(F.relu(hidden)))


class TestGradients:
    @pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
    @pytest.mark.parametrize("size", [(12, 8), (8, 8, 12)])
    def test_every_parameter_is_trained(self, tiny_config, tiny_network, tiny_input, changes, size):
        """Of every ablation too: distributed training stops where a parameter gets no gradient."""
        config = tiny_config(len(size), **changes)
        network = tiny_network(config)
        sample = sample_points(labels_for(size), config, num_classes=3)
        outputs = network(tiny_input(config, size), sample.points, sample.neighbours)
        SwIPELoss(config, num_classes=3).points(outputs, sample).backward()
        missing = [name for name, p in network.named_parameters() if p.grad is None]
        assert missing == []
        assert all(torch.isfinite(p.grad).all() for p in network.parameters())

    @pytest.mark.parametrize("size", [(16, 8), (8, 8, 16)])
    @pytest.mark.parametrize("backbone", BACKBONES)
    @pytest.mark.parametrize("norm_op", ["InstanceNorm", "BatchNorm"])
    def test_every_backbone_trains_and_predicts(self, tiny_config, tiny_network, tiny_input, size, backbone, norm_op):
        config = tiny_config(len(size), backbone=backbone, norm_op=norm_op)
        network = tiny_network(config)
        x = tiny_input(config, size)
        target = torch.zeros(2, 1, *size)
        target[:, :, size[0] // 2 :] = 1  # which coordinates alone can tell
        sample = sample_points(target, config, num_classes=3)
        optimizer = torch.optim.Adam(network.parameters(), 3e-3)
        loss = SwIPELoss(config, num_classes=3)
        values = []
        for _ in range(8):
            optimizer.zero_grad()
            value = loss.points(network(x, sample.points, sample.neighbours), sample)
            value.backward()
            optimizer.step()
            values.append(value.item())
        assert values[-1] < values[0]
        with torch.no_grad():
            assert torch.isfinite(network.eval()(x)).all()

    @pytest.mark.parametrize("backbone", BACKBONES)
    @pytest.mark.parametrize("stride", [(4, 4), (8, 2)])
    def test_no_voxel_is_skipped_by_a_long_stride(self, tiny_config, backbone, stride):
        config = tiny_config(2, backbone=backbone, strides=(stride, (2, 2)))
        network = build_backbone(config, 1)
        x = torch.randn(1, 1, 32, 32, requires_grad=True)
        finest, coarser = network(x)
        assert finest.shape[2:] == (32 // stride[0], 32 // stride[1])
        assert coarser.shape[2:] == tuple(n // 2 for n in finest.shape[2:])
        finest.square().sum().backward()
        assert (x.grad != 0).all()


class TestConditioning:
    def test_without_global_conditioning_the_patch_decoder_sees_no_crop(self, evaluated):
        network, _, embeddings = evaluated((8, 12), global_conditioning=False)
        terms = network.first_layer_terms(embeddings)
        assert not list(network.patch_decoder.image_layer.parameters())
        assert network.patch_decoder.point_layer.in_features == 2 * 5 + 3  # p^P with Fourier features, p^S
        points, sample = random_points((8, 12), 2)
        other = embeddings._replace(image=embeddings.image + 1)
        assert torch.equal(
            network.decode(terms, points, sample), network.decode(network.first_layer_terms(other), points, sample)
        )

    def test_with_it_the_image_embedding_matters(self, evaluated):
        network, _, embeddings = evaluated((8, 12))
        terms = network.first_layer_terms(embeddings)
        assert network.patch_decoder.point_layer.in_features == 2 * 5 + 2 + 3
        points, sample = random_points((8, 12), 2)
        other = embeddings._replace(image=embeddings.image + 1)
        assert not torch.allclose(
            network.decode(terms, points, sample), network.decode(network.first_layer_terms(other), points, sample)
        )

    @pytest.mark.parametrize("size", [(8, 12), (8, 12, 4)])
    def test_the_frame_reaches_the_logits_only_as_source_coordinates(self, evaluated, size):
        network, x, embeddings = evaluated(size)
        box = [slice(3, 4)] * (3 - len(size)) + [slice(5, 5 + n) for n in size]
        moved = x.clone()
        moved[:, :N_SOURCE_CHANNELS] = torch.from_numpy(source_channels((20, 20, 20), box)).view(-1, *size)
        elsewhere = network.encode(moved)
        assert torch.equal(elsewhere.patch, embeddings.patch)
        assert torch.equal(elsewhere.image, embeddings.image)
        assert not torch.allclose(network(moved), network(x), atol=1e-4)
        network.patch_decoder.point_layer.weight[:, -3:] = 0  # p^S comes last
        assert torch.equal(network(moved), network(x))

    def test_without_source_coordinates_the_input_has_no_frame(self, evaluated):
        with_frame, x, _ = evaluated((8, 12), source_coordinates=True)
        without, image, embeddings = evaluated((8, 12), source_coordinates=False)
        assert with_frame.expected_channels == x.shape[1] == 5
        assert without.expected_channels == image.shape[1] == 1
        assert embeddings.source_frame is None
        assert without(image).shape == (2, 3, 8, 12)


class TestInstanceNorm:
    @pytest.mark.parametrize("size", [(5, 4), (5, 4, 3), (1, 2, 1)])
    @pytest.mark.parametrize("batch", [1, 3])
    @pytest.mark.parametrize("channels_last", [False, True])
    @pytest.mark.parametrize("way", [InstanceNorm.by_sample, InstanceNorm.at_once])  # on the CPU, and elsewhere
    def test_equals_its_formula(self, size, batch, channels_last, way):
        """Not compared to F.instance_norm, whose gradients of one channels-last sample are wrong (PyTorch 2.13)."""
        torch.manual_seed(0)
        norm = InstanceNorm(6)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        x = 3 * torch.randn(batch, 6, *size) + 2
        if channels_last:
            x = x.to(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
        outside = torch.randn_like(x)
        x.requires_grad_()
        found = way(norm, x)
        axes, shape = tuple(range(2, x.ndim)), (1, -1, *[1] * len(size))
        variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
        expected = (x - mean) / (variance + norm.eps).sqrt() * norm.weight.view(shape) + norm.bias.view(shape)
        close(found, expected)
        inputs = (x, norm.weight, norm.bias)
        gradients = (torch.autograd.grad((y * outside).sum(), inputs) for y in (found, expected))
        for a, b in zip(*gradients, strict=True):
            close(a, b, atol=1e-3)

    @pytest.mark.parametrize("dims", [2, 3])
    def test_a_single_voxel_keeps_its_value(self, dims):
        """There is nothing to normalise it by; its deviation from itself would be zero."""
        norm = InstanceNorm(6)
        x = torch.randn(2, 6, *[1] * dims)
        close(norm(x), x)


class TestNeck:
    @pytest.mark.parametrize("patch", [(4, 2), (8, 2), (4, 4, 2)])
    def test_pooling_is_the_mean_over_a_patch(self, patch):
        """Of a stage of stride 2."""
        x = torch.randn(2, 3, *(8, 4, 6)[: len(patch)])
        found = resize_to_grid(x, (2,) * len(patch), patch)
        blocks = [p // 2 for p in patch]
        grid = [n // b for n, b in zip(x.shape[2:], blocks, strict=True)]
        split = x.numpy().reshape(2, 3, *itertools.chain.from_iterable(zip(grid, blocks, strict=True)))
        np.testing.assert_allclose(found, split.mean(tuple(range(3, split.ndim, 2))), atol=1e-6)

    def test_a_coarse_stage_is_interpolated_linearly(self):
        """A ramp stays one between the outermost centres: voxel 4 i + 1.5 of the fine grid is voxel i of the coarse."""
        x = torch.arange(5.0).view(1, 1, 5, 1).expand(1, 1, 5, 2)
        found = resize_to_grid(x, (8, 8), (2, 8))
        assert found.shape == (1, 1, 20, 2)
        inner = torch.arange(2, 18)
        np.testing.assert_allclose(found[0, 0, 2:18, 0], (inner - 1.5) / 4, atol=1e-6)

    def test_one_axis_pooled_and_another_interpolated(self):
        x = torch.arange(6.0).view(1, 1, 6, 1).expand(1, 1, 6, 3)
        found = resize_to_grid(x, (2, 4), (4, 2))
        assert found.shape == (1, 1, 3, 6)
        np.testing.assert_allclose(found[0, 0], np.array([[0.5], [2.5], [4.5]]).repeat(6, 1), atol=1e-6)

    @pytest.mark.parametrize("direct", [True, False])
    def test_over_the_coarsest_stage_finer_detail_is_lost(self, tiny_config, direct):
        """A fine stage of stripes, two patches wide a period: what lies within one voxel of the coarsest stage."""
        neck = Neck(tiny_config(2, patch_size=(2, 2), neck_features=16, cascade=False, pool_to_patch_grid=direct))
        neck.receptive_fields = nn.ModuleList([nn.Identity(), nn.Identity()])
        stripes = torch.tensor([1.0, -1.0]).repeat(4).expand(1, 16, 8, 8)
        fine, coarse = neck([stripes, torch.ones(1, 16, 4, 4)])[0]
        expected = stripes if direct else torch.zeros_like(stripes)
        close(fine, expected.movedim(1, -1))
        close(coarse, torch.ones(1, 8, 8, 16))

    def test_attention_weighs_the_stages(self):
        torch.manual_seed(0)
        attention = MultiStageAttention(3, 16)
        stages = torch.randn(3, 2, 5, 16)
        total, weights = attention(list(stages))
        assert weights.shape == (2, 5, 3)
        assert weights.min() > 0
        close(weights.sum(-1), torch.ones(2, 5))
        assert weights.std() > 0
        close(total, stages.sum(0) + (weights.movedim(-1, 0)[..., None] * stages).sum(0))

    @pytest.mark.parametrize("size", [(8, 12), (8, 12, 5)])
    def test_attention_can_be_retrieved(self, evaluated, size):
        _, _, embeddings = evaluated(size)
        assert embeddings.attention.shape == (*embeddings.patch.shape[:-1], 2)
        close(embeddings.attention.sum(-1), torch.ones(embeddings.patch.shape[:-1]))
        assert evaluated(size, multi_stage_attention=False)[2].attention is None
