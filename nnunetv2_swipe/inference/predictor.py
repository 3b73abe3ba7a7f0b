"""SwIPEPredictor: nnU-Net's predictor, its labels decoded on the grid that is asked for instead of resampled logits."""

import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, compress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.configuration import default_num_processes

from nnunetv2_swipe.geometry import Grid
from nnunetv2_swipe.images.cases import channel_names, check_case, log_notes
from nnunetv2_swipe.images.folder import case_of, images_of_cases, require_places
from nnunetv2_swipe.images.headers import Header
from nnunetv2_swipe.inference.case_files import remove_unfinished_case
from nnunetv2_swipe.inference.case_predictor import CasePredictor
from nnunetv2_swipe.inference.encoded_image import EncodedImage, named_channels
from nnunetv2_swipe.inference.memory import require_memory
from nnunetv2_swipe.inference.model_folder import read_model
from nnunetv2_swipe.inference.output_grid import OutputGrid
from nnunetv2_swipe.inference.uncertainties import UNCERTAINTIES
from nnunetv2_swipe.inference.whole_files import is_whole
from nnunetv2_swipe.labels import label_dtype
from nnunetv2_swipe.processes import finished_in_order


class SwIPEPredictor(CasePredictor):
    """Predicts with a model of a SwIPE trainer; everything is used as in `nnUNetPredictor`.

    Label maps, and probabilities if asked for, are decoded on the output grid. Files appear when they are complete. A
    case that fails does not keep the others from being predicted. See `CasePredictor` for the arguments.
    """

    def initialize_from_trained_model_folder(
        self,
        model_training_output_dir: str,
        use_folds: Sequence[int | str] | int | str | None,
        checkpoint_name: str = "checkpoint_final.pth",
        *,
        trust: bool = False,
    ) -> None:
        """Load a model, as nnU-Net's predictor does, but run nothing of its folder.

        The plan must make the labels that it made in training; `require_same_plan` says what may differ.

        Args:
            model_training_output_dir: The model's folder, which holds plans.json, dataset.json and the folds.
            use_folds: Numbers, or "all"; one that is named twice counts once. None: all that are trained.
            checkpoint_name: The checkpoint's file name in the folder of each fold.
            trust: Read checkpoints whatever they hold, also what runs code.

        Raises:
            ValueError: A file is not valid, the plan names something unknown, the model is of another trainer, or no
                fold is trained.
            OSError: A file is missing, or there is no access to it.
            RuntimeError: A checkpoint is damaged, holds more than plain data, or was trained with another plan.
        """
        if use_folds is None:
            use_folds = self.auto_detect_available_folds(model_training_output_dir, checkpoint_name)
        named = [use_folds] if isinstance(use_folds, (int, str)) else use_folds
        folds = list(dict.fromkeys(map(str, named)))
        if not folds:
            raise ValueError(f"{model_training_output_dir} has no {checkpoint_name} of any fold.")
        model = read_model(Path(model_training_output_dir), folds, checkpoint_name, trust=trust)
        self.manual_initialization(*model)

    def encode(
        self,
        image_files: str | Path | Sequence[str | Path],
        previous_stage: str | Path | None = None,
        *,
        keep: bool = True,
    ) -> EncodedImage:
        """Encode a case, to be asked for labels at any positions and on any grids.

        Args:
            image_files: One file for each channel, in their order; of one channel also the file itself.
            previous_stage: Of a cascade, the previous stage's label map.
            keep: See `EncodedImage`.

        Raises:
            ValueError: Files are missing or cannot be read, or the previous stage's is missing.
        """
        files = [str(image_files)] if isinstance(image_files, (str, Path)) else list(map(str, image_files))
        previous = None if previous_stage is None else str(previous_stage)
        self._check_case(files, previous)
        data, properties = self._preprocessor.of_files(files, previous)
        return EncodedImage(self, torch.from_numpy(data), properties, keep=keep)

    def encode_array(
        self, image: np.ndarray, properties: Mapping[str, Any], previous_stage: np.ndarray | None = None
    ) -> EncodedImage:
        """Encode what nnU-Net's reader reads, as `encode` does files.

        Args:
            image: (channels, z, y, x).
            properties: What the reader says of it; "spacing" (z, y, x) at least.
            previous_stage: Of a cascade, the previous stage's label map (1, z, y, x).
        """
        data, properties = self._preprocessor.of_array(image, properties, previous_stage)
        return EncodedImage(self, torch.from_numpy(data), properties)

    @property
    def channels(self) -> dict[str, int]:
        """The number, among the K of probabilities, of every class or region by its name in dataset.json."""
        return named_channels(self)

    def cases(self, folder: str, previous_stage: str | None = None) -> dict[str, tuple[list[str], str | None]]:
        """The files of every case in a folder and, of a cascade, the previous stage's label map.

        Raises:
            ValueError: A case lacks a channel or the previous stage's labels.
        """
        images, _, previous = self._manage_input_and_output_lists(folder, None, previous_stage)
        ending = self.dataset_json["file_ending"]
        return {case_of(f[0], ending): (f, p) for f, p in zip(images, previous, strict=True)}

    def predict_from_files(
        self,
        list_of_lists_or_source_folder: str | list[list[str]],
        output_folder_or_list_of_truncated_output_files: str | list[str] | None,
        save_probabilities: bool = False,
        overwrite: bool = True,
        num_processes_preprocessing: int = default_num_processes,
        num_processes_segmentation_export: int = default_num_processes,
        folder_with_segs_from_prev_stage: str | None = None,
        num_parts: int = 1,
        part_id: int = 0,
    ) -> list[Any] | None:
        """As nnU-Net's, but a case that fails does not end the run, and missing folders of the output are made.

        A full disk, a killed process and an interruption do end it.

        Args:
            list_of_lists_or_source_folder: A folder of images, or for each case the files of its channels.
            output_folder_or_list_of_truncated_output_files: A folder, or for each case a path without ending; None: the
                label maps are returned.
            save_probabilities: Write, or return, probabilities as well.
            overwrite: Predict also the cases whose files are there and whole.
            num_processes_preprocessing: 0: none but this one.
            num_processes_segmentation_export: Threads that write.
            folder_with_segs_from_prev_stage: Of a cascade, the label maps of the previous stage.
            num_parts: How many calls share the cases.
            part_id: Which of these calls this is, from 0.

        Returns:
            See `predict_from_data_iterator`; None if there is nothing to predict.

        Raises:
            ValueError: Input or output cannot be used; found before the first case.
            CasesFailed: Cases failed and the others are done; it names them, and holds what is returned otherwise.
        """
        source, output = list_of_lists_or_source_folder, output_folder_or_list_of_truncated_output_files
        if output is not None:
            output = list(map(os.path.abspath, output)) if isinstance(output, list) else output
            self._prepare_output(source, output, folder_with_segs_from_prev_stage)
        return super().predict_from_files(
            source,
            output,
            save_probabilities,
            overwrite,
            num_processes_preprocessing,
            num_processes_segmentation_export,
            folder_with_segs_from_prev_stage,
            num_parts,
            part_id,
        )

    def _prepare_output(
        self, source: str | list[list[str]], output: str | list[str], previous_stage: str | None
    ) -> None:
        """Make the folders of the output; ValueError, before that, if it is not clear what will lie where."""
        ending = self.dataset_json["file_ending"]
        images = images_of_cases(source, ending) if isinstance(source, str) else source
        if isinstance(output, str):
            outputs = [str(Path(output) / case_of(files[0], ending)) for files in images]
        else:
            outputs = output
        inputs = [source if isinstance(source, str) else None, previous_stage]
        require_places(images, outputs, ending, inputs=inputs)
        for folder in {Path(file).parent for file in outputs}:
            folder.mkdir(parents=True, exist_ok=True)

    def _manage_input_and_output_lists(
        self,
        list_of_lists_or_source_folder: str | list[list[str]],
        output_folder_or_list_of_truncated_output_files: str | list[str] | None,
        folder_with_segs_from_prev_stage: str | None = None,
        overwrite: bool = True,
        part_id: int = 0,
        num_parts: int = 1,
        save_probabilities: bool = False,
    ) -> tuple[list, list, list]:
        """As nnU-Net's; whatever would fail later is found before the first case.

        Raises:
            ValueError: An image has no channel number, a case lacks a channel or the previous stage's labels, there is
                no previous stage, or the output does not fit on the disk.
        """
        if folder_with_segs_from_prev_stage is not None and self.configuration_manager.previous_stage_name is None:
            raise ValueError(
                f"The model is no second stage of a cascade, so it cannot use {folder_with_segs_from_prev_stage}. "
                "Leave -prev_stage_predictions (in Python: folder_with_segs_from_prev_stage) out."
            )
        source = list_of_lists_or_source_folder
        if isinstance(source, str):
            source = images_of_cases(source, self.dataset_json["file_ending"])
        images, outputs, previous = super()._manage_input_and_output_lists(
            source,
            output_folder_or_list_of_truncated_output_files,
            folder_with_segs_from_prev_stage,
            True,
            part_id,
            num_parts,
        )
        if outputs and not overwrite:
            predicted = [self._is_predicted(Path(o), save_probabilities) for o in outputs]
            for done in compress(outputs, predicted):
                remove_unfinished_case(Path(done))
            missing = [not p for p in predicted]
            images, outputs, previous = (list(compress(values, missing)) for values in (images, outputs, previous))
            print(f"{len(outputs)} cases have not been predicted yet.")
        headers = [self._check_case(files, segmentation) for files, segmentation in zip(images, previous, strict=True)]
        log_notes(chain.from_iterable(headers))
        if outputs:
            grids = {of_case[0].file: of_case[0].grid for of_case in headers if of_case}
            self._check_outputs(grids, Path(outputs[0]).parent, save_probabilities=save_probabilities)
        return images, outputs, previous

    def _is_predicted(self, output: Path, save_probabilities: bool) -> bool:
        """Whether all files of a case are there and whole."""
        files = [f"{output.name}{self.dataset_json['file_ending']}"]
        if save_probabilities:
            files += [f"{output.name}.npz", f"{output.name}.pkl"]
        files += [f"{name}/{output.name}.nii.gz" for name in self.uncertainties]
        return all(is_whole(output.parent / file, self._reader) for file in files)

    def _check_case(self, files: Sequence[str], previous_stage: str | None) -> list[Header]:
        """The headers of a case's image files; ValueError if they show that it cannot be predicted."""
        is_second_stage = self.configuration_manager.previous_stage_name is not None
        if is_second_stage and (previous_stage is None or not Path(previous_stage).is_file()):
            raise ValueError(f"{files[0]}: the previous stage's label map {previous_stage or ''} is missing.")
        reader = self.plans_manager.image_reader_writer_class
        label = previous_stage if is_second_stage else None
        return check_case(files, reader, channel_names(self.dataset_json), label)

    def _check_outputs(self, grids: Mapping[str, Grid], folder: Path, *, save_probabilities: bool) -> None:
        """ValueError if the largest output does not fit on the disk or in memory, or cannot be decoded on its grid.

        Args:
            grids: Of every case whose header is known, by its first file.
            folder: Of the output.
            save_probabilities: Whether probabilities are written.
        """
        n_voxels = 0
        for file, image in grids.items():
            grid = self.output_grid.of(image)
            n_voxels = max(n_voxels, math.prod(grid.shape))
            if self.uncertainties and not grid.is_parallel_to(image):
                raise ValueError(
                    f"The grid of the output is oblique to {file}; --save_uncertainty works on grids parallel to "
                    "the image only."
                )
        labels = label_dtype(self.label_manager).itemsize
        in_memory = 4 * self.label_manager.num_segmentation_heads if save_probabilities else 0
        on_disk = labels + in_memory + 4 * len(self.uncertainties)
        if self.uncertainties:
            in_memory += 4 * (len(UNCERTAINTIES) + 1)
        free = shutil.disk_usage(folder).free
        # files are compressed, so those that would hardly fit may
        if self.output_grid != OutputGrid() and n_voxels * on_disk > free:
            raise ValueError(
                f"The output of a case would take up to {n_voxels * on_disk / 1e9:,.1f} GB, but {folder} has "
                f"{free / 1e9:,.1f} GB left. Ask for a coarser grid, or free space."
            )
        require_memory(n_voxels * in_memory, "Probabilities or uncertainty of a case")

    def _internal_get_data_iterator_from_lists_of_filenames(
        self,
        input_list_of_lists: list[list[str]],
        seg_from_prev_stage_files: list[str | None],
        output_filenames_truncated: list[str] | None,
        num_processes: int,
    ) -> Iterator[dict[str, Any]]:
        """As nnU-Net's; a case that cannot be preprocessed holds its "error" instead of data."""
        outputs: Sequence[str | None] = output_filenames_truncated or [None] * len(input_list_of_lists)
        preprocess = self._preprocessor.in_worker if num_processes else self._preprocessor.of_files
        jobs = list(zip(input_list_of_lists, seg_from_prev_stage_files, strict=True))
        found = finished_in_order(preprocess, jobs, min(num_processes, len(jobs)))
        for (files, _), output, future in zip(jobs, outputs, found, strict=True):
            case: dict[str, Any] = {"files": files, "ofile": output, "error": future.exception()}
            if case["error"] is None:
                data, properties = future.result()
                case |= {"data": torch.from_numpy(data), "data_properties": properties}
            yield case

    def predict_from_files_sequential(
        self,
        list_of_lists_or_source_folder: str | list[list[str]],
        output_folder_or_list_of_truncated_output_files: str | list[str] | None,
        save_probabilities: bool = False,
        overwrite: bool = True,
        folder_with_segs_from_prev_stage: str | None = None,
    ) -> list[Any] | None:
        """Predict as `predict_from_files` does, without further processes."""
        return self.predict_from_files(
            list_of_lists_or_source_folder,
            output_folder_or_list_of_truncated_output_files,
            save_probabilities,
            overwrite,
            num_processes_preprocessing=0,
            num_processes_segmentation_export=0,
            folder_with_segs_from_prev_stage=folder_with_segs_from_prev_stage,
        )
