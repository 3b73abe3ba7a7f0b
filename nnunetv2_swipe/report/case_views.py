"""What the report shows of a case: its scores, slices and surfaces."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
import torch.nn.functional as F

from nnunetv2_swipe.geometry import Grid, box_around
from nnunetv2_swipe.inference.encoded_image import EncodedImage
from nnunetv2_swipe.inference.surfaces import Mesh, extract_mesh
from nnunetv2_swipe.report.pictures import (
    displayed_shape,
    edges,
    error_layer,
    heat_layer,
    image_layer,
    label_layer,
    nearest_indices,
    thinned,
    view,
)
from nnunetv2_swipe.report.scores import score_case
from nnunetv2_swipe.report.structures import Structures, css
from nnunetv2_swipe.report.volumes import Volumes

SURFACE_CELLS = 96
"""Along the longest side of what a surface is looked for in, at most."""
METRICS = ("Dice", "NSD")


def scores_of(volumes: Volumes, structures: Structures) -> dict[str, dict[str, float | None]]:
    """Dice, NSD and sizes (in millilitres; of an image in 2D, pixels) of every structure; None where there are none."""
    scores: dict[str, dict[str, float]] = {}
    if volumes.truth is not None:
        scores = score_case(
            volumes.prediction,
            volumes.truth,
            structures=structures.labels,
            spacing=[1.0] * 3 if volumes.is_slice else volumes.grid.spacing,
            metrics=METRICS,
        )
    unit = 1.0 if volumes.is_slice else np.prod(volumes.grid.spacing) / 1000
    result: dict[str, dict[str, float | None]] = {}
    for name, labels in structures.labels.items():
        sizes = [
            None if m is None else float(np.isin(m, labels).sum() * unit) for m in (volumes.prediction, volumes.truth)
        ]
        result[name] = {metric: scores.get(name, {}).get(metric) for metric in METRICS}
        result[name] |= {"size": sizes[0], "true size": sizes[1]}
    return result


def slices_of(volumes: Volumes, encoded: EncodedImage | None, structures: Structures) -> dict[str, Any]:
    """Layers for the slice viewer: image, prediction, truth, error, uncertainty, attention."""
    shape = displayed_shape(volumes.prediction.shape)
    grid = volumes.grid.with_shape(shape)
    prediction, colours = thinned(volumes.prediction, shape), structures.label_colours
    layers = [
        image_layer(np.stack([thinned(channel, shape) for channel in volumes.image])),
        label_layer("Prediction", prediction, colours, shown=volumes.truth is None),
    ]
    most = prediction > 0
    if volumes.truth is not None:
        truth = thinned(volumes.truth, shape)
        most = truth > 0
        layers += [label_layer("Truth", truth, colours, shown=False), error_layer(prediction, truth)]
    uncertainty = None if volumes.uncertainty is None else thinned(volumes.uncertainty, shape)
    if uncertainty is None and encoded is not None:
        uncertainty = encoded.uncertainty(grid).sum(0)
    if uncertainty is not None:
        layers.append(heat_layer("Uncertainty", uncertainty, 0, structures.highest_variance))
    attention = None if encoded is None else encoded.attention(grid)
    if attention is not None and attention.any():
        inside = attention[:, attention.sum(0) > 0]
        for number, weights in enumerate(attention, start=1):
            layers.append(heat_layer(f"Attention to stage {number}", weights, inside.min(), inside.max()))
    shown = nearest_indices(shape[0], volumes.prediction.shape[0])
    result = view(layers, grid.spacing, shown, volumes.prediction.shape[0], most)
    return result if volumes.is_slice else {**result, "edges": edges(grid)}


def surfaces_of(volumes: Volumes, encoded: EncodedImage | None, structures: Structures) -> go.Figure | None:
    """Surfaces of all structures, the model's own where there is one, else those of the label map; None in 2D."""
    if min(volumes.prediction.shape) == 1:
        return None
    meshes: Iterable[tuple[str, Mesh]]
    if encoded is None:
        meshes = _of_labels(volumes.prediction, volumes.grid, structures)
    else:
        side = max(n * s for n, s in zip(volumes.grid.shape, volumes.grid.spacing, strict=True))
        names = list(structures.labels)
        meshes = zip(names, encoded.meshes(names, max(min(volumes.grid.spacing), side / SURFACE_CELLS)), strict=True)
    colours = {name: css(colour) for name, colour in structures.colours.items()}
    figure = go.Figure([_surface(mesh, name, colours[name]) for name, mesh in meshes if len(mesh.faces)])
    if volumes.truth is not None:
        for name, mesh in _of_labels(volumes.truth, volumes.grid, structures):
            if len(mesh.faces):
                surface = _surface(mesh, f"{name}, truth", colours[name])
                figure.add_trace(surface.update(opacity=0.4, visible="legendonly"))
    figure.update_layout(
        height=480,
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        scene={
            "aspectmode": "data",
            "camera_eye": {"x": 1.6, "y": 1.6, "z": 1.2},
            "xaxis_title": "L (mm)",
            "yaxis_title": "P (mm)",
            "zaxis_title": "S (mm)",
        },
        legend={"orientation": "h", "y": 1},
        showlegend=True,
    )
    return figure


def _of_labels(labels: np.ndarray, grid: Grid, structures: Structures) -> Iterator[tuple[str, Mesh]]:
    """Name and surface of every structure of a label map: where half of the voxels around a point are of it."""
    for name, values in structures.labels.items():
        mask = np.isin(labels, values)
        box = box_around(mask)
        part = grid.part(box)
        factor = min(1.0, SURFACE_CELLS / max(part.shape))
        z, y, x = (max(1, round(n * factor)) for n in part.shape)
        share = F.adaptive_avg_pool3d(torch.from_numpy(mask[box]).float()[None], (z, y, x))[0]
        yield name, extract_mesh(share.numpy(), part.with_shape((z, y, x)))


def _surface(mesh: Mesh, name: str, colour: str) -> go.Mesh3d:
    vertices = dict(zip("xyz", mesh.vertices.T.astype(np.float32), strict=True))
    corners = dict(zip("ijk", mesh.faces.T.astype(np.int32), strict=True))
    return go.Mesh3d(**vertices, **corners, name=name, color=colour, showlegend=True, hoverinfo="name")
