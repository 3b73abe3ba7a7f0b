"""Adding the source frame to images: a dataset for training and validation, transforms that leave it alone."""

import itertools
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy

from nnunetv2_swipe.network.coordinates import N_SOURCE_CHANNELS, with_source_channels
from nnunetv2_swipe.preprocessing.datasets import PlainDatasetBlosc2, PlainDatasetNumpy

_SPATIAL_TRANSFORMS = (SpatialTransform, MirrorTransform, Convert3DTo2DTransform, Convert2DTo3DTransform)


class ImageWithSourceFrame:
    """A (C, z, y, x) array with the four source-frame channels in front, computed for whatever part is read."""

    def __init__(self, data: Any) -> None:  # noqa: ANN401  (numpy, memory map or blosc2)
        self.data = data
        self.shape = (data.shape[0] + N_SOURCE_CHANNELS, *data.shape[1:])
        self.ndim = data.ndim
        self.dtype = data.dtype

    def __getitem__(self, item: slice | tuple[slice, ...]) -> np.ndarray:
        """Read a box of all channels; the first slice must be `:`."""
        box = item if isinstance(item, tuple) else (item,)
        if box[0] != slice(None) and item is not Ellipsis:
            raise IndexError("An image with source frame is read with all its channels, as image[:, z, y, x].")
        box = (slice(None), *box[1:]) + (slice(None),) * (self.ndim - len(box))
        return with_source_channels(np.asarray(self.data[box]), self.shape[1:], box[1:])


class _WithSourceFrame:
    """Mixin for nnU-Net's datasets."""

    def load_case(self, identifier: str) -> tuple[ImageWithSourceFrame, Any, Any, dict]:
        data, seg, seg_prev, properties = super().load_case(identifier)  # type: ignore[misc]
        return ImageWithSourceFrame(data), seg, seg_prev, properties


class SwIPEDatasetBlosc2(_WithSourceFrame, PlainDatasetBlosc2):
    """nnU-Net's dataset, each image with its source frame."""


class SwIPEDatasetNumpy(_WithSourceFrame, PlainDatasetNumpy):
    """nnU-Net's older dataset format, each image with its source frame."""


DATASETS_WITH_SOURCE_FRAME = {nnUNetDatasetBlosc2: SwIPEDatasetBlosc2, nnUNetDatasetNumpy: SwIPEDatasetNumpy}


class OnImageOnly(BasicTransform):
    """Apply a transform to the image channels and leave the source frame as it is."""

    def __init__(self, transform: BasicTransform) -> None:
        super().__init__()
        self.transform = transform

    def apply(self, data_dict: dict, **_: Any) -> dict:  # noqa: ANN401
        """Split the frame off, transform, put it back in front."""
        frame, data_dict["image"] = data_dict["image"].tensor_split([N_SOURCE_CHANNELS])
        data_dict = self.transform(**data_dict)
        data_dict["image"] = torch.cat((frame, data_dict["image"]))
        return data_dict

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.transform})"


def keep_source_frame(transforms: BasicTransform) -> ComposeTransforms:
    """nnU-Net's transforms, with those that change intensities or channels kept off the source frame."""
    steps = transforms.transforms if isinstance(transforms, ComposeTransforms) else [transforms]
    kept: list[BasicTransform] = []
    for spatial, group in itertools.groupby(steps, lambda t: isinstance(t, _SPATIAL_TRANSFORMS)):
        run = list(group)
        kept += run if spatial else [OnImageOnly(ComposeTransforms(run))]  # splits the frame off once for all of them
    return ComposeTransforms(kept)
