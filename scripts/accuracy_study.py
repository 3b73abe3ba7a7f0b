"""Study files of `benchmark.py accuracy`: which models are trained on what, and for how long."""

import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_swipe.config import SwIPEConfig
from nnunetv2_swipe.trainers.swipe_trainer import SwIPETrainer
from real_data import DATASETS, PLANNERS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class Scale(NamedTuple):
    """A grid to score on."""

    factor: float
    """Its points per voxel of the training resolution, along each axis."""
    resized: str
    """"output": the image is as it was trained on, and the output is brought to the grid; "input": the image is."""

    def __str__(self) -> str:
        return f"{self.resized} {self.factor:g}x"


NATIVE = Scale(1.0, "output")
"""What other scales are compared with."""


@dataclass(frozen=True)
class Model:
    """What is compared: a trainer, a plan, and what differs from it: the batch size, settings of its `swipe` block."""

    trainer: str
    plans: str = "nnUNetPlans"
    batch_size: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""

    @property
    def title(self) -> str:
        """What tables call it."""
        changes = [f"{key} = {value}" for key, value in self.settings.items()]
        if self.batch_size:
            changes.append(f"batch size {self.batch_size}")
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

    @property
    def title(self) -> str:
        """What progress and messages call it."""
        return f"{self.model.title}, seed {self.seed}, fraction {self.training_fraction:g}"


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
        output_scales: Grids on which the models are scored as well, relative to the training resolution.
        input_scales: Likewise, the images being resized.
    """

    dataset: str
    models: tuple[Model, ...]
    iterations: int | None = None
    seconds: int | None = None
    fold: int = 0
    seeds: tuple[int, ...] = (0,)
    training_fractions: tuple[float, ...] = (1.0,)
    output_scales: tuple[float, ...] = ()
    input_scales: tuple[float, ...] = ()

    @property
    def scales(self) -> list[Scale]:
        """Grids to score on besides that of the files; if any, the training resolution itself is the first."""
        outputs = [Scale(float(f), "output") for f in self.output_scales]
        scales = [*outputs, *[Scale(float(f), "input") for f in self.input_scales]]
        return list(dict.fromkeys([NATIVE, *scales])) if scales else []

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
    fold = content.get("fold", Study.fold)
    if not (_is_whole(fold) and fold in range(5)):
        raise ValueError(f'"fold" is {fold!r}; allowed: 0 to 4')
    lists = {key: content.get(key, list(getattr(Study, key))) for key in _LISTS}
    for key, (allowed, empty, valid) in _LISTS.items():
        values = lists[key]
        if not isinstance(values, list) or not (values or empty) or not all(map(valid, values)):
            raise ValueError(f'"{key}" is {values!r}; it must be a list of {allowed}')
        if len(set(values)) < len(values):
            raise ValueError(f'"{key}" is {values!r}; each value may stand there once')
    models = content["models"]
    if not isinstance(models, list) or not models or not all(isinstance(m, dict) for m in models):
        raise ValueError("give the models as [[models]] tables")
    return Study(
        **{
            **content,
            "models": tuple(map(_model, models)),
            **{key: tuple(values) for key, values in lists.items()},
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
    if model.batch_size is not None and not (_is_whole(model.batch_size) and model.batch_size > 0):
        raise ValueError(f'"batch_size" of {model.trainer} is {model.batch_size!r}; it must be a whole number above 0')
    if not isinstance(model.name, str):
        raise ValueError(f'"name" of {model.trainer} is {model.name!r}; it must be text')
    if not isinstance(model.settings, dict):
        raise ValueError(f'"settings" of {model.trainer} is {model.settings!r}; it must be a table')
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


def _is_seed(value: object) -> bool:
    return _is_whole(value) and value in range(2**32)


def _is_positive(value: object, most: float = sys.float_info.max) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= most


_LISTS: dict[str, tuple[str, bool, Callable[[Any], bool]]] = {
    "seeds": ("whole numbers from 0 to 2^32 - 1", False, _is_seed),
    "training_fractions": ("numbers above 0, 1 at most", False, partial(_is_positive, most=1)),
    "output_scales": ("numbers above 0", True, _is_positive),
    "input_scales": ("numbers above 0", True, _is_positive),
}
"""What each list holds, whether it may be empty, and the check of its values."""
