"""Surfaces of labels from the occupancy field itself: marching cubes on a grid, its vertices moved onto the level."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from skimage.measure import marching_cubes

from nnunetv2_swipe.geometry import Grid

LEVEL = 0.5
"""Probability on the surface."""
_REFINEMENTS = 8
"""Steps towards the surface."""

Occupancy = Callable[[np.ndarray], np.ndarray]
"""Positions (M, 3) in millimetres -> probabilities (M,)."""


class Mesh(NamedTuple):
    """A closed surface of triangles."""

    vertices: np.ndarray
    """(V, 3) float64: x, y and z in millimetres, LPS."""
    faces: np.ndarray
    """(F, 3) int64: vertices, counterclockwise as seen from outside."""


def extract_mesh(field: np.ndarray, grid: Grid, occupancy: Occupancy | None = None) -> Mesh:
    """The surface on which the occupancy is one half.

    Outside the grid nothing is occupied: the surface is closed there.

    Args:
        field: Occupancy on a grid, (z, y, x).
        grid: The grid.
        occupancy: The same field anywhere; without it, it is taken as linear between points of the grid.

    Returns:
        The surface; without vertices where the occupancy is nowhere above one half.
    """
    if not (field > LEVEL).any():
        return Mesh(np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64))
    padded = np.pad(field, 1)
    vertices, faces, _, _ = marching_cubes(padded, LEVEL, allow_degenerate=False)
    vertices = vertices.astype(float)
    if occupancy is not None:
        vertices = _refined(vertices, padded, lambda index: occupancy(grid.position_of(index - 1)))
    position = grid.position_of(vertices - 1)
    faces = faces.astype(np.int64)
    if _volume(position, faces) < 0:
        faces = faces[:, ::-1]
    return Mesh(position, faces)


def _refined(vertices: np.ndarray, field: np.ndarray, occupancy: Occupancy) -> np.ndarray:
    """Vertices (V, 3) in voxels, each moved along its edge of the grid to where the occupancy is one half.

    By the Illinois method (regula falsi; an end that is kept again has its value halved), between the ends of the edge;
    vertices within a cell, and those that the field does not bracket, stay.
    """
    between = vertices != vertices.round()
    along = between.astype(float)
    low = np.floor(vertices)
    below, above = (field[tuple(end.astype(int).T)] - LEVEL for end in (low, low + along))
    moves = np.flatnonzero((between.sum(1) == 1) & (below * above < 0))
    ends, values = np.zeros((2, len(moves))), np.stack((below[moves], above[moves]))
    ends[1] = 1
    last = np.full(len(moves), -1)  # the end that was replaced before
    for _ in range(_REFINEMENTS):
        t = ends[0] - values[0] * (ends[1] - ends[0]) / (values[1] - values[0])
        found = occupancy(low[moves] + t[:, None] * along[moves]) - LEVEL
        first = (found < 0) == (values[0] < 0)  # of the two ends, the one that is replaced
        for side, replaced in enumerate((first, ~first)):
            values[1 - side] = np.where(replaced & (last == side), values[1 - side] / 2, values[1 - side])
            ends[side] = np.where(replaced, t, ends[side])
            values[side] = np.where(replaced, found, values[side])
        last = np.where(first, 0, 1)
    vertices[moves] = low[moves] + t[:, None] * along[moves]
    return vertices


def _volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    """Volume that a closed surface encloses; negative if its faces are clockwise from outside."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return float((a * np.cross(b, c)).sum() / 6)
