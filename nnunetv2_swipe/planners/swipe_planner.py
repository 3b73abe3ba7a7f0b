"""SwIPEPlanner: nnU-Net's planner, and SwIPE's settings for every configuration."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from nnunetv2.utilities.label_handling.label_handling import LabelManager, determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_swipe.config import PLAN_KEY, SwIPEConfig
from nnunetv2_swipe.environment import whole_number
from nnunetv2_swipe.labels import require_consecutive
from nnunetv2_swipe.planners.label_statistics import STATISTICS_FILE, label_statistics
from nnunetv2_swipe.planners.memory import GIB, fitting_batch_size
from nnunetv2_swipe.planners.plan_block import STOCK_PREPROCESSOR, SWIPE_PREPROCESSOR, derive_block
from nnunetv2_swipe.planners.shared_data import other_plans, shared_identifier


class SwIPEPlanner(ExperimentPlanner):
    """Plans spacing, crop and batch as nnU-Net does and adds SwIPE's block to each configuration.

    The plan serves the stock trainers as well. Data of a configuration that another plan of the dataset preprocesses
    in the same way are shared with it.
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
        super().__init__(
            dataset_name_or_id,
            gpu_memory_target_in_gb,
            preprocessor_name,
            plans_name,
            overwrite_target_spacing,
            suppress_transpose,
        )

    @staticmethod
    def static_estimate_VRAM_usage(*args: Any, **kwargs: Any) -> float:  # noqa: ANN401, N802
        """As nnU-Net's, which computes with as many threads as training data are loaded by.

        Raises:
            ValueError: nnUNet_n_proc_DA is no such number.
        """
        whole_number("nnUNet_n_proc_DA", 1, lowest=1)
        return ExperimentPlanner.static_estimate_VRAM_usage(*args, **kwargs)

    def save_plans(self, plans: dict[str, Any]) -> None:
        """Add SwIPE's blocks and shared data folders, then save as nnU-Net does."""
        recursive_fix_for_json_export(plans)
        planned = json.loads(json.dumps(plans))  # lists for tuples: compares equal to a plan read from its file
        labels: LabelManager = PlansManager(planned).get_label_manager(self.dataset_json)
        require_consecutive(labels)
        folder = Path(nnUNet_preprocessed) / self.dataset_name
        statistics = label_statistics(
            {case: files["label"] for case, files in self.dataset.items()},
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
        super().save_plans(plans)

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
