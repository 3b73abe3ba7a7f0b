"""From nnU-Net's plan and the labels to SwIPE's settings: the rules at their anchor points, and every plan builds."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, reject, settings
from hypothesis import strategies as st
from nnunet_helpers import PLANS, nnunet_folders
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_swipe.config import PLAN_KEY, SwIPEConfig
from nnunetv2_swipe.network.coordinates import grid_shape
from nnunetv2_swipe.network.swipe_net import SwIPENet
from nnunetv2_swipe.planners import self_configuration as rules
from nnunetv2_swipe.planners.swipe_planner import SwIPEPlanner

DATASET = "Dataset001_Random"


def configuration(spacing, crop, strides, norm="instancenorm.InstanceNorm"):
    """What the rules read of an nnU-Net configuration; each stride holds for all axes."""
    dims = len(crop)
    kwargs = {
        "strides": [[s] * dims for s in strides],
        "kernel_sizes": [[3] * dims for _ in strides],
        "norm_op": f"torch.nn.modules.{norm}{dims}d",
    }
    return {"spacing": spacing, "patch_size": crop, "batch_size": 2, "architecture": {"arch_kwargs": kwargs}}


HIPPOCAMPUS = configuration([1.0, 1.0, 1.0], [40, 56, 40], [1, 2, 2, 2])
POLYPS = configuration([1.0, 1.0], [384, 384], [1, 2, 2, 2, 2, 2, 2])


def thick(*thickness_mm):
    """Statistics of classes of the given thicknesses."""
    return {str(i): {"n_cases": 1, "surface_to_volume_per_mm": 4 / t} for i, t in enumerate(thickness_mm, 1)}


def test_hippocampus_gets_small_patches_and_the_settings_of_3d():
    config = rules.derive_config(HIPPOCAMPUS, thick(4.5, 4.9), num_classes=3, regions=False)
    assert config.patch_size == (2, 2, 2)
    assert config.total_strides() == [(2, 2, 2), (4, 4, 4), (8, 8, 8)]
    assert (config.embedding_dim, config.n_points, config.mise_levels) == (128, 2048, 2)
    assert (config.patch_decoder_features, config.neck_features) == ((256, 256), 64)
    assert (config.spo_connectivity, config.initial_lr, config.point_weight_exponent) == (6, 2e-3, 0.5)
    assert (config.backbone, config.features_per_stage) == ("PlainConvEncoder", (64, 96, 128))


def test_polyps_get_patches_of_eight_pixels_and_the_papers_network_of_2d():
    config = rules.derive_config(POLYPS, thick(89), num_classes=2, regions=False)
    assert (config.patch_size, config.fourier_frequencies) == ((8, 8), 4)
    assert [t[0] for t in config.total_strides()] == [4, 8, 16, 32]
    assert (config.embedding_dim, config.boundary_radius) == (128, (10, 10))
    assert (config.patch_decoder_features, config.neck_features) == ((256, 256, 256), 32)
    assert (config.spo_connectivity, config.initial_lr, config.point_weight_exponent) == (8, 2e-3, 0.5)
    assert (config.backbone, config.features_per_stage) == ("Res2Net", (128, 160, 192, 256))


def test_the_plan_and_the_dataset_decide_norm_and_regions():
    plan = configuration([1.0, 1.0], [64, 64], [1, 2, 2], norm="batchnorm.BatchNorm")
    config = rules.derive_config(plan, thick(20), num_classes=2, regions=True)
    assert (config.norm_op, config.regions) == ("BatchNorm", True)
    assert rules.derive_config(POLYPS, thick(20), num_classes=2, regions=False).norm_op == "InstanceNorm"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"spacing": None}, "'spacing' is None"),
        ({"patch_size": [40, 0, 40]}, r"'patch_size' is \[40, 0, 40\]"),
        ({"batch_size": "2"}, "'batch_size' is '2'"),
        ({"spacing": [1.0, 1.0]}, r"'spacing' is \[1\.0, 1\.0\]; allowed: 3 numbers"),
        ({"patch_size": [40], "spacing": [1.0]}, r"'patch_size' is \[40\]"),
        ({"architecture": {}}, "'architecture' is {}; allowed: .* 'arch_kwargs'"),
        ({"architecture": {"arch_kwargs": {"strides": [[1, 1, 1]]}}}, "'kernel_sizes' is None"),
        (
            {"architecture": {"arch_kwargs": {"strides": [[1, 1]]}}},
            r"'strides' is \[\[1, 1\]\]; allowed: for each stage 3",
        ),
    ],
)
def test_plan_of_another_version_or_with_nonsense_is_refused_by_key(change, named):
    with pytest.raises(ValueError, match=named):
        rules.derive_config(HIPPOCAMPUS | change, thick(4.5), num_classes=3, regions=False)


def test_the_thinnest_class_counts():
    assert rules.structure_thickness_mm(thick(30, 4, 12), [1.0, 1.0, 1.0], [64, 64, 64]) == pytest.approx(4)


def test_without_labels_a_sixteenth_of_the_crops_shortest_side_counts():
    assert rules.structure_thickness_mm({}, [3.0, 1.0, 1.0], [16, 96, 128]) == pytest.approx(48 / 16)
    small = configuration([1.0, 1.0], [128, 128], [1, 2, 2, 2, 2, 2])
    assert rules.derive_config(small, {}, num_classes=2, regions=False).patch_size == (4, 4)


@pytest.mark.parametrize(
    ("thickness", "spacing", "crop", "expected"),
    [
        (4.5, (1, 1, 1), (40, 56, 40), (2, 2, 2)),
        (89, (1, 1), (384, 384), (8, 8)),
        (89, (4, 0.5, 0.5), (32, 256, 256), (1, 8, 8)),
        (89, (0.7031, 0.7032), (384, 384), (8, 8)),
        (89, (0.1, 1, 1), (1, 64, 64), (1, 8, 8)),  # the spacing of a single slice says nothing
        (12, (3, 1, 1), (40, 160, 160), (2, 4, 4)),
        (16, (8, 1, 1), (20, 128, 128), (1, 8, 8)),
        (1, (1, 1, 1), (16, 16, 16), (1, 1, 1)),
        (500, (1, 1), (16, 256), (4, 8)),  # four patches per axis
        (8, (5, 1, 1), (1, 64, 64), (1, 4, 4)),  # a single slice
        (2, (1, 1, 1), (128, 128, 128), (4, 4, 4)),  # no more patches than memory allows
        (500, (1, 1), (2048, 2048), (16, 16)),
        (500, (1, 1), (4096, 4096), (32, 32)),
    ],
)
def test_patch_size(thickness, spacing, crop, expected):
    assert rules.choose_patch_size(thickness, spacing, crop) == expected


@settings(deadline=None, derandomize=True)
@given(thickness=st.floats(8, 60), spacing=st.tuples(st.floats(0.5, 4), st.floats(0.5, 4)))
def test_patches_are_isotropic_in_mm_as_far_as_powers_of_two_go(thickness, spacing):
    """In a crop with room for them."""
    patch = rules.choose_patch_size(thickness, spacing, [128, 128])
    edges_mm = [p * s for p, s in zip(patch, spacing, strict=True)]
    assert max(edges_mm) <= thickness / 2 * (1 + 1e-9)
    assert max(edges_mm) <= 2 * min(edges_mm) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("patch", "num_classes", "expected"),
    [((32, 32), 2, 128), ((8, 8, 8), 14, 512), ((2, 2, 2), 3, 128), ((2, 2, 2), 14, 256), ((8, 8, 8), 2, 256)],
)
def test_embedding_dim(patch, num_classes, expected):
    assert rules.choose_embedding_dim(patch, num_classes) == expected


@pytest.mark.parametrize(
    ("crop", "num_classes", "expected"),
    [
        ((40, 56, 40), 3, 2048),
        ((8, 8), 2, 1024),
        ((256, 256, 256), 2, 16384),
        ((64, 64), 120, 120 * 64),
    ],
)
def test_n_points(crop, num_classes, expected):
    assert rules.choose_n_points(crop, num_classes) == expected


def test_too_few_points_for_many_classes_are_told(tiny_config):
    config = tiny_config(n_points=1024)
    assert rules.few_points(config, (16, 16, 16), 16) is None
    message = rules.few_points(config, (16, 16, 16), 101)
    assert '"n_points" is 1024, less than 64 for each of 101 classes' in message
    assert "the rule gives 6464" in message


@pytest.mark.parametrize(
    ("voxels_thick", "crop", "expected"),
    [
        ((4.5, 4.5, 4.5), (40, 56, 40), (1, 1, 1)),
        ((89, 89), (384, 384), (10, 10)),
        ((40, 40, 40), (96, 96, 96), (3, 3, 3)),
        ((2, 20, 20), (1, 384, 384), (0, 5, 5)),
        ((0.5, 0.5), (384, 384), (1, 1)),
    ],
)
def test_boundary_radius(voxels_thick, crop, expected):
    assert rules.choose_boundary_radius(voxels_thick, crop) == expected


@pytest.mark.parametrize(("voxels_thick", "expected"), [((1, 1), 0), ((2.5, 9), 1), ((4.5, 9, 9), 2), ((500, 500), 3)])
def test_mise_never_steps_farther_than_a_structure_is_thick(voxels_thick, expected):
    assert rules.choose_mise_levels(voxels_thick) == expected


@pytest.mark.parametrize(
    ("patch", "strides", "expected"),
    [
        ((2, 2, 2), [(1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)], [(2, 2, 2), (2, 2, 2), (2, 2, 2)]),
        ((1, 4, 4), [(1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2)], [(1, 4, 4), (2, 2, 2)]),
        ((32, 32), [1, 2, 2, 2, 2, 2, 2], [(4, 4), (2, 2), (2, 2), (2, 2)]),
        ((1, 1), [1, 2, 2, 2, 2], [(1, 1), (2, 2), (2, 2), (2, 2)]),
        ((4, 4), [1], [(1, 1)]),  # a crop too small to be pooled
    ],
)
def test_stages_start_at_the_patch_and_are_four_at_most(patch, strides, expected):
    kernels = [[i + 1] * len(patch) for i in range(len(strides))]
    chosen, chosen_kernels = rules.choose_stages({"strides": strides, "kernel_sizes": kernels}, patch)
    assert list(chosen) == expected
    first = next(k[0] for k in chosen_kernels) - 1  # nnU-Net's finer stages are merged into this one
    assert [k[0] for k in chosen_kernels] == [first + 1 + i for i in range(len(expected))]
    merged = np.prod([np.broadcast_to(s, len(patch)) for s in strides[: first + 1]], axis=0)
    assert tuple(merged) == expected[0]


class CheapPlanner(SwIPEPlanner):
    """SwIPEPlanner with a formula for the memory; nnU-Net builds each network that it tries."""

    @staticmethod
    def static_estimate_VRAM_usage(patch_size, _channels, n_outputs, _name, arch_kwargs, *_):  # noqa: N802
        size, total = np.array(patch_size, dtype=float), 0.0
        for stride, features in zip(arch_kwargs["strides"], arch_kwargs["features_per_stage"], strict=True):
            size = size / stride
            total += (5 * features + n_outputs) * size.prod()
        return total

    def save_plans(self, plans):
        """Nothing yet: the test does it, once nnU-Net's own part is known to have succeeded."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    with nnunet_folders(tmp_path_factory.mktemp("fingerprints")) as root:
        for name in ("nnUNet_raw", "nnUNet_preprocessed"):
            (root / name / DATASET).mkdir()
        yield root


