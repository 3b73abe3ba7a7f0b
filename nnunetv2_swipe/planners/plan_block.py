"""SwIPE's block within nnU-Net's plans: made where it is missing, read where it is there."""

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_results
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_swipe.config import PLAN_KEY, SwIPEConfig
from nnunetv2_swipe.dataset_json import require_dataset_json
from nnunetv2_swipe.files import read_json_object
from nnunetv2_swipe.labels import require_consecutive, require_writable
from nnunetv2_swipe.planners.label_statistics import STATISTICS_FILE, label_statistics
from nnunetv2_swipe.planners.nnunet_plan import check_configuration, check_plan, resolved_configuration
from nnunetv2_swipe.planners.self_configuration import derive_config
from nnunetv2_swipe.stored_cases import read_properties, stored_cases

logger = logging.getLogger(__name__)

STOCK_PREPROCESSOR = "DefaultPreprocessor"
SWIPE_PREPROCESSOR = "SwIPEPreprocessor"
FRAME_PREPROCESSOR = "SwIPEPreprocessor_withSourceFrame"


def data_preprocessor(configuration: Mapping[str, Any]) -> str:
    """Name of the preprocessor whose training data a configuration uses: ours store what nnU-Net's does."""
    name = configuration.get("preprocessor_name", "")
    return STOCK_PREPROCESSOR if name in (SWIPE_PREPROCESSOR, FRAME_PREPROCESSOR) else name


def derive_block(
    plans: Mapping[str, Any],
    configuration_name: str,
    label_manager: LabelManager,
    statistics: Mapping[str, Mapping[str, Any]],
) -> SwIPEConfig:
    """SwIPE's settings for a configuration of a plan, without its block.

    A plan whose preprocessor is neither nnU-Net's nor ours cannot bring source coordinates to the network at
    prediction; it goes without.
    """
    configuration = PlansManager(dict(plans)).get_configuration(configuration_name).configuration
    config = derive_config(
        configuration,
        statistics,
        num_classes=label_manager.num_segmentation_heads,
        regions=label_manager.has_regions,
    )
    if data_preprocessor(configuration) != STOCK_PREPROCESSOR:
        config = config.replace(source_coordinates=False)
    return config


def read_block(configuration_manager: ConfigurationManager) -> SwIPEConfig:
    """The validated settings of a configuration.

    Raises:
        ValueError: The plan has no block, or its values or those of nnU-Net are not possible.
    """
    block = configuration_manager.configuration.get(PLAN_KEY)
    if block is None:
        raise ValueError(
            f"This plan has no {PLAN_KEY!r} block for the configuration. A model folder written by SwIPETrainer has "
            "one; was its plans.json replaced?"
        )
    check_configuration(configuration_manager.configuration)
    config = SwIPEConfig.from_dict(block)
    if config.dims != len(configuration_manager.patch_size):
        crop = configuration_manager.patch_size
        raise ValueError(f'SwIPE plan: "patch_size" has {config.dims} axes, the crop {crop} has {len(crop)}.')
    _require_room(config, configuration_manager.patch_size)
    return config


def _require_room(config: SwIPEConfig, crop: Sequence[int]) -> None:
    """ValueError if patches or strides are so large that more than half of what is computed would be padding."""
    together = config.total_strides()[-1]
    for key, sizes, what in (("patch_size", config.patch_size, ""), ("strides", together, "a product ")):
        if any(size >= 2 * n for size, n in zip(sizes, crop, strict=True)):
            value, allowed = getattr(config, key), f"{what}below twice the crop along each axis, {list(crop)}"
            raise ValueError(f'SwIPE plan: "{key}" is {value!r}; allowed: {allowed}.')


