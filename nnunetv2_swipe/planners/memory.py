"""Memory of a training step, found by running it on tensors that hold no data."""

import math
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnunetv2_swipe.config import SwIPEConfig
from nnunetv2_swipe.network.backbones import InstanceNorm
from nnunetv2_swipe.network.swipe_net import SwIPENet
from nnunetv2_swipe.precision import forced_precision
from nnunetv2_swipe.training.losses import SwIPELoss
from nnunetv2_swipe.training.point_sampling import PointSample

GIB = 1 << 30
MIN_BATCH_SIZE = 2
"""As nnU-Net's."""
NETWORK_OVERHEAD, POINT_OVERHEAD = 1.5, 1.06
"""What kernels and the allocator add to the tensors: convolutions much, matrix products of points little.

Fitted to six shapes on the CPU; the tensors of two plans on a GPU, without a CUDA graph, took 17 and 31% less
(docs/results.md).
"""


def training_memory(
    config: SwIPEConfig, crop: Sequence[int], batch_size: int, *, channels: int, num_classes: int, amp: str = "bf16"
) -> int:
    """Estimate of the peak memory of training, in bytes: network, optimizer, activations, gradients, validation.

    Args:
        config: SwIPE's settings.
        crop: Size of a training crop in voxels.
        batch_size: Crops per step.
        channels: Image channels.
        num_classes: Segmentation heads.
        amp: Precision of the network, "bf16" (as on a GPU) or "off" (float32).
    """
    few = config.replace(n_points=1)
    total, network = (_step_memory(c, crop, batch_size, channels, num_classes, amp) for c in (config, few))
    step = NETWORK_OVERHEAD * network + POINT_OVERHEAD * (total - network)
    # nnU-Net's online validation: dense float32 logits and, at the worst, what true and false positives and negatives
    # are counted from; meanwhile the CUDA graph of the step keeps its memory
    tensors = 11 if config.regions else 8
    validation = 4 * tensors * batch_size * num_classes * math.prod(crop)
    return round(step + validation)


def _step_memory(
    config: SwIPEConfig, crop: Sequence[int], batch_size: int, channels: int, num_classes: int, amp: str
) -> int:
    """Most bytes of tensors that are alive at once in a training step."""
    n, dims = config.n_points, config.dims
    target = (batch_size, n, num_classes) if config.regions else (batch_size, n)
    with forced_precision(amp), FakeTensorMode(), _LiveTensors() as live:
        network = _as_on_a_gpu(SwIPENet(config, channels, num_classes))
        loss = SwIPELoss(config, num_classes=num_classes)
        x = torch.empty(batch_size, network.expected_channels, *crop)
        sample = PointSample(
            points=torch.empty(batch_size, n, dims),
            target=torch.empty(target, dtype=torch.float32 if config.regions else torch.int64),
            weight=torch.empty(batch_size, n),
            neighbours=torch.empty(batch_size, n, config.n_spo, dims, dtype=torch.int64) if config.n_spo else None,
        )
        loss.points(network(x, sample.points, sample.neighbours), sample).backward()
        adam = 2 * sum(p.nbytes for p in network.parameters())
    return adam + live.peak


def _as_on_a_gpu(network: SwIPENet) -> SwIPENet:
    """The network, normalising as a GPU does: the number of operations does not grow with the batch."""
    for module in network.modules():
        if isinstance(module, InstanceNorm):
            module.one_by_one_on_cpu = False
    return network


def fitting_batch_size(
    config: SwIPEConfig, crop: Sequence[int], batch_size: int, target: float, *, channels: int, num_classes: int
) -> tuple[int, int]:
    """The batch size, reduced (to two at the least) until training fits into `target` bytes, and what it needs.

    Memory is the largest of sums that grow linearly with the batch, so it is nowhere above the line between two batch
    sizes: what fits by that line fits.
    """

    def needed(n: int) -> int:
        return training_memory(config, crop, n, channels=channels, num_classes=num_classes)

    at_most = needed(batch_size)
    if at_most <= target or batch_size <= MIN_BATCH_SIZE:
        return batch_size, at_most
    at_least = needed(MIN_BATCH_SIZE)
    if at_least >= target:
        return MIN_BATCH_SIZE, at_least
    share = (target - at_least) / (at_most - at_least)
    fitting = MIN_BATCH_SIZE + int(share * (batch_size - MIN_BATCH_SIZE))
    return fitting, needed(fitting)


class _LiveTensors(TorchDispatchMode):
    """Adds up the memory of all tensors that are alive: `peak` is the most there was, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._bytes = 0
        self._known: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known:
            self._known.add(storage)
            self._change(storage.nbytes())
            weakref.finalize(storage, self._change, -storage.nbytes())

    def _change(self, n: int) -> None:
        self._bytes += n
        self.peak = max(self.peak, self._bytes)
