"""Occupancy decoders: small MLPs from a position and its embeddings to class logits (SwIPE, section 3.2)."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """Dropout that draws one random byte per value on the CPU, where PyTorch's takes ten times as long.

    The probability is rounded to a 256th, upwards.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Set values to zero with probability p and scale the others; in evaluation nothing happens."""
        if not self.training or self.p == 0 or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        dropped = min(math.ceil(256 * self.p), 255)
        draws = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
        kept = draws.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
        return x * (kept.to(x.dtype) * (256 / (256 - dropped)))


class OccupancyDecoder(nn.Module):
    """MLP whose first layer is a sum of per-point, per-patch and per-image terms; dropout before the last layer.

    The output layer is called ``seg_layers``, as in nnU-Net's networks: nnU-Net does not transfer layers of that name
    from pretrained weights, because the classes differ.
    """

    def __init__(
        self,
        *,
        point_features: int,
        patch_features: int,
        image_features: int,
        hidden_features: Sequence[int],
        num_classes: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        first = hidden_features[0]
        self.point_layer = nn.Linear(point_features, first)
        self.patch_layer = nn.Linear(patch_features, first, bias=False) if patch_features else nn.Identity()
        self.image_layer = nn.Linear(image_features, first, bias=False) if image_features else nn.Identity()
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(hidden_features))
        self.dropout = Dropout(dropout)
        self.seg_layers = nn.Linear(hidden_features[-1], num_classes)

    def forward(self, points: Tensor, *terms: Tensor) -> Tensor:
        """Decode points.

        Args:
            points: (..., point_features) position features, float32.
            terms: (..., hidden_features[0]) outputs of `patch_layer` for each point's patch and of `image_layer` for
                its image, one of them at least.

        Returns:
            Logits (..., num_classes).
        """
        x = self._point_term(points, terms[0].dtype)
        for term in terms:
            x = x + term
        return self.from_first_layer(x)

    def _point_term(self, points: Tensor, dtype: torch.dtype) -> Tensor:
        """The first layer of positions; in reduced precision they enter as two parts that add up to them."""
        if dtype == points.dtype:
            return self.point_layer(points)
        high = points.to(dtype)
        parts = torch.cat((high, (points - high).to(dtype)), -1)
        weight = self.point_layer.weight
        return F.linear(parts, torch.cat((weight, weight), 1), self.point_layer.bias)

    def from_first_layer(self, x: Tensor) -> Tensor:
        """What follows the first layer's sum of terms: (..., hidden_features[0]) -> logits (..., num_classes)."""
        for layer in self.hidden:
            x = layer(F.relu(x))
        return self.seg_layers(self.dropout(F.relu(x)))
