"""Folders of preprocessed data, with a record of the raw files that they were made from."""

from pathlib import Path
from typing import Any

from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunetv2_swipe.dataset_json import read_dataset_json
from nnunetv2_swipe.files import digest, keep_json, read_json, stamp
from nnunetv2_swipe.freshness import changed_since, raw_files
from nnunetv2_swipe.planners.shared_data import preprocessing_settings
from nnunetv2_swipe.stored_cases import files_of_stored_case, read_properties, read_shape, visible_files

RECORD = Path("swipe", "made_from.json")
"""Within a folder of preprocessed data, in a folder of its own: nnU-Net takes every file beside the data for data."""


class PreprocessedData:
    """The preprocessed data of a configuration, and the raw files as they were when this object was made.

    Make it before preprocessing begins: a raw file that changes meanwhile then counts as changed.

    Attributes:
        cases: Case -> its raw files, as nnU-Net lists them: `images`, one per channel, and `label`.

    Raises:
        ValueError: The raw dataset.json cannot be used.
        OSError: A raw file is missing.
    """

    def __init__(
        self, folder: Path, raw: Path, plans_manager: PlansManager, configuration: ConfigurationManager
    ) -> None:
        self._folder, self._plans, self._configuration = folder, plans_manager, configuration
        self._dataset_json = raw / "dataset.json"
        self.cases: dict[str, dict[str, Any]] = get_filenames_of_train_images_and_targets(
            str(raw), read_dataset_json(self._dataset_json)
        )
        self._made_from = {
            "dataset.json": digest(self._dataset_json),
            "cases": {case: [stamp(file) for file in raw_files(files)] for case, files in self.cases.items()},
            "settings": preprocessing_settings(plans_manager.plans, configuration.configuration),
        }

    def is_up_to_date(self) -> bool:
        """Whether the data are whole, and made from these raw files by these settings.

        With a record everything must be as it says. Data without one, which nnU-Net's preprocessor made, must be newer
        than every raw file, can be read to their end and have the shape that the plan gives.
        """
        if not self._folder.is_dir():
            return False
        record = self._folder / RECORD
        if record.is_file():
            try:
                return read_json(record) == self._record()
            except (ValueError, OSError):
                return False
        found = [name for name in nnUNetDatasetBlosc2.get_identifiers(str(self._folder)) if name[:1] != "."]
        return set(found) == set(self.cases) and all(map(self._is_newer, found)) and all(map(self._is_whole, found))

    def keep_record(self) -> None:
        """Record that the data in the folder are up to date."""
        keep_json(self._record(), self._folder / RECORD)

    def _record(self) -> dict[str, Any]:
        stored = [stamp(file)[:3] for file in visible_files(self._folder)]  # a copy of the folder is as good
        return {"made_from": self._made_from, "stored": stored}

    def _is_newer(self, case: str) -> bool:
        stored = files_of_stored_case(self._folder, case)
        if not all(file.is_file() for file in stored):
            return False
        oldest = min(file.stat().st_mtime_ns for file in stored)
        return changed_since(oldest, [self._dataset_json, *raw_files(self.cases[case])]) is None

    def _is_whole(self, case: str) -> bool:
        image, segmentation, properties_file = files_of_stored_case(self._folder, case)
        try:
            shapes = {read_shape(file)[1:] for file in (image, segmentation)}
            properties = read_properties(properties_file)
            spacing = [properties["spacing"][i] for i in self._plans.transpose_forward]
            planned = self._configuration.spacing
            target = [*spacing[: len(spacing) - len(planned)], *planned]
            shape = compute_new_shape(properties["shape_after_cropping_and_before_resampling"], spacing, target)

        except Exception:  # damaged files raise errors of nearly every kind
            return False
        return shapes == {tuple(max(1, n) for n in shape)}
