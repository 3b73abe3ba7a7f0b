"""A colour photograph of the back of the eye: optic disc, the cup inside it, and exudates around the macula.

Coordinates are y down, x to the right, from the middle of the image, in units of the radius of the camera's aperture.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from phantom_shapes import Canvas, FloatArray, Points, correlated_noise, ellipsoid, smooth_field
from phantom_shapes import downsample as average_blocks

LABELS = {"background": 0, "optic_disc": 1, "optic_cup": 2, "exudate": 3}
SUPERSAMPLING = 2
APERTURE_PER_WIDTH = 0.49  # the round aperture fills the width and is cut off at the top and bottom


@dataclass
class Vessel:
    """The growing end of a vessel: where it is, where it heads, and how thick and dark it is."""

    y: float
    x: float
    heading: float
    goal: float  # heading that the vessel bends to
    radius: float
    steps: int
    darkness: int

    def grow(self, noise: float, side: int) -> None:
        """Take one step; `side` mirrors the tree for left and right eyes."""
        self.heading += 0.08 * (self.goal - self.heading) + noise
        self.y += 0.04 * math.sin(self.heading)
        self.x += 0.04 * side * math.cos(self.heading)
        self.radius *= 0.97
        self.steps -= 1

    def branch(self, rng: np.random.Generator) -> "Vessel":
        """A thinner vessel that leaves this one at an angle."""
        heading = self.heading + float(rng.choice([-1, 1])) * rng.uniform(0.4, 0.9)
        return replace(self, heading=heading, goal=heading, radius=self.radius * 0.7)


def draw_vessels(
    rng: np.random.Generator, shape: tuple[int, int], unit: float, disc: tuple[float, float], side: int
) -> FloatArray:
    """Darkness (0 to 1) of the vessel trees that leave the optic disc and arch around the macula.

    Args:
        rng: Source of randomness.
        shape: Height and width in pixels.
        unit: Radius of the aperture in pixels.
        disc: Centre of the optic disc (y, x).
        side: Where the macula lies from the disc: 1 to the right, -1 to the left.

    Returns:
        Array of the given shape.
    """
    enlarged = 3  # lines have whole widths, so thin ones are drawn enlarged
    sheet = Image.new("L", (shape[1] * enlarged, shape[0] * enlarged))
    draw = ImageDraw.Draw(sheet)

    def pixel(vessel: Vessel) -> tuple[float, float]:
        return (vessel.x * unit + shape[1] / 2) * enlarged, (vessel.y * unit + shape[0] / 2) * enlarged

    ends = []
    for up in (-1, 1):
        for goal in (rng.uniform(-0.1, 0.3), rng.uniform(0.3, 0.7), rng.uniform(2.0, 2.9)):
            for radius, darkness in ((0.020, 235), (0.014, 150)):  # veins, arteries
                start = up * (rng.uniform(1.0, 1.5) if goal < 1 else rng.uniform(1.7, 2.1))
                ends.append(Vessel(*disc, start, up * goal, radius * rng.uniform(0.6, 1.0), 38, darkness))
    while ends:
        end = ends.pop()
        for noise, chance in zip(rng.normal(0, 0.1, end.steps).tolist(), rng.random(end.steps).tolist(), strict=True):
            before = pixel(end)
            end.grow(noise, side)
            width = max(1, round(2 * end.radius * unit * enlarged))
            draw.line([before, pixel(end)], fill=end.darkness, width=width)
            if end.radius > 0.006 and chance < 0.1:
                ends.append(end.branch(rng))
    return np.asarray(sheet.reduce(enlarged), np.float32) / 255


def paint_exudates(
    canvas: Canvas, points: Points, unit: float, macula: tuple[float, float], rng: np.random.Generator
) -> None:
    """Paint some yellow, ragged deposits in a ring around the macula."""
    ragged = 0.018 * correlated_noise(rng, canvas.shape, (0.025 * unit,) * 2)
    for _ in range(int(rng.integers(5, 11))):
        angle, distance = rng.uniform(0, 2 * math.pi), rng.uniform(0.16, 0.42)
        centre = (macula[0] + distance * math.sin(angle), macula[1] + distance * math.cos(angle))
        size = rng.uniform(0.03, 0.075)
        blob = ellipsoid(points, centre, (size, size * rng.uniform(0.8, 1.5)))
        canvas.paint(blob + ragged, colour(0.93, 0.78, 0.36), LABELS["exudate"])


def colour(red: float, green: float, blue: float) -> FloatArray:
    """A colour that broadcasts over an image with channels first."""
    return np.array([red, green, blue], np.float32).reshape(3, 1, 1)


def paint_retina(canvas: Canvas, points: Points, unit: float, rng: np.random.Generator, *, exudates: bool) -> None:
    """Paint retina, macula, exudates, disc, vessels and cup, from the back to the front."""
    y, x = points
    side = int(rng.choice([-1, 1]))
    disc = (rng.uniform(-0.12, 0.12), -side * rng.uniform(0.38, 0.52))
    macula = (disc[0] + rng.uniform(0.0, 0.1), disc[1] + side * rng.uniform(0.66, 0.76))
    tone = rng.uniform(0.9, 1.1, 3)
    canvas.intensity += colour(0.74 * tone[0], 0.36 * tone[1], 0.19 * tone[2])
    for sigma, strength in ((0.02, 0.05), (0.07, 0.07)):
        sigma_pixels = sigma * unit / SUPERSAMPLING
        coarse = tuple(size // SUPERSAMPLING for size in canvas.shape)
        texture = correlated_noise(rng, coarse, (sigma_pixels, 1.6 * sigma_pixels))
        canvas.intensity *= 1 + strength * texture.repeat(SUPERSAMPLING, 0).repeat(SUPERSAMPLING, 1)
    shadow = np.exp(-((y - macula[0]) ** 2 + (x - macula[1]) ** 2) / (2 * 0.11**2))
    canvas.intensity *= 1 - colour(0.35, 0.42, 0.40) * shadow
    if exudates:
        paint_exudates(canvas, points, unit, macula, rng)

    height, width = rng.uniform(0.17, 0.21), rng.uniform(0.15, 0.18)
    warp = smooth_field(rng, canvas.shape, 8, 0.012)
    rim = ellipsoid(points, disc, (height, width)) + warp
    canvas.paint(rim - 0.02, 1.08 * canvas.intensity, None)  # a pale halo
    canvas.paint(rim, colour(0.93, 0.66, 0.38), LABELS["optic_disc"])
    ratio = rng.uniform(0.4, 0.68)
    centre = (disc[0] + rng.uniform(-0.015, 0.015), disc[1] + side * rng.uniform(0.0, 0.02))
    cup = ellipsoid(points, centre, (height * ratio, width * ratio)) + 0.6 * warp
    canvas.paint(cup, colour(0.99, 0.87, 0.62), LABELS["optic_cup"])
    darkness = gaussian_filter(draw_vessels(rng, (len(y), y.shape[1]), unit, disc, side), 0.006 * unit)
    canvas.intensity *= 1 - colour(0.42, 0.72, 0.70) * darkness


def render_fundus(
    rng: np.random.Generator, case: int, size_scale: float
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One RGB image (H, W, 3) with its labels (H, W); three of four eyes have exudates."""
    height, width = (max(16, round(size * size_scale * rng.uniform(0.93, 1.07))) for size in (160, 192))
    fine_shape = (height * SUPERSAMPLING, width * SUPERSAMPLING)
    unit = APERTURE_PER_WIDTH * fine_shape[1]
    axes = [((np.arange(size) - (size - 1) / 2) / unit).astype(np.float32) for size in fine_shape]
    plain = np.meshgrid(*axes, indexing="ij")
    points: Points = [axis + smooth_field(rng, fine_shape, 4, 0.012) for axis in plain]
    canvas = Canvas(fine_shape, edge=1.5 * SUPERSAMPLING / unit, n_labels=len(LABELS), channels=3)
    paint_retina(canvas, points, unit, rng, exudates=case % 4 != 3)
    # The aperture is the camera's: it is not deformed with the eye.
    aperture = np.hypot(*plain)
    canvas.intensity *= 1 - 0.45 * aperture**2
    canvas.paint(1 - aperture, colour(0.01, 0.01, 0.01))

    factors = (SUPERSAMPLING, SUPERSAMPLING)
    image = average_blocks(canvas.intensity, factors)
    image *= np.exp(smooth_field(rng, (height, width), 2, 0.12))  # uneven illumination
    image = gaussian_filter(image, (0, *(rng.uniform(0.5, 0.9),) * 2))
    image += rng.normal(0, rng.uniform(0.012, 0.025), image.shape)
    return np.rint(image.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0), canvas.labels(factors)
