"""What tests of nnU-Net need: its folders, small datasets and plans, and its commands, in processes or in this one."""

import importlib
import json
import multiprocessing
import os
import queue
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, entry_points
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.paths import nnUNet_preprocessed

from nnunetv2_swipe.autoload import install

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from phantom import ABDOMEN_NAME, FUNDUS_NAME, write_phantoms

os.environ.setdefault("nnUNet_def_n_proc", "2")  # nnU-Net reads it when it is first imported
install()  # adds nothing where the package is installed; a bare checkout has no .pth file to do it

ROOT = Path(__file__).parents[1]
ABDOMEN, FUNDUS = ABDOMEN_NAME, FUNDUS_NAME
REGIONS = "Dataset905_Regions"
PLANS = "nnUNetSwIPEPlans"
MODEL = ("-tr", "SwIPETrainer", "-p", PLANS)
ON_CPU = ("-device", "cpu")
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
NARROW = {
    "embedding_dim": 16,
    "neck_features": 8,
    "patch_decoder_features": [16, 16],
    "image_decoder_features": [16],
    "n_points": 256,
}
"""Widths with which a training step takes a fraction of a second."""


def make_folders(root):
    """The three variables of nnU-Net, with their folders below `root`."""
    for name in FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    return {name: str(root / name) for name in FOLDERS}


@contextmanager
def nnunet_folders(root, **variables):
    """Set nnU-Net's variables in this process; its loaders work without further processes."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**make_folders(root), "nnUNet_n_proc_DA": "0", **variables}.items():
            patch.setenv(name, value)
        patch.setattr(
            "nnunetv2_swipe.planners.label_statistics.ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1)
        )
        yield root


def write_phantom(folder, *, cases_3d=5, cases_2d=0):
    """Phantoms on the grid on which every case is known to hold every class but the lesions."""
    return write_phantoms(folder, cases_3d=cases_3d, cases_2d=cases_2d, size_scale=0.4, seed=3)


def write_variant(source, name, *, relabel=None, channels=1, **header):
    """Copy a raw dataset of volumes under another name, with other labels, more channels or another dataset.json."""
    folder = Path(shutil.copytree(source, source.with_name(name)))
    file = folder / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | header))
    for labels in folder.glob("labels*/*.nii.gz"):
        image = sitk.ReadImage(labels)
        array = sitk.GetArrayFromImage(image)
        for old, new in (relabel or {}).items():
            array[array == old] = new
        write_volume(array, labels, like=image)
    for image in list(folder.glob("images*/*_0000.nii.gz")):
        for channel in range(1, channels):
            shutil.copy(image, str(image).replace("_0000.nii.gz", f"_{channel:04d}.nii.gz"))
    return folder


def write_volume(array, file, *, spacing=(1.0, 1.0, 1.0), like=None):
    """Write an array (z, y, x) as an image; `spacing` in the same order, or the geometry of another image."""
    image = sitk.GetImageFromArray(array)
    if like is None:
        image.SetSpacing([float(s) for s in reversed(spacing)])
    else:
        image.CopyInformation(like)
    sitk.WriteImage(image, str(file))
    return file


def read_labels(file):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def geometry(file):
    """Size, spacing, origin and direction of an image file."""
    image = sitk.ReadImage(str(file))
    values = (image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    return np.concatenate([np.asarray(v, dtype=float) for v in values])


def plans_file(dataset, plans=PLANS):
    return Path(nnUNet_preprocessed) / dataset / f"{plans}.json"


def edit_json(file, change):
    """Read a JSON file, let `change` work on it in place, and write it back."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content, indent=1))


def set_key(path, value):
    """A function that sets a value in nested dictionaries."""

    def change(content):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


def narrow(plans):
    """Make the networks of a plan as small as `NARROW`."""
    for configuration in plans["configurations"].values():
        block = configuration.get("swipe")
        if block is not None:
            n = len(block["strides"])
            block.update(NARROW, features_per_stage=[16] * n, n_blocks_per_stage=[1] * n)


def dates(folder):
    """When each file of a folder was written last."""
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir() if file.is_file()}


def preprocess(number, plans=PLANS, configuration="3d_fullres"):
    """Preprocess a dataset in this process."""
    call_command("nnUNetv2_preprocess", "-d", number, "-plans_name", plans, "-c", configuration, "-np", 1)


def make_trainer(trainer, dataset, configuration, *, plans=PLANS, fold=0, edit=None, continues=False):
    """A trainer as nnUNetv2_train makes it (--c: `continues`); `edit` changes the plan's configuration first."""
    content = json.loads(plans_file(dataset, plans).read_text()) | {"continue_training": continues}
    if edit is not None:
        edit(content["configurations"][configuration])
    dataset_json = json.loads(plans_file(dataset, "dataset").read_text())
    return trainer(content, configuration, fold, dataset_json, torch.device("cpu"))


def call_command(name, *arguments, function=None):
    """Run a console command by its entry point (or function) in this process, its pools as a thread each.

    Importing nnU-Net takes many seconds, in every process that a command starts.
    """
    importlib.import_module("nnunetv2.training.nnUNetTrainer.nnUNetTrainer")  # all of it, with the true pools
    function = function or next(iter(entry_points(group="console_scripts", name=name))).load()

    def pool(*_, **__):
        return ThreadPool(1)

    context = SimpleNamespace(Pool=pool, Process=threading.Thread)
    manager = SimpleNamespace(Event=threading.Event, Queue=queue.Queue)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        patch.setattr("nnunetv2.utilities.utils.Pool", pool)
        patch.setattr("nnunetv2.inference.data_iterators.Manager", lambda: manager)
        # a figure of 16 megapixels
        patch.setattr("nnunetv2.training.logging.nnunet_logger.LocalLogger.plot_progress_png", lambda *_: None)
        patch.setattr(multiprocessing, "get_context", lambda _=None: context)
        function()


