"""NIfTI files as they are: SimpleITK reads what is cut off as zeros, NaN as 0, and a voxel size of 0 or NaN as 1."""

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError

Bytes = BinaryIO | gzip.GzipFile
"""A file that is read, decompressed or as it is."""
ENDINGS = (".nii", ".nii.gz")
CHUNK = 2**22
"""Bytes that are read at once; a multiple of the size of every voxel."""
_GZIP_MAGIC = b"\x1f\x8b"
_RIGHT_ANGLE = 1e-3
"""Largest cosine between two axes that counts as a right angle."""


def check_nifti_header(file: str) -> None:
    """Check the voxel size and the length of a NIfTI file, without reading all of it.

    The length of a compressed file is what its last four bytes say. Only where they do not fit (a file that is cut
    off, or compressed in parts) is the file read to its end.

    Raises:
        ValueError: The file is no NIfTI file, is cut off, or gives no voxel size; the message names it.
        OSError: There is no such file, or no access to it.
    """
    with opened(file) as stream:
        header = _read_header(stream, file)
    axes = len(header.get_data_shape())
    size = header["pixdim"][1 : min(axes, 3) + 1].astype(float)
    if not (np.isfinite(size).all() and size.all()):
        raise ValueError(
            f"{file}: the voxel size in its header (pixdim) is {', '.join(f'{s:g}' for s in size)}. Correct it; "
            "every axis needs a number of millimetres that is not 0."
        )
    needed = _data_offset(header) + _data_length(header)
    if not _length_fits(file, needed):
        raise cut_off(file)


def is_nifti2(file: str) -> bool:
    """Whether a NIfTI file is of the second version of the format."""
    with opened(file) as stream:
        return isinstance(_read_header(stream, file), nibabel.Nifti2Header)


def contradiction(file: str) -> str | None:
    """What the sform of a NIfTI file says otherwise than its other geometry, in words; None if it does not."""
    with opened(file) as stream:
        header = _read_header(stream, file)
    sform, code = header.get_sform(coded=True)
    if not code:
        return None
    axes = sform[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    cosines = (axes / lengths).T @ (axes / lengths) - np.eye(3)
    if np.abs(cosines).max() > _RIGHT_ANGLE:
        return "its sform is sheared (as of a tilted CT gantry)"
    size = np.abs(header["pixdim"][1:4].astype(float))
    if not np.allclose(lengths, size, rtol=0.01):
        return f"the voxel size is {_in_mm(size)} by its pixdim, {_in_mm(lengths)} by its sform"
    return None


def check_nifti_content(file: str, *, finite: bool = True) -> None:
    """Read a NIfTI file once to its end, 4 MiB at a time: length, checksum, and values that are not finite.

    Args:
        file: The file.
        finite: Refuse values that are not finite.

    Raises:
        ValueError: The file is cut off or damaged, or holds NaN or infinity; the message names it.
        OSError: There is no such file, or no access to it.
    """
    not_finite = 0
    with opened(file) as stream:
        header = _read_header(stream, file)
        dtype, left = header.get_data_dtype(), _data_length(header)
        stream.seek(_data_offset(header))
        while left:
            chunk = stream.read(min(CHUNK, left))
            left -= len(chunk)
            if left and len(chunk) < CHUNK:
                raise cut_off(file)
            if finite and dtype.kind in "fc":
                not_finite += int((~np.isfinite(np.frombuffer(chunk, dtype))).sum())
        read_to_end(stream)
    if not_finite:
        raise ValueError(
            f"{file} holds {not_finite} values that are NaN or infinite. Replace them: in an image for example by its "
            "minimum, in a label map by a label."
        )


@contextmanager
def opened(file: str) -> Iterator[Bytes]:
    """Context with a file's bytes, decompressed if they are compressed by gzip.

    Raises:
        ValueError: What is read is cut off or damaged; the message names the file.
        OSError: There is no such file, or no access to it.
    """
    with Path(file).open("rb") as stream, damage_named(file):
        compressed = stream.read(2) == _GZIP_MAGIC
        stream.seek(0)
        yield gzip.GzipFile(fileobj=stream) if compressed else stream


@contextmanager
def damage_named(file: str) -> Iterator[None]:
    """Context in which a compressed file is read; its errors become a ValueError that names the file."""
    try:
        yield
    except EOFError as error:
        raise cut_off(file) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{file} cannot be read as an image: it is damaged ({error}). Copy or make it again."
        ) from error


def read_to_end(stream: Bytes) -> int:
    """Read what is left of a stream, in pieces, and return how many bytes that is."""
    length = 0
    while chunk := stream.read(CHUNK):
        length += len(chunk)
    return length


def cut_off(file: str) -> ValueError:
    """The error of a file that is shorter than its header says."""
    return ValueError(
        f"{file} cannot be read as an image: it is cut off, and holds less than its header says. Copy or make it again."
    )


def _read_header(stream: Bytes, file: str) -> nibabel.Nifti1Header:
    """The header as it is in the file, NIfTI-1 or NIfTI-2, nothing corrected."""
    block = stream.read(nibabel.Nifti2Header.sizeof_hdr)
    for kind in (nibabel.Nifti2Header, nibabel.Nifti1Header):
        if kind.may_contain_header(block):
            header = kind(block[: kind.sizeof_hdr], check=False)
            try:
                header.get_data_dtype()
            except HeaderDataError as error:
                raise ValueError(f"{file} cannot be read as an image: {error}.") from error
            return header
    raise ValueError(f"{file} cannot be read as an image: it does not begin as a NIfTI file. Is it complete?")


def _data_offset(header: nibabel.Nifti1Header) -> int:
    return max(header.get_data_offset(), header.single_vox_offset)


def _data_length(header: nibabel.Nifti1Header) -> int:
    return math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize


def _length_fits(file: str, needed: int) -> bool:
    with Path(file).open("rb") as stream:
        if stream.read(2) != _GZIP_MAGIC:
            return Path(file).stat().st_size >= needed
        stream.seek(-4, 2)
        if int.from_bytes(stream.read(4), "little") == needed % 2**32:
            return True
    with opened(file) as stream:
        return read_to_end(stream) >= needed


def _in_mm(values: np.ndarray) -> str:
    return " x ".join(f"{v:g}" for v in values) + " mm"
