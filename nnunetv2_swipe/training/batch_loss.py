"""The training loss of a batch, from the label crops to the number; on a GPU replayed as a CUDA graph."""

import warnings

import torch
from torch import Tensor, nn

from nnunetv2_swipe.training.losses import SwIPELoss
from nnunetv2_swipe.training.point_sampling import sample_points


class BatchLoss(nn.Module):
    """Draws the points of a batch, decodes them and compares them with their labels.

    Args:
        network: A `SwIPENet`, or what wraps it.
        loss: The loss over points.
    """

    def __init__(self, network: nn.Module, loss: SwIPELoss) -> None:
        super().__init__()
        self.network = network
        self.loss = loss

    def forward(self, data: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch (B, channels, *size) with nnU-Net's target (B, 1 or R (+ 1), *size), a scalar."""
        loss = self.loss
        sample = sample_points(target, loss.config, num_classes=loss.num_classes, ignore_label=loss.ignore_label)
        return loss.points(self.network(data, sample.points, sample.neighbours), sample)  # chooses its own precision


def capture_cuda_graph(batch_loss: BatchLoss, data: Tensor, target: Tensor) -> None:
    """From now on its forward and its backward pass are one launch each instead of thousands.

    Parameters may change their values later, batches not their shape. Each call draws new points. Random numbers and
    buffers are left as they were found. No other thread may use the GPU meanwhile.

    Args:
        batch_loss: In training mode, its parameters and the batch on a GPU.
        data: A batch of any values, (B, channels, *size).
        target: Its labels, (B, 1 or R (+ 1), *size).
    """
    # gradients are added on the stream of the capture, which could break another capture; there is none
    warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream does not match")
    buffers = [buffer.clone() for buffer in batch_loss.buffers()]
    with torch.random.fork_rng(devices=[data.device]):
        torch.cuda.make_graphed_callables(batch_loss, (data, target))
    for buffer, before in zip(batch_loss.buffers(), buffers, strict=True):
        buffer.copy_(before)