def make_plans(root, dataset_json, fingerprint, statistics):
    """The plan of SwIPEPlanner as it reads it back from its file."""
    preprocessed = root / "nnUNet_preprocessed" / DATASET
    (preprocessed / f"{PLANS}.json").unlink(missing_ok=True)  # nnU-Net keeps the configurations of an old plan
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    (root / "nnUNet_raw" / DATASET / "dataset.json").write_text(json.dumps(dataset_json))
    planner = CheapPlanner(DATASET)
    with pytest.MonkeyPatch.context() as patch:
        # there is a fingerprint, but no image
        patch.setattr("nnunetv2_swipe.planners.swipe_planner.check_dataset", lambda *_: None)
        patch.setattr(SwIPEPlanner, "_spacings_mm", lambda _: {})
        try:
            plans = planner.plan_experiment()
        except (ZeroDivisionError, OverflowError):  # nnU-Net rounds the side of some flat volumes to zero voxels
            reject()
        patch.setattr("nnunetv2_swipe.planners.swipe_planner.label_statistics", lambda *_, **__: statistics)
        # takes seconds, and runs what the test itself runs next
        patch.setattr("nnunetv2_swipe.planners.swipe_planner.fitting_batch_size", lambda _, __, n, *_a, **_k: (n, 0))
        SwIPEPlanner.save_plans(planner, plans)
    return json.loads((preprocessed / f"{PLANS}.json").read_text())


