"""What our commands share: the arguments that name a model, and the predictor they make.

The modules of commands import PyTorch and nnU-Net, which take seconds, in functions that need them: not before the
arguments have been read.
"""

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_swipe.environment import whole_number
from nnunetv2_swipe.limits import available_threads

if TYPE_CHECKING:
    import torch

    from nnunetv2_swipe.inference.predictor import SwIPEPredictor


def run(parser: argparse.ArgumentParser, command: Callable[[argparse.Namespace], None]) -> None:
    """Run a command; errors of the input end it with their message alone."""
    arguments = parser.parse_args()
    try:
        for variable in ("nnUNet_def_n_proc", "nnUNet_n_proc_DA"):
            whole_number(variable, 0, lowest=0)  # nnU-Net reads them when it is imported, and does not name them
        command(arguments)
    except (ValueError, OSError, RuntimeError, AssertionError, MemoryError) as error:  # nnU-Net asserts
        if arguments.verbose:
            raise
        parser.exit(1, f"{parser.prog}: {str(error) or type(error).__name__}\n")


def add_model_arguments(parser: argparse.ArgumentParser, *, written: str) -> None:
    """Flags of `nnUNetv2_predict` that name folders, model and device.

    Args:
        parser: Gets them.
        written: What is written to the output folder.
    """
    add = parser.add_argument
    add("-i", required=True, metavar="FOLDER", help="images, named as in training (CASE_0000, ...)")
    add("-o", required=True, metavar="FOLDER", help=f"where {written} are written; made if it does not exist")
    add("-d", required=True, metavar="DATASET", help="name or number of the dataset")
    add("-p", default="nnUNetPlans", metavar="PLANS", help="plans (default: nnUNetPlans)")
    add("-tr", default="SwIPETrainer", metavar="TRAINER", help="trainer (default: SwIPETrainer)")
    add("-c", required=True, metavar="CONFIGURATION", help="configuration, such as 3d_fullres")
    add("-f", nargs="+", type=_fold, default=(0, 1, 2, 3, 4), metavar="FOLD", help="folds to average (default: 0 to 4)")
    add("-step_size", type=float, default=0.5, help="distance of tiles, in tiles (default: 0.5)")
    add("--disable_tta", action="store_true", help="no mirroring: faster, less accurate")
    add("-chk", default="checkpoint_final.pth", help="checkpoint (default: checkpoint_final.pth)")
    add("-prev_stage_predictions", metavar="FOLDER", help="of a cascade: label maps of the previous stage")
    add("-device", choices=("cuda", "cpu", "mps"), default="cuda", help="default: cuda")
    add_trust_argument(parser)
    add("--disable_progress_bar", action="store_true", help="no progress bars")
    add("--verbose", action="store_true", help="say more, and where an error comes from")


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """Flag that reads a model whatever it holds."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="read checkpoints even if they hold more than plain data; they can run code: trust whoever made them",
    )


def make_predictor(arguments: argparse.Namespace) -> "SwIPEPredictor":
    """The predictor with the model that the arguments name; folders and model are checked.

    Raises:
        ValueError: Something of the input cannot be used; it is named.
        OSError: The output folder cannot be made.
    """
    from nnunetv2_swipe.images.dicom import require_images
    from nnunetv2_swipe.inference.predictor import SwIPEPredictor

    model = _model_folder(arguments)
    device = choose_device(arguments.device)
    if not 0.01 <= arguments.step_size <= 1:
        raise ValueError(f"-step_size is {arguments.step_size}; it must be from 0.01 to 1.")
    if not Path(arguments.i).is_dir():
        raise ValueError(f"The input folder {arguments.i} does not exist.")
    output = Path(arguments.o)
    output.mkdir(parents=True, exist_ok=True)
    if not os.access(output, os.W_OK):
        raise ValueError(f"The output folder {output} cannot be written to.")
    predictor = SwIPEPredictor(
        tile_step_size=arguments.step_size,
        use_mirroring=not arguments.disable_tta,
        device=device,
        verbose=arguments.verbose,
        verbose_preprocessing=arguments.verbose,
        allow_tqdm=not arguments.disable_progress_bar,
    )
    predictor.initialize_from_trained_model_folder(str(model), arguments.f, arguments.chk, trust=arguments.trust)
    ending = predictor.dataset_json["file_ending"]
    require_images(Path(arguments.i), ending)
    if predictor.configuration_manager.previous_stage_name and arguments.prev_stage_predictions is None:
        raise ValueError("The second stage of a cascade needs -prev_stage_predictions, the folder of its labels.")
    return predictor


def _model_folder(arguments: argparse.Namespace) -> Path:
    """The folder of the trained model that `-d`, `-tr`, `-p` and `-c` name, checked to hold the checkpoints."""
    from nnunetv2.utilities.file_path_utilities import get_output_folder
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from nnunetv2_swipe.trainers.swipe_trainer import SwIPETrainer

    try:
        trainer = recursive_find_trainer_class_by_name(arguments.tr)
    except RuntimeError as error:
        raise ValueError(f"There is no trainer {arguments.tr}.") from error
    if not issubclass(trainer, SwIPETrainer):
        raise ValueError(f"{arguments.tr} is no SwIPE trainer. Predict with nnUNetv2_predict.")
    if not os.environ.get("nnUNet_results"):  # noqa: SIM112
        raise ValueError("The environment variable nnUNet_results is not set; it names the folder of trained models.")
    try:
        folder = Path(get_output_folder(arguments.d, arguments.tr, arguments.p, arguments.c))
    except RuntimeError as error:
        raise ValueError(f"There is no dataset {arguments.d}: {error}") from error
    if not folder.is_dir():
        raise ValueError(f"There is no model in {folder}. Train one, or name another by -d, -tr, -p and -c.")
    missing = [fold for fold in arguments.f if not (folder / f"fold_{fold}" / arguments.chk).is_file()]
    if missing:
        trained = trained_folds(folder, arguments.chk)
        raise ValueError(
            f"{folder} has no {arguments.chk} of the folds {', '.join(map(str, missing))}. Choose by -f among those "
            f"that are trained: {' '.join(trained) or 'none'}."
        )
    return folder


def trained_folds(model: Path, checkpoint: str) -> list[str]:
    """The folds of a model that have a checkpoint."""
    folds = (file.parent.name.removeprefix("fold_") for file in model.glob(f"fold_*/{checkpoint}"))
    return sorted(fold for fold in folds if re.fullmatch("[0-9]{1,9}|all", fold))


def choose_device(name: str) -> "torch.device":
    """The device; PyTorch is set to as many threads as the job may use on a CPU, and to one beside a GPU, as nnU-Net's.

    Raises:
        ValueError: There is no such device here.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("There is no CUDA GPU here. Predict on the CPU with -device cpu.")
    if name == "cpu":
        torch.set_num_threads(available_threads())
    elif name == "cuda":
        torch.set_num_threads(1)
        torch.set_num_interop_threads(1)
    return torch.device(name)


def _fold(text: str) -> int | str:
    """A fold that `-f` names."""
    if text != "all" and not re.fullmatch("[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no fold; a fold is a number from 0, or all")
    return text if text == "all" else int(text)
