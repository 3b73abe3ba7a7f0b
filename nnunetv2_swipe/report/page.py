"""The report: one HTML page that needs nothing but a browser."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from nnunetv2_swipe.labels import named_structures
from nnunetv2_swipe.report.cases import Case
from nnunetv2_swipe.report.pictures import COLOURS, CONFUSED, FALSE_NEGATIVE, FALSE_POSITIVE, colours_of, css
from nnunetv2_swipe.report.plan_in_words import Setting


@dataclass
class CaseRow:
    """A row of the list of cases, and what is shown when it is chosen."""

    case: Case
    scores: dict[str, dict[str, float | None]]
    """Structure -> "Dice", "NSD", "volume" and "true volume" (ml)."""
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


@dataclass
class Report:
    """All that the page shows."""

    title: str
    subtitle: str
    dataset: Mapping[str, Any]
    """dataset.json."""
    cases: Sequence[CaseRow]
    """Worst first."""
    curves: go.Figure | None = None
    crop: dict[str, Any] | None = None
    """A training crop with its points, for the slice viewer."""
    plan: Sequence[Setting] = ()

    @property
    def structures(self) -> dict[str, tuple[int, ...]]:
        """Labels of every class or region."""
        return named_structures(self.dataset)

    @property
    def colours(self) -> list[str]:
        """Of the structures."""
        return list(colours_of(self.structures).values())

    def mean(self, metric: str, structure: str | None = None) -> float | None:
        """Over the cases that have it, of one structure or of a case's mean."""
        of_cases = (c.mean(metric) if structure is None else c.scores[structure][metric] for c in self.cases)
        return _mean(of_cases)


def worst_first(cases: Iterable[CaseRow]) -> list[CaseRow]:
    """By mean Dice, then by name; cases without truth last."""

    def key(case: CaseRow) -> tuple[float, str]:
        dice = case.mean("Dice")
        return (np.inf if dice is None else dice, case.case.name)

    return sorted(cases, key=key)


def write_page(report: Report, file: Path) -> None:
    """Write the page; it appears when it is complete."""
    environment = Environment(loader=PackageLoader(__package__), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("page.html").render(
        report=report,
        label_colours=list(map(css, COLOURS)),
        errors={
            "false positive": css(FALSE_POSITIVE),
            "false negative": css(FALSE_NEGATIVE),
            "one class taken for another": css(CONFUSED),
        },
        scripts=[Markup(get_plotlyjs()), Markup(_asset("page.js"))],
        style=Markup(_asset("page.css")),
        details=[_embedded(_details(case)) for case in report.cases if case.has_details],
        training=_embedded({"curves": _figure(report.curves), "crop": report.crop}),
        has_truth=any(case.mean("Dice") is not None for case in report.cases),
        has_folds=any(case.case.fold is not None for case in report.cases),
    )
    unfinished = file.with_name(f".unfinished_{file.name}")
    unfinished.write_text(page, encoding="utf-8")
    unfinished.replace(file)


def _mean(values: Iterable[float | None]) -> float | None:
    """Of those that there are."""
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _details(case: CaseRow) -> dict[str, Any]:
    return {"name": case.case.name, "view": case.view, "surfaces": _figure(case.surfaces)}


def _figure(figure: go.Figure | None) -> Any:  # noqa: ANN401
    return None if figure is None else json.loads(figure.to_json())


def _embedded(value: Any) -> Markup:  # noqa: ANN401
    """JSON that cannot end the script element it is in."""
    return Markup(json.dumps(value, separators=(",", ":")).replace("<", "\\u003c"))


def _asset(name: str) -> str:
    return files(__package__).joinpath("templates").joinpath(name).read_text(encoding="utf-8")
