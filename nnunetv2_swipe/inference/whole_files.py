"""Whether files were written to their end: a full disk and an interrupted copy leave files that are cut off."""

import zipfile
from pathlib import Path

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunetv2_swipe.images.content import check_content
from nnunetv2_swipe.images.nifti import ENDINGS
from nnunetv2_swipe.trust import read_pickle


def is_whole(file: Path, reader: BaseReaderWriter) -> bool:
    """Whether a file is there and can be read to its end; the checksums of compressed files are compared.

    Args:
        file: A file of nnU-Net's prediction: a label map or map, probabilities (.npz) or properties (.pkl).
        reader: Reads label maps that are not NIfTI.
    """
    name = file.name.lower()
    try:
        if name.endswith(".npz"):
            with zipfile.ZipFile(file) as archive:
                return archive.testzip() is None
        if name.endswith(".pkl"):
            read_pickle(file)
            return True
        check_content(str(file), finite=False)  # a network that overflows is no fault of the disk
        if not name.endswith(ENDINGS):
            reader.read_seg(str(file))
    except Exception:  # every format says in its own way that a file is damaged
        return False
    return True
