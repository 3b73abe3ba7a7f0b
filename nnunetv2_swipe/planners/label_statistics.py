"""What the training labels look like: per class the volume, extent and surface-to-volume ratio, measured once."""

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.configuration import default_num_processes
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from tqdm import tqdm

from nnunetv2_swipe.files import digest, keep_json, read_json_object
from nnunetv2_swipe.images.content import check_content
from nnunetv2_swipe.images.headers import read_header
from nnunetv2_swipe.labels import as_tuple, declared_labels, require_declared
from nnunetv2_swipe.limits import available_cpus
from nnunetv2_swipe.processes import end_with_parent

STATISTICS_FILE = "dataset_label_statistics.json"
"""Lies beside nnU-Net's dataset_fingerprint.json."""


def measure_mask(mask: np.ndarray, spacing_mm: Sequence[float]) -> dict[str, Any]:
    """Measure one structure.

    Args:
        mask: Boolean array (z, y, x) with at least one voxel set; an axis of length one counts as 2D.
        spacing_mm: Voxel size per axis.

    Returns:
        `volume_mm3`, `extent_mm` (bounding box per axis) and `surface_to_volume_per_mm`, the area of the faces
        between structure and background over the volume. Faces along axes of length one do not count.
    """
    spacing = np.asarray(spacing_mm, dtype=float)
    occupied = [np.flatnonzero(mask.any(axis=tuple(j for j in range(mask.ndim) if j != i))) for i in range(mask.ndim)]
    box = mask[tuple(slice(o[0], o[-1] + 1) for o in occupied)]
    volume = float(box.sum() * spacing.prod())
    surface = 0.0
    for axis in range(mask.ndim):
        if mask.shape[axis] > 1:
            padded = np.pad(box, [(1, 1) if i == axis else (0, 0) for i in range(mask.ndim)])
            surface += np.diff(padded.view(np.int8), axis=axis).astype(bool).sum() * spacing.prod() / spacing[axis]
    extent = [float(n * s) for n, s in zip(box.shape, spacing, strict=True)]
    return {"volume_mm3": volume, "extent_mm": extent, "surface_to_volume_per_mm": float(surface / volume)}


def _measure_case(
    file: str,
    reader_name: str,
    structures: Mapping[str, Sequence[int]],
    allowed: Sequence[int],
    spacing_mm: Sequence[float],
) -> dict[str, dict[str, Any]]:
    """Measure every structure present in one label file.

    Raises:
        ValueError: The file cannot be read, is damaged, or holds a label that dataset.json does not declare.
    """
    reader = recursive_find_reader_writer_by_name(reader_name)
    read_header(file, reader, is_label=True)
    check_content(file)
    segmentation, _ = reader().read_seg(file)
    segmentation = segmentation[0]
    require_declared(segmentation, allowed, file)
    measured = {}
    for name, labels in structures.items():
        mask = np.isin(segmentation, labels)  # one at a time: there may be a hundred, of a whole body
        if mask.any():
            measured[name] = measure_mask(mask, spacing_mm)
    return measured


def require_distinct_files(cases: Collection[str]) -> None:
    """ValueError if nnU-Net stores the labels of one case and the image of another in one file, CASE_seg.b2nd."""
    for case in cases:
        if f"{case}_seg" in cases:
            raise ValueError(
                f"nnU-Net would store the labels of the case {case} and the image of the case {case}_seg in one file, "
                f"{case}_seg.b2nd. Rename the files of the case {case}_seg, or remove them if they are label maps "
                "among the images."
            )


def foreground_structures(label_manager: LabelManager) -> dict[str, list[int]]:
    """The labels of every foreground class or region, by `structure_key`."""
    structures = label_manager.foreground_regions if label_manager.has_regions else label_manager.foreground_labels
    labels = map(as_tuple, structures)
    return {structure_key(values): list(values) for values in labels}


def structure_key(labels: tuple[int, ...]) -> str:
    """What statistics call a class or region: "1", "(1, 2)"."""
    return str(labels[0] if len(labels) == 1 else labels)


def label_statistics(
    label_files: Mapping[str, str | Path],
    spacings_mm: Mapping[str, Sequence[float]],
    *,
    cache_file: str | Path,
    reader_name: str,
    label_manager: LabelManager,
    num_processes: int = default_num_processes,
) -> dict[str, dict[str, Any]]:
    """Statistics of every foreground class, from the cache if it is of these labels.

    Args:
        label_files: Case identifier -> label file.
        spacings_mm: Case identifier -> voxel size of its image along z, y and x. Copies of label files may have lost
            it: nnU-Net keeps a TIFF's in a file of its own.
        cache_file: Where the result is kept, if it can be written; measured again when cases, labels, spacings or the
            content of a file have changed.
        reader_name: nnU-Net reader class of the dataset.
        label_manager: Labels or regions of the dataset.
        num_processes: Processes to measure with; as many as the job may use, at most.

    Returns:
        `structure_key` of a class -> `n_cases`, and the medians over the cases that hold the class of `volume_mm3`,
        `extent_mm` (per axis) and `surface_to_volume_per_mm`. A class that no case holds is left out.

    Raises:
        ValueError: A file holds a label that dataset.json does not declare; it is named.
        OSError: A file is missing.
    """
    require_distinct_files(label_files)
    structures = foreground_structures(label_manager)
    spacings = {case: [float(s) for s in spacings_mm[case]] for case in label_files}
    cases = {case: {"sha256": digest(file), "spacing": spacings[case]} for case, file in label_files.items()}
    source = {"cases": cases, "structures": structures}
    cached = _cached(Path(cache_file))
    if cached.get("source") == source and isinstance(cached.get("classes"), dict):
        return cached["classes"]
    allowed = declared_labels(label_manager)
    jobs = [(str(file), reader_name, structures, allowed, spacings[case]) for case, file in label_files.items()]
    n_workers = max(1, min(num_processes, available_cpus(), len(jobs)))
    with ProcessPoolExecutor(n_workers, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        futures = [pool.submit(_measure_case, *job) for job in jobs]
        measured = [f.result() for f in tqdm(futures, desc="Measuring labels")]
    classes = {name: _summarise([c[name] for c in measured if name in c]) for name in structures}
    classes = {name: summary for name, summary in classes.items() if summary["n_cases"] > 0}
    keep_json({"classes": classes, "source": source}, cache_file)
    return classes


def _cached(file: Path) -> dict[str, Any]:
    """What the cache holds; nothing if it is not there or damaged."""
    try:
        return read_json_object(file)
    except (ValueError, OSError):
        return {}


def _summarise(measurements: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians over cases."""
    summary: dict[str, Any] = {"n_cases": len(measurements)}
    if measurements:
        for key in measurements[0]:
            summary[key] = np.median([m[key] for m in measurements], axis=0).tolist()
    return summary


def thickness_mm(statistics: Mapping[str, Any]) -> float:
    """Thickness of a structure: 4 volumes over its surface, exact for a long bar of square cross-section."""
    return 4.0 / max(statistics["surface_to_volume_per_mm"], 1e-6)
