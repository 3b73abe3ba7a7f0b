"""SwIPE's block within nnU-Net's plans: made where it is missing, read where it is there."""

from collections.abc import Mapping
from typing import Any

from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_swipe.config import PLAN_KEY, SwIPEConfig
from nnunetv2_swipe.planners.self_configuration import derive_config

STOCK_PREPROCESSOR = "DefaultPreprocessor"
SWIPE_PREPROCESSOR = "SwIPEPreprocessor"


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
    if configuration["preprocessor_name"] not in (STOCK_PREPROCESSOR, SWIPE_PREPROCESSOR):
        config = config.replace(source_coordinates=False)
    return config


def read_block(configuration_manager: ConfigurationManager) -> SwIPEConfig:
    """The validated settings of a configuration.

    Raises:
        ValueError: The plan has no block, or its values are not possible.
    """
    block = configuration_manager.configuration.get(PLAN_KEY)
    if block is None:
        raise ValueError(
            f"This plan has no {PLAN_KEY!r} block for the configuration. A model folder written by SwIPETrainer has one; "
            "was its plans.json replaced?"
        )
    config = SwIPEConfig.from_dict(block)
    if config.dims != len(configuration_manager.patch_size):
        raise ValueError(
            f'SwIPE plan: "patch_size" has {config.dims} axes, the configuration {len(configuration_manager.patch_size)}.'
        )
    return config
