"""A trained model, read from its folder without running anything that the folder names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunetv2_swipe.dataset_json import read_dataset_json
from nnunetv2_swipe.files import read_json_object
from nnunetv2_swipe.planners.nnunet_plan import check_plan, with_inherited
from nnunetv2_swipe.trainers.checkpoints import read_checkpoint, require_fit, require_same_plan
from nnunetv2_swipe.trainers.swipe_trainer import SwIPETrainer
from nnunetv2_swipe.trust import require_known_names


class TrainedModel(NamedTuple):
    """What `nnUNetPredictor.manual_initialization` takes, in its order."""

    network: nn.Module
    plans_manager: PlansManager
    configuration_manager: ConfigurationManager
    parameters: list[dict[str, Any]]
    """The network's state of every fold."""
    dataset_json: dict[str, Any]
    trainer_name: str
    mirroring_axes: tuple[int, ...] | None
    """Axes of the network's input that may be mirrored."""


def read_model(folder: Path, folds: Sequence[int | str], checkpoint_name: str, *, trust: bool = False) -> TrainedModel:
    """Read a model of a SwIPE trainer.

    Args:
        folder: Of the model, which holds plans.json, dataset.json and a folder of each fold.
        folds: Numbers, or "all"; one at least.
        checkpoint_name: The checkpoint's file name in the folder of each fold.
        trust: Read checkpoints whatever they hold, also what runs code.

    Raises:
        ValueError: A file is not valid, the plan names something unknown, or the model is of another trainer.
        OSError: A file is missing, or there is no access to it.
        RuntimeError: A checkpoint is damaged, holds more than plain data, or was trained with another plan.
    """
    plans, dataset_json = read_json_object(folder / "plans.json"), read_dataset_json(folder / "dataset.json")
    checkpoints = {}
    for fold in folds:
        file = folder / f"fold_{fold}" / checkpoint_name
        checkpoints[file] = read_checkpoint(file, trust=trust)
        checkpoints[file].pop("optimizer_state", None)  # twice as large as the network
    first_file, first = next(iter(checkpoints.items()))
    trainer = _trainer_class(first["trainer_name"], first_file)
    name = first["init_args"]["configuration"]
    require_known_names(plans, with_inherited(plans, name), folder / "plans.json")
    check_plan(plans, name)
    for file, checkpoint in checkpoints.items():
        if _origin(checkpoint) != _origin(first):
            raise ValueError(f"{file} is of {_origin(checkpoint)}, but {first_file} of {_origin(first)}.")
        require_same_plan(checkpoint["init_args"], plans, dataset_json, folder, f"The checkpoint {file}")
    manager = PlansManager(plans)
    configuration = manager.get_configuration(name)
    network = trainer.build_network_architecture(
        manager,
        configuration,
        determine_num_input_channels(manager, configuration, dataset_json),
        manager.get_label_manager(dataset_json).num_segmentation_heads,
    )
    for file, checkpoint in checkpoints.items():
        require_fit(checkpoint, network, file)
    network.load_state_dict(first["network_weights"])
    parameters = [checkpoint["network_weights"] for checkpoint in checkpoints.values()]
    axes = first.get("inference_allowed_mirroring_axes")
    return TrainedModel(network, manager, configuration, parameters, dataset_json, trainer.__name__, axes)


def _origin(checkpoint: Mapping[str, Any]) -> str:
    return f"{checkpoint['trainer_name']}, {checkpoint['init_args']['configuration']}"


def _trainer_class(name: object, file: Path) -> type[SwIPETrainer]:
    """The trainer of a checkpoint; ValueError if it is not installed, or no SwIPE trainer."""
    try:
        found = recursive_find_trainer_class_by_name(name) if str(name).isidentifier() else None
    except (RuntimeError, AssertionError, TypeError):  # not found, or no class of a trainer
        found = None
    if found is None:
        raise ValueError(f"{file} is of the trainer {name!r}, which is not installed here.")
    if not issubclass(found, SwIPETrainer):
        raise ValueError(
            f"Only models of SwIPE trainers can be decoded on any grid; {file} is of {name}. Use nnU-Net's own "
            "commands."
        )
    return found
