"""An MR-like abdomen on an anisotropic grid: liver, kidneys, spine, aorta and, in some patients, a liver tumour.

Patient axes are x to the left, y to the back, z to the head, in mm from the middle of the volume.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from phantom_shapes import (
    Canvas,
    FloatArray,
    Points,
    capsule,
    correlated_noise,
    downsample,
    ellipsoid,
    find_window,
    smooth_field,
    smooth_max,
    smooth_min,
)

LABELS = {"background": 0, "liver": 1, "kidney": 2, "spine": 3, "aorta": 4, "tumour": 5}
SLICE_SUPERSAMPLING = 2  # sub-slices averaged into one slice: the partial volume of thick slices


@dataclass(frozen=True)
class Grid3D:
    """Voxel grid of one volume; shapes are in array order (z, y, x), the rest in SimpleITK's order (x, y, z)."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]
    direction: NDArray[np.float64]

    @classmethod
    def random(cls, rng: np.random.Generator, size_scale: float, *, oblique: bool) -> "Grid3D":
        """Draw a grid of about 36 x 80 x 80 voxels of 3.0 x 1.2 x 1.2 mm, coarser for a smaller `size_scale`."""
        full = (int(rng.integers(32, 41)), int(rng.integers(72, 85)), int(rng.integers(76, 89)))
        nz, ny, nx = (max(8, round(size * size_scale)) for size in full)
        extent_z, extent_y, extent_x = rng.uniform(100, 112), rng.uniform(84, 90), rng.uniform(98, 106)
        in_plane_mm = round(max(extent_y / ny, extent_x / nx), 3)
        pitch, roll = (math.radians(a) for a in rng.uniform(4, 9, 2) * rng.choice([-1, 1], 2) * oblique)
        about_x = [[1, 0, 0], [0, math.cos(pitch), -math.sin(pitch)], [0, math.sin(pitch), math.cos(pitch)]]
        about_z = [[math.cos(roll), -math.sin(roll), 0], [math.sin(roll), math.cos(roll), 0], [0, 0, 1]]
        x0, y0, z0 = (round(v, 2) for v in rng.uniform(-180, 120, 3).tolist())
        spacing = (in_plane_mm, in_plane_mm, round(extent_z / nz, 3))
        return cls((nz, ny, nx), spacing, (x0, y0, z0), np.array(about_x) @ np.array(about_z))

    def points(self, supersampling: int) -> Points:
        """Patient coordinates x, y, z in mm from the middle of the volume, on a grid with finer slices."""
        counts = (self.shape[2], self.shape[1], self.shape[0] * supersampling)
        steps = (*self.spacing_mm[:2], self.spacing_mm[2] / supersampling)
        axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(counts, steps, strict=True)]
        z, y, x = np.meshgrid(axes[2], axes[1], axes[0], indexing="ij", sparse=True)
        return [(row[0] * x + row[1] * y + row[2] * z).astype(np.float32) for row in self.direction]

    def to_image(self, array: NDArray[Any]) -> sitk.Image:
        """Wrap an array as an image that lies on this grid."""
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(self.spacing_mm)
        image.SetOrigin(self.origin_mm)
        image.SetDirection(self.direction.ravel().tolist())
        return image


