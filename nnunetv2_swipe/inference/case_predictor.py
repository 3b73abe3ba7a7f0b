"""Predicting cases and writing their files, each for itself."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.helpers import empty_cache

from nnunetv2_swipe.geometry import Grid, properties_on_grid
from nnunetv2_swipe.inference.case_files import CaseFiles
from nnunetv2_swipe.inference.case_preprocessing import CasePreprocessor
from nnunetv2_swipe.inference.encoded_image import EncodedImage
from nnunetv2_swipe.inference.failures import Failures
from nnunetv2_swipe.inference.memory import spare_memory
from nnunetv2_swipe.inference.output_grid import OutputGrid
from nnunetv2_swipe.inference.uncertainties import TOTAL_UNCERTAINTY, UNCERTAINTIES
from nnunetv2_swipe.labels import label_dtype


class CasePredictor(nnUNetPredictor):
    """nnU-Net's predictor, which decodes cases on the output grid and writes the files that are asked for.

    A case that fails does not keep the others from being predicted.

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

    def predict_from_data_iterator(
        self,
        data_iterator: Iterable[dict[str, Any]],
        save_probabilities: bool = False,
        num_processes_segmentation_export: int = default_num_processes,
    ) -> list[Any]:
        """As nnU-Net's; label maps are on the output grid. Files are written by threads.

        Returns:
            For each case None if its files were written, else its label map or, with `save_probabilities`, the label
            map and the probabilities.

        Raises:
            CasesFailed: Cases failed and the others are done; it names them, and holds what is returned otherwise.
        """
        results: list[Future | None] = []
        failures = Failures(verbose=self.verbose)
        with ThreadPoolExecutor(max(1, num_processes_segmentation_export)) as writers:
            for number, case in enumerate(data_iterator, start=1):
                most = num_processes_segmentation_export
                if save_probabilities and "data" in case and not self._several_fit(case["data_properties"], most + 1):
                    most = 0
                _wait_for_writers(results, most)
                name = case["files"][0] if "files" in case else case["ofile"] or f"case {number}"
                results.append(self._begun(name, case, failures, writers, save_probabilities=save_probabilities))
        empty_cache(self.device)
        found = [result and result.result() for result in results]
        failures.raise_if_any(len(found), found)
        return found

    def _begun(
        self,
        name: str,
        case: dict[str, Any],
        failures: Failures,
        writers: ThreadPoolExecutor,
        *,
        save_probabilities: bool,
    ) -> Future | None:
        """Predict a case and begin to write it; None if it could not be predicted."""
        writing = None
        with failures.of(name):
            write = self._predict_case(case, save_probabilities=save_probabilities)
            writing = writers.submit(failures.of(name)(write))
        return writing  # noqa: RET504  (the context keeps errors)

    def _several_fit(self, properties: Mapping[str, Any], n: int) -> bool:
        """Whether the probabilities of `n` cases may be kept in memory."""
        n_values = n * self.label_manager.num_segmentation_heads * math.prod(properties["shape_before_cropping"])
        return self.output_grid == OutputGrid() and 4 * n_values < spare_memory()

    def predict_single_npy_array(
        self,
        input_image: np.ndarray,
        image_properties: dict,
        segmentation_previous_stage: np.ndarray | None = None,
        output_file_truncated: str | None = None,
        save_or_return_probabilities: bool = False,
    ) -> Any:  # noqa: ANN401
        """As nnU-Net's; the label map is on the output grid."""
        data, properties = self._preprocessor.of_array(input_image, image_properties, segmentation_previous_stage)
        case = {"data": torch.from_numpy(data), "data_properties": properties, "ofile": output_file_truncated}
        return self._predict_case(case, save_probabilities=save_or_return_probabilities)()

    def _predict_case(self, case: dict[str, Any], *, save_probabilities: bool) -> Callable[[], Any]:
        """Predict a case; what is called then writes its files, or returns what is not written."""
        if case.get("error") is not None:
            raise case["error"]
        data, output = case["data"], case["ofile"]
        if isinstance(data, str):  # nnU-Net's queues pass large arrays as files
            file = Path(data)
            data = torch.from_numpy(np.load(file))
            file.unlink()
        image = EncodedImage(self, data, case["data_properties"], keep=bool(self.uncertainties))
        grid = self.output_grid.of(image.grid)
        if output is None:
            found = self._labels_and_probabilities(image, grid) if save_probabilities else image.labels(grid)
            return lambda: found
        if self.allow_tqdm:
            print(f"Predicting {Path(output).name}")
        properties = case["data_properties"]
        if grid is not image.grid:
            properties = properties_on_grid(properties, grid)
        with CaseFiles(Path(output), self._reader).removed_on_error() as files:
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
        return partial(self._write, files, grid, labels, probabilities, properties)

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
        ending = self.dataset_json["file_ending"]
        with files.removed_on_error():
            if probabilities is not None:
                files.write_probabilities(probabilities, properties)
            files.write_labels(labels, grid, ending, properties)
            files.finish(ending)

    @property
    def _preprocessor(self) -> CasePreprocessor:
        preprocessor = self.configuration_manager.preprocessor_class(verbose=self.verbose_preprocessing)
        return CasePreprocessor(preprocessor, self.plans_manager, self.configuration_manager, self.dataset_json)

    @property
    def _reader(self) -> BaseReaderWriter:
        return self.plans_manager.image_reader_writer_class()


def _wait_for_writers(results: Sequence[Future | None], most: int) -> None:
    """Wait until no more results than `most` are unfinished; an error that ends the run is raised."""
    busy = {result for result in results if result is not None and not result.done()}
    while len(busy) > most:
        busy = wait(busy, return_when=FIRST_COMPLETED).not_done
    for result in results:
        if result is not None and result.done():
            result.result()
