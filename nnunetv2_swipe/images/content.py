"""Whether an image file is whole, where the readers do not find out themselves."""

import gzip
import zlib
from pathlib import Path
from typing import BinaryIO

from nnunetv2_swipe.images.nifti import CHUNK, ENDINGS, check_nifti_content, cut_off, damage_named, read_to_end


def check_content(file: str, *, finite: bool = True) -> None:
    """Read a file of a format whose reader lets damage pass once to its end.

    These are NIfTI (cut off, checksum, NaN and infinity), compressed MetaImage (checksum) and compressed NRRD
    (checksum). The readers of other formats raise errors by themselves, or the format has no checksum.

    Args:
        file: The file.
        finite: Refuse NaN and infinity, too, where the file is NIfTI.

    Raises:
        ValueError: The file is cut off or damaged, or holds NaN or infinity; the message names it.
        OSError: There is no such file, or no access to it.
    """
    name = file.lower()
    if name.endswith(ENDINGS):
        check_nifti_content(file, finite=finite)
    elif name.endswith(".mha"):
        _check_metaimage(file)
    elif name.endswith(".nrrd"):
        _check_nrrd(file)


def _check_metaimage(file: str) -> None:
    with Path(file).open("rb") as stream, damage_named(file):
        fields = _fields(stream, b"=", last=b"elementdatafile")
        if fields.get(b"compresseddata") != b"true" or fields.get(b"elementdatafile") != b"local":
            return
        decompressor = zlib.decompressobj(wbits=47)  # zlib or gzip, as MetaImage's library takes it
        while not decompressor.eof and (chunk := stream.read(CHUNK)):
            while chunk and not decompressor.eof:
                decompressor.decompress(chunk, CHUNK)
                chunk = decompressor.unconsumed_tail
    if not decompressor.eof:
        raise cut_off(file)


def _check_nrrd(file: str) -> None:
    with Path(file).open("rb") as stream, damage_named(file):
        fields = _fields(stream, b":", last=b"")
        detached = b"data file" in fields or b"datafile" in fields
        if not detached and fields.get(b"encoding") in (b"gzip", b"gz"):
            with gzip.GzipFile(fileobj=stream) as content:
                read_to_end(content)


def _fields(stream: BinaryIO, separator: bytes, last: bytes) -> dict[bytes, bytes]:
    """The lines of a header up to the one whose key is `last`, keys and values in lower case."""
    fields: dict[bytes, bytes] = {}
    while last not in fields and (line := stream.readline(4096)):
        key, _, value = line.lower().partition(separator)
        fields[key.strip()] = value.strip()
    return fields
