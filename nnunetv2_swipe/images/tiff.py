"""What the header of a TIFF file says."""

from pathlib import Path
from typing import Literal, NamedTuple

import tifffile

from nnunetv2_swipe.images.nifti import cut_off

TIFF_ENDINGS = (".tif", ".tiff")


def spacing_file(image: str | Path, *, is_label: bool = False) -> Path:
    """The file from which nnU-Net reads the spacing of a TIFF volume: CASE.json, of a label map and of each channel."""
    file = Path(image)
    case = file.stem if is_label else file.stem[: -len("_0000")]
    return file.with_name(f"{case}.json")


class TiffHeader(NamedTuple):
    """What a TIFF file holds."""

    shape: tuple[int, ...]
    """That of the array that tifffile reads."""
    samples: int
    """Numbers per pixel."""
    note: str | None
    """What a user should know although the file can be read; or None."""


def read_tiff_header(file: str) -> TiffHeader:
    """Read the header of a TIFF file.

    Raises:
        ValueError: It is no TIFF file, is cut off, or holds several times the bytes that its header explains.
        OSError: There is no such file, or no access to it.
    """
    try:
        with tifffile.TiffFile(file) as tiff:
            page, shape = tiff.pages[0], tiff.series[0].shape
            is_whole = _is_whole(tiff)
    except (tifffile.TiffFileError, ValueError, IndexError) as error:
        raise ValueError(f"{file} cannot be read as an image: {error}.") from error
    stored = sum(page.databytecounts)
    plain = page.compression == 1 and not page.is_tiled and page.bitspersample in (8, 16, 32)
    if not is_whole:
        raise cut_off(file)
    if plain and stored in (3 * page.nbytes, 4 * page.nbytes):
        raise ValueError(
            f"{file} holds {stored // page.nbytes} numbers per pixel, but its header says one: the colours would be "
            "read as one channel, side by side. Save it anew as RGB, or each colour in a file of its own."
        )
    note = None
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
        note = "it has a palette; nnU-Net reads the numbers of its entries, not colours"
    return TiffHeader(shape, page.samplesperpixel, note)


def _is_whole(tiff: tifffile.TiffFile) -> bool:
    """Whether the last page that is there says that no other follows, and lies in the file as a whole."""
    stream, form = tiff.filehandle, tiff.tiff
    last = tiff.pages[len(tiff.pages) - 1]
    stream.seek(last.offset)
    order: Literal["little", "big"] = "little" if tiff.byteorder == "<" else "big"
    entries = int.from_bytes(stream.read(form.tagnosize), order)
    stream.seek(entries * form.tagsize, 1)
    next_page = int.from_bytes(stream.read(form.offsetsize), order)
    end = max(map(sum, zip(last.dataoffsets, last.databytecounts, strict=True)))
    return next_page == 0 and end <= stream.size
