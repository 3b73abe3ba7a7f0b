"""Whether copies and measurements are of the raw files that are there now.

The date of a file's content does not tell: copying and unpacking keep old ones.
"""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nnunetv2_swipe.files import digest, replaced
from nnunetv2_swipe.images.tiff import spacing_file


def raw_files(case: Mapping[str, Any]) -> list[Path]:
    """Images and label of a case, and the .json files beside them from which nnU-Net reads a TIFF's spacing."""
    images, label = [Path(image) for image in case["images"]], Path(case["label"])
    beside = (*sorted({spacing_file(image) for image in images}), spacing_file(label, is_label=True))
    return [*images, label, *(file for file in beside if file.is_file())]


def changed_since(time_ns: int, files: Iterable[Path]) -> Path | None:
    """The first file whose content or entry (copied, moved, unpacked) was changed at this time or later."""
    for file in files:
        found = file.stat()
        if max(found.st_mtime_ns, found.st_ctime_ns) >= time_ns:
            return file
    return None


def outdated_copies(labels: Mapping[str, Path], folder: Path, file_ending: str) -> dict[Path, Path]:
    """The copies of label files in `gt_segmentations` that hold something else than the label file does now.

    nnU-Net renews them only where the label file's date is newer. Validation is scored against them.

    Args:
        labels: Case -> label file.
        folder: nnU-Net's folder of copies.
        file_ending: How the names of all of them end.

    Returns:
        Copy -> label file. Files that are missing on either side are left out.
    """
    copies = {folder / f"{case}{file_ending}": label for case, label in labels.items()}
    both = {copy: label for copy, label in copies.items() if copy.is_file() and label.is_file()}
    return {copy: label for copy, label in both.items() if _differ(copy, label)}


def _differ(copy: Path, label: Path) -> bool:
    """Whether two files hold different content; they are read only if their sizes and dates do not tell."""
    of_copy, of_label = copy.stat(), label.stat()
    if of_copy.st_size != of_label.st_size:
        return True
    # nnU-Net's copies keep the date; the entry of a label file that was replaced is younger than its copy's
    if of_copy.st_mtime_ns == of_label.st_mtime_ns and of_copy.st_ctime_ns > of_label.st_ctime_ns:
        return False
    return digest(copy) != digest(label)


def renew_copies(outdated: Mapping[Path, Path]) -> None:
    """Put the label files, as `outdated_copies` gives them, in the place of their copies."""
    for copy, label in outdated.items():
        with replaced(copy) as unfinished:
            shutil.copy2(label, unfinished)  # with its date, as nnU-Net copies it
