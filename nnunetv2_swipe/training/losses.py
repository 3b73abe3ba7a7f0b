"""Occupancy losses (SwIPE, section 3.3): 0.5 cross-entropy + 0.5 Dice over the points, or the voxels, of a crop."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_swipe.config import SwIPEConfig
from nnunetv2_swipe.network.swipe_net import PointLogits
from nnunetv2_swipe.training.point_sampling import PointSample, tempered_weights

_SMOOTH = 1.0


def occupancy_loss(logits: Tensor, target: Tensor, weight: Tensor, *, regions: bool) -> Tensor:
    """L_occ = 0.5 CE + 0.5 (1 - Dice), per crop, averaged over the crops that have weight.

    Args:
        logits: (B, N, K).
        target: Labels (B, N) int64, or of regions memberships (B, N, K).
        weight: Weights of the points, (B, N); Dice is computed from sums weighted so.
        regions: Sigmoid and binary cross-entropy per region instead of softmax.

    Returns:
        A scalar, float32.
    """
    logits, weight = logits.float(), weight.float()
    w = weight[..., None]
    if regions:
        members = target.float()
        entropy = F.binary_cross_entropy_with_logits(logits, members, reduction="none").mean(-1)
        probability = logits.sigmoid()
        overlap = (w * probability * members).sum(1)
        volume = (w * members).sum(1)
    else:
        log_probability = logits.log_softmax(-1)
        probability = log_probability.exp()
        chosen = log_probability.gather(-1, target[..., None])[..., 0]
        entropy = -chosen
        nothing = torch.zeros_like(logits[:, 0])
        overlap = nothing.scatter_add(1, target, weight * chosen.exp())
        volume = nothing.scatter_add(1, target, weight)
    total = weight.sum(1)
    squares = (w * probability.square()).sum(1) + volume  # targets are 0 or 1: y^2 = y
    dice = (2 * overlap + _SMOOTH) / (squares + _SMOOTH)
    loss = 0.5 * (weight * entropy).sum(1) / total.clamp(min=1e-6) + 0.5 * (1 - dice.mean(1))
    has_weight = (total > 0).to(loss.dtype)
    return (loss * has_weight).sum() / has_weight.sum().clamp(min=1)


class SwIPELoss(nn.Module):
    """The training loss over points, and the same occupancy loss over all voxels for nnU-Net's online validation."""

    def __init__(self, config: SwIPEConfig, *, num_classes: int, ignore_label: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.ignore_label = ignore_label

    def points(self, outputs: PointLogits, sample: PointSample) -> Tensor:
        """L = alpha L_occ(patch) + (1 - alpha) L_occ(image) + beta L_occ(SPO) + lambda (|z^P|^2 + |z^I|^2)."""
        config = self.config
        weight = tempered_weights(sample, config.point_weight_exponent)
        patch = occupancy_loss(outputs.patch, sample.target, weight, regions=config.regions)
        if outputs.image is None:
            loss = patch
        else:
            image = occupancy_loss(outputs.image, sample.target, weight, regions=config.regions)
            loss = config.patch_loss_weight * patch + (1 - config.patch_loss_weight) * image
        if outputs.neighbours is not None:
            n = config.n_spo
            target, weight = sample.target.repeat_interleave(n, 1), weight.repeat_interleave(n, 1) / n
            neighbours = occupancy_loss(outputs.neighbours, target, weight, regions=config.regions)
            loss = loss + config.spo_loss_weight * neighbours
        return loss + config.embedding_loss_weight * outputs.embedding_norm

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """L_occ of dense logits (B, K, *size) against nnU-Net's target (B, 1 or R (+ 1), *size)."""
        logits = logits.flatten(2).movedim(1, 2)
        target = target.flatten(2)
        if self.config.regions:
            ignored = target[:, self.num_classes].bool() if self.ignore_label is not None else None
            labels = target[:, : self.num_classes].movedim(1, 2)
        else:
            labels = target[:, 0].long()
            ignored = labels == self.ignore_label if self.ignore_label is not None else None
        if ignored is None:
            weight = torch.ones(logits.shape[:2], device=logits.device)
        else:
            weight = (~ignored).float()
            labels = labels * ~ignored if not self.config.regions else labels
        return occupancy_loss(logits, labels, weight, regions=self.config.regions)
