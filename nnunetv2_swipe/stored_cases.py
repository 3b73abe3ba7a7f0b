"""Cases in a folder of nnU-Net's preprocessed data, as they lie on the disk."""

from pathlib import Path
from typing import Any

import blosc2

from nnunetv2_swipe.trust import read_pickle

_ENDINGS = (".b2nd", "_seg.b2nd", ".pkl")
_SUFFIXES = (".b2nd", ".pkl", ".npz", ".npy")


def visible_files(folder: str | Path) -> list[Path]:
    """The files in a folder, sorted, without hidden ones, such as macOS adds to copies."""
    return [file for file in sorted(Path(folder).glob("*")) if file.is_file() and not file.name.startswith(".")]


def stored_cases(folder: str | Path) -> list[str]:
    """The cases in a folder of preprocessed data, sorted."""
    return [file.stem for file in visible_files(folder) if file.suffix == ".pkl"]


def require_only_cases(folder: str | Path) -> None:
    """ValueError that names a file which is no part of the preprocessed data: nnU-Net takes it for a case."""
    files = sorted(file for file in Path(folder).glob("*") if file.is_file())
    foreign = [file for file in files if file.name.startswith(".") or file.suffix not in _SUFFIXES]
    if foreign:
        raise ValueError(f"{foreign[0]} is no part of the preprocessed data, but nnU-Net would read it. Delete it.")


def files_of_stored_case(folder: Path, case: str) -> list[Path]:
    """Image, segmentation and properties of a case, whether they are there or not."""
    return [folder / f"{case}{ending}" for ending in _ENDINGS]


def read_properties(file: Path) -> dict[str, Any]:
    """Read the properties of a preprocessed case: spacing in mm, shapes, places of the classes.

    Raises:
        ValueError: It is damaged or holds something else; the message names the file.
        OSError: There is no such file, or no access to it.
    """
    properties = read_pickle(file)
    if not isinstance(properties, dict) or "spacing" not in properties:
        raise ValueError(f"{file} holds no properties of a preprocessed case. Preprocess the dataset again.")
    return properties


def read_shape(file: Path) -> tuple[int, ...]:
    """Shape of a stored array, which is read to its end.

    Raises:
        Exception: It cannot be read; blosc2 does not say which errors it raises.
    """
    array = blosc2.open(urlpath=str(file), mode="r")
    for chunk in range(array.schunk.nchunks):
        array.schunk.decompress_chunk(chunk)
    return tuple(array.shape)
