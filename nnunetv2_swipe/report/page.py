"""The report: one HTML page that needs nothing but a browser."""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

from nnunetv2_swipe.files import replaced
from nnunetv2_swipe.report.cases import Case
from nnunetv2_swipe.report.pictures import CONFUSED, FALSE_NEGATIVE, FALSE_POSITIVE
from nnunetv2_swipe.report.plan_in_words import Setting
from nnunetv2_swipe.report.scores import TOLERANCE
from nnunetv2_swipe.report.structures import Structures, css


@dataclass
class CaseRow:
    """A row of the list of cases, and what is shown when it is chosen."""

    case: Case
    scores: dict[str, dict[str, float | None]]
    """Structure -> "Dice", "NSD", "size" and "true size"."""
    is_slice: bool = False
    """Whether it is an image in 2D: sizes are in pixels, else in millilitres."""
    view: dict[str, Any] | None = None
    """Of the slice viewer."""
    surfaces: go.Figure | None = None

    @property
    def has_details(self) -> bool:
        """Whether it can be chosen."""
        return self.view is not None

    def mean(self, metric: str) -> float | None:
        """Over the structures that have it."""
        return _mean(scores[metric] for scores in self.scores.values())


class ModelDescription(NamedTuple):
    """What the page says of a model."""

    curves: go.Figure
    crop: dict[str, Any] | None
    """A training crop with its points, for the slice viewer."""
    plan: Sequence[Setting]


@dataclass
class Report:
    """All that the page shows."""

    title: str
    structures: Structures
    cases: Sequence[CaseRow]
    """Worst first."""
    model: ModelDescription | None = None
    notes: Sequence[str] = ()
    """What the reader should know."""

    @property
    def has_truth(self) -> bool:
        """Whether any case was scored."""
        return self.mean("Dice") is not None

    @property
    def has_folds(self) -> bool:
        """Whether the cases validate folds."""
        return any(row.case.fold is not None for row in self.cases)

    @property
    def in_pixels(self) -> bool:
        """Whether the images are in 2D."""
        return all(case.is_slice for case in self.cases)

    def mean(self, metric: str, structure: str | None = None) -> float | None:
        """Over the cases that have it, of one structure or of a case's mean."""
        return _mean(c.mean(metric) if structure is None else c.scores[structure][metric] for c in self.cases)


def worst_first(cases: Iterable[CaseRow]) -> list[CaseRow]:
    """By mean Dice, then by name; cases without truth last."""

    def key(row: CaseRow) -> tuple[float, str]:
        dice = row.mean("Dice")
        return (np.inf if dice is None else dice, row.case.name)

    return sorted(cases, key=key)


def write_page(report: Report, file: Path) -> None:
    """Write the page; it appears when it is complete.

    Raises:
        OSError: It cannot be written; a page that was there before is still there.
    """
    environment = Environment(loader=PackageLoader(__package__), autoescape=True, undefined=StrictUndefined)
    model = report.model
    page = environment.get_template("page.html").render(
        report=report,
        colours={name: css(colour) for name, colour in report.structures.colours.items()},
        errors={
            "false positive": css(FALSE_POSITIVE),
            "false negative": css(FALSE_NEGATIVE),
            "one class taken for another": css(CONFUSED),
        },
        tolerance=f"{TOLERANCE[2]:g} pixels" if report.in_pixels else f"{TOLERANCE[3]:g} mm",
        scripts=[Markup(get_plotlyjs()), Markup(_asset("page.js"))],
        style=Markup(_asset("page.css")),
        details=[_embedded(_details(case)) for case in report.cases if case.has_details],
        common=_embedded(
            {
                "colours": {label: css(colour) for label, colour in report.structures.label_colours.items()},
                "curves": _figure(model and model.curves),
                "crop": model and model.crop,
            }
        ),
    )
    with replaced(file) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are known; None if none is."""
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _details(case: CaseRow) -> dict[str, Any]:
    return {"name": case.case.name, "view": case.view, "surfaces": _figure(case.surfaces)}


def _figure(figure: go.Figure | None) -> dict[str, Any] | None:
    """What plotly draws. It would take names for HTML, with links; here they are text."""
    if figure is None:
        return None
    content = figure.to_dict()
    for trace in content["data"]:
        trace["name"] = html.escape(trace["name"], quote=False)
    return content


def _embedded(value: Any) -> Markup:  # noqa: ANN401
    """JSON that cannot end the script element it is in; NaN, which JSON has not, is null."""
    return Markup(to_json_plotly(value, engine="json").replace("<", "\\u003c"))


def _asset(name: str) -> str:
    return files(__package__).joinpath("templates").joinpath(name).read_text(encoding="utf-8")
