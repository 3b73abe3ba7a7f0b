"""SwIPEPreprocessor: nnU-Net's preprocessing, plus what SwIPE needs at prediction."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunetv2_swipe.labels import declared_labels, require_declared
from nnunetv2_swipe.network.coordinates import with_source_channels
from nnunetv2_swipe.planners.shared_data import is_used_by_others, other_plans, require_alike

logger = logging.getLogger(__name__)


class SwIPEPreprocessor(DefaultPreprocessor):
    """nnU-Net's default preprocessor, which it equals in the data it stores for training.

    - Bad input stops with an error that names the case: NaN or infinite intensities, undeclared labels.
    - Training data that another plan uses as well, complete and up to date, are kept.
    """

    def run_case(
        self,
        image_files: list[str],
        seg_file: str | None,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: dict | str,
    ) -> tuple[np.ndarray, np.ndarray, dict]:
        """As nnU-Net's; errors name the files."""
        try:
            return super().run_case(image_files, seg_file, plans_manager, configuration_manager, dataset_json)
        except ValueError as e:
            files = image_files if seg_file is None else [*image_files, seg_file]
            raise ValueError(f"Case {', '.join(files)}: {e}") from e

    def run_case_npy(
        self,
        data: np.ndarray,
        seg: np.ndarray | None,
        properties: dict,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: dict | str,
    ) -> tuple[np.ndarray, np.ndarray, dict]:
        """As nnU-Net's, with checked input; an image thinner than half a voxel of the plan becomes one voxel there.

        Raises:
            ValueError: The image holds NaN or infinity, or the segmentation an undeclared label.
        """
        dataset_json = load_json(dataset_json) if isinstance(dataset_json, str) else dataset_json
        _check_case(data, seg, plans_manager, dataset_json)
        spacing = _spacing_of_a_voxel(data, properties["spacing"], plans_manager, configuration_manager)
        data, seg, found = super().run_case_npy(
            data, seg, {**properties, "spacing": spacing}, plans_manager, configuration_manager, dataset_json
        )
        return data, seg, {**found, "spacing": properties["spacing"]}

    def run(
        self, dataset_name_or_id: int | str, configuration_name: str, plans_identifier: str, num_processes: int
    ) -> None:
        """Preprocess a dataset, unless data that another plan uses as well are there, complete and up to date.

        Raises:
            ValueError: Another plan uses the same data folder, but preprocesses otherwise.
        """
        dataset_name = maybe_convert_to_dataset_name(dataset_name_or_id)
        base = Path(nnUNet_preprocessed) / dataset_name
        plans_manager = PlansManager(str(base / f"{plans_identifier}.json"))
        configuration = plans_manager.get_configuration(configuration_name)
        others = other_plans(base, plans_identifier)
        require_alike(plans_manager.plans, configuration.configuration, others)
        shared = is_used_by_others(configuration.configuration, others)
        if shared and _is_up_to_date(base / configuration.data_identifier, dataset_name, plans_manager, configuration):
            logger.warning("Using the data in %s, preprocessed before.", base / configuration.data_identifier)
            return
        super().run(dataset_name_or_id, configuration_name, plans_identifier, num_processes)


class SwIPEPreprocessor_withSourceFrame(SwIPEPreprocessor):
    """What the plan of a trained model names: images to predict get the source frame as leading channels."""

    def run_case_npy(self, *args: Any, **kwargs: Any) -> tuple[np.ndarray, np.ndarray, dict]:  # noqa: ANN401
        """As `SwIPEPreprocessor`'s, the source frame in front of the image: (4 + C, z, y, x)."""
        data, seg, properties = super().run_case_npy(*args, **kwargs)
        return with_source_channels(data), seg, properties

    def run_case_save(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Stored data have no source frame: the training dataset adds it as it reads them."""
        SwIPEPreprocessor(self.verbose).run_case_save(*args, **kwargs)


def _check_case(data: np.ndarray, seg: np.ndarray | None, plans_manager: PlansManager, dataset_json: dict) -> None:
    """ValueError if the image is not finite or the segmentation holds an undeclared label."""
    finite = np.isfinite(data)
    if not finite.all():
        raise ValueError(
            f"the image holds {(~finite).sum()} values that are NaN or infinite. Replace them, for example with the "
            "image's minimum."
        )
    if seg is not None:
        declared = declared_labels(plans_manager.get_label_manager(dataset_json))
        require_declared(seg, declared, "the segmentation")


def _spacing_of_a_voxel(
    data: np.ndarray,
    spacing: Sequence[float],
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
) -> list[float]:
    """The spacing of an image (C, z, y, x), larger along axes that would have no voxel of the plan's spacing.

    nnU-Net rounds the number of voxels, to none if all voxels that are not zero are thinner together than half a voxel
    of the plan. With the spacing returned there is one.
    """
    result = list(map(float, spacing))
    wanted = configuration_manager.spacing
    for axis, target in zip(plans_manager.transpose_forward[-len(wanted) :], wanted, strict=True):
        if compute_new_shape([1], [result[axis]], [target])[0] > 0:
            continue
        occupied = np.flatnonzero((data != 0).any(tuple(i for i in range(4) if i != axis + 1)))
        n = occupied[-1] - occupied[0] + 1 if len(occupied) else data.shape[axis + 1]  # what nnU-Net crops to
        if compute_new_shape([n], [result[axis]], [target])[0] == 0:
            result[axis] = target / n
    return result


def _is_up_to_date(
    folder: Path, dataset_name: str, plans_manager: PlansManager, configuration: ConfigurationManager
) -> bool:
    """Whether these are the cases, newer than their raw files and dataset.json, of the shape the plan gives."""
    raw = Path(nnUNet_raw) / dataset_name
    cases = get_filenames_of_train_images_and_targets(str(raw), load_json(str(raw / "dataset.json")))
    if not folder.is_dir() or set(nnUNetDatasetBlosc2.get_identifiers(str(folder))) != set(cases):
        return False
    for identifier, files in cases.items():
        stored = [folder / f"{identifier}{ending}" for ending in (".b2nd", "_seg.b2nd", ".pkl")]
        if not all(f.is_file() for f in stored):
            return False
        newest_raw = max(Path(f).stat().st_mtime for f in (*files["images"], files["label"], raw / "dataset.json"))
        if min(f.stat().st_mtime for f in stored) < newest_raw:
            return False
        data, _, _, properties = nnUNetDatasetBlosc2(str(folder), [identifier]).load_case(identifier)
        spacing = [properties["spacing"][i] for i in plans_manager.transpose_forward]
        target = [*spacing[: len(spacing) - len(configuration.spacing)], *configuration.spacing]
        shape = compute_new_shape(properties["shape_after_cropping_and_before_resampling"], spacing, target)
        if tuple(np.maximum(1, shape)) != tuple(data.shape[1:]):
            return False
    return True
