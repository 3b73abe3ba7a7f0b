"""nnU-Net's datasets of preprocessed cases, whose pickles are read only if they hold plain data."""

from pathlib import Path
from typing import Any

from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy

from nnunetv2_swipe.trust import read_pickle


class _PlainProperties:
    """Mixin: before nnU-Net's code unpickles the properties of a case, they are found to be plain data."""

    source_folder: str

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self._plain: set[str] = set()

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict]:
        if identifier not in self._plain:
            read_pickle(Path(self.source_folder) / f"{identifier}.pkl")
            self._plain.add(identifier)
        try:
            return super().load_case(identifier)  # type: ignore[misc]
        except Exception as error:  # a damaged file raises errors of nearly every kind
            raise ValueError(
                f"The case {identifier} in {self.source_folder} cannot be read ({error}). Its files are damaged; "
                "preprocess the dataset anew."
            ) from error


class PlainDatasetBlosc2(_PlainProperties, nnUNetDatasetBlosc2):
    """nnU-Net's dataset; ValueError for a case whose pickle holds anything but plain data."""


class PlainDatasetNumpy(_PlainProperties, nnUNetDatasetNumpy):
    """nnU-Net's older dataset format; ValueError for a case whose pickle holds anything but plain data."""


PLAIN_DATASETS = {nnUNetDatasetBlosc2: PlainDatasetBlosc2, nnUNetDatasetNumpy: PlainDatasetNumpy}
