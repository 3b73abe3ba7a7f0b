"""Memory that a training step needs, found by running it on tensors that hold no data."""

import math
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from nnunetv2_swipe.config import SwIPEConfig
from nnunetv2_swipe.network.swipe_net import SwIPENet
from nnunetv2_swipe.training.losses import SwIPELoss
from nnunetv2_swipe.training.point_sampling import PointSample


class PeakBytes(TorchDispatchMode):
    """Adds up the storages that are alive; `peak` is the most there were, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        result = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, torch.Tensor):
                self.count(tensor)
        return result

    def count(self, tensor):
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known.add(storage)
        n = storage.nbytes()
        self.alive += n
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._release, n)

    def _release(self, n):
        self.alive -= n


def training_memory(config: SwIPEConfig, crop: Sequence[int], batch: int, *, channels: int, num_classes: int, amp=torch.bfloat16) -> int:
    dims, n = config.dims, config.n_points
    with FakeTensorMode(), PeakBytes() as memory:
        network = SwIPENet(config, channels, num_classes)
        loss = SwIPELoss(config, num_classes=num_classes)
        optimizer = torch.optim.AdamW(network.parameters())
        for _ in range(2):
            x = torch.empty(batch, network.expected_channels, *crop)
            target = torch.empty(batch, n, num_classes) if config.regions else torch.empty(batch, n, dtype=torch.int64)
            neighbours = torch.empty(batch, n, config.n_spo, dims, dtype=torch.int64) if config.n_spo else None
            sample = PointSample(torch.empty(batch, n, dims), target, torch.empty(batch, n), neighbours)
            optimizer.zero_grad(set_to_none=True)
            value = loss.points(network(x, sample.points, sample.neighbours), sample)
            value.backward()
            optimizer.step()
            del value
    return memory.peak
