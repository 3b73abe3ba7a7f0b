"""Study files of `benchmark.py accuracy`: which models are trained on what, and for how long."""

import hashlib
import itertools
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from real_data import DATASETS, PLANNERS

from nnunetv2_swipe.config import SwIPEConfig
from nnunetv2_swipe.trainers.swipe_trainer import SwIPETrainer

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Model:
    """What is compared: a trainer, a plan, and settings that differ from the plan's `swipe` block."""

    trainer: str
    plans: str = "nnUNetPlans"
    settings: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""

    @property
    def title(self) -> str:
        """What tables call it."""
        changes = [f"{key} = {value}" for key, value in self.settings.items()]
        return self.name or f"{self.trainer} ({', '.join([self.plans, *changes])})"


@dataclass(frozen=True)
class Cell:
    """One training: all that its result depends on, but for the machine and the state of the plan.

    Attributes:
        dataset: As in the study.
        model: What is trained.
        budget: How long, in units of `unit`.
        unit: "iterations" or "seconds".
        fold: As in the study.
        seed: Of weights, batches and the choice of training cases.
        training_fraction: Fraction of the training cases.
    """

    dataset: str
    model: Model
    budget: int
    unit: str
    fold: int
    seed: int
    training_fraction: float

    @property
    def key(self) -> str:
        """Identifies it, and its model folder, whatever the model is called."""
        values = asdict(self)
        del values["model"]["name"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Study:
    """A study; the first model is what the others are compared with.

    Attributes:
        dataset: "hippocampus" or "polyps".
        models: What is compared.
        iterations: Training iterations of each cell, or
        seconds: its seconds of training.
        fold: Fold whose validation cases are scored.
        seeds: Each is a training of every model.
        training_fractions: Fractions of the fold's training cases.
    """

    dataset: str
    models: tuple[Model, ...]
    iterations: int | None = None
    seconds: int | None = None
    fold: int = 0
    seeds: tuple[int, ...] = (0,)
    training_fractions: tuple[float, ...] = (1.0,)

    @property
    def budget(self) -> tuple[int, str]:
        """Length of each training and its unit."""
        return (self.iterations, "iterations") if self.iterations else (self.seconds or 0, "seconds")

    def cell(self, model: Model, seed: int, fraction: float) -> Cell:
        """One of its trainings."""
        return Cell(self.dataset, model, *self.budget, self.fold, seed, float(fraction))

    def cells(self) -> Iterator[Cell]:
        """All of them; models vary fastest, so that those compared run one after the other."""
        for fraction, seed, model in itertools.product(self.training_fractions, self.seeds, self.models):
            yield self.cell(model, seed, fraction)


def read_study(file: Path) -> Study:
    """Read and check a study file.

    Raises:
        ValueError: It cannot be read or is no TOML, or a key is unknown, missing or has an impossible value.
    """
    try:
        content = tomllib.loads(file.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{file} cannot be read as TOML: {error}") from error
    try:
        return _study(content)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _study(content: dict[str, Any]) -> Study:
    _check_keys(content, Study, required=("dataset", "models"))
    if content["dataset"] not in DATASETS:
        raise ValueError(f'"dataset" is {content["dataset"]!r}; allowed: {", ".join(DATASETS)}')
    if ("iterations" in content) == ("seconds" in content):
        raise ValueError('give either "iterations" or "seconds"')
    for key in ("iterations", "seconds"):
        if key in content and not (_is_whole(content[key]) and content[key] > 0):
            raise ValueError(f'"{key}" is {content[key]!r}; it must be a whole number above 0')
    if content.get("fold", Study.fold) not in range(5):
        raise ValueError(f'"fold" is {content["fold"]!r}; allowed: 0 to 4')
    seeds = content.get("seeds", list(Study.seeds))
    fractions = content.get("training_fractions", list(Study.training_fractions))
    if not isinstance(seeds, list) or not seeds or not all(map(_is_whole, seeds)):
        raise ValueError(f'"seeds" is {seeds!r}; it must be a list of whole numbers')
    if not isinstance(fractions, list) or not fractions or not all(map(_is_fraction, fractions)):
        raise ValueError(f'"training_fractions" is {fractions!r}; it must be a list of numbers above 0, 1 at most')
    models = content["models"]
    if not isinstance(models, list) or not models or not all(isinstance(m, dict) for m in models):
        raise ValueError("give the models as [[models]] tables")
    return Study(
        **{
            **content,
            "models": tuple(map(_model, models)),
            "seeds": tuple(seeds),
            "training_fractions": tuple(fractions),
        }
    )


def _model(content: dict[str, Any]) -> Model:
    _check_keys(content, Model, required=("trainer",))
    model = Model(**content)
    try:
        trainer = recursive_find_trainer_class_by_name(model.trainer)
    except RuntimeError as error:
        raise ValueError(f"there is no trainer {model.trainer!r}") from error
    if model.plans not in PLANNERS:
        raise ValueError(f'"plans" of {model.trainer} is {model.plans!r}; allowed: {", ".join(PLANNERS)}')
    allowed = [f.name for f in fields(SwIPEConfig)] if issubclass(trainer, SwIPETrainer) else []
    for key in model.settings:
        if key not in allowed:
            raise ValueError(f"{model.trainer} has no setting {key!r}; allowed: {', '.join(allowed) or 'none'}")
    return model


def _check_keys(content: Mapping[str, Any], of: type, *, required: tuple[str, ...]) -> None:
    allowed = [f.name for f in fields(of)]
    for key in content:
        if key not in allowed:
            raise ValueError(f"unknown key {key!r}; allowed: {', '.join(allowed)}")
    for key in required:
        if key not in content:
            raise ValueError(f"key {key!r} is missing")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_fraction(value: object) -> bool:
    return isinstance(value, (int, float)) and 0 < value <= 1