def with_swipe_block(
    plans: Mapping[str, Any],
    configuration: str,
    dataset_json: Mapping[str, Any],
    *,
    trainer_name: str,
    changes: Mapping[str, Any],
) -> dict[str, Any]:
    """A copy of the plan whose configuration has a validated block and, for source coordinates, our preprocessor.

    The block is the plan's own; else that of the model folder, if it was made from the same configuration (so that all
    folds of a model share one network); else derived anew.

    Args:
        plans: nnU-Net's plan.
        configuration: Name of the configuration to train.
        dataset_json: nnU-Net's dataset.json.
        trainer_name: Class name of the trainer, of which the model folder's name is made.
        changes: Settings that the trainer (an ablation) changes.

    Raises:
        ValueError: The plan, dataset.json or a label file is invalid; the message names the key or file.
        FileNotFoundError: The dataset was not preprocessed.
    """
    plan: dict[str, Any] = deepcopy(dict(plans))
    check_plan(plan, configuration)
    manager = PlansManager(plan)
    require_dataset_json(dataset_json, Path(nnUNet_preprocessed) / manager.dataset_name / "dataset.json")
    labels = manager.get_label_manager(dataset_json)
    require_consecutive(labels)
    require_writable(labels, manager.plans["image_reader_writer"])
    configured = manager.get_configuration(configuration).configuration
    block = configured.get(PLAN_KEY)
    if block is None:
        block = _block_of_model_folder(manager, configuration, trainer_name)
    if block is None:
        statistics = _statistics_of_preprocessed_data(manager, configuration, labels, dataset_json["file_ending"])
        block = derive_block(plan, configuration, labels, statistics).to_dict()
    config = SwIPEConfig.from_dict(block).replace(**changes)
    if config.regions != labels.has_regions:
        kind = "overlapping regions" if labels.has_regions else "exclusive classes"
        raise ValueError(
            f'SwIPE plan: "regions" is {config.regions}, but dataset.json declares {kind}. Set it to '
            f"{str(labels.has_regions).lower()}, or delete the whole {PLAN_KEY!r} block."
        )
    entry = plan["configurations"][configuration]
    entry[PLAN_KEY] = config.to_dict()
    if config.source_coordinates:
        name = data_preprocessor(configured)
        if name != STOCK_PREPROCESSOR:
            raise ValueError(
                f'SwIPE plan: "source_coordinates" is true, but the preprocessor {name!r} cannot bring them to the '
                'network. Set "source_coordinates" to false, or "preprocessor_name" to "DefaultPreprocessor".'
            )
        entry["preprocessor_name"] = FRAME_PREPROCESSOR
    elif data_preprocessor(configured) == STOCK_PREPROCESSOR:  # ours checks its input
        entry["preprocessor_name"] = SWIPE_PREPROCESSOR
    return plan


def _statistics_of_preprocessed_data(
    manager: PlansManager, configuration: str, labels: LabelManager, file_ending: str
) -> dict[str, dict[str, Any]]:
    """Statistics of the labels that nnU-Net keeps with the preprocessed data, of the cases that are preprocessed."""
    folder = Path(nnUNet_preprocessed) / manager.dataset_name
    data = folder / manager.get_configuration(configuration).data_identifier
    cases = stored_cases(data)
    files = {case: folder / "gt_segmentations" / f"{case}{file_ending}" for case in cases}
    missing = [str(data)] if not cases else [str(file) for file in files.values() if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{missing[0]} is missing or empty. Run nnUNetv2_plan_and_preprocess for the dataset first."
        )
    return label_statistics(
        files,
        {case: read_properties(data / f"{case}.pkl")["spacing"] for case in cases},
        cache_file=folder / STATISTICS_FILE,
        reader_name=manager.plans["image_reader_writer"],
        label_manager=labels,
    )


def _block_of_model_folder(manager: PlansManager, configuration: str, trainer_name: str) -> dict[str, Any] | None:
    """The block an earlier fold of this model was trained with, if its configuration was the same.

    Raises:
        ValueError: It is not valid (any more); the message names the file.
    """
    if not nnUNet_results.is_set():
        return None
    model = f"{trainer_name}__{manager.plans_name}__{configuration}"
    file = Path(nnUNet_results) / manager.dataset_name / model / "plans.json"
    if not file.is_file():
        return None
    try:
        plans = read_json_object(file)
    except ValueError as e:  # of a killed training, or on a full disk; checkpoints are compared all the same
        logger.warning("%s The settings are derived anew, and training writes the file again.", e)
        return None
    current = resolved_configuration(manager.plans, configuration)
    try:
        stored = resolved_configuration(plans, configuration)
        block = stored.pop(PLAN_KEY, None)
        for c in (stored, current):
            c["preprocessor_name"] = data_preprocessor(c)
        if block is None or stored != current:
            return None
        SwIPEConfig.from_dict(block)
    except ValueError as e:
        raise ValueError(f"{file}, of folds trained before: {e}") from e
    return block