def train_on_meta_device(config, crop, channels, num_classes):
    """A training step's forward and backward pass, of shapes alone."""
    with torch.device("meta"):
        network = SwIPENet(config, channels, num_classes)
    x = torch.empty(2, network.expected_channels, *crop, device="meta")
    points = torch.empty(2, 8, config.dims, device="meta")
    neighbours = torch.empty(2, 8, config.n_spo, config.dims, dtype=torch.int64, device="meta")
    outputs = network(x, points, neighbours)
    assert outputs.patch.shape == outputs.image.shape == (2, 8, num_classes)
    assert outputs.neighbours.shape == (2, 8 * config.n_spo, num_classes)
    sum(output.sum() for output in outputs).backward()
    # DistributedDataParallel waits for every one of them
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


CHECKED = set()
"""What decides a network's shapes, of the networks built so far."""


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    dims=st.sampled_from([2, 3]),
    size=st.tuples(*[st.integers(1, 2000)] * 3),
    finest_mm=st.floats(0.05, 5),
    spacing_ratio=st.tuples(*[st.floats(1, 20)] * 3),
    n_foreground=st.integers(1, 120),
    n_channels=st.integers(1, 4),
    thickness_voxels=st.none() | st.floats(0.5, 500),
)
@example(  # one voxel
    dims=2,
    size=(1, 1, 1),
    finest_mm=1.0,
    spacing_ratio=(1.0, 1.0, 1.0),
    n_foreground=1,
    n_channels=1,
    thickness_voxels=None,
)
def test_every_plan_builds_a_network_that_trains(
    folders, dims, size, finest_mm, spacing_ratio, n_foreground, n_channels, thickness_voxels
):
    spacing = [finest_mm * r for r in spacing_ratio]
    if dims == 2:  # as nnU-Net's readers give them
        size, spacing = [1, *size[1:]], [999 * max(spacing), *spacing[1:]]
    names = {f"class {i}": i for i in range(1, n_foreground + 1)}
    intensities = dict.fromkeys(("mean", "median", "std", "min", "max", "percentile_99_5", "percentile_00_5"), 1.0)
    dataset_json = {
        "channel_names": {str(c): "CT" if c else "MRI" for c in range(n_channels)},
        "labels": {"background": 0, **names},
        "numTraining": 20,
        "file_ending": ".nii.gz",
        "dataset": {"case": {"images": ["case_0000.nii.gz"], "label": "case.nii.gz"}},
        "overwrite_image_reader_writer": "SimpleITKIO",
    }
    fingerprint = {
        "spacings": [spacing],
        "shapes_after_crop": [list(size)],
        "foreground_intensity_properties_per_channel": {str(c): intensities for c in range(n_channels)},
        "median_relative_size_after_cropping": 1.0,
    }
    statistics = {} if thickness_voxels is None else thick(*[thickness_voxels * finest_mm] * n_foreground)
    plans = make_plans(folders, dataset_json, fingerprint, statistics)
    manager = PlansManager(plans)
    for name in manager.available_configurations:
        planned = manager.get_configuration(name)
        block, crop = planned.configuration[PLAN_KEY], planned.patch_size
        config = SwIPEConfig.from_dict(block)
        assert config.to_dict() == block
        assert config.dims == len(crop)
        assert math.prod(grid_shape(crop, config.patch_size)) <= rules.MAX_PATCHES_PER_CROP
        multiple = [max(s, p) for s, p in zip(config.total_strides()[-1], config.patch_size, strict=True)]
        cells = tuple((min(n // m, 2), n % m > 0) for n, m in zip(crop, multiple, strict=True))
        shapes = (config.strides, config.kernel_sizes, config.patch_size, config.embedding_dim, cells)
        if shapes not in CHECKED:
            CHECKED.add(shapes)
            channels = determine_num_input_channels(manager, planned, dataset_json)
            train_on_meta_device(config, crop, channels, n_foreground + 1)
