"""nnU-Net's augmentation, made to draw the same from the same seed in every process."""

from collections.abc import Iterator
from typing import Any

from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.nnunet.random_binary_operator import ApplyRandomBinaryOperatorTransform
from batchgeneratorsv2.transforms.nnunet.remove_connected_components import (
    RemoveRandomConnectedComponentFromOneHotEncodingTransform,
)
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform

_SHUFFLING = (ApplyRandomBinaryOperatorTransform, RemoveRandomConnectedComponentFromOneHotEncodingTransform)


class Repeatable(BasicTransform):
    """A transform whose result depends on image and seed alone, not on the process or on what it did before.

    Args:
        transform: Any composition of nnU-Net's transforms. Some of them are set to be repeatable.
    """

    def __init__(self, transform: BasicTransform) -> None:
        super().__init__()
        self.transform = transform
        parts = list(_parts(transform))
        self._shuffling = [part for part in parts if isinstance(part, _SHUFFLING)]
        for part in parts:
            if isinstance(part, GaussianBlurTransform):
                # else a stopwatch chooses, in each process, between two convolutions that differ in the last bits
                part.benchmark = False

    def apply(self, data_dict: dict, **_: Any) -> dict:  # noqa: ANN401
        """Transform one sample."""
        for part in self._shuffling:
            part.channel_idx.sort()  # they shuffle it in place and go on from there
        return self.transform(**data_dict)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.transform})"


def _parts(transform: BasicTransform) -> Iterator[BasicTransform]:
    """A transform and all that it is composed of."""
    yield transform
    for value in vars(transform).values():
        for part in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(part, BasicTransform):
                yield from _parts(part)
