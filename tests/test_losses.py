"""Losses against plain NumPy."""

import numpy as np
import pytest
import torch

from nnunetv2_swipe.network.swipe_net import PointLogits
from nnunetv2_swipe.training.losses import SwIPELoss, occupancy_loss
from nnunetv2_swipe.training.point_sampling import PointSample

B, N, K = 3, 40, 4
IGNORE = 4


def occupancy_numpy(logits, target, weight, regions):
    """0.5 CE + 0.5 (1 - Dice) of each crop that has weight, in double precision, averaged."""
    losses = []
    for z, y, w in zip(*(np.asarray(a, dtype=float) for a in (logits, target, weight)), strict=True):
        if w.sum() == 0:
            continue
        if regions:
            p = 1 / (1 + np.exp(-z))
            entropy = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean(-1)
        else:
            y = np.eye(z.shape[-1])[y.astype(int)]
            p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
            entropy = -np.log((p * y).sum(-1))
        dice = [
            (2 * (w * p[:, k] * y[:, k]).sum() + 1) / ((w * p[:, k] ** 2).sum() + (w * y[:, k] ** 2).sum() + 1)
            for k in range(z.shape[-1])
        ]
        losses.append(0.5 * (w * entropy).sum() / w.sum() + 0.5 * (1 - np.mean(dice)))
    return np.mean(losses)


