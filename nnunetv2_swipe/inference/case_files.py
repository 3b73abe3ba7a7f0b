"""The files of a predicted case: written and checked beside where they belong, moved there when all are complete."""

import errno
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
from batchgenerators.utilities.file_and_folder_operations import save_pickle
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunetv2_swipe.files import errors_of_writing, flush_to_disk
from nnunetv2_swipe.geometry import RAS_TO_LPS, Grid, grid_of_image
from nnunetv2_swipe.images.nifti import ENDINGS as NIFTI_ENDINGS
from nnunetv2_swipe.inference.whole_files import is_whole

LARGE = 1 << 30
"""Bytes from which on a label map is kept on the disk instead of in memory."""
_MAP = "labels.npy"
_CASE = "case"
"""What unfinished files are called, whatever the case is: writers choose their format by what looks like an ending."""


class CaseFiles:
    """Files that begin with `output`, a path without ending.

    Until they are complete they are in a folder of their own, which an interrupted run may leave behind and the next
    one replaces. The output's folder is made if it is missing.

    Args:
        output: The case's name, in the folder of the output.
        reader: nnU-Net's reader and writer of the dataset's label maps.
    """

    def __init__(self, output: Path, reader: BaseReaderWriter) -> None:
        self.output = output
        self._reader = reader
        self._folder = _unfinished(output)
        remove_unfinished_case(output)
        self._folder.mkdir(parents=True)

    @contextmanager
    def removed_on_error(self) -> Iterator["CaseFiles"]:
        """Context after whose errors no unfinished files are left."""
        try:
            yield self
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def empty_label_map(self, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """Zeros (z, y, x); on the disk if they are many.

        Raises:
            OSError: They do not fit on the disk.
        """
        n_bytes = math.prod(shape) * dtype.itemsize
        if n_bytes < LARGE:
            return np.zeros(shape, dtype)
        file = self._folder / _MAP
        with errors_of_writing(file):
            labels = np.lib.format.open_memmap(file, "w+", dtype, tuple(shape))
            if hasattr(os, "posix_fallocate"):  # else a full disk would kill the process when zeros are overwritten
                with file.open("r+b") as opened:
                    os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
        return labels

    def write_probabilities(self, probabilities: np.ndarray, properties: dict[str, Any]) -> None:
        """Write probabilities (K, z, y, x) as nnU-Net's commands read them: CASE.npz and CASE.pkl."""
        with self._written(f"{_CASE}.npz") as file:
            np.savez_compressed(file, probabilities=probabilities)
        with self._written(f"{_CASE}.pkl") as file:
            save_pickle(properties, str(file))

    def write_labels(self, labels: np.ndarray, grid: Grid, ending: str, properties: dict[str, Any]) -> None:
        """Write a label map (z, y, x) as nnU-Net's writer does.

        SimpleITK does not tell of a full disk when it writes NIfTI, so NiBabel writes it in its place. What is on the
        disk is written slice by slice, but for readers that reorient; it cannot be read any more afterwards.

        Args:
            labels: The label map.
            grid: Where it lies.
            ending: The dataset's file ending.
            properties: What the reader says of an image on this grid.

        Raises:
            OSError: The file cannot be written.
        """
        reorients = type(self._reader).__name__.endswith("WithReorient")
        on_disk = isinstance(labels, np.memmap) and not reorients
        with self._written(f"{_CASE}{ending}") as file:
            if ending.lower() in NIFTI_ENDINGS and ("sitk_stuff" in properties or on_disk):
                stuff = properties.get("sitk_stuff", {})
                values, place = _as_in_file(labels, stuff) if "original_orientation" in stuff else (labels, grid)
                _write_nifti(values[0] if len(stuff.get("spacing", ())) == 2 else values, place, file)
            else:
                self._write_by_reader(labels, file, properties)
        if isinstance(labels, np.memmap):
            labels._mmap.close()  # type: ignore[attr-defined]  # Windows does not delete what is mapped

    def _write_by_reader(self, labels: np.ndarray, file: Path, properties: dict[str, Any]) -> None:
        """Write a label map with nnU-Net's writer; what is not NIfTI is read again and compared."""
        try:
            self._reader.write_seg(labels, str(file), properties)
        except RuntimeError as error:  # ITK's
            is_full = os.strerror(errno.ENOSPC) in str(error)
            raise OSError(errno.ENOSPC if is_full else errno.EIO, " ".join(str(error).split())) from error
        if not file.name.lower().endswith(NIFTI_ENDINGS) and not np.array_equal(
            self._reader.read_seg(str(file))[0][0], labels
        ):
            raise OSError(errno.EIO, "other labels are read from it than were written. Is the disk full?")

    def write_map(self, name: str, values: np.ndarray, grid: Grid) -> None:
        """Write a map (z, y, x) of float32 as `NAME/CASE.nii.gz`, apart from the label maps."""
        with self._written(f"{name}/{_CASE}.nii.gz") as file:
            _write_nifti(values, grid, file)

    def finish(self, ending: str) -> None:
        """Move all files to where they belong, the label map last.

        Raises:
            OSError: A file cannot be flushed to the disk or moved.
        """
        (self._folder / _MAP).unlink(missing_ok=True)
        label_file = self._folder / f"{_CASE}{ending}"
        files = sorted((f for f in self._folder.rglob("*") if f.is_file()), key=lambda f: f == label_file)
        for file in files:
            with errors_of_writing(self._place_of(file)):
                flush_to_disk(file)
        for file in files:
            place = self._place_of(file)
            with errors_of_writing(place):
                place.parent.mkdir(exist_ok=True)
                file.replace(place)
        shutil.rmtree(self._folder, ignore_errors=True)

    @contextmanager
    def _written(self, name: str) -> Iterator[Path]:
        """Context that gives an unfinished file to write to, and checks it; an error names what it was to become."""
        file = self._folder / name
        with errors_of_writing(self._place_of(file)):
            file.parent.mkdir(exist_ok=True)
            yield file
            if not is_whole(file, self._reader):
                raise OSError(errno.EIO, "it is not whole. Is the disk full?")

    def _place_of(self, file: Path) -> Path:
        """Where an unfinished file belongs."""
        within = file.relative_to(self._folder)
        return self.output.parent / within.parent / (self.output.name + file.name.removeprefix(_CASE))


def remove_unfinished_case(output: Path) -> None:
    """Remove what an interrupted run left of the case `output`; one stopped at its very end leaves an empty folder."""
    shutil.rmtree(_unfinished(output), ignore_errors=True)


def _unfinished(output: Path) -> Path:
    return output.parent / f".unfinished_{output.name}"


def _as_in_file(labels: np.ndarray, stuff: Mapping[str, Any]) -> tuple[np.ndarray, Grid]:
    """A label map, and its grid, with the order of axes of the image's file, which nnU-Net's reader changed."""
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing(stuff["spacing"])
    image.SetOrigin(stuff["origin"])
    image.SetDirection(stuff["direction"])
    image = sitk.DICOMOrient(image, stuff["original_orientation"])
    found = {"spacing": image.GetSpacing(), "origin": image.GetOrigin(), "direction": image.GetDirection()}
    array = sitk.GetArrayFromImage(image)
    return array, grid_of_image({"sitk_stuff": found}, array.shape)


def _write_nifti(values: np.ndarray, grid: Grid, file: Path) -> None:
    """Write an array (z, y, x), or of an image of two axes (y, x), with the header that SimpleITK writes."""
    affine = RAS_TO_LPS @ grid.affine[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(values.T, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    if not np.allclose(image.get_qform(), affine, atol=1e-3):  # it holds no sheared axes
        image.set_qform(None, code="unknown")
    nibabel.save(image, file)
