"""Which images there are to predict, and whether what is written can lie where it shall."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_swipe.images.tiff import TIFF_ENDINGS

_NAMED = 3
"""Files that an error names at most."""
_FILES_OF_NNUNET = ("dataset", "plans", "predict_from_raw_data_args")
"""What nnU-Net calls its own files in a folder of predictions, without .json."""


def images_of_cases(folder: str, ending: str) -> list[list[str]]:
    """The image files of every case in a folder, one for each channel, in their order.

    Args:
        folder: Files that do not end in `ending`, folders, and what macOS adds to copies (`._CASE`) are passed over.
        ending: The dataset's file ending.

    Raises:
        ValueError: A file has no channel number, or a case lacks a channel before its last one.
        OSError: The folder cannot be read.
    """
    named = re.compile(rf"(.+)_([0-9]{{4}}){re.escape(ending)}")
    cases: dict[str, list[str]] = {}
    foreign = []
    for file in sorted(f.name for f in Path(folder).iterdir() if _is_image(f, ending)):
        match = named.fullmatch(file)
        if match is None:
            foreign.append(file)
        else:
            cases.setdefault(match[1], []).append(file)
    if foreign:
        more = f" and {len(foreign) - _NAMED} more" if len(foreign) > _NAMED else ""
        raise ValueError(
            f"The folder {folder} holds {', '.join(foreign[:_NAMED])}{more}, without the number of a channel. Images "
            f"must be named CASE_0000{ending}, CASE_0001{ending} and so on, one file for each channel. Rename these "
            "files, or move them elsewhere."
        )
    for case, files in cases.items():
        expected = [f"{case}_{channel:04d}{ending}" for channel in range(len(files))]
        missing = [file for file in expected if file not in files]
        if missing:
            raise ValueError(f"The folder {folder} lacks {missing[0]}; there are {', '.join(files)}.")
    return [[str(Path(folder) / file) for file in cases[case]] for case in sorted(cases)]


def _is_image(file: Path, ending: str) -> bool:
    return file.name.endswith(ending) and not file.name.startswith("._") and file.is_file()


def case_of(image: str, ending: str) -> str:
    """The name of the case that an image file CASE_0000 with the dataset's ending is of."""
    return Path(image).name[: -len("_0000" + ending)]


def require_places(
    images: Sequence[Sequence[str]], outputs: Sequence[str], ending: str, *, inputs: Sequence[str | None]
) -> None:
    """Check where label maps will lie, before anything is written.

    Args:
        images: The image files of every case.
        outputs: Where the label map of each will lie, without its ending.
        ending: The dataset's file ending.
        inputs: Folders that label maps must not be written to: those of the images and of the previous stage's labels.

    Raises:
        ValueError: There are more or fewer outputs than cases, two cases have the same, or one lies in a folder of
            inputs, is the file of an image, or has the name of a file of nnU-Net.
    """
    if len(images) != len(outputs):
        raise ValueError(f"There are {len(images)} cases, but {len(outputs)} output files; there must be one for each.")
    taken = {os.path.realpath(file): file for files in images for file in files}
    for folder in filter(None, inputs):
        if any(Path(folder).resolve() == Path(output).parent.resolve() for output in outputs):
            raise ValueError(
                f"The output folder {folder} is also that of the images or of the previous stage's label maps. Name "
                "another output folder, so that label maps do not lie among the input or replace it."
            )
    written: dict[str, str] = {}
    for files, output in zip(images, outputs, strict=True):
        place = os.path.realpath(output + ending)
        if place in taken:
            raise ValueError(
                f"The label map of {files[0]} would replace the image {taken[place]}. Name another output."
            )
        if ending in TIFF_ENDINGS and Path(output).name in _FILES_OF_NNUNET:
            raise ValueError(f"The spacing of {files[0]} would replace nnU-Net's {output}.json. Rename the case.")
        if place in written:
            raise ValueError(
                f"{written[place]} and {files[0]} would both be written as {output}{ending}. Name an output file for "
                "each case, or predict them to different folders."
            )
        written[place] = files[0]
