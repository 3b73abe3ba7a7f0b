"""SwIPEPredictor: nnU-Net's predictor, its labels decoded on the grid that is asked for instead of resampled logits."""

import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.helpers import empty_cache
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot

from nnunetv2_swipe.images.cases import channel_names, check_case, log_notes
from nnunetv2_swipe.images.headers import read_header
from nnunetv2_swipe.inference.case_files import CaseFiles, remove_unfinished
from nnunetv2_swipe.inference.encoded_image import EncodedImage, named_channels
from nnunetv2_swipe.inference.geometry import Grid, properties_on_grid
from nnunetv2_swipe.inference.memory import require_memory, spare_memory
from nnunetv2_swipe.inference.model_folder import read_model
from nnunetv2_swipe.inference.output_grid import OutputGrid
from nnunetv2_swipe.inference.uncertainties import TOTAL_UNCERTAINTY, UNCERTAINTIES
from nnunetv2_swipe.labels import label_dtype


class SwIPEPredictor(nnUNetPredictor):
    """Predicts with a model of a SwIPE trainer; everything is used as in `nnUNetPredictor`.

    Label maps, and probabilities if asked for, are decoded on the output grid. Files appear when they are complete.

    Args:
        output_grid: The grid of what is written; default: that of each image.
        uncertainties: Names of maps to write, each to a folder of its name: those of `UNCERTAINTIES`, or
            `TOTAL_UNCERTAINTY`, their sum.
        options: Those of `nnUNetPredictor`.

    Raises:
        ValueError: There is no such map.
    """

    def __init__(
        self,
        *,
        output_grid: OutputGrid | None = None,
        uncertainties: Sequence[str] = (),
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**{"perform_everything_on_device": False, **options})  # embeddings are in main memory
        self.output_grid = output_grid or OutputGrid()
        self.uncertainties = tuple(dict.fromkeys(uncertainties))
        for name in self.uncertainties:
            if name not in (known := (*UNCERTAINTIES, TOTAL_UNCERTAINTY)):
                raise ValueError(f"There is no map of uncertainty {name!r}; there are {', '.join(known)}.")

    def initialize_from_trained_model_folder(
        self,
        model_training_output_dir: str,
        use_folds: Sequence[int | str] | int | str | None,
        checkpoint_name: str = "checkpoint_final.pth",
        *,
        trust: bool = False,
    ) -> None:
        """As nnU-Net's, but nothing of the folder is run, and it must be as it was when the model was trained.

        Args:
            model_training_output_dir: The model's folder, which holds plans.json, dataset.json and the folds.
            use_folds: Numbers, or "all"; None: all that are trained.
            checkpoint_name: The checkpoint's file name in the folder of each fold.
            trust: Read checkpoints whatever they hold, and use whatever the plan names, also what runs code.

        Raises:
            ValueError: A file is not valid, the plan names something unknown, the model is of another trainer, or no
                fold is trained.
            OSError: A file is missing, or there is no access to it.
            RuntimeError: A checkpoint is damaged, holds more than plain data, or was trained with another plan.
        """
        if use_folds is None:
            use_folds = self.auto_detect_available_folds(model_training_output_dir, checkpoint_name)
        folds = [use_folds] if isinstance(use_folds, (int, str)) else list(use_folds)
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
        return EncodedImage(self, *self._preprocess(files, previous), keep=keep)

    def encode_array(
        self, image: np.ndarray, properties: Mapping[str, Any], previous_stage: np.ndarray | None = None
    ) -> EncodedImage:
        """As `encode`, of what nnU-Net's reader reads.

        Args:
            image: (channels, z, y, x).
            properties: What the reader says of it; "spacing" (z, y, x) at least.
            previous_stage: Of a cascade, the previous stage's label map (1, z, y, x).
        """
        return EncodedImage(self, *self._preprocess_array(image, properties, previous_stage))

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
        ending = len("_0000" + self.dataset_json["file_ending"])
        return {Path(f[0]).name[:-ending]: (f, p) for f, p in zip(images, previous, strict=True)}

    def _preprocess(self, image_files: list[str], previous_stage: str | None) -> tuple[torch.Tensor, dict[str, Any]]:
        return self._stacked(
            previous_stage is not None,
            *self._preprocessor.run_case(
                image_files, previous_stage, self.plans_manager, self.configuration_manager, self.dataset_json
            ),
        )

    def _preprocess_array(
        self, image: np.ndarray, properties: Mapping[str, Any], previous_stage: np.ndarray | None
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        return self._stacked(
            previous_stage is not None,
            *self._preprocessor.run_case_npy(
                image,
                previous_stage,
                dict(properties),
                self.plans_manager,
                self.configuration_manager,
                self.dataset_json,
            ),
        )

    @property
    def _preprocessor(self) -> DefaultPreprocessor:
        return self.configuration_manager.preprocessor_class(verbose=self.verbose_preprocessing)

    def _stacked(
        self, cascade: bool, data: np.ndarray, seg: np.ndarray, properties: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """The preprocessed image, in a cascade with the previous stage's labels one-hot behind it."""
        if cascade:
            one_hot = convert_labelmap_to_one_hot(seg[0], self.label_manager.foreground_labels, data.dtype)
            data = np.concatenate((data, one_hot))
        return torch.from_numpy(data), properties

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
            ValueError: A case lacks a channel or the previous stage's labels, or the output does not fit on the disk.
        """
        output = output_folder_or_list_of_truncated_output_files
        try:
            images, outputs, previous = super()._manage_input_and_output_lists(
                list_of_lists_or_source_folder, output, folder_with_segs_from_prev_stage, True, part_id, num_parts
            )
        except IndexError as error:
            raise ValueError(f"Images must be named CASE_0000{self.dataset_json['file_ending']} and so on.") from error
        if outputs and not overwrite:
            predicted = [self._is_predicted(Path(o), save_probabilities) for o in outputs]
            for done in compress(outputs, predicted):
                remove_unfinished(Path(done))
            missing = [not p for p in predicted]
            images, outputs, previous = (list(compress(values, missing)) for values in (images, outputs, previous))
            print(f"{len(outputs)} cases have not been predicted yet.")
        for files, segmentation in zip(images, previous, strict=True):
            self._check_case(files, segmentation)
        if outputs:
            self._check_outputs(images, Path(outputs[0]).parent, save_probabilities=save_probabilities)
        return images, outputs, previous

    def _is_predicted(self, output: Path, save_probabilities: bool) -> bool:
        """Whether all files of a case are there."""
        files = [f"{output.name}{self.dataset_json['file_ending']}"]
        if save_probabilities:
            files.append(f"{output.name}.npz")
        files += [f"{name}/{output.name}.nii.gz" for name in self.uncertainties]
        return all((output.parent / file).is_file() for file in files)

    def _check_case(self, files: Sequence[str], previous_stage: str | None) -> None:
        """ValueError if the headers of a case's files show that it cannot be predicted."""
        is_second_stage = self.configuration_manager.previous_stage_name is not None
        if is_second_stage and (previous_stage is None or not Path(previous_stage).is_file()):
            raise ValueError(f"{files[0]}: the previous stage's label map {previous_stage or ''} is missing.")
        reader = self.plans_manager.image_reader_writer_class
        label = previous_stage if is_second_stage else None
        log_notes(check_case(files, reader, channel_names(self.dataset_json), label))

    def _check_outputs(self, images: Sequence[list[str]], folder: Path, *, save_probabilities: bool) -> None:
        """ValueError if the largest output does not fit on the disk or in memory, or cannot be decoded on its grid."""
        n_voxels = 0
        for files in images:
            header = read_header(files[0], self.plans_manager.image_reader_writer_class)
            if header is None:
                continue
            image = header.grid
            grid = self.output_grid.of(image)
            n_voxels = max(n_voxels, math.prod(grid.shape))
            if self.uncertainties and not grid.is_parallel_to(image):
                raise ValueError(
                    f"The grid of the output is oblique to {files[0]}; --save_uncertainty works on grids parallel to "
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
    ) -> Iterable[dict[str, Any]]:
        """As nnU-Net's; without processes the images are preprocessed here."""
        arguments = (input_list_of_lists, seg_from_prev_stage_files, output_filenames_truncated)
        if num_processes:
            return super()._internal_get_data_iterator_from_lists_of_filenames(*arguments, num_processes)
        return self._preprocessed(*arguments)

    def _preprocessed(
        self, images: list[list[str]], previous: list[str | None], outputs: list[str] | None
    ) -> Iterator[dict[str, Any]]:
        names: Sequence[str | None] = outputs or [None] * len(images)
        for files, segmentation, output in zip(images, previous, names, strict=True):
            data, properties = self._preprocess(files, segmentation)
            yield {"data": data, "data_properties": properties, "ofile": output}

    def predict_from_data_iterator(
        self,
        data_iterator: Iterable[dict[str, Any]],
        save_probabilities: bool = False,
        num_processes_segmentation_export: int = default_num_processes,
    ) -> list[Any]:
        """As nnU-Net's; label maps are on the output grid. Files are written by as many threads.

        Returns:
            For each case None if its files were written, else its label map or, with `save_probabilities`, the label
            map and the probabilities.
        """
        results: list[Future] = []
        with ThreadPoolExecutor(max(1, num_processes_segmentation_export)) as writers:
            for case in data_iterator:
                busy = {r for r in results if not r.done()}
                most = num_processes_segmentation_export
                if save_probabilities and not self._several_fit(case["data_properties"], most + 1):
                    most = 0
                while len(busy) > most:
                    busy = wait(busy, return_when=FIRST_COMPLETED).not_done
                for result in results:
                    if result.done():
                        result.result()  # a file that cannot be written ends the run now
                results.append(self._predict_case(case, writers, save_probabilities=save_probabilities))
        empty_cache(self.device)
        return [result.result() for result in results]

    def _several_fit(self, properties: Mapping[str, Any], n: int) -> bool:
        """Whether the probabilities of `n` cases may be kept in memory."""
        n_values = n * self.label_manager.num_segmentation_heads * math.prod(properties["shape_before_cropping"])
        return self.output_grid == OutputGrid() and 4 * n_values < spare_memory()

    def predict_from_files_sequential(
        self,
        list_of_lists_or_source_folder: str | list[list[str]],
        output_folder_or_list_of_truncated_output_files: str | list[str] | None,
        save_probabilities: bool = False,
        overwrite: bool = True,
        folder_with_segs_from_prev_stage: str | None = None,
    ) -> list[Any] | None:
        """As `predict_from_files`, without further processes."""
        output = output_folder_or_list_of_truncated_output_files
        return self.predict_from_files(
            list_of_lists_or_source_folder,
            list(map(os.path.abspath, output)) if isinstance(output, list) else output,
            save_probabilities,
            overwrite,
            num_processes_preprocessing=0,
            num_processes_segmentation_export=0,
            folder_with_segs_from_prev_stage=folder_with_segs_from_prev_stage,
        )

    def predict_single_npy_array(
        self,
        input_image: np.ndarray,
        image_properties: dict,
        segmentation_previous_stage: np.ndarray | None = None,
        output_file_truncated: str | None = None,
        save_or_return_probabilities: bool = False,
    ) -> Any:  # noqa: ANN401
        """As nnU-Net's; the label map is on the output grid."""
        data, properties = self._preprocess_array(input_image, image_properties, segmentation_previous_stage)
        case = {"data": data, "data_properties": properties, "ofile": output_file_truncated}
        return self.predict_from_data_iterator([case], save_or_return_probabilities, 0)[0]

    def _predict_case(self, case: dict[str, Any], writers: ThreadPoolExecutor, *, save_probabilities: bool) -> Future:
        data, output = case["data"], case["ofile"]
        if isinstance(data, str):  # nnU-Net's queues pass large arrays as files
            file = Path(data)
            data = torch.from_numpy(np.load(file))
            file.unlink()
        image = EncodedImage(self, data, case["data_properties"], keep=bool(self.uncertainties))
        grid = self.output_grid.of(image.grid)
        if output is None:
            found = self._labels_and_probabilities(image, grid) if save_probabilities else image.labels(grid)
            return writers.submit(lambda: found)
        if self.allow_tqdm:
            print(f"Predicting {Path(output).name}")
        properties = case["data_properties"]
        if grid is not image.grid:
            properties = properties_on_grid(properties, grid)
        with CaseFiles(Path(output)).removed_on_error() as files:
            if self.uncertainties:
                maps = image.uncertainty(grid)
                for name in self.uncertainties:
                    values = maps.sum(0) if name == TOTAL_UNCERTAINTY else maps[UNCERTAINTIES.index(name)]
                    files.write_map(name, values, grid)
            if save_probabilities:
                labels, probabilities = self._labels_and_probabilities(image, grid)
            else:
                labels = image.labels(grid, files.empty_label_map(grid.shape, label_dtype(self.label_manager)))
                probabilities = None
        return writers.submit(self._write, files, grid, labels, probabilities, properties)

    def _labels_and_probabilities(self, image: EncodedImage, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
        probabilities = image.probabilities(grid)
        labels = np.asarray(self.label_manager.convert_probabilities_to_segmentation(probabilities))
        return labels.astype(label_dtype(self.label_manager)), probabilities

    def _write(
        self,
        files: CaseFiles,
        grid: Grid,
        labels: np.ndarray,
        probabilities: np.ndarray | None,
        properties: dict[str, Any],
    ) -> None:
        ending, writer = self.dataset_json["file_ending"], self.plans_manager.image_reader_writer_class()
        with files.removed_on_error():
            if probabilities is not None:
                files.write_probabilities(probabilities, properties)
            files.write_labels(labels, grid, ending, writer, properties)
            files.finish(ending)
