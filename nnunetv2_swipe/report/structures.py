"""The classes or regions of a dataset, and their colours."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_swipe.labels import named_structures

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""
COLOURS: tuple[Colour, ...] = (
    (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (240, 228, 66),
    (213, 94, 0), (0, 114, 178), (154, 205, 50), (255, 127, 80), (147, 112, 219),
)  # fmt: skip
"""First those of Okabe and Ito, which the colour-blind tell apart; repeated if there are more structures."""


@dataclass(frozen=True)
class Structures:
    """The classes or regions of a dataset.

    Attributes:
        labels: The labels of each, by its name in dataset.json, in the order there.
        regions: Whether they are regions, which may overlap.
        ignore_label: The label of what is not annotated, if there is one.
    """

    labels: Mapping[str, tuple[int, ...]]
    regions: bool
    ignore_label: int | None

    @classmethod
    def of(cls, plans: PlansManager, dataset: Mapping[str, Any]) -> "Structures":
        """Those of a plan and dataset.json."""
        labels = plans.get_label_manager(dict(dataset))
        return cls(named_structures(dataset), labels.has_regions, labels.ignore_label)

    @property
    def declared(self) -> list[int]:
        """Every label that dataset.json declares, background and ignore label included."""
        ignore = [] if self.ignore_label is None else [self.ignore_label]
        return sorted({0, *itertools.chain(*self.labels.values()), *ignore})

    @property
    def colours(self) -> dict[str, Colour]:
        """The colour of each."""
        return {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(self.labels)}

    @property
    def label_colours(self) -> dict[int, Colour]:
        """The colour of every label: that of the smallest structure that it belongs to."""
        smallest_last = sorted(self.labels.items(), key=lambda item: -len(item[1]))
        return {label: self.colours[name] for name, labels in smallest_last for label in labels}

    @property
    def highest_variance(self) -> float:
        """The variance of a label between two equally probable classes; of regions, the sum where each is undecided."""
        return 0.25 * len(self.labels) if self.regions else 0.5


def css(colour: Colour) -> str:
    """A colour in the form of CSS."""
    return "rgb({}, {}, {})".format(*colour)
