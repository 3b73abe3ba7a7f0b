"""Shapes whose place in the patient is known, and images of them as nnU-Net preprocesses them."""

from types import SimpleNamespace

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_swipe.inference.predictor import SwIPEPredictor


def rotation(*angles):
    """Direction cosines of turns about x, y and z, in degrees."""
    transform = sitk.Euler3DTransform()
    transform.SetRotation(*np.deg2rad(angles).tolist())
    return np.reshape(transform.GetMatrix(), (3, 3))


DIRECTIONS = {
    "axial": np.eye(3),
    "RAS": np.diag([-1.0, -1.0, 1.0]),
    "sagittal": np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]),
    "coronal, mirrored": np.array([[1.0, 0, 0], [0, 0, -1], [0, -1, 0]]),
    "oblique": rotation(20, -35, 50),
}

CENTRE, RADII = np.array([12.0, -8.0, 30.0]), np.array([14.0, 11.0, 9.0])
SPACINGS = {"isotropic": (1.0, 1.0, 1.0), "thick slices": (0.8, 0.8, 2.5), "all different": (1.3, 0.7, 1.0)}


def distance(position):
    """Positive inside an ellipsoid; about the distance to its surface in millimetres. Positions (..., 3) x, y, z."""
    scaled = (position - CENTRE) / RADII
    length = np.linalg.norm(scaled, axis=-1)
    return length * (1 - length) / np.maximum(np.linalg.norm(scaled / RADII, axis=-1), 1e-6)


def write_ellipsoid(file, direction, spacing):
    """An image of the distance, and zero, which nnU-Net crops, far from it."""
    size = np.ceil(44 / np.array(spacing)).astype(int)
    image = sitk.Image(size.tolist(), sitk.sitkFloat32)
    image.SetSpacing(spacing)
    image.SetDirection(direction.flatten().tolist())
    centre = image.TransformContinuousIndexToPhysicalPoint(((size - 1) / 2 + (1.2, -2.3, 0.4)).tolist())
    image.SetOrigin((CENTRE - centre).tolist())
    index = np.indices(size[::-1].tolist()).reshape(3, -1).T
    origin = np.array(image.TransformIndexToPhysicalPoint((0, 0, 0)))
    steps = [np.subtract(image.TransformIndexToPhysicalPoint(e), origin) for e in np.eye(3, dtype=int).tolist()]
    values = distance(origin + index[:, ::-1] @ np.array(steps)).reshape(size[::-1]).astype(np.float32)
    values[:, :2] = values[:, :, :3] = 0
    filled = sitk.GetImageFromArray(values)
    filled.CopyInformation(image)
    sitk.WriteImage(filled, str(file))


def any_plan(transpose=(0, 1, 2), *, spacing=(1.1, 0.9, 1.0), reader="SimpleITKIO", channels=("any",)):
    """A plan that resamples and leaves intensities as they are, its configuration, and a dataset.json of one class."""
    resampling = {
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": False},
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": False},
    }
    plans = PlansManager(
        {
            "dataset_name": "Dataset001_Any",
            "plans_name": "any",
            "transpose_forward": list(transpose),
            "transpose_backward": np.argsort(transpose).tolist(),
            "image_reader_writer": reader,
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {str(i): {} for i in range(len(channels))},
            "configurations": {
                "3d_fullres": {
                    "preprocessor_name": "SwIPEPreprocessor",
                    "spacing": list(spacing),
                    "patch_size": [16, 16, 16],
                    "architecture": {"network_class_name": "any", "arch_kwargs": {}, "_kw_requires_import": []},
                    "normalization_schemes": ["NoNormalization"] * len(channels),
                    "use_mask_for_norm": [False] * len(channels),
                    **resampling,
                }
            },
        }
    )
    dataset = {
        "channel_names": {str(i): name for i, name in enumerate(channels)},
        "labels": {"background": 0, "ellipsoid": 1},
        "file_ending": ".nii.gz",
    }
    return plans, plans.get_configuration("3d_fullres"), dataset


def any_predictor(**options):
    """A predictor of such a plan without a network: what it needs of one is `Interpolated`."""
    predictor = SwIPEPredictor(allow_tqdm=False)
    predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json = any_plan(**options)
    predictor.label_manager = predictor.plans_manager.get_label_manager(predictor.dataset_json)
    return predictor


def preprocessed(file, transpose=(0, 1, 2), **options):
    """What nnU-Net's preprocessor makes of it, on a grid of its own, intensities as they are."""
    plans, configuration, dataset = any_plan(transpose, **options)
    data, _, properties = DefaultPreprocessor(verbose=False).run_case([str(file)], None, plans, configuration, dataset)
    predictor = SimpleNamespace(
        plans_manager=plans,
        label_manager=plans.get_label_manager(dataset),
        dataset_json=dataset,
        allow_tqdm=False,
    )
    return predictor, torch.from_numpy(data), properties


class Interpolated:
    """In the place of a TiledImage: the logit of the shape is the preprocessed image's intensity."""

    num_classes = 2

    def __init__(self, _, image, **__):
        self.image, self.shape = image, tuple(image.shape[1:])

    def blocks(self, positions, **_):
        return [tuple(slice(0, len(p)) for p in positions)]

    def decode_lattice(self, positions, *, labels_only=False):
        assert all((p.diff() > 0).all() for p in positions)
        shape = [len(p) for p in positions]
        logits = self.decode(torch.cartesian_prod(*positions)).T.unflatten(1, shape)
        return logits.argmax(0, keepdim=True) if labels_only else logits

    def decode(self, points):
        scaled = (points.double() + 0.5) * (2.0 / torch.tensor(self.shape)) - 1.0
        sampled = F.grid_sample(self.image[None].double(), scaled.flip(1)[None, None, None], align_corners=False)
        logit = sampled.flatten()
        return torch.stack((-logit, logit), 1)
