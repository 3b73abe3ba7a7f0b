"""SwIPETrainer: wires network, points and loss into nnU-Net's training."""

import gc
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.crossval_split import generate_crossval_split
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunetv2_swipe.config import PLAN_KEY
from nnunetv2_swipe.environment import whole_number
from nnunetv2_swipe.files import read_json, write_json
from nnunetv2_swipe.limits import available_cpus, available_threads
from nnunetv2_swipe.network.swipe_net import SwIPENet
from nnunetv2_swipe.planners.plan_block import read_block, with_swipe_block
from nnunetv2_swipe.planners.self_configuration import few_points
from nnunetv2_swipe.precision import amp_dtype
from nnunetv2_swipe.preprocessing.datasets import PLAIN_DATASETS
from nnunetv2_swipe.preprocessing.source_coordinates import DATASETS_WITH_SOURCE_FRAME, keep_source_frame
from nnunetv2_swipe.stored_cases import stored_cases
from nnunetv2_swipe.trainers.checkpoints import require_plain_pretrained_weights
from nnunetv2_swipe.trainers.resuming import EPOCHS_VARIABLE, ITERATIONS_VARIABLE, ResumableTrainer
from nnunetv2_swipe.trainers.training_data import require_trainable, warning_of_old_labels
from nnunetv2_swipe.training.augmentation import Repeatable
from nnunetv2_swipe.training.batch_loss import BatchLoss, capture_cuda_graph
from nnunetv2_swipe.training.losses import SwIPELoss
from nnunetv2_swipe.training.lr_schedule import WarmupCosine

MAX_OVERFLOWS = 50
"""Losses in half precision that are not finite, one after the other, before training stops."""


