"""What the training labels look like: per class the volume, extent and surface-to-volume ratio, measured once."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_json, save_json
from nnunetv2.configuration import default_num_processes
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from tqdm import tqdm

from nnunetv2_swipe.labels import as_tuple, declared_labels, require_declared
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
    file: str, reader_name: str, structures: Mapping[str, Sequence[int]], allowed: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Measure every structure present in one label file.

    Raises:
        ValueError: The file holds a label that dataset.json does not declare.
    """
    segmentation, properties = recursive_find_reader_writer_by_name(reader_name)().read_seg(file)
    segmentation = segmentation[0]
    require_declared(segmentation, allowed, file)
    measured = {}
    for name, labels in structures.items():
        mask = np.isin(segmentation, labels)  # one at a time: there may be a hundred, of a whole body
        if mask.any():
            measured[name] = measure_mask(mask, properties["spacing"])
    return measured


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
    *,
    cache_file: str | Path,
    reader_name: str,
    label_manager: LabelManager,
    num_processes: int = default_num_processes,
) -> dict[str, dict[str, Any]]:
    """Statistics of every foreground class, from the cache if it is of these files.

    Args:
        label_files: Case identifier -> label file.
        cache_file: Where the result is kept; measured again when the cases, labels or files have changed.
        reader_name: nnU-Net reader class of the dataset.
        label_manager: Labels or regions of the dataset.
        num_processes: Processes to measure with.

    Returns:
        `structure_key` of a class -> `n_cases`, and the medians over the cases that hold the class of `volume_mm3`,
        `extent_mm` (per axis) and `surface_to_volume_per_mm`. A class that no case holds is left out.
    """
    structures = foreground_structures(label_manager)
    newest = max((int(Path(f).stat().st_mtime) for f in label_files.values()), default=0)  # copies lose fractions
    source = {"cases": sorted(label_files), "structures": structures, "newest_label_file": newest}
    cache_file = Path(cache_file)
    if cache_file.is_file():
        cached = load_json(str(cache_file))
        if cached.get("source") == source:
            return cached["classes"]
    allowed = declared_labels(label_manager)
    jobs = [(str(f), reader_name, structures, allowed) for f in label_files.values()]
    n = min(num_processes, max(len(jobs), 1))
    with ProcessPoolExecutor(n, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        futures = [pool.submit(_measure_case, *job) for job in jobs]
        cases = [f.result() for f in tqdm(futures, desc="Measuring labels")]
    classes = {name: _summarise([c[name] for c in cases if name in c]) for name in structures}
    classes = {name: summary for name, summary in classes.items() if summary["n_cases"] > 0}
    unfinished = cache_file.with_suffix(f".{os.getpid()}.tmp")  # several processes may get here at once (DDP)
    save_json({"classes": classes, "source": source}, str(unfinished), sort_keys=False)
    unfinished.replace(cache_file)
    return classes


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
