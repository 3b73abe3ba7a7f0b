"""On which grid a prediction is wanted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from nnunetv2_swipe.geometry import Grid

LARGEST_NUMBER = 1_000_000
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True)
class OutputGrid:
    """The image's own grid, or another; one of the attributes may be set.

    Attributes:
        spacing: In the image's box and orientation, with another spacing: millimetres along x, y (and z) of the file.
        size: Likewise, with another number of points.
        like: This grid, wherever the image is.
    """

    spacing: tuple[float, ...] | None = None
    size: tuple[int, ...] | None = None
    like: Grid | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("spacing", "size", "like") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"Give one of spacing, size and like, not {' and '.join(given)}.")
        for name in ("spacing", "size"):
            values = getattr(self, name)
            if values is not None and not (len(values) in (2, 3) and all(0 < v <= LARGEST_NUMBER for v in values)):
                raise ValueError(
                    f"The {name} of the output is {values}; it must be two or three numbers above 0, at most "
                    f"{LARGEST_NUMBER:,}."
                )

    def of(self, image: Grid) -> Grid:
        """The grid for an image.

        Raises:
            ValueError: Two numbers were given for a volume, three for an image of one slice, or the grid of a volume
                for an image of one slice.
        """
        if self.like is not None:
            if image.shape[0] == 1 < self.like.shape[0]:
                raise ValueError("An image of one slice cannot be written on the grid of a volume (--like).")
            return self.like
        if self.spacing is not None:
            return image.with_spacing(self._along_axes(self.spacing, image, image.spacing))
        if self.size is not None:
            return image.with_shape(self._along_axes(self.size, image, image.shape))
        return image

    @staticmethod
    def _along_axes(values: Sequence[_Number], image: Grid, own: Sequence[_Number]) -> Sequence[_Number]:
        """Turn numbers along x, y and z into those along z, y and x; the z axis of one slice stays as it is."""
        is_slice = image.shape[0] == 1
        if len(values) != (2 if is_slice else 3):
            kind = "an image of one slice takes two" if is_slice else "a volume takes three"
            raise ValueError(f"The --spacing or --size of the output is {tuple(values)}; {kind} numbers.")
        return list(own[: 3 - len(values)]) + list(values[::-1])
