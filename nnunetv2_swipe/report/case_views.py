"""What the report shows of a case: its scores, slices and surfaces."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
import SimpleITK as sitk
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunetv2_swipe.inference.encoded_image import EncodedImage
from nnunetv2_swipe.inference.geometry import Grid, grid_of_image
from nnunetv2_swipe.inference.surfaces import Mesh, extract_mesh
from nnunetv2_swipe.report.cases import Case
from nnunetv2_swipe.report.pictures import (
    colours_of,
    displayed_shape,
    error_layer,
    heat_layer,
    image_layer,
    label_layer,
    slice_of_most,
    thinned,
    view,
)
from nnunetv2_swipe.report.scores import score_case

UNCERTAINTY_FOLDER = "uncertainty"
"""Beside label maps, where nnUNetv2_swipe_predict writes it."""
MOST_UNCERTAIN = 0.5
"""Variance of the label that is shown as the highest: that of two classes as probable."""
SURFACE_CELLS = 96
"""Along the image's longest side, at most."""
Structures = Mapping[str, Sequence[int]]


class Volumes(NamedTuple):
    """The files of a case, read."""

    image: np.ndarray
    """(C, z, y, x)."""
    prediction: np.ndarray
    """Labels, (z, y, x)."""
    truth: np.ndarray | None
    grid: Grid

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel."""
        return float(np.prod(self.grid.spacing))


def read_case(case: Case, reader: BaseReaderWriter) -> Volumes:
    """Read the image and label maps of a case.

    Raises:
        ValueError: They are not on one grid.
    """
    image, properties = reader.read_images(list(map(str, case.images)))
    maps = [None if file is None else reader.read_seg(str(file))[0][0] for file in (case.prediction, case.truth)]
    for found, file in zip(maps, (case.prediction, case.truth), strict=True):
        if found is not None and found.shape != image.shape[1:]:
            raise ValueError(
                f"{file} has {found.shape} voxels, its image {case.images[0]} has {image.shape[1:]}. A report needs "
                "label maps on the images' own grids."
            )
    prediction, truth = maps
    return Volumes(image, np.asarray(prediction), truth, grid_of_image(properties, image.shape[1:]))


def scores_of(volumes: Volumes, structures: Structures, ignore_label: int | None) -> dict[str, dict[str, float | None]]:
    """Dice, NSD and volumes in millilitres of every class, None where there are none."""
    scores: dict[str, dict[str, float]] = {}
    if volumes.truth is not None:
        scores = score_case(
            volumes.prediction,
            volumes.truth,
            structures=structures,
            spacing=volumes.grid.spacing,
            ignore_label=ignore_label,
        )
    result = {}
    for name, labels in structures.items():
        of_class = scores.get(name, {})
        found, expected = (
            None if m is None else float(np.isin(m, labels).sum() * volumes.voxel_mm3 / 1000)
            for m in (volumes.prediction, volumes.truth)
        )
        result[name] = {
            "Dice": of_class.get("Dice"),
            "NSD": of_class.get("NSD"),
            "volume": found,
            "true volume": expected,
        }
    return result


def slices_of(case: Case, volumes: Volumes, encoded: EncodedImage | None, ignore_label: int | None) -> dict[str, Any]:
    """Layers for the slice viewer: image, prediction, truth, error, uncertainty, attention."""
    shape = displayed_shape(volumes.prediction.shape)
    grid = volumes.grid.with_shape(shape)
    prediction = thinned(volumes.prediction, shape)
    image = np.stack([thinned(channel, shape) for channel in volumes.image])
    layers = [image_layer(image), label_layer("Prediction", prediction, shown=volumes.truth is None)]
    most = prediction > 0
    if volumes.truth is not None:
        truth = thinned(volumes.truth, shape)
        layers.append(label_layer("Truth", np.where(truth == ignore_label, 0, truth), shown=False))
        layers.append(error_layer(prediction, truth, ignore_label))
        most = truth > 0
    uncertainty = _uncertainty(case, volumes, encoded, grid)
    if uncertainty is not None:
        layers.append(heat_layer("Uncertainty", uncertainty, 0, MOST_UNCERTAIN))
    attention = None if encoded is None else encoded.attention(grid)
    if attention is not None:
        for number, weights in enumerate(attention, start=1):
            layers.append(heat_layer(f"Attention to stage {number}", weights, attention.min(), attention.max()))
    return view(layers, shape, grid.spacing, slice_of_most(most))


def surfaces_of(volumes: Volumes, encoded: EncodedImage | None, structures: Structures) -> go.Figure | None:
    """Surfaces of all classes, the model's own where there is one, else those of the label map; None of a slice."""
    if min(volumes.prediction.shape) == 1:
        return None
    side = max(n * s for n, s in zip(volumes.grid.shape, volumes.grid.spacing, strict=True))
    spacing = max(min(volumes.grid.spacing), side / SURFACE_CELLS)
    grid = volumes.grid.with_shape(volumes.grid.with_spacing((spacing,) * 3).shape)
    figure, colours = go.Figure(), colours_of(structures)
    if encoded is None:
        meshes: Iterable[tuple[str, Mesh]] = _of_labels(volumes.prediction, structures, grid)
    else:
        meshes = zip(structures, encoded.meshes(list(structures), spacing), strict=True)
    figure.add_traces([_surface(mesh, name, colours[name]) for name, mesh in meshes if len(mesh.faces)])
    if volumes.truth is not None:
        for name, mesh in _of_labels(volumes.truth, structures, grid):
            if len(mesh.faces):
                surface = _surface(mesh, f"{name}, truth", colours[name])
                figure.add_trace(surface.update(opacity=0.4, visible="legendonly"))
    figure.update_layout(
        height=480,
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        scene={
            "aspectmode": "data",
            "camera_eye": {"x": 1.5, "y": 1.5, "z": 1.5},
            "xaxis_title": "L (mm)",
            "yaxis_title": "P (mm)",
            "zaxis_title": "S (mm)",
        },
        showlegend=True,
    )
    return figure


def _uncertainty(case: Case, volumes: Volumes, encoded: EncodedImage | None, grid: Grid) -> np.ndarray | None:
    """The variance of the label on a grid: as it was written beside the prediction, else by the model."""
    file = case.prediction.parent / UNCERTAINTY_FOLDER / f"{case.name}.nii.gz"
    if file.is_file():
        values = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
        if values.shape == volumes.prediction.shape:
            return thinned(values, grid.shape)
    return None if encoded is None else encoded.uncertainty(grid).sum(0)


def _of_labels(labels: np.ndarray, structures: Structures, grid: Grid) -> Iterator[tuple[str, Mesh]]:
    """Name and surface of every structure of a label map."""
    shown = thinned(labels, grid.shape)
    for name, values in structures.items():
        yield name, extract_mesh(np.isin(shown, values).astype(np.float32), grid)


def _surface(mesh: Mesh, name: str, colour: str) -> go.Mesh3d:
    vertices = dict(zip("xyz", mesh.vertices.T.astype(np.float32), strict=True))
    corners = dict(zip("ijk", mesh.faces.T.astype(np.int32), strict=True))
    return go.Mesh3d(**vertices, **corners, name=name, color=colour, showlegend=True, hoverinfo="name")
