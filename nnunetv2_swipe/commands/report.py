"""`nnUNetv2_swipe_report`: one HTML page about a model or a folder of predictions."""

import argparse
import os
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2_swipe.commands.common import add_trust_argument, choose_device, run, trained_folds
from nnunetv2_swipe.files import read_json_object

if TYPE_CHECKING:
    from nnunetv2_swipe.inference.predictor import SwIPEPredictor
    from nnunetv2_swipe.report.cases import Case

PACKAGES = ("plotly", "monai", "jinja2")


def main() -> None:
    """Entry point."""
    run(_parser(), write_report)


def write_report(arguments: argparse.Namespace) -> None:
    """Write the page.

    Raises:
        ValueError: Something of the input cannot be used; it is named.
        OSError: A file cannot be read or written.
    """
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise ValueError(f"A report needs {', '.join(missing)}: pip install 'nnunetv2-swipe[report]'")
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunetv2_swipe.report.build import case_rows, describe_model
    from nnunetv2_swipe.report.cases import cases_of_model, cases_of_predictions, is_model_folder
    from nnunetv2_swipe.report.page import Report, write_page
    from nnunetv2_swipe.report.structures import Structures
    from nnunetv2_swipe.trainers.checkpoints import read_checkpoint
    from nnunetv2_swipe.trust import require_known_names

    folder, output = Path(arguments.folder), Path(arguments.o)
    of_model = is_model_folder(folder)
    _check(arguments, output, of_model=of_model)
    model = folder if of_model else arguments.m and Path(arguments.m)
    dataset = _load(model or folder, "dataset.json", ["labels", "file_ending"])
    plan_file = _load(model or folder, "plans.json", ["dataset_name", "image_reader_writer"])
    require_known_names(plan_file, {}, (model or folder) / "plans.json")
    plans, folds = PlansManager(plan_file), _folds(model, arguments) if model else []
    if of_model:
        cases = cases_of_model(folder, plans.dataset_name, dataset["file_ending"], folds)
    else:
        images, truth = (None if f is None else Path(f) for f in (arguments.i, arguments.truth))
        cases = cases_of_predictions(folder, dataset["file_ending"], images, truth)
    structures, description, notes = Structures.of(plans, dataset), None, []
    predictor_of = None
    if model:
        predictor_of = _predictors(model, folds, arguments)
        predictor = predictor_of(cases[0])
        files = {fold: model / f"fold_{fold}" / arguments.chk for fold in folds}
        logged = {f: read_checkpoint(file, trust=arguments.trust).get("logging", {}) for f, file in files.items()}
        description = describe_model(predictor, logged, structures, cases)
        if predictor.configuration_manager.previous_stage_name:
            predictor_of = None
            notes.append("The second stage of a cascade: without what the model would say (uncertainty, attention).")
        if of_model and "all" in folds:
            notes.append("Fold all was trained on the cases that are shown.")
    rows = case_rows(
        cases,
        plans.image_reader_writer_class(),
        structures,
        predictor_of,
        details=arguments.cases,
        quiet=arguments.disable_progress_bar,
    )
    title = " / ".join((plans.dataset_name, folder.resolve().name))
    write_page(Report(title, structures, rows, description, notes), output)
    print(f"Wrote {output} ({output.stat().st_size / 1e6:.0f} MB)")


def _check(arguments: argparse.Namespace, output: Path, *, of_model: bool) -> None:
    """ValueError if arguments are impossible or would have no effect."""
    folder = output.absolute().parent
    if output.is_dir() or not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise ValueError(f"The report cannot be written to {output}: name a file in a folder that can be written to.")
    if arguments.cases < 0:
        raise ValueError(f"--cases is {arguments.cases}; it must be 0 or more.")
    useless = ("m", "i", "truth") if of_model else () if arguments.m else ("f",)
    for name in useless:
        if getattr(arguments, name) is not None:
            reason = "its own validation cases are shown" if of_model else "name the model by -m"
            raise ValueError(f"{'--' if len(name) > 1 else '-'}{name} has no effect: {reason}.")


def _load(folder: Path, name: str, required: Sequence[str]) -> dict[str, Any]:
    if not (folder / name).is_file():
        raise ValueError(f"{folder} holds no {name}: it is neither the folder of a model nor one of predictions.")
    return read_json_object(folder / name, required)


def _folds(model: Path, arguments: argparse.Namespace) -> list[str]:
    """The folds asked for, by default all that are trained; "all" only if there is no other."""
    trained = trained_folds(model, arguments.chk)
    folds = list(dict.fromkeys(arguments.f or [fold for fold in trained if fold != "all"] or trained))
    unknown = [fold for fold in folds if fold not in trained]
    if unknown or not folds:
        raise ValueError(
            f"{model} has no {arguments.chk} of {'fold ' + unknown[0] if unknown else 'any fold'}; there are "
            f"{', '.join(trained) or 'none'}. Choose by -f and -chk."
        )
    return folds


def _predictors(model: Path, folds: Sequence[str], arguments: argparse.Namespace) -> "Callable[[Case], SwIPEPredictor]":
    """The model for every case: the fold that it validates, else all of them."""
    from nnunetv2_swipe.inference.predictor import SwIPEPredictor

    device = choose_device(arguments.device)

    @cache
    def load(fold: str | None) -> "SwIPEPredictor":
        predictor = SwIPEPredictor(use_mirroring=not arguments.disable_tta, device=device, allow_tqdm=False)
        used = tuple(f if f == "all" else int(f) for f in (folds if fold is None else [fold]))
        predictor.initialize_from_trained_model_folder(str(model), used, arguments.chk, trust=arguments.trust)
        return predictor

    return lambda case: load(case.fold)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_swipe_report",
        description="Write one HTML page, to be looked at in any browser, without a network: cases, worst first, with "
        "scores, slices, errors, uncertainty, attention and surfaces; training curves; the plan in words.",
    )
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="of a model (its validation cases are shown) or of predictions")
    add("-o", default="report.html", metavar="FILE", help="where the page is written (default: report.html)")
    add("-m", metavar="FOLDER", help="of predictions: the model's folder, for what the model knows of them")
    add("-i", metavar="FOLDER", help="of predictions: the images (default: those that were predicted)")
    add("--truth", metavar="FOLDER", help="of predictions: the true label maps, if there are any")
    add("-f", nargs="+", metavar="FOLD", help="folds of the model (default: all that are trained)")
    add("-chk", default="checkpoint_final.pth", help="checkpoint (default: checkpoint_final.pth)")
    add("--cases", type=int, default=20, metavar="N", help="show so many cases, the worst ones (default: 20)")
    add("--disable_tta", action="store_true", help="no mirroring: faster uncertainty and surfaces")
    add("-device", choices=("cuda", "cpu", "mps"), default="cuda", help="default: cuda")
    add_trust_argument(parser)
    add("--disable_progress_bar", action="store_true", help="no progress bars")
    add("--verbose", action="store_true", help="say where an error comes from")
    return parser
