"""`nnUNetv2_swipe_mesh`: closed surfaces of every class, in millimetres of the patient."""

import argparse
import math
from importlib.util import find_spec
from pathlib import Path

from tqdm import tqdm

from nnunetv2_swipe.commands.common import add_model_arguments, make_predictor, run

FORMATS = ("stl", "ply", "vtp", "obj")


def main() -> None:
    """Entry point."""
    run(_parser(), write_meshes)


def write_meshes(arguments: argparse.Namespace) -> None:
    """Write CASE/CLASS.FORMAT for each case and class.

    Raises:
        ValueError: Something of the input cannot be used; it is named.
        OSError: A folder cannot be read or written.
        CasesFailed: Cases failed and the others are done; it names them.
    """
    from nnunetv2_swipe.images.headers import read_header
    from nnunetv2_swipe.inference.failures import Failures
    from nnunetv2_swipe.inference.surface_files import file_names, write_mesh

    if arguments.spacing is not None and not 0 < arguments.spacing < math.inf:
        raise ValueError(f"--spacing is {arguments.spacing}; it must be above 0.")
    predictor = make_predictor(arguments)
    unknown = [name for name in arguments.classes or () if name not in predictor.channels]
    if unknown:
        raise ValueError(f"There is no class {unknown[0]!r}; there are {', '.join(predictor.channels)}.")
    if find_spec("pyvista") is None:
        raise ValueError("Writing surfaces needs PyVista: pip install 'nnunetv2-swipe[mesh]'")
    names = list(dict.fromkeys(arguments.classes or predictor.channels))
    cases = predictor.cases(arguments.i, arguments.prev_stage_predictions)
    reader = predictor.plans_manager.image_reader_writer_class
    for files, _ in cases.values():  # before the first case is predicted
        header = read_header(files[0], reader)
        if header is not None and min(header.shape) == 1:
            raise ValueError(f"{files[0]} is of one slice; surfaces need volumes. Move it to another folder.")
    folders, classes = file_names(cases), file_names(names)
    failures = Failures(verbose=arguments.verbose)
    for case, (files, previous) in tqdm(cases.items(), unit="case", disable=arguments.disable_progress_bar):
        with failures.of(files[0]):
            image = predictor.encode(files, previous)
            for name, mesh in zip(names, image.meshes(names, arguments.spacing), strict=True):
                file = Path(arguments.o) / folders[case] / f"{classes[name]}.{arguments.format}"
                if len(mesh.faces) == 0:
                    tqdm.write(f"{case} holds no {name}.")
                    file.unlink(missing_ok=True)  # of an earlier run
                    continue
                file.parent.mkdir(exist_ok=True)
                write_mesh(mesh, file, ras=arguments.coordinates == "RAS")
    failures.raise_if_any(len(cases))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_swipe_mesh",
        description="Write one closed surface per class and case, found in the occupancy field that a SwIPE model "
        "decodes anywhere. Positions are in millimetres.",
    )
    add_model_arguments(parser, written="surfaces")
    add = parser.add_argument
    add("--format", choices=FORMATS, default="stl", help="file format (default: stl)")
    add(
        "--spacing", type=float, metavar="MM", help="edge of the cells searched (default: the image's smallest spacing)"
    )
    add("--classes", nargs="+", metavar="NAME", help="names in dataset.json (default: all but the background)")
    add(
        "--coordinates",
        choices=("LPS", "RAS"),
        default="LPS",
        help="LPS as in DICOM and ITK (default), or RAS as in NIfTI",
    )
    return parser