def random_points(regions, seed=0):
    """Logits, targets and weights of a batch."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(B, N, K, generator=generator)
    target = torch.randint(0, 2 if regions else K, (B, N, K) if regions else (B, N), generator=generator)
    weight = 10 * torch.rand(B, N, generator=generator)
    return logits, target.float() if regions else target, weight


@pytest.mark.parametrize("regions", [False, True])
class TestOccupancyLoss:
    @pytest.mark.parametrize("absent", [None, 2])
    def test_equals_numpy(self, regions, absent):
        logits, target, weight = random_points(regions)
        if absent is not None and regions:
            target[..., absent] = 0
        elif absent is not None:
            target[target == absent] = 0
        found = occupancy_loss(logits, target, weight, regions=regions)
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(occupancy_numpy(logits, target, weight, regions), rel=1e-5)

    def test_a_perfect_prediction_costs_nothing(self, regions):
        _, target, weight = random_points(regions)
        truth = target if regions else torch.nn.functional.one_hot(target, K)
        assert occupancy_loss(40.0 * (2 * truth - 1), target, weight, regions=regions).item() < 1e-4

    def test_the_opposite_costs_much(self, regions):
        _, target, weight = random_points(regions)
        truth = target if regions else torch.nn.functional.one_hot(target, K)
        assert occupancy_loss(-40.0 * (2 * truth - 1), target, weight, regions=regions).item() > 10

    def test_half_precision_logits_are_summed_in_float32(self, regions):
        logits, target, weight = random_points(regions)
        logits, weight = logits.bfloat16(), 1e4 * weight
        found = occupancy_loss(logits, target, weight, regions=regions).item()
        assert found == pytest.approx(occupancy_numpy(logits.float(), target, weight, regions), rel=1e-4)

    def test_crops_without_weight_do_not_count(self, regions):
        logits, target, weight = random_points(regions)
        weight[1] = 0
        logits.requires_grad_()
        loss = occupancy_loss(logits, target, weight, regions=regions)
        others = [0, 2]
        expected = occupancy_numpy(logits[others].detach(), target[others], weight[others], regions)
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        loss.backward()
        assert logits.grad[1].eq(0).all()
        assert logits.grad[others].ne(0).all()

    def test_no_weight_at_all_is_no_loss(self, regions):
        logits, target, weight = random_points(regions)
        logits.requires_grad_()
        loss = occupancy_loss(logits, target, 0 * weight, regions=regions)
        loss.backward()
        assert loss.item() == 0
        assert logits.grad.eq(0).all()


@pytest.mark.parametrize("regions", [False, True])
class TestPointLoss:
    ALPHA, BETA, LAMBDA = 0.7, 0.3, 0.01

    @pytest.fixture
    def sample(self, regions):
        _, target, weight = random_points(regions)
        return PointSample(torch.zeros(B, N, 3), target, weight, None)

    @pytest.fixture
    def make_loss(self, tiny_config, regions):
        def make(**changes):
            config = tiny_config(
                patch_loss_weight=self.ALPHA,
                spo_loss_weight=self.BETA,
                embedding_loss_weight=self.LAMBDA,
                regions=regions,
                **changes,
            )
            return SwIPELoss(config, num_classes=K)

        return make

    @pytest.mark.parametrize("with_image", [True, False])
    @pytest.mark.parametrize("n_spo", [0, 1, 3])
    @pytest.mark.parametrize("exponent", [1.0, 0.5, 0.0])
    def test_is_the_weighted_sum_of_its_parts(self, make_loss, sample, regions, with_image, n_spo, exponent):
        patch, image = random_points(regions, seed=1)[0], random_points(regions, seed=2)[0]
        neighbours = torch.randn(B, N * n_spo, K, generator=torch.Generator().manual_seed(3))
        outputs = PointLogits(patch, image if with_image else None, neighbours if n_spo else None, torch.tensor(5.0))
        found = make_loss(n_spo=n_spo, point_weight_exponent=exponent).points(outputs, sample)

        weight = sample.weight**exponent
        expected = occupancy_numpy(patch, sample.target, weight, regions)
        if with_image:
            of_image = occupancy_numpy(image, sample.target, weight, regions)
            expected = self.ALPHA * expected + (1 - self.ALPHA) * of_image
        if n_spo:
            # the neighbours of a point follow one another and share its weight
            target, weight = (np.repeat(a.numpy(), n_spo, axis=1) for a in (sample.target, weight / n_spo))
            expected += self.BETA * occupancy_numpy(neighbours, target, weight, regions)
        assert found.item() == pytest.approx(expected + self.LAMBDA * 5, rel=1e-5)

    def test_every_part_gets_a_gradient(self, make_loss, sample):
        parts = [torch.randn(B, N, K, requires_grad=True) for _ in range(3)]
        norm = torch.tensor(5.0, requires_grad=True)
        make_loss().points(PointLogits(*parts, norm), sample).backward()
        assert all(part.grad.ne(0).all() for part in parts)
        assert norm.grad.item() == pytest.approx(self.LAMBDA)


@pytest.mark.parametrize("size", [(5, 6), (3, 4, 5)])
@pytest.mark.parametrize("ignore", [False, True])
class TestDenseLoss:
    @staticmethod
    def flat(x):
        """(B, C, *size) -> (B, V, C)."""
        return x.flatten(2).movedim(1, 2)

    def test_of_labels(self, tiny_config, size, ignore):
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(2, K, *size, generator=generator)
        target = torch.randint(0, K + ignore, (2, 1, *size), generator=generator, dtype=torch.int16)
        loss = SwIPELoss(tiny_config(), num_classes=K, ignore_label=IGNORE if ignore else None)
        labels = self.flat(target)[..., 0]
        annotated = labels != IGNORE
        expected = occupancy_numpy(self.flat(logits), labels * annotated, annotated, regions=False)
        assert loss(logits, target).item() == pytest.approx(expected, rel=1e-5)
        # what is predicted where nobody annotated does not matter
        changed = torch.where(target == IGNORE, -logits, logits)
        assert torch.equal(changed, logits) != ignore
        assert loss(changed, target).item() == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
    def test_of_regions(self, tiny_config, size, ignore, dtype):
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(2, K, *size, generator=generator)
        target = torch.randint(0, 2, (2, K + ignore, *size), generator=generator).to(dtype)
        loss = SwIPELoss(tiny_config(regions=True), num_classes=K, ignore_label=IGNORE if ignore else None)
        annotated = ~target[:, K].bool() if ignore else torch.ones(2, *size)
        expected = occupancy_numpy(self.flat(logits), self.flat(target[:, :K]), annotated.flatten(1), regions=True)
        assert loss(logits, target).item() == pytest.approx(expected, rel=1e-5)
