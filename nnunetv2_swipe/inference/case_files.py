"""The files of a predicted case: written beside where they belong, and moved there when they are complete."""

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from batchgenerators.utilities.file_and_folder_operations import save_pickle
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunetv2_swipe.inference.geometry import RAS_TO_LPS, Grid

LARGE = 1 << 30
"""Bytes from which on a label map is kept on the disk instead of in memory."""
_MAP = "labels.npy"


class CaseFiles:
    """Files that begin with `output`, a path without ending.

    Until they are complete they are in a folder of their own, which an interrupted run may leave behind and the next
    one replaces.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self._folder = _unfinished(output)
        remove_unfinished(output)
        self._folder.mkdir()

    @contextmanager
    def removed_on_error(self) -> Iterator["CaseFiles"]:
        """Context after whose errors no unfinished files are left."""
        try:
            yield self
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def empty_label_map(self, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """Zeros; on the disk if they are many."""
        if math.prod(shape) * dtype.itemsize < LARGE:
            return np.zeros(shape, dtype)
        return np.lib.format.open_memmap(self._folder / _MAP, "w+", dtype, tuple(shape))

    def write_probabilities(self, probabilities: np.ndarray, properties: dict[str, Any]) -> None:
        """As nnU-Net's commands read them."""
        np.savez_compressed(self._folder / f"{self.output.name}.npz", probabilities=probabilities)
        save_pickle(properties, str(self._folder / f"{self.output.name}.pkl"))

    def write_labels(
        self, labels: np.ndarray, grid: Grid, ending: str, writer: BaseReaderWriter, properties: dict[str, Any]
    ) -> None:
        """Write a label map with nnU-Net's writer, or slice by slice if it is on the disk and NIfTI.

        Not by the writers that reorient, which need it in memory. One on the disk cannot be read any more afterwards.
        """
        file = self._folder / f"{self.output.name}{ending}"
        reorients = type(writer).__name__.endswith("WithReorient")
        if isinstance(labels, np.memmap) and ending in (".nii", ".nii.gz") and not reorients:
            _write_nifti(labels, grid, file)
        else:
            writer.write_seg(labels, str(file), properties)
        if isinstance(labels, np.memmap):
            labels._mmap.close()  # type: ignore[attr-defined]  # Windows does not delete what is mapped

    def write_map(self, name: str, values: np.ndarray, grid: Grid) -> None:
        """Write a map (z, y, x) of float32 as `NAME/CASE.nii.gz`, apart from the label maps."""
        (self._folder / name).mkdir()
        _write_nifti(values, grid, self._folder / name / f"{self.output.name}.nii.gz")

    def finish(self, ending: str) -> None:
        """Move all files to where they belong, the label map last."""
        (self._folder / _MAP).unlink(missing_ok=True)
        label_file = self._folder / f"{self.output.name}{ending}"
        files = [f for f in self._folder.rglob("*") if f.is_file()]
        for file in sorted(files, key=lambda f: f == label_file):
            target = self.output.parent / file.relative_to(self._folder)
            target.parent.mkdir(exist_ok=True)
            file.replace(target)
        shutil.rmtree(self._folder)


def remove_unfinished(output: Path) -> None:
    """Remove what an interrupted run left of the case `output`; one stopped at its very end leaves an empty folder."""
    shutil.rmtree(_unfinished(output), ignore_errors=True)


def _unfinished(output: Path) -> Path:
    return output.parent / f".unfinished_{output.name}"


def _write_nifti(values: np.ndarray, grid: Grid, file: Path) -> None:
    affine = RAS_TO_LPS @ grid.affine[:, [2, 1, 0, 3]]
    nibabel.save(nibabel.Nifti1Image(values.transpose(2, 1, 0), affine), file)
