"""A predictor of a tiny network that was not trained, and images for it: whole runs take seconds."""

import os
import signal
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_swipe.inference.predictor import SwIPEPredictor
from nnunetv2_swipe.preprocessing import SwIPEPreprocessor_withSourceFrame

TILE = 16
RESAMPLING = {
    "resampling_fn_data": "resample_data_or_seg_to_shape",
    "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
    "resampling_fn_seg": "resample_data_or_seg_to_shape",
    "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
}


def plans_of(spacing, reader="SimpleITKIO", **changes):
    """A plan of nnU-Net for volumes (three spacings) or slices (two)."""
    configuration = {
        "preprocessor_name": "SwIPEPreprocessor_withSourceFrame",
        "spacing": list(spacing),
        "patch_size": [TILE] * len(spacing),
        "batch_size": 2,
        "architecture": {"network_class_name": "any", "arch_kwargs": {}, "_kw_requires_import": []},
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        **RESAMPLING,
    }
    content = {
        "dataset_name": "Dataset001_Any",
        "plans_name": "any",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "image_reader_writer": reader,
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {}},
        "configurations": {"any": configuration},
    }
    return PlansManager(content | changes)


def dataset_of(ending=".nii.gz"):
    labels = {"background": 0, "one": 1, "two": 2}
    return {"channel_names": {"0": "any"}, "labels": labels, "file_ending": ending, "numTraining": 1}


def tiny_predictor(config, network, *, spacing=(1.0, 1.0, 1.0), reader="SimpleITKIO", ending=".nii.gz", **options):
    """A SwIPEPredictor with a network of a configuration, which decides sharply, and a plan of a spacing."""
    net = network(config)
    net.patch_decoder.seg_layers.weight.data *= 50
    predictor = SwIPEPredictor(device=torch.device("cpu"), use_mirroring=False, allow_tqdm=False, **options)
    plans = plans_of(spacing, reader)
    predictor.manual_initialization(
        net, plans, plans.get_configuration("any"), [net.state_dict()], dataset_of(ending), "SwIPETrainer", None
    )
    return predictor


def write_image(file, shape=(9, 10, 11), spacing=(1.0, 1.0, 1.0), seed=0):
    """A random image without zeros, of a shape and spacing along z, y and x (or y and x)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).uniform(1, 2, shape).astype(np.float32)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(s) for s in reversed(spacing)])
    sitk.WriteImage(image, str(file))
    return file


class FailingPreprocessor(SwIPEPreprocessor_withSourceFrame):
    """Fails for files whose name tells how; found by worker processes, too, since it is a class of a module."""

    def run_case(self, image_files, *arguments):
        name = Path(image_files[0]).name
        if name.startswith("bad"):
            raise ValueError(f"{image_files[0]}: holds a NaN")
        if name.startswith("empty"):
            raise RuntimeError
        if name.startswith("index"):
            raise IndexError("list index out of range")
        if name.startswith("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run_case(image_files, *arguments)


def fail_by_name(predictor, monkeypatch):
    """Let a predictor use `FailingPreprocessor`."""
    preprocessor = predictor._preprocessor._replace(preprocessor=FailingPreprocessor(verbose=False))
    monkeypatch.setattr(type(predictor), "_preprocessor", property(lambda _: preprocessor))
    return predictor
