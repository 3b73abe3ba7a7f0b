"""From the files of a case to what the network reads, here or in another process."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager


class CasePreprocessor(NamedTuple):
    """Preprocesses cases for a model; it can be sent to another process.

    The results are the preprocessed image (channels, z, y, x), in a cascade with the previous stage's labels one-hot
    behind it, and what the preprocessor says of it.
    """

    preprocessor: DefaultPreprocessor
    plans: PlansManager
    configuration: ConfigurationManager
    dataset_json: dict[str, Any]

    def of_files(self, images: list[str], previous_stage: str | None) -> tuple[np.ndarray, dict[str, Any]]:
        """Preprocess image files, one for each channel; of a cascade with the previous stage's label file."""
        found = self.preprocessor.run_case(images, previous_stage, self.plans, self.configuration, self.dataset_json)
        return self._stacked(previous_stage is not None, *found)

    def in_worker(self, images: list[str], previous_stage: str | None) -> tuple[np.ndarray, dict[str, Any]]:
        """Preprocess image files in a process that is one of several: it takes one thread."""
        torch.set_num_threads(1)
        return self.of_files(images, previous_stage)

    def of_array(
        self, image: np.ndarray, properties: Mapping[str, Any], previous_stage: np.ndarray | None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Preprocess what nnU-Net's reader returns: an image (channels, z, y, x) and its properties."""
        found = self.preprocessor.run_case_npy(
            image, previous_stage, dict(properties), self.plans, self.configuration, self.dataset_json
        )
        return self._stacked(previous_stage is not None, *found)

    def _stacked(
        self, cascade: bool, data: np.ndarray, seg: np.ndarray, properties: dict[str, Any]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        if cascade:
            labels = self.plans.get_label_manager(self.dataset_json).foreground_labels
            data = np.concatenate((data, convert_labelmap_to_one_hot(seg[0], labels, data.dtype)))
        return data, properties
