"""Learning-rate schedule, stepped with fractions of an epoch."""

import math

import torch
from torch.optim.lr_scheduler import LRScheduler


class WarmupCosine(LRScheduler):
    """Linear warm-up, then cosine decay to zero.

    Args:
        optimizer: The optimizer whose rates are set.
        initial_lr: Peak learning rate.
        num_epochs: Epochs until the rate is zero.
        warmup_epochs: Epochs (or a fraction of one) of the warm-up.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, initial_lr: float, num_epochs: float, warmup_epochs: float = 0.0
    ) -> None:
        self.initial_lr = initial_lr
        self.num_epochs = num_epochs
        self.warmup_epochs = warmup_epochs
        super().__init__(optimizer)

    def factor(self, epoch: float) -> float:
        """Fraction of the peak rate at an epoch."""
        if epoch < self.warmup_epochs:
            return (epoch + 1e-3) / (self.warmup_epochs + 1e-3)
        progress = (epoch - self.warmup_epochs) / max(self.num_epochs - self.warmup_epochs, 1e-9)
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    def step(self, epoch: float | None = None) -> None:
        """Set the rate for an epoch, fractions allowed."""
        rate = self.initial_lr * self.factor(epoch or 0.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._last_lr = [rate] * len(self.optimizer.param_groups)
