"""SwIPEPreprocessor: nnU-Net's preprocessing, plus what SwIPE needs at prediction."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_swipe.dataset_json import read_dataset_json
from nnunetv2_swipe.files import read_json_object
from nnunetv2_swipe.freshness import outdated_copies, renew_copies
from nnunetv2_swipe.images.cases import channel_names, check_files
from nnunetv2_swipe.labels import declared_labels, require_declared
from nnunetv2_swipe.network.coordinates import with_source_channels
from nnunetv2_swipe.planners.nnunet_plan import check_plan
from nnunetv2_swipe.planners.shared_data import is_used_by_others, other_plans, require_alike
from nnunetv2_swipe.preprocessing.preprocessed_data import PreprocessedData

logger = logging.getLogger(__name__)


class SwIPEPreprocessor(DefaultPreprocessor):
    """nnU-Net's default preprocessor, which it equals in the data it stores for training.

    - Bad input stops with an error that names the case: files that are cut off, damaged or do not fit together, NaN or
      infinite intensities, undeclared labels.
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
        """As nnU-Net's, of files that are checked before.

        Raises:
            ValueError: A file cannot be read, is damaged, does not fit the others, or holds values that cannot be
                used. The message names it.
        """
        dataset_json = read_json_object(dataset_json) if isinstance(dataset_json, str) else dataset_json
        reader = plans_manager.image_reader_writer_class
        check_files(image_files, reader, channel_names(dataset_json), seg_file)
        try:
            return super().run_case(image_files, seg_file, plans_manager, configuration_manager, dataset_json)
        except (ValueError, OSError, RuntimeError, AssertionError) as e:  # nnU-Net's readers raise any of them
            files = image_files if seg_file is None else [*image_files, seg_file]
            raise ValueError(f"Case {', '.join(files)}: {str(e) or type(e).__name__}") from e

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
        dataset_json = read_json_object(dataset_json) if isinstance(dataset_json, str) else dataset_json
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

        Copies of label files in `gt_segmentations` that differ from the label files are made again.

        Raises:
            ValueError: The plan is not valid, another plan uses the same data folder, but preprocesses otherwise, or a
                JSON file is damaged.
            OSError: A file is missing.
        """
        dataset_name = maybe_convert_to_dataset_name(dataset_name_or_id)
        base, raw = Path(nnUNet_preprocessed) / dataset_name, Path(nnUNet_raw) / dataset_name
        plans_manager = PlansManager(read_json_object(base / f"{plans_identifier}.json"))
        check_plan(plans_manager.plans, configuration_name)
        configuration = plans_manager.get_configuration(configuration_name)
        others = other_plans(base, plans_identifier)
        require_alike(plans_manager.plans, configuration.configuration, others)
        dataset_json = _dataset_json_of_plan(base, raw)
        folder = base / configuration.data_identifier
        data = PreprocessedData(folder, raw, plans_manager, configuration)
        if is_used_by_others(configuration.configuration, others) and data.is_up_to_date():
            logger.warning("Using the data in %s, preprocessed before.", folder)
        else:
            super().run(dataset_name_or_id, configuration_name, plans_identifier, num_processes)
        data.keep_record()
        labels = {case: Path(files["label"]) for case, files in data.cases.items()}
        renew_copies(outdated_copies(labels, base / "gt_segmentations", dataset_json["file_ending"]))


class SwIPEPreprocessor_withSourceFrame(SwIPEPreprocessor):
    """What the plan of a trained model names: images to predict get the source frame as leading channels."""

    def run_case_npy(self, *args: Any, **kwargs: Any) -> tuple[np.ndarray, np.ndarray, dict]:  # noqa: ANN401
        """Preprocess as `SwIPEPreprocessor` does, with the source frame in front of the image: (4 + C, z, y, x)."""
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

    nnU-Net crops to the voxels that are not zero. If these are thinner together than half a voxel of the plan, it would
    make an image without voxels. With the spacing returned it has one voxel.
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


def _dataset_json_of_plan(preprocessed: Path, raw: Path) -> dict[str, Any]:
    """The dataset.json that planning copied; nnU-Net preprocesses by it, so warn if the raw one differs by now."""
    copy = read_dataset_json(preprocessed / "dataset.json")
    if copy != read_dataset_json(raw / "dataset.json"):
        logger.warning(
            "%s was changed after planning, and the older copy in %s is used. Plan the dataset again if labels, "
            "channels or cases changed.",
            raw / "dataset.json",
            preprocessed,
        )
    return copy