def body_shapes(points: Points, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Skin, and the inner face of the abdominal wall."""
    x, y, z = points
    waist = 1 - 0.05 * np.exp(-(((z + 15) / 25) ** 2)) * rng.uniform(0.5, 1.5)
    half_width, half_depth = rng.uniform(43, 46), rng.uniform(34, 37)
    radius = (np.abs(x / (half_width * waist)) ** 2.4 + np.abs(y / (half_depth * waist)) ** 2.4) ** (1 / 2.4)
    skin = (radius - 1) * half_depth
    return skin, skin + rng.uniform(5.0, 7.0)


def spine_shapes(points: Points, rng: np.random.Generator) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Vertebral column (bodies, arches, processes), its discs, and the canal behind the bodies."""
    x, y, z = points
    x = x - 1.2 * np.sin(z / 40 + rng.uniform(0, 6))
    y = y - 12 - 1.5 * np.cos(z / 30 + rng.uniform(-0.5, 0.5))
    period_mm = rng.uniform(16.5, 18.5)
    along = ((z / period_mm + rng.uniform(0, 1)) % 1 - 0.5) * period_mm  # 0 in the middle of a body
    end_plate = 0.9 * np.cos(2 * np.pi * along / period_mm)  # bodies are narrower in the middle than at their ends
    bodies = ellipsoid([x, y], (0.0, 0.0), (8.6, 6.8)) + end_plate
    canal = ellipsoid([x, y], (0.0, 8.6), (3.8, 3.0))
    gap = np.maximum(np.abs(along) - 5.0, 0) * 0.5  # arches are open between the vertebrae
    arch = np.maximum(np.abs(canal - 1.5) - 1.6 + gap, 4.5 - y)
    process = ellipsoid([x, y, along + 2], (0.0, 15.0, 0.0), (1.9, 4.8, 6.0))
    wings = ellipsoid([np.abs(x), y, along], (9.0, 9.5, 0.0), (5.5, 2.0, 3.5))
    column = smooth_min(smooth_min(bodies, arch, 1.5), smooth_min(process, wings, 1.0), 1.0)
    return smooth_max(column, -canal, 0.6), np.maximum(bodies, period_mm / 2 - 2.2 - np.abs(along)), canal


def vessels_shapes(points: Points, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Aorta with its bifurcation, and the vena cava: thin curved tubes in front of the spine."""
    x, y, z = points
    wiggle = rng.uniform(0, 6)
    axis_x = 4.2 + 1.6 * np.sin(z / 22 + wiggle)
    axis_y = -1.5 + 1.5 * np.cos(z / 30) + 0.8 * np.sin(z / 15 + wiggle)
    below = np.logaddexp(0, (-rng.uniform(26, 34) - z) / 3) * 3  # 0 above the bifurcation, grows below it
    left, right = (np.hypot(x - axis_x + side * below, y - axis_y) for side in (-0.45, 0.55))
    aorta = smooth_min(left, right, 1.0) - (rng.uniform(3.7, 4.3) - 1.1 * np.tanh(below / 6))
    cava = np.hypot((x + 7 + 0.8 * np.sin(z / 25 + wiggle) + 0.3 * below) / 1.2, y - axis_y - 0.8) - 3.8
    return aorta, cava


def kidney_shapes(points: Points, rng: np.random.Generator, side: int) -> tuple[FloatArray, FloatArray]:
    """One kidney, a bent ellipsoid with a hilum towards the spine, and the fat of its sinus."""
    x, y, z = points
    x0, y0, z0 = side * rng.uniform(21, 23), rng.uniform(11, 13.5), rng.uniform(-10, -5) + 3 * side
    size, tilt = rng.uniform(0.92, 1.1), math.radians(rng.uniform(8, 18)) * side
    axial = (z - z0) * math.cos(tilt) - (x - x0) * math.sin(tilt)
    lateral = (x - x0) * math.cos(tilt) + (z - z0) * math.sin(tilt)
    medial = -side * lateral * 0.94 - 0.34 * (y - y0) - 0.018 * axial**2  # poles bend to the spine, hilum to the front
    frame = [medial, 0.94 * (y - y0) - 0.34 * side * lateral, axial]
    hilum = ellipsoid(frame, (8.5 * size, 0.0, 0.0), (5.5 * size, 3.6, 5.5 * size))
    bean = smooth_max(ellipsoid(frame, (0.0, 0.0, 0.0), (8.6 * size, 7.4 * size, 17 * size)), -hilum, 2.0)
    return bean, ellipsoid(frame, (3.5 * size, 0.0, 0.0), (4.2 * size, 2.4, 8.0 * size))


def liver_shape(points: Points, wall: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Liver under the right ribs: a large right lobe, a flat left lobe across the midline, a notch between them."""
    x, y, z = points
    grow = rng.uniform(0.93, 1.08)
    slanted = z - 0.25 * x - 0.15 * y
    right = ellipsoid([x, y, slanted], (-22.0, -2.0, 25.0), (19 * grow, 23 * grow, 30 * grow))
    left = ellipsoid([x, y, slanted], (2.0, -16.0, 27.0), (24 * grow, 10.5 * grow, 15 * grow))
    notch = ellipsoid([x - 0.3 * (z - 20), y], (-9.0, -30.0), (1.5, 11.0))
    return smooth_max(smooth_max(smooth_min(right, left, 6.0), -notch, 3.0), wall + 1.2, 2.0)


def paint_wall(canvas: Canvas, points: Points, rng: np.random.Generator) -> FloatArray:
    """Paint fat and muscle of the trunk and return the inner face of the abdominal wall."""
    x, y, z = points
    skin, wall = body_shapes(points, rng)
    canvas.paint(skin, 0.74)
    canvas.paint(0.5 * (skin + wall), 0.28)
    canvas.paint(wall, 0.70)
    window = find_window(points, (-30, 0, -90), (30, 45, 90))
    x, y, z = (axis[window] for axis in points)
    canvas.paint(ellipsoid([np.abs(x), y], (11.0, 24.5), (9.5, 6.5)), 0.28, None, window)  # beside the spine
    psoas = 3.0 + 2.5 / (1 + np.exp((z + 5) / 10))
    canvas.paint(np.hypot(np.abs(x) - 12.5, y - 13.5) - psoas, 0.29, None, window)
    return wall


def paint_unlabelled_organs(canvas: Canvas, points: Points, wall: FloatArray, rng: np.random.Generator) -> None:
    """Paint bowel, stomach and spleen, which carry no label: a network has to tell them from the organs that do."""
    for _ in range(16):
        centre = (rng.uniform(-30, 30), rng.uniform(-24, -8), rng.uniform(-52, 2))
        radii = (rng.uniform(4, 11), rng.uniform(3.5, 6.5), rng.uniform(4, 9))
        window = find_window(points, tuple(c - 13 for c in centre), tuple(c + 13 for c in centre))
        loop = np.maximum(ellipsoid([axis[window] for axis in points], centre, radii), wall[window] + 1)
        canvas.paint(loop, 0.42, None, window)
        canvas.paint(loop + 1.4, rng.uniform(0.18, 0.5), None, window)
    window = find_window(points, (-2, -30, -5), (50, 30, 60))
    (x, y, z), wall = (axis[window] for axis in points), wall[window]
    stomach = np.maximum(ellipsoid([x - 0.3 * (z - 20), y, z], (17.0, -10.0, 22.0), (11.0, 10.0, 19.0)), wall + 1)
    canvas.paint(stomach, 0.40, None, window)
    canvas.paint(stomach + 1.8, 0.24, None, window)
    canvas.paint(np.maximum(stomach + 1.8, y + rng.uniform(11, 15)), 0.03, None, window)  # air rises to the front
    spleen = ellipsoid([x, y + 0.12 * (z - 24), z], (32.0, 9.0, 24.0), (8.0, 13.0, 17.0))
    canvas.paint(np.maximum(spleen, wall + 1), 0.36, None, window)


def paint_liver(canvas: Canvas, points: Points, wall: FloatArray, rng: np.random.Generator, *, tumour: bool) -> None:
    """Paint the liver with its vessels and, in some patients, a tumour with a brighter rim."""
    window = find_window(points, (-50, -45, -20), (32, 40, 90))
    liver = np.full(canvas.shape, np.inf, np.float32)
    liver[window] = liver_shape([axis[window] for axis in points], wall[window], rng)
    canvas.paint(liver[window], rng.uniform(0.48, 0.54), LABELS["liver"], window)
    porta = (-8.0, -3.0, 16.0)
    for target in ((-34, -8, 30), (-28, 10, 22), (-30, -14, 12), (-18, -4, 44), (10, -17, 30), (-24, 6, 42)):
        end = tuple(t + rng.uniform(-4, 4) for t in target)
        corners = [tuple(pick(pair) for pair in zip(porta, end, strict=True)) for pick in (min, max)]
        window = find_window(points, tuple(c - 2 for c in corners[0]), tuple(c + 2 for c in corners[1]))
        tube = capsule([axis[window] for axis in points], porta, end, rng.uniform(1.5, 2.2))
        canvas.paint(np.maximum(tube, liver[window]), 0.66, None, window)
    if not tumour:
        return
    radius = rng.uniform(5.5, 9.0)
    centre = (rng.uniform(-30, -18), rng.uniform(-12, 6), rng.uniform(12, 34))
    radii = (radius * rng.uniform(0.9, 1.2), radius * rng.uniform(0.9, 1.2), radius)
    window = find_window(points, tuple(c - 13 for c in centre), tuple(c + 13 for c in centre))
    mass = ellipsoid([axis[window] for axis in points], centre, radii)
    mass = np.maximum(mass + smooth_field(rng, mass.shape, 4, 0.9), liver[window] + 0.5)
    canvas.paint(mass, 0.42, LABELS["tumour"], window)
    canvas.paint(mass + 1.8, rng.uniform(0.26, 0.32), None, window)


def paint_retroperitoneum(canvas: Canvas, points: Points, rng: np.random.Generator) -> None:
    """Paint kidneys, spine and great vessels, which press into what was painted before."""
    window = find_window(points, (-30, -14, -90), (35, 14, 90))
    aorta, cava = vessels_shapes([axis[window] for axis in points], rng)
    canvas.paint(cava, 0.58, LABELS["background"], window)
    for side in (-1, 1):
        middle = side * 23
        around = find_window(points, (middle - 18, -5, -40), (middle + 18, 30, 25))
        bean, sinus = kidney_shapes([axis[around] for axis in points], rng, side)
        canvas.paint(bean - 1.5, 0.72, LABELS["background"], around)  # fat capsule
        canvas.paint(bean, 0.52, LABELS["kidney"], around)
        canvas.paint(bean + 3.0, 0.37, None, around)  # medulla
        canvas.paint(np.maximum(sinus, bean), 0.66, None, around)
    column_window = find_window(points, (-22, 0, -90), (22, 45, 90))
    column, disc, canal = spine_shapes([axis[column_window] for axis in points], rng)
    canvas.paint(canal, 0.12, LABELS["background"], column_window)
    canvas.paint(column, 0.22, LABELS["spine"], column_window)  # cortical bone
    canvas.paint(column + 1.2, rng.uniform(0.42, 0.48), None, column_window)
    canvas.paint(disc, 0.18, None, column_window)
    canvas.paint(aorta, 0.85, LABELS["aorta"], window)


def render_abdomen(
    rng: np.random.Generator, case: int, size_scale: float
) -> tuple[Grid3D, NDArray[np.int16], NDArray[np.uint8]]:
    """One volume with its labels: two of three patients have a tumour, every second scan is oblique."""
    grid = Grid3D.random(rng, size_scale, oblique=case % 2 == 1)
    points = grid.points(SLICE_SUPERSAMPLING)
    fine_shape = points[0].shape
    # One deformation for all organs bends the anatomy without tearing neighbours apart.
    points = [axis + smooth_field(rng, fine_shape, 4, 1.3) for axis in points]
    canvas = Canvas(fine_shape, edge=grid.spacing_mm[0], n_labels=len(LABELS))
    wall = paint_wall(canvas, points, rng)
    paint_unlabelled_organs(canvas, points, wall, rng)
    paint_liver(canvas, points, wall, rng, tumour=case % 3 != 2)
    paint_retroperitoneum(canvas, points, rng)

    factors = (SLICE_SUPERSAMPLING, 1, 1)
    image = downsample(canvas.intensity[0], factors)
    labels = canvas.labels(factors)
    for sigma_mm, strength in ((1.2, 0.05), (4.0, 0.05)):
        sigma = tuple(sigma_mm / s for s in grid.spacing_mm[::-1])
        image *= 1 + strength * correlated_noise(rng, grid.shape, sigma)
    image *= np.exp(smooth_field(rng, grid.shape, 2, 0.22))  # bias field of the coil
    image = gaussian_filter(image, (0, 0.45, 0.45))
    real, imaginary = rng.standard_normal((2, *grid.shape), dtype=np.float32) * rng.uniform(0.018, 0.03)
    image = np.hypot(image + real, imaginary)  # Rician, as the magnitude of a complex signal
    return grid, np.rint(image * rng.uniform(700, 1000)).astype(np.int16), labels
