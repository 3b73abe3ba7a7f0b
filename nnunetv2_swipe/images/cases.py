"""Whether the files of a case fit together and fit dataset.json: headers of all cases before the work begins."""

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunetv2_swipe.geometry import Grid
from nnunetv2_swipe.images.content import check_content
from nnunetv2_swipe.images.headers import ONE_FILE_PER_CHANNEL, Header, read_header

logger = logging.getLogger(__name__)

_ELSEWHERE = (
    "by its header it does not lie where the case's first channel lies. nnU-Net lays the voxels of all channels upon "
    "each other as they are. Check the headers"
)


def channel_names(dataset_json: Mapping[str, Any]) -> list[str]:
    """The names of the channels that dataset.json declares."""
    return list((dataset_json.get("channel_names") or dataset_json["modality"]).values())


def check_case(
    files: Sequence[str], reader: type[BaseReaderWriter], channels: Sequence[str], label: str | None = None
) -> list[Header]:
    """Check the headers of a case's files.

    Args:
        files: The image, in one file for each channel (photographs: one for all).
        reader: The class of nnU-Net that will read them.
        channels: The names of the channels that dataset.json declares.
        label: The label map of the image, or the previous stage's.

    Returns:
        The headers of the image's files; none if the reader is none of nnU-Net's own.

    Raises:
        ValueError: A file is missing, cannot be read, or does not fit the others; the message names it.
        OSError: There is no access to a file.
    """
    headers = [header for header in (read_header(file, reader) for file in files) if header is not None]
    if len(headers) < len(files):
        return []
    found = sum(header.channels for header in headers)
    if found != len(channels):
        raise ValueError(
            f"{', '.join(files)}: found {found} of the {len(channels)} channels ({', '.join(channels)}). Is the file "
            "of a channel missing?"
        )
    first = headers[0]
    as_read = partial(_grid_as_read, reader=reader)
    for number, other in enumerate(headers[1:], start=1):
        grids = as_read(first), as_read(other)
        if grids[0].shape != grids[1].shape or not np.allclose(grids[0].spacing, grids[1].spacing):
            raise ValueError(
                f"The channels of a case must have one shape and spacing. {_described(first)}; {_described(other)}. "
                "Resample one onto the grid of the other."
            )
        if other.note is None and not grids[0].is_same_as(grids[1]):
            headers[number] = replace(other, note=_ELSEWHERE)
    if label is not None and (header := read_header(label, reader, is_label=True)) is not None:
        _require_fit(header, first, as_read(header).is_same_as(as_read(first)))
    return headers


def check_files(
    files: Sequence[str], reader: type[BaseReaderWriter], channels: Sequence[str], label: str | None = None
) -> None:
    """Check a case as it is about to be read: the headers as `check_case` does, and each file to its end.

    Raises:
        ValueError: A file is missing, cannot be read, is damaged, does not fit the others, or, if it is NIfTI, holds
            NaN or infinity; the message names it.
        OSError: There is no access to a file.
    """
    check_case(files, reader, channels, label)
    for file in files if label is None else (*files, label):
        check_content(file)


def check_dataset(
    dataset: Mapping[str, Mapping[str, Any]], reader: type[BaseReaderWriter], dataset_json: Mapping[str, Any]
) -> dict[str, list[Header]]:
    """Check the headers of all cases of a training dataset, and warn of what can be used but may be a mistake.

    Args:
        dataset: Case -> `images` (files, one for each channel) and `label` (file).
        reader: The class of nnU-Net that will read them.
        dataset_json: nnU-Net's dataset.json.

    Returns:
        Case -> the headers of its image's files; none if the reader is none of nnU-Net's own.

    Raises:
        ValueError: A file cannot be used; the message names it.
        OSError: There is no access to a file.
    """
    names = channel_names(dataset_json)
    cases = {case: check_case(files["images"], reader, names, files["label"]) for case, files in dataset.items()}
    headers = list(itertools.chain.from_iterable(cases.values()))
    log_notes(headers)
    _warn(
        [header.file for header in headers if _has_lost_spacing(header)],
        "the voxels are 1 x 1 x 1 mm and begin at the origin, as if the geometry had been lost. If that is not their "
        "true size, write it into the files (of TIFF volumes into CASE.json) and plan again",
    )
    return cases


def log_notes(headers: Iterable[Header]) -> None:
    """Warn of what the headers' notes say, once for each note."""
    notes: dict[str, list[str]] = {}
    for header in headers:
        if header.note is not None:
            notes.setdefault(header.note, []).append(header.file)
    for note, files in notes.items():
        _warn(files, note)


def require_three_axes(properties: Mapping[str, Any], case: str) -> None:
    """Check what nnU-Net's reader said of a case that nnU-Net has preprocessed.

    Raises:
        ValueError: Its image has four axes, of which no label map can be written.
    """
    axes = len(properties.get("sitk_stuff", {}).get("spacing", ()))
    if axes > 3:
        raise ValueError(f"The image of the case {case} has {axes} axes. {ONE_FILE_PER_CHANNEL}; then plan again.")


def _grid_as_read(header: Header, reader: type[BaseReaderWriter]) -> Grid:
    """The grid of what a reader makes of a file; some bring the axes of every file into one order."""
    return header.grid.in_order_of_ras() if reader.__name__.endswith("WithReorient") else header.grid


def _require_fit(label: Header, image: Header, on_one_grid: bool) -> None:
    """ValueError if a label map has several channels or another grid than its image."""
    if label.channels != 1:
        raise ValueError(
            f"{label.file} holds {label.channels} channels (colours); a label map holds one, the number of the class. "
            "Save the numbers, without a palette."
        )
    knows_both = label.knows_spacing and image.knows_spacing
    if not on_one_grid and (knows_both or label.shape != image.shape):
        raise ValueError(
            f"The label map is on another grid than its image. {_described(label)}; {_described(image)}. Correct the "
            "header that is wrong, or resample the label map onto the image's grid (nearest neighbour)."
        )


def _has_lost_spacing(header: Header) -> bool:
    """Whether a volume's voxels are of 1 mm and begin at the origin, its axes those of the patient."""
    if not header.knows_spacing:
        return True
    has_geometry = not {"sitk_stuff", "nibabel_stuff"}.isdisjoint(header.properties)
    identity = np.eye(4)[[2, 1, 0, 3]]  # from z, y, x to x, y, z
    return has_geometry and header.shape[0] > 1 and np.array_equal(np.abs(header.grid.affine), identity)


def _described(header: Header) -> str:
    """Shape and geometry of a file, in words."""
    affine = np.array2string(header.grid.affine[:3], precision=4, suppress_small=True).replace("\n", "")
    spacing = ", ".join(f"{s:g}" for s in header.properties["spacing"])
    return f"{header.file} has the shape {header.shape} (z, y, x), the spacing {spacing} and the affine {affine} (LPS)"


def _warn(files: Sequence[str], text: str) -> None:
    if files:
        more = f" and {len(files) - 1} more files" if len(files) > 1 else ""
        logger.warning("%s%s: %s.", files[0], more, text)