def plan(number, planner, *arguments):
    """Plan and, unless told otherwise, preprocess a dataset in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_n_proc_DA", "1")  # also how many threads the memory estimate sets
        call_command("nnUNetv2_plan_and_preprocess", "-d", number, "-pl", planner, *arguments)


@cache
def _path_of_bare_checkout():
    """PYTHONPATH that stands in for an installation of this checkout; None where it is installed."""
    try:
        distribution("nnunetv2-swipe")
    except PackageNotFoundError:
        folder = Path(tempfile.mkdtemp(prefix="nnunetv2_swipe_"))
        (folder / "sitecustomize.py").write_text(f"import site; site.addsitedir({str(ROOT / 'startup')!r})\n")
        return os.pathsep.join((str(folder), str(ROOT)))
    return None


def run_command(name, *arguments, variables, timeout=300):
    """Run a console command as a user does, with no variables of nnU-Net's or ours but those given; its output."""
    path = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", "")))
    return _run([shutil.which(name, path=path) or name, *map(str, arguments)], variables, timeout)


def run_python(code, *arguments, variables, timeout=300):
    """Run code in a Python of its own, likewise."""
    return _run([sys.executable, "-c", code, *map(str, arguments)], variables, timeout)


def _run(command, variables, timeout):
    process = start(command, variables)
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # and the pools it started
        output, _ = process.communicate()
        pytest.fail(f"{command} took more than {timeout} s:\n{output[-4000:]}")
    assert process.returncode == 0, f"{command} failed:\n{output[-6000:]}"
    return output


def start(command, variables):
    """Start a command, likewise, in a process group of its own."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("nnUNet_", "NNUNETV2_SWIPE", "SWIPE_")) or name == "SWIPE_AMP"
    }
    if _path_of_bare_checkout() is not None:
        environment["PYTHONPATH"] = _path_of_bare_checkout()
    return subprocess.Popen(
        command,
        env=environment | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def train_models(folder):
    """Phantoms, and narrow models of one step: two folds of 3d_fullres, one of 2d (photographs), one with regions."""
    with nnunet_folders(folder, SWIPE_NUM_EPOCHS="1", SWIPE_ITERATIONS_PER_EPOCH="1") as root:
        write_phantom(root / "nnUNet_raw", cases_2d=5)
        regions = {"background": 0, "organs": [1, 2, 3, 4], "liver": 1, "aorta": 4, "ignore": 5}
        write_variant(root / "nnUNet_raw" / ABDOMEN, REGIONS, labels=regions, regions_class_order=[2, 1, 4])
        for number, name, configuration, folds in (
            (901, ABDOMEN, "3d_fullres", (0, 1)),
            (902, FUNDUS, "2d", (0,)),
            (905, REGIONS, "3d_fullres", (0,)),
        ):
            plan(number, "SwIPEPlanner", "-c", configuration)
            edit_json(plans_file(name), narrow)
            edit_json(plans_file(name), _decode_smoothly)
            for fold in folds:
                torch.manual_seed(fold)
                call_command("nnUNetv2_train", number, configuration, fold, *MODEL, *ON_CPU)
                _sharpen(model_folder(root, name, configuration) / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def model_folder(root, name, configuration="3d_fullres"):
    return root / "nnUNet_results" / name / f"SwIPETrainer__{PLANS}__{configuration}"


def _decode_smoothly(plans):
    """Continuous fields, every voxel decoded: labels of positions do not depend on the grid that they are in."""
    for configuration in plans["configurations"].values():
        configuration["swipe"].update(mise_levels=0, decoding="blended")


def _sharpen(file):
    """Make a network that has not learnt anything sure of its random classes, by patches more than by positions."""
    checkpoint = torch.load(file, weights_only=False)
    weights = checkpoint["network_weights"]
    weights["patch_decoder.seg_layers.weight"] *= 50
    weights["patch_decoder.seg_layers.bias"][:] = 2
    if len(weights["patch_decoder.seg_layers.bias"]) > 3:  # not regions: background alone proves nothing
        weights["patch_decoder.seg_layers.bias"][0] = -50
    weights["patch_decoder.point_layer.weight"] *= 0.05
    torch.save(checkpoint, file)


def train_hardly(folder):
    """nnU-Net's folders with phantoms, and narrow models of 3d_fullres, folds 0 and 1, of one step, not validated."""
    with nnunet_folders(folder, SWIPE_NUM_EPOCHS="1", SWIPE_ITERATIONS_PER_EPOCH="1") as root:
        write_phantom(root / "nnUNet_raw")
        plan(901, "SwIPEPlanner", "-c", "3d_fullres")
        edit_json(plans_file(ABDOMEN), narrow)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("nnunetv2.training.logging.nnunet_logger.LocalLogger.plot_progress_png", lambda *_: None)
            for fold in (0, 1):
                trainer = importlib.import_module("nnunetv2_swipe.trainers").SwIPETrainer
                make_trainer(trainer, ABDOMEN, "3d_fullres", fold=fold).run_training()
    return root
