"""SwIPEPlanner: nnU-Net's planner, and SwIPE's settings for every configuration."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from nnunetv2.utilities.label_handling.label_handling import LabelManager, determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_swipe.config import PLAN_KEY, SwIPEConfig
from nnunetv2_swipe.dataset_json import read_dataset_json
from nnunetv2_swipe.environment import whole_number
from nnunetv2_swipe.files import read_json_object, write_json
from nnunetv2_swipe.freshness import changed_since, raw_files
from nnunetv2_swipe.images.cases import check_dataset
from nnunetv2_swipe.images.dicom import require_images
from nnunetv2_swipe.images.folder import images_of_cases
from nnunetv2_swipe.labels import require_consecutive, require_writable
from nnunetv2_swipe.planners.label_statistics import STATISTICS_FILE, label_statistics
from nnunetv2_swipe.planners.memory import GIB, fitting_batch_size
from nnunetv2_swipe.planners.plan_block import STOCK_PREPROCESSOR, SWIPE_PREPROCESSOR, derive_block
from nnunetv2_swipe.planners.shared_data import other_plans, shared_identifier

logger = logging.getLogger(__name__)

FINGERPRINT_FILE = "dataset_fingerprint.json"


class SwIPEPlanner(ExperimentPlanner):
    """Plans spacing, crop and batch as nnU-Net does and adds SwIPE's block to each configuration.

    The plan serves the stock trainers as well. Data of a configuration that another plan of the dataset preprocesses
    in the same way are shared with it.

    Raises:
        ValueError: dataset.json or the fingerprint is damaged or of other cases; the message names the file.
    """

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 8,
        preprocessor_name: str = STOCK_PREPROCESSOR,
        plans_name: str = "nnUNetSwIPEPlans",
        overwrite_target_spacing: list[float] | tuple[float, ...] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        if preprocessor_name == STOCK_PREPROCESSOR:
            preprocessor_name = SWIPE_PREPROCESSOR  # the same data, checked, and shared where possible
        name = maybe_convert_to_dataset_name(dataset_name_or_id)
        _require_raw_images(Path(nnUNet_raw) / name)
        for file in (FINGERPRINT_FILE, f"{plans_name}.json"):  # both are read again later
            if (Path(nnUNet_preprocessed) / name / file).is_file():
                read_json_object(Path(nnUNet_preprocessed) / name / file)
        super().__init__(
            dataset_name_or_id,
            gpu_memory_target_in_gb,
            preprocessor_name,
            plans_name,
            overwrite_target_spacing,
            suppress_transpose,
        )

    def plan_experiment(self) -> dict[str, Any]:
        """As nnU-Net's, after a look at the labels that are declared and at the headers of all training cases.

        Raises:
            ValueError: The declared labels or a file of a case cannot be used; the message names what is wrong.
        """
        labels = LabelManager(self.dataset_json["labels"], self.dataset_json.get("regions_class_order"))
        reader = self.determine_reader_writer()
        require_consecutive(labels)
        require_writable(labels, reader.__name__)
        self._headers = check_dataset(self.dataset, reader, self.dataset_json)
        return super().plan_experiment()

    @staticmethod
    def static_estimate_VRAM_usage(*args: Any, **kwargs: Any) -> float:  # noqa: ANN401, N802
        """As nnU-Net's, which sets as many threads as nnUNet_n_proc_DA says.

        Raises:
            ValueError: nnUNet_n_proc_DA is no whole number above 0.
        """
        whole_number("nnUNet_n_proc_DA", 1, lowest=1)
        return ExperimentPlanner.static_estimate_VRAM_usage(*args, **kwargs)

    def save_plans(self, plans: dict[str, Any]) -> None:
        """Add SwIPE's blocks and shared data folders, then save the plan.

        Raises:
            ValueError: Labels, fingerprint or the plan that is there cannot be used; the message names the file.
            OSError: A file is missing or cannot be written.
        """
        recursive_fix_for_json_export(plans)
        planned = json.loads(json.dumps(plans))  # lists for tuples: compares equal to a plan read from its file
        labels: LabelManager = PlansManager(planned).get_label_manager(self.dataset_json)
        folder = Path(nnUNet_preprocessed) / self.dataset_name
        statistics = label_statistics(
            {case: files["label"] for case, files in self.dataset.items()},
            self._spacings_mm(),
            cache_file=folder / STATISTICS_FILE,
            reader_name=plans["image_reader_writer"],
            label_manager=labels,
        )
        others = other_plans(folder, self.plans_identifier)
        for name, configuration in plans["configurations"].items():
            if "inherits_from" not in configuration:
                config = derive_block(planned, name, labels, statistics)
                configuration[PLAN_KEY] = config.to_dict()
                configuration["data_identifier"] = shared_identifier(planned, name, others)
                configuration["batch_size"] = self._batch_size(planned, name, config, labels.num_segmentation_heads)
        file = folder / f"{self.plans_identifier}.json"
        stored = read_json_object(file).get("configurations", {}) if file.is_file() else {}
        # as nnU-Net's: configurations that a user added stay; unlike its, the file appears when it is complete
        plans["configurations"].update({n: c for n, c in stored.items() if n not in plans["configurations"]})
        write_json(plans, file)
        print(f"Plans were saved to {file}")

    def _spacings_mm(self) -> dict[str, list[float]]:
        """Voxel size of every case's image, from nnU-Net's fingerprint."""
        fingerprint = Path(nnUNet_preprocessed) / self.dataset_name / FINGERPRINT_FILE
        remedy = "Run nnUNetv2_extract_fingerprint with --clean, then plan again."
        spacings = self.dataset_fingerprint["spacings"]
        if len(spacings) != len(self.dataset):
            raise ValueError(
                f"{fingerprint} is of {len(spacings)} cases, but the dataset has {len(self.dataset)}. {remedy}"
            )
        spacing_of = dict(zip(self.dataset, spacings, strict=True))
        for case, headers in self._headers.items():
            of_file = headers[0].properties["spacing"] if headers else spacing_of[case]
            if not np.allclose(sorted(of_file), sorted(spacing_of[case]), rtol=1e-3):  # some readers exchange the axes
                raise ValueError(
                    f"{fingerprint} gives {headers[0].file} the spacing {spacing_of[case]}, but the file has "
                    f"{list(of_file)}. It is of other files. {remedy}"
                )
        sources = (file for files in self.dataset.values() for file in raw_files(files))
        changed = changed_since(fingerprint.stat().st_mtime_ns, sources)
        if changed is not None:
            logger.warning("%s is older than %s. If that file's content has changed: %s", fingerprint, changed, remedy)
        return spacing_of

    def _batch_size(self, plans: Mapping[str, Any], name: str, config: SwIPEConfig, num_classes: int) -> int:
        """nnU-Net's batch size, or what fits into the memory target if SwIPE needs more than nnU-Net's network."""
        manager = PlansManager(dict(plans))
        configuration = manager.get_configuration(name)
        channels = determine_num_input_channels(manager, configuration, self.dataset_json)
        target = self.UNet_vram_target_GB * GIB
        batch_size, needed = fitting_batch_size(
            config,
            configuration.patch_size,
            configuration.batch_size,
            target,
            channels=channels,
            num_classes=num_classes,
        )
        print(
            f"SwIPE {name}: batch size {batch_size}, about {needed / GIB:.1f} GiB to train with automatic mixed "
            f"precision (target {self.UNet_vram_target_GB:g} GiB)"
            + ('; fewer "n_points" or a smaller crop need less' if needed > target else "")
        )
        return batch_size


def _require_raw_images(folder: Path) -> None:
    """ValueError if a raw dataset's dataset.json, which nnU-Net reads without naming it, or its images are no such."""
    dataset_json = read_dataset_json(folder / "dataset.json")
    if "dataset" not in dataset_json:  # else dataset.json lists the files
        require_images(folder / "imagesTr", dataset_json["file_ending"])
        images_of_cases(str(folder / "imagesTr"), dataset_json["file_ending"])  # names what has no channel number
