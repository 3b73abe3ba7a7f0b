"""Whether files were written to their end: a full disk and an interrupted copy leave files that are cut off."""

import gzip
import math
import os
import zipfile
from pathlib import Path

import nibabel
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

NIFTI = (".nii", ".nii.gz")
"""Endings of NIfTI files."""
_CHUNK = 1 << 22


def is_whole(file: Path, reader: BaseReaderWriter) -> bool:
    """Whether a file is there and can be read to its end; the checksums of compressed files are compared.

    Args:
        file: A file of nnU-Net's prediction: a label map or map, probabilities (.npz) or properties (.pkl).
        reader: Reads label maps that are not NIfTI.
    """
    name = file.name.lower()
    try:
        if name.endswith(NIFTI):
            return _is_whole_nifti(file)
        if name.endswith(".npz"):
            with zipfile.ZipFile(file) as archive:
                return archive.testzip() is None
        if name.endswith(".pkl"):
            return _last_byte(file) == b"."  # the end of every pickle; loading one might run code
        reader.read_seg(str(file))
    except Exception:  # every format says in its own way that a file is damaged
        return False
    return True


def _is_whole_nifti(file: Path) -> bool:
    values = nibabel.load(file).dataobj  # type: ignore[attr-defined]
    expected = values.offset + math.prod(values.shape) * values.dtype.itemsize
    if not file.name.lower().endswith(".gz"):
        return file.stat().st_size >= expected
    with gzip.open(file) as content:
        return sum(iter(lambda: len(content.read(_CHUNK)), 0)) >= expected


def _last_byte(file: Path) -> bytes:
    with file.open("rb") as content:
        content.seek(-1, os.SEEK_END)
        return content.read()
