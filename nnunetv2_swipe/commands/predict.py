"""`nnUNetv2_swipe_predict`: `nnUNetv2_predict` with labels decoded on any grid."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_swipe.commands.common import add_model_arguments, make_predictor, run
from nnunetv2_swipe.environment import whole_number
from nnunetv2_swipe.inference.uncertainties import TOTAL_UNCERTAINTY, UNCERTAINTIES

if TYPE_CHECKING:
    from nnunetv2_swipe.geometry import Grid
    from nnunetv2_swipe.inference.output_grid import OutputGrid
    from nnunetv2_swipe.inference.predictor import SwIPEPredictor

DEFAULT_PROCESSES = 3


def main() -> None:
    """Entry point."""
    run(_parser(), predict)


def predict(arguments: argparse.Namespace) -> None:
    """Check everything that can be checked, then predict.

    Raises:
        ValueError: Something of the input cannot be used; it is named.
        OSError: A folder cannot be read or written.
    """
    if not 0 <= arguments.part_id < arguments.num_parts:
        raise ValueError(f"-part_id is {arguments.part_id}; with -num_parts {arguments.num_parts} it counts from 0.")
    npp, nps = (_processes(arguments, name) for name in ("npp", "nps"))
    predictor = make_predictor(arguments)
    predictor.uncertainties = _uncertainties(arguments)
    predictor.output_grid = _output_grid(arguments, predictor)
    predictor.predict_from_files(
        arguments.i,
        arguments.o,
        save_probabilities=arguments.save_probabilities,
        overwrite=not arguments.continue_prediction,
        num_processes_preprocessing=npp,
        num_processes_segmentation_export=nps,
        folder_with_segs_from_prev_stage=arguments.prev_stage_predictions,
        num_parts=arguments.num_parts,
        part_id=arguments.part_id,
    )


def _uncertainties(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The maps that `--save_uncertainty` asks for; by itself it asks for the sum."""
    if arguments.save_uncertainty is None:
        return ()
    if "mirroring" in arguments.save_uncertainty and arguments.disable_tta:
        raise ValueError("--save_uncertainty mirroring: there is no mirroring with --disable_tta.")
    if "folds" in arguments.save_uncertainty and len(set(arguments.f)) == 1:
        raise ValueError("--save_uncertainty folds: name several folds by -f.")
    return tuple(dict.fromkeys(arguments.save_uncertainty)) or (TOTAL_UNCERTAINTY,)


def _output_grid(arguments: argparse.Namespace, predictor: "SwIPEPredictor") -> "OutputGrid":
    """The grid that the arguments ask for."""
    from nnunetv2_swipe.inference.output_grid import OutputGrid

    like = None if arguments.like is None else _grid_as_read(arguments.like, predictor)
    spacing = None if arguments.spacing is None else tuple(arguments.spacing)
    return OutputGrid(spacing=spacing, size=None if arguments.size is None else tuple(arguments.size), like=like)


def _grid_as_read(file: str, predictor: "SwIPEPredictor") -> "Grid":
    """The grid of an image or label map, as the model's reader reads it."""
    from nnunetv2_swipe.geometry import grid_of_image
    from nnunetv2_swipe.images.headers import read_header
    from nnunetv2_swipe.images.tiff import spacing_file

    if not Path(file).is_file():
        raise ValueError(f"The image {file} does not exist.")
    reader = predictor.plans_manager.image_reader_writer_class()
    # a label map, which is named after its case, may end in digits, too
    is_channel = re.search(r"_\d{4}\.", Path(file).name) and not spacing_file(file, is_label=True).is_file()
    read_header(file, type(reader), is_label=not is_channel)  # what cannot be read is named
    image, properties = reader.read_images([file]) if is_channel else reader.read_seg(file)
    return grid_of_image(properties, image.shape[1:])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_swipe_predict",
        description="Predict with a model of a SwIPE trainer. Used like nnUNetv2_predict, but labels are decoded on "
        "the grid of the output, by default that of each image: nothing is resampled.",
    )
    add_model_arguments(parser, written="label maps")
    grid = parser.add_mutually_exclusive_group()
    grid.add_argument(
        "--spacing", nargs="+", type=float, metavar="MM", help="spacing of the output along x, y (and z), in mm"
    )
    grid.add_argument("--size", nargs="+", type=int, metavar="N", help="points of the output along x, y (and z)")
    grid.add_argument("--like", metavar="IMAGE", help="write every label map on the grid of this image")
    add = parser.add_argument
    add("--save_probabilities", action="store_true", help="write probabilities, too (CASE.npz)")
    add(
        "--save_uncertainty",
        nargs="*",
        choices=UNCERTAINTIES,
        metavar="PART",
        help="write the variance of labels, too (uncertainty/CASE.nii.gz), or parts of it (PART/CASE.nii.gz): "
        + ", ".join(UNCERTAINTIES),
    )
    add("--not_on_device", action="store_true", help="without effect: results are in main memory anyway")
    add("--continue_prediction", "--c", action="store_true", help="leave cases alone that are predicted already")
    add("-npp", type=int, help="processes that preprocess; 0: none but this one")
    add("-nps", type=int, help="threads that write files")
    add("-num_parts", type=int, default=1, help="of so many calls that share the cases")
    add("-part_id", type=int, default=0, help="this is number (from 0)")
    return parser


def _processes(arguments: argparse.Namespace, name: str) -> int:
    """The number that a flag gives, else nnU-Net's environment variable, else nnU-Net's default.

    Raises:
        ValueError: It is no whole number, or below 0.
    """
    number = getattr(arguments, name)
    if number is None:
        return whole_number(f"nnUNet_{name}", DEFAULT_PROCESSES, lowest=0)
    if number < 0:
        raise ValueError(f"-{name} is {number}; it must be 0 or more.")
    return number