class SwIPETrainer(ResumableTrainer):
    """Trains SwIPE on any nnU-Net dataset and plan.

    The settings are the configuration's `swipe` block. A plan without one (of nnU-Net's own planners) gets one derived
    from the plan and the labels; it is stored in the model folder's plan, from which inference builds the network.
    """

    dataset_class: Any  # the base does not annotate what it sets
    batch_loss: BatchLoss
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
        for variable in (EPOCHS_VARIABLE, ITERATIONS_VARIABLE):
            whole_number(variable, 1, lowest=1)  # before the labels are measured
        self._continues = bool(plans.get("continue_training"))
        plans = with_swipe_block(
            plans, configuration, dataset_json, trainer_name=type(self).__name__, changes=self.config_changes
        )
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.config = read_block(self.configuration_manager)
        self.initial_lr = self.config.initial_lr
        self.weight_decay = self.config.weight_decay
        self.enable_deep_supervision = False
        self._set_length(
            whole_number(EPOCHS_VARIABLE, self.num_epochs, lowest=1),
            whole_number(ITERATIONS_VARIABLE, self.num_iterations_per_epoch, lowest=1),
        )
        whole_number("nnUNet_n_proc_DA", 0, lowest=0)  # nnU-Net does not name it
        self._iteration = 0
        self._overflows = 0

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,  # noqa: ARG004  (nnU-Net's signature)
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,  # noqa: ARG004
    ) -> nn.Module:
        """SwIPE as the configuration's `swipe` block describes it; there is no deep supervision."""
        return SwIPENet(read_block(configuration_manager), num_input_channels, num_output_channels)

    def initialize(self) -> None:
        """As nnU-Net's, with the dataset that knows the source frame.

        Raises:
            ValueError: The preprocessed data are another plan's, too, which preprocesses otherwise; another file lies
                among them; or they are of images with four axes.
            RuntimeError: Other folds of the model were trained with another plan; or the file of -pretrained_weights is
                damaged or holds more than plain data.
        """
        require_plain_pretrained_weights()
        self._keep_to_own_processors()
        data = Path(self.preprocessed_dataset_folder)
        require_trainable(data, self.plans_manager.plans, self.configuration_manager.configuration)
        self._require_plan_of_other_folds()
        dataset, ending = self.plans_manager.dataset_name, self.dataset_json["file_ending"]
        self._warn(warning_of_old_labels(data, dataset, ending) if self.local_rank == 0 else None)
        super().initialize()
        self.batch_loss = BatchLoss(self.network, self.loss)
        framed = self.config.source_coordinates
        self.dataset_class = (DATASETS_WITH_SOURCE_FRAME if framed else PLAIN_DATASETS)[self.dataset_class]
        if not framed:
            self.print_to_log_file("SwIPE: training without source coordinates.")
        parameters = sum(p.numel() for p in self.network.parameters())
        precision = amp_dtype(self.device.type) or torch.float32
        self.print_to_log_file(
            f"SwIPE: {parameters / 1e6:.2f} M parameters, {precision}, settings {self.config.to_dict()}"
        )
        heads = self.label_manager.num_segmentation_heads
        self._warn(few_points(self.config, self.configuration_manager.patch_size, heads))

    def _keep_to_own_processors(self) -> None:
        """Where nnU-Net counts the machine's processors, use those that this job may use."""
        cpus, loaders = available_cpus(), get_allowed_n_proc_DA()
        if self.device.type == "cpu":
            torch.set_num_threads(min(torch.get_num_threads(), available_threads()))
        if loaders > cpus:
            self.print_to_log_file(
                f"SwIPE: nnU-Net loads data in {loaders} processes, but this job may use {cpus} processors. Set "
                f"nnUNet_n_proc_DA={cpus}."
            )

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's split. Folds that start together write or read its file at once, so it appears when it is complete.

        Raises:
            ValueError: The file is damaged; the message names it.
            OSError: There is no file, and it cannot be written.
        """
        splits = Path(self.preprocessed_dataset_folder_base) / "splits_final.json"
        if self.fold != "all" and splits.is_file():
            read_json(splits)
        elif self.fold != "all":
            cases = stored_cases(self.preprocessed_dataset_folder)
            write_json(generate_crossval_split(cases, seed=12345, n_splits=5), splits)  # as nnU-Net draws it
        return super().do_split()

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Nothing to set: SwIPE has no deep supervision."""

    def _build_loss(self) -> SwIPELoss:
        labels = self.label_manager
        return SwIPELoss(self.config, num_classes=labels.num_segmentation_heads, ignore_label=labels.ignore_label)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, WarmupCosine]:
        """AdamW with linear warm-up and cosine decay."""
        optimizer = torch.optim.AdamW(
            self.network.parameters(),
            self.initial_lr,
            weight_decay=self.weight_decay,
            fused=self._fused_optimizer,
        )
        total = self.num_epochs * self.num_iterations_per_epoch
        warmup = min(self.config.warmup_iterations, total // 20)
        return optimizer, WarmupCosine(
            optimizer, self.initial_lr, self.num_epochs, warmup / self.num_iterations_per_epoch
        )

    @property
    def _captures_graph(self) -> bool:
        """A CUDA graph takes the place of nnU-Net's compilation, unless several GPUs train together."""
        return self.device.type == "cuda" and not self.is_ddp and super()._do_i_compile()

    def _do_i_compile(self) -> bool:
        return not self._captures_graph and super()._do_i_compile()

    def get_dataloaders(self) -> tuple[Any, Any]:
        """nnU-Net's. Before their threads use a GPU, the training step is recorded there.

        Raises:
            RuntimeError: It cannot be recorded.
        """
        if self._captures_graph:
            self.network.train()
            try:
                capture_cuda_graph(self.batch_loss, *self._example_batch())
            except RuntimeError as error:
                raise RuntimeError(
                    f"The training step could not be recorded as a CUDA graph ({error}). If the GPU's memory was too "
                    "small, reduce the plan's batch_size; else set nnUNet_compile=f, and it is not recorded."
                ) from error
        return super().get_dataloaders()

    def _example_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Data and target of the shapes that training batches have."""
        labels = self.label_manager
        channels = labels.num_segmentation_heads + labels.has_ignore_label if labels.has_regions else 1
        size = self.configuration_manager.patch_size
        data = torch.zeros(self.batch_size, self.network.expected_channels, *size, device=self.device)
        return data, torch.zeros(self.batch_size, channels, *size, dtype=torch.int16, device=self.device)

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> BasicTransform:  # noqa: ANN401
        """nnU-Net's augmentation, repeatable; transforms of intensity leave the source frame alone."""
        return Repeatable(self._keep_source_frame(nnUNetTrainer.get_training_transforms(*args, **kwargs)))

    def get_validation_transforms(self, *args: Any, **kwargs: Any) -> BasicTransform:  # noqa: ANN401
        """nnU-Net's transforms of validation; those of intensity leave the source frame alone."""
        return self._keep_source_frame(nnUNetTrainer.get_validation_transforms(*args, **kwargs))

    def _keep_source_frame(self, transforms: BasicTransform) -> BasicTransform:
        return keep_source_frame(transforms) if self.config.source_coordinates else transforms

    def on_train_epoch_start(self) -> None:
        """Seed by epoch, so that a resumed run draws the points that an uninterrupted one does."""
        super().on_train_epoch_start()
        seed = int(np.random.SeedSequence([self.current_epoch, self.local_rank]).generate_state(1)[0])
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002  (what nnU-Net's loader draws from)
        self._iteration = self.current_epoch * self.num_iterations_per_epoch

    def train_step(self, batch: dict) -> dict:
        """One step: draw points, decode them, update."""
        data = batch["data"].to(self.device, non_blocking=True)
        target = batch["target"].to(self.device, non_blocking=True)
        self.lr_scheduler.step(self._iteration / self.num_iterations_per_epoch)
        self._iteration += 1
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.batch_loss(data, target)
        value = loss.detach().cpu().numpy()
        self._overflows = 0 if np.isfinite(value) else self._overflows + 1
        if self._overflows:
            self._diagnose(batch)
        self._update(loss)
        return {"loss": value}

    def validation_step(self, batch: dict) -> dict:
        """As nnU-Net's; an image that is not finite is named."""
        outputs = super().validation_step(batch)
        if not np.isfinite(outputs["loss"]):
            self._diagnose(batch)
        return outputs

    def _diagnose(self, batch: dict) -> None:
        """RuntimeError that says why the loss is not finite; half precision may overflow, but not all the time."""
        finite = torch.isfinite(batch["data"].flatten(1)).all(1).tolist()
        broken = [str(key) for key, ok in zip(batch["keys"], finite, strict=True) if not ok]
        if broken:
            raise RuntimeError(
                f"The preprocessed image of {', '.join(broken)} holds NaN or infinite values. Correct the image and "
                "preprocess the dataset again."
            )
        if amp_dtype(self.device.type) is not torch.float16:
            raise RuntimeError(
                f"The loss of epoch {self.current_epoch} is not finite, although the images are: training diverged. "
                f'Lower "initial_lr" in the {PLAN_KEY!r} block of the plan and train again.'
            )
        if self._overflows >= MAX_OVERFLOWS:
            raise RuntimeError(
                f"The loss was not finite {MAX_OVERFLOWS} times in a row, although the images are: half precision "
                "overflows. Train with SWIPE_AMP=off."
            )

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

    def on_train_end(self) -> None:
        """As nnU-Net's; the final validation may use the memory of the CUDA graph."""
        self.batch_loss = BatchLoss(self.network, self.loss)
        self.optimizer.zero_grad(set_to_none=True)  # gradients lie in the graph's memory
        gc.collect()  # a graphed module refers to itself
        super().on_train_end()
