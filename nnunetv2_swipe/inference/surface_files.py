"""Files of surfaces: what they are called, and how they are written."""

import errno
import re
import struct
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunetv2_swipe.files import replaced
from nnunetv2_swipe.inference.surfaces import Mesh

if TYPE_CHECKING:
    from pyvista import PolyData  # which is optional

_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f]|[. ]$')
"""What some file system does not have in a name."""
_RESERVED = re.compile(r"|\..*|(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names of nothing, of hidden files and folders, and of Windows' devices."""


def file_names(names: Iterable[str]) -> dict[str, str]:
    """A name for the file or folder, without ending, of every case or class; any file system has it.

    Args:
        names: Of cases or classes.

    Raises:
        ValueError: Two of them would be the same file on some file system; both are named.
    """
    result: dict[str, str] = {}
    first: dict[str, str] = {}
    for name in names:
        safe = _FORBIDDEN.sub("_", name)
        if _RESERVED.fullmatch(safe):
            safe = f"_{safe}"
        # file systems of macOS and Windows take upper and lower case, and two spellings of an accent, for the same
        other = first.setdefault(unicodedata.normalize("NFC", safe).casefold(), name)
        if other != name:
            raise ValueError(
                f"The surfaces of {other!r} and of {name!r} would be one file or folder, {safe!r}. If they are "
                "classes, write one at a time (--classes), each to a folder of its own (-o). If they are cases, "
                "rename the images of one."
            )
        result[name] = safe
    return result


def write_mesh(mesh: Mesh, file: Path, *, ras: bool = False) -> None:
    """Write a surface; the file's ending names the format (STL, PLY, VTP or OBJ).

    The file says which coordinates it is in, `SPACE=LPS` or `SPACE=RAS`, as 3D Slicer reads it. It appears when it is
    complete.

    Args:
        mesh: In LPS, of at least one triangle.
        file: Where.
        ras: Write it in RAS, the coordinates of NIfTI (towards the right, front and head), instead of LPS, those of
            DICOM and ITK.

    Raises:
        OSError: The file cannot be written; it is named.
    """
    from pyvista import PolyData

    vertices = mesh.vertices * np.array([-1.0, -1.0, 1.0]) if ras else mesh.vertices
    surface = PolyData.from_regular_faces(vertices, mesh.faces)
    with replaced(file) as unfinished:
        written = _write(surface, unfinished, "RAS" if ras else "LPS")
        if not written or not _holds_the_end(unfinished, mesh.faces[-1]):
            raise OSError(errno.EIO, "not all of it was written. Is the disk full?")


def _write(surface: "PolyData", file: Path, space: str) -> bool:
    """Write a surface by VTK; whether VTK says that it did."""
    from vtkmodules.vtkIOGeometry import vtkOBJWriter, vtkSTLWriter
    from vtkmodules.vtkIOPLY import vtkPLYWriter
    from vtkmodules.vtkIOXML import vtkXMLPolyDataWriter

    comment = f"SPACE={space}"
    writer: Any
    if file.suffix == ".stl":
        writer = vtkSTLWriter()
        writer.SetHeader(comment)
        writer.SetFileTypeToBinary()
    elif file.suffix == ".ply":
        writer = vtkPLYWriter()
        writer.AddComment(comment)
    elif file.suffix == ".vtp":
        writer = vtkXMLPolyDataWriter()
        surface.field_data["SPACE"] = [space]
    else:
        writer = vtkOBJWriter()
    writer.SetInputData(surface)
    writer.SetFileName(str(file))
    written = bool(writer.Write())
    if file.suffix == ".obj":  # whose writer takes no comment
        file.write_bytes(f"# {comment}\n".encode() + file.read_bytes())
    return written


def _holds_the_end(file: Path, triangle: np.ndarray) -> bool:
    """Whether a file ends with the last triangle: VTK's writers of PLY and OBJ do not say that the disk is full."""
    ends = {".ply": struct.pack("<B3i", 3, *triangle), ".obj": "f {} {} {}\n".format(*(triangle + 1)).encode()}
    return file.read_bytes().endswith(ends.get(file.suffix, b""))
