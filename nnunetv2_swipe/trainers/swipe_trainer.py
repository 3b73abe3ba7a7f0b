"""SwIPETrainer: wires network, points and loss into nnU-Net's training."""

import os
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import isfile, load_json
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_results
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.helpers import dummy_context
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunetv2_swipe.config import PLAN_KEY, SwIPEConfig
from nnunetv2_swipe.network.swipe_net import SwIPENet
from nnunetv2_swipe.planners.label_statistics import STATISTICS_FILE, label_statistics
from nnunetv2_swipe.planners.plan_block import SWIPE_PREPROCESSOR, derive_block, read_block
from nnunetv2_swipe.preprocessing.source_coordinates import DATASETS_WITH_SOURCE_FRAME, keep_source_frame
from nnunetv2_swipe.training.losses import SwIPELoss
from nnunetv2_swipe.training.lr_schedule import WarmupCosine
from nnunetv2_swipe.training.point_sampling import sample_points

EPOCHS_VARIABLE = "SWIPE_NUM_EPOCHS"
ITERATIONS_VARIABLE = "SWIPE_ITERATIONS_PER_EPOCH"


class SwIPETrainer(nnUNetTrainer):
    """Trains SwIPE on any nnU-Net dataset and plan.

    The settings are the configuration's `swipe` block. A plan without one (of nnU-Net's own planners) gets one derived
    from the plan and the labels; it is stored in the model folder's plan, from which inference builds the network.
    """

    config_changes: ClassVar[dict[str, Any]] = {}
    """Settings that an ablation changes."""

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  (nnU-Net's signature)
    ) -> None:
        plans = with_swipe_block(plans, configuration, dataset_json, type(self))
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.config = read_block(self.configuration_manager)
        self.initial_lr = self.config.initial_lr
        self.weight_decay = self.config.weight_decay
        self.enable_deep_supervision = False
        self.num_epochs = _positive_integer(EPOCHS_VARIABLE, self.num_epochs)
        self.num_iterations_per_epoch = _positive_integer(ITERATIONS_VARIABLE, self.num_iterations_per_epoch)
        # nnU-Net validates a fifth of the training iterations and saves every 50 of 1000 epochs
        self.num_val_iterations_per_epoch = max(1, self.num_iterations_per_epoch // 5)
        self.save_every = max(1, min(self.save_every, self.num_epochs // 20))
        self._iteration = 0

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> nn.Module:
        """SwIPE as the configuration's `swipe` block describes it; there is no deep supervision."""
        return SwIPENet(read_block(configuration_manager), num_input_channels, num_output_channels)

    def initialize(self) -> None:
        """As nnU-Net's, with the dataset that knows the source frame."""
        super().initialize()
        if self.config.source_coordinates:
            self.dataset_class = DATASETS_WITH_SOURCE_FRAME[self.dataset_class]
        else:
            self.print_to_log_file("SwIPE: training without source coordinates.")
        parameters = sum(p.numel() for p in self.network.parameters())
        self.print_to_log_file(f"SwIPE: {parameters / 1e6:.2f} M parameters, settings {self.config.to_dict()}")

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Nothing to set: SwIPE has no deep supervision."""

    def _build_loss(self) -> SwIPELoss:
        labels = self.label_manager
        return SwIPELoss(self.config, num_classes=labels.num_segmentation_heads, ignore_label=labels.ignore_label)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, WarmupCosine]:
        """AdamW with linear warm-up and cosine decay (method section 5)."""
        optimizer = torch.optim.AdamW(self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay)
        total = self.num_epochs * self.num_iterations_per_epoch
        warmup = min(self.config.warmup_iterations, total // 20)
        return optimizer, WarmupCosine(optimizer, self.initial_lr, self.num_epochs, warmup / self.num_iterations_per_epoch)

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> BasicTransform:  # noqa: ANN401
        """nnU-Net's augmentation; transforms of intensity leave the source frame alone."""
        return self._keep_source_frame(nnUNetTrainer.get_training_transforms(*args, **kwargs))

    def get_validation_transforms(self, *args: Any, **kwargs: Any) -> BasicTransform:  # noqa: ANN401
        """nnU-Net's, likewise."""
        return self._keep_source_frame(nnUNetTrainer.get_validation_transforms(*args, **kwargs))

    def _keep_source_frame(self, transforms: BasicTransform) -> BasicTransform:
        return keep_source_frame(transforms) if self.config.source_coordinates else transforms

    def on_train_epoch_start(self) -> None:
        """Seed by epoch, so that a resumed run draws the points that an uninterrupted one does."""
        super().on_train_epoch_start()
        seed = int(np.random.SeedSequence([self.current_epoch, self.local_rank]).generate_state(1)[0])
        torch.manual_seed(seed)
        np.random.seed(seed)
        self._iteration = self.current_epoch * self.num_iterations_per_epoch

    def train_step(self, batch: dict) -> dict:
        """One step: draw points, decode them, update."""
        data = batch["data"].to(self.device, non_blocking=True)
        target = batch["target"].to(self.device, non_blocking=True)
        self.lr_scheduler.step(self._iteration / self.num_iterations_per_epoch)
        self._iteration += 1
        labels = self.label_manager
        sample = sample_points(
            target, self.config, num_classes=labels.num_segmentation_heads, ignore_label=labels.ignore_label
        )
        self.optimizer.zero_grad(set_to_none=True)
        # as nnU-Net: autocast on CUDA only; the network itself chooses the precision on the CPU
        with torch.autocast("cuda") if self.device.type == "cuda" else dummy_context():
            outputs = self.network(data, sample.points, sample.neighbours)
            loss = self.loss.points(outputs, sample)
        self._update(loss)
        value = loss.detach().cpu().numpy()
        if not np.isfinite(value):
            _raise_if_not_finite(data, batch.get("keys", []))
        return {"loss": value}

    def _update(self, loss: torch.Tensor) -> None:
        """Backward pass, clipping and optimizer step, as nnU-Net's."""
        scaler = self.grad_scaler
        if scaler is None:
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12)
            self.optimizer.step()
            return
        scaler.scale(loss).backward()
        scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12)
        scaler.step(self.optimizer)
        scaler.update()

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """As nnU-Net's; a damaged file or another network is named.

        Raises:
            RuntimeError: The file cannot be read, or its tensors are not those of the plan's network.
        """
        if not self.was_initialized:
            self.initialize()
        check_checkpoint(filename_or_checkpoint, self.network)
        super().load_checkpoint(filename_or_checkpoint)


def with_swipe_block(plans: dict, configuration: str, dataset_json: dict, trainer: type[SwIPETrainer]) -> dict:
    """A copy of the plan whose configuration has a validated `swipe` block and SwIPE's preprocessor.

    The block is the plan's own; else that of the model folder, if it was made from the same configuration (so that all
    folds of a model share one network); else derived anew.
    """
    plans = deepcopy(plans)
    manager = PlansManager(plans)
    resolved = manager.get_configuration(configuration).configuration
    block = resolved.get(PLAN_KEY)
    if block is None:
        block = _block_of_model_folder(manager, configuration, trainer)
    if block is None:
        labels = manager.get_label_manager(dataset_json)
        folder = Path(nnUNet_preprocessed) / manager.dataset_name
        statistics = label_statistics(
            {f.name.removesuffix(dataset_json["file_ending"]): f for f in sorted((folder / "gt_segmentations").iterdir())},
            cache_file=folder / STATISTICS_FILE,
            reader_name=plans["image_reader_writer"],
            label_manager=labels,
        )
        block = derive_block(plans, configuration, labels, statistics).to_dict()
    config = SwIPEConfig.from_dict(block).replace(**trainer.config_changes)
    entry = plans["configurations"][configuration]
    entry[PLAN_KEY] = config.to_dict()
    if config.source_coordinates:
        entry["preprocessor_name"] = SWIPE_PREPROCESSOR
    return plans


def _block_of_model_folder(manager: PlansManager, configuration: str, trainer: type[SwIPETrainer]) -> dict | None:
    """The block an earlier fold of this model was trained with, if its configuration was the same."""
    if not nnUNet_results.is_set():
        return None
    model = f"{trainer.__name__}__{manager.plans_name}__{configuration}"
    file = str(Path(nnUNet_results) / manager.dataset_name / model / "plans.json")
    if not isfile(file):
        return None
    stored = dict(PlansManager(load_json(file)).get_configuration(configuration).configuration)
    block = stored.pop(PLAN_KEY, None)
    current = dict(manager.get_configuration(configuration).configuration)
    for c in (stored, current):
        c.pop("preprocessor_name", None)
    return block if stored == current else None


def check_checkpoint(file: dict | str, network: nn.Module) -> None:
    """RuntimeError if a checkpoint is damaged or its tensors differ from the network's, naming the first."""
    if isinstance(file, str):
        try:
            file = torch.load(file, map_location="cpu", weights_only=False)
        except Exception as e:
            raise RuntimeError(
                f"The checkpoint {file} cannot be read ({e}). It is damaged or was cut off while being written; "
                "use another one (checkpoint_best.pth) or train again without --c."
            ) from e
    network = getattr(network, "module", network)
    network = getattr(network, "_orig_mod", network)
    expected = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    found = {k.removeprefix("module."): tuple(v.shape) for k, v in file["network_weights"].items()}
    for key in [*expected, *found]:
        if expected.get(key) != found.get(key):
            raise RuntimeError(
                f"The checkpoint does not fit the plan's network: {key} has shape {found.get(key, 'none (missing)')} in "
                f"the checkpoint and {expected.get(key, 'none (missing)')} in the network. Was the {PLAN_KEY!r} block "
                "of the plan changed after training?"
            )


def _positive_integer(variable: str, default: int) -> int:
    """Value of an environment variable; ValueError naming it if it is not a positive integer."""
    text = os.environ.get(variable)
    if text is None:
        return default
    if not text.isdigit() or int(text) == 0:
        raise ValueError(f"The environment variable {variable} is {text!r}; it must be a positive integer.")
    return int(text)


def _raise_if_not_finite(data: torch.Tensor, keys: list[str]) -> None:
    """RuntimeError naming the cases of a batch whose images hold NaN or infinity."""
    finite = torch.isfinite(data.flatten(1)).all(1).tolist()
    broken = [str(k) for k, ok in zip(keys, finite, strict=False) if not ok]
    if broken:
        raise RuntimeError(
            f"The preprocessed image of {', '.join(broken)} holds NaN or infinite values. Correct the image and "
            "preprocess the dataset again."
        )
