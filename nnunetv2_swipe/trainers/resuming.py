"""A training that goes on where it stopped: its length, its checkpoints, and the plan that its folds share."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_swipe.trainers.checkpoints import (
    RESUMED,
    DamagedCheckpointError,
    plain_numbers,
    read_first_whole,
    replaced_checkpoint,
    require_fit,
    require_same_plan,
    with_substitutes,
)
from nnunetv2_swipe.trust import is_trusted_by_environment

EPOCHS_VARIABLE = "SWIPE_NUM_EPOCHS"
ITERATIONS_VARIABLE = "SWIPE_ITERATIONS_PER_EPOCH"


class ResumableTrainer(nnUNetTrainer):
    """nnU-Net's trainer, whose trainings have a length of their own and survive kills and damaged checkpoints."""

    num_epochs: int  # the base does not annotate what it sets
    num_iterations_per_epoch: int
    save_every: int
    _best_ema: float | None
    _continues = False
    """Whether nnU-Net was asked to go on with a training (--c)."""

    def _set_length(self, epochs: int, iterations: int) -> None:
        """Train that many epochs of that many iterations."""
        self.num_epochs, self.num_iterations_per_epoch = epochs, iterations
        # nnU-Net validates a fifth of the training iterations and saves every 50 of 1000 epochs
        self.num_val_iterations_per_epoch = max(1, iterations // 5)
        self.save_every = max(1, min(self.save_every, epochs // 20))

    @property
    def _length(self) -> dict[str, int]:
        """The length of the training, by the variables that set it."""
        return {EPOCHS_VARIABLE: self.num_epochs, ITERATIONS_VARIABLE: self.num_iterations_per_epoch}

    @property
    def _fused_optimizer(self) -> bool:
        """A few kernels for all parameters."""
        return self.device.type == "cuda"

    def _warn(self, warning: str | Exception | None) -> None:
        if warning is not None:
            self.print_to_log_file(f"WARNING: {warning}")

    def _require_plan_of_other_folds(self) -> None:
        """All folds share the model folder's plan, which each training writes anew."""
        for fold in sorted(Path(self.output_folder_base).glob("fold_*")):
            files = [fold / name for name in RESUMED if (fold / name).is_file()]
            if fold == Path(self.output_folder) or not files:
                continue
            with suppress(DamagedCheckpointError):  # training and prediction with that fold say so
                _, checkpoint, _ = read_first_whole(files, trust=is_trusted_by_environment())
                self._require_same_plan(checkpoint, str(fold))

    def _require_same_plan(self, checkpoint: Mapping[str, Any], subject: str) -> None:
        folder = self.preprocessed_dataset_folder_base
        require_same_plan(checkpoint["init_args"], self.plans_manager.plans, self.dataset_json, folder, subject)

    def save_checkpoint(self, filename: str) -> None:
        """As nnU-Net's, with the length of the training. The file appears when it is complete.

        Raises:
            OSError: It cannot be written; one that was there before is still there.
            RuntimeError: PyTorch cannot write it, for example on a full disk; one that was there is still there.
        """
        self.my_init_kwargs |= self._length
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)  # writes nothing
            return
        self._best_ema = plain_numbers(self._best_ema)
        logged = self.logger.get_checkpoint()
        logged.update({key: plain_numbers(values) for key, values in logged.items()})
        with replaced_checkpoint(filename) as unfinished:
            super().save_checkpoint(unfinished)

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """As nnU-Net's; the training is as long as it began unless a variable says otherwise.

        Where a training goes on (--c) and the file is damaged, another one of its folder is loaded instead.

        Raises:
            OSError: There is no such file, or no access to it.
            RuntimeError: It cannot be read, holds more than plain data, is of another plan, or its tensors are not
                those of the plan's network.
        """
        resumes = self._continues and not self.was_initialized  # nnU-Net loads others for the validation
        files = with_substitutes(filename_or_checkpoint) if resumes else [filename_or_checkpoint]
        file, checkpoint, damaged = read_first_whole(files, trust=is_trusted_by_environment())
        for error in damaged:
            self._warn(error)
        if damaged:
            self.print_to_log_file(f"SwIPE: going on from {file}, after epoch {checkpoint['current_epoch'] - 1}.")
        self._require_same_plan(checkpoint, f"The checkpoint {file}")
        if not self.was_initialized:
            self._resume_length(checkpoint["init_args"])
            self.initialize()
        require_fit(checkpoint, self.network, file)
        super().load_checkpoint(file)  # reads it once more, which runs nothing: it was found to be plain data
        for group in self.optimizer.param_groups:
            group["fused"] = self._fused_optimizer  # the checkpoint's is that of the device it was trained on

    def _resume_length(self, stored: Mapping[str, Any]) -> None:
        """Take the length of a training that is resumed, as far as the environment does not set it."""
        current = self._length
        began = {v: stored.get(v, n) for v, n in current.items()}
        if began == current:
            return
        self._set_length(*(current[v] if v in os.environ else began[v] for v in current))
        self.print_to_log_file(
            f"SwIPE: this training began as one of {began[EPOCHS_VARIABLE]} epochs of {began[ITERATIONS_VARIABLE]} "
            f"iterations; it is set to {self.num_epochs} epochs of {self.num_iterations_per_epoch}, over which the "
            f"learning rate decays. {EPOCHS_VARIABLE} and {ITERATIONS_VARIABLE} change that."
        )
