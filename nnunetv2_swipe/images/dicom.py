"""DICOM is not read: where it is found, a user is told what to do."""

from itertools import islice
from pathlib import Path

DICOM_REMEDY = (
    "Convert each series to one NIfTI file, for example with dcm2niix, and name it CASE_0000.nii.gz (a further channel "
    "of the case CASE_0001.nii.gz)."
)
_MAGIC_AT, _MAGIC = 128, b"DICM"
_LOOKED_AT = 100
"""Files of a folder that are looked at."""


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, or a folder holds such a file among the first hundred."""
    if path.is_dir():
        files = (file for file in path.rglob("*") if file.is_file())
        return any(is_dicom(file) for file in islice(files, _LOOKED_AT))
    with path.open("rb") as stream:
        return stream.read(_MAGIC_AT + len(_MAGIC))[_MAGIC_AT:] == _MAGIC


def require_images(folder: Path, ending: str) -> None:
    """Check that a folder holds images, and say what to do if it holds DICOM instead.

    Raises:
        ValueError: No file in the folder ends in `ending`, or the ending is that of DICOM.
    """
    if any(file.name.endswith(ending) and not is_dicom(file) for file in islice(folder.glob(f"*{ending}"), 1)):
        return
    if is_dicom(folder):
        raise ValueError(f"{folder} holds DICOM. {DICOM_REMEDY}")
    raise ValueError(f"The folder {folder} holds no images that end in {ending}.")
