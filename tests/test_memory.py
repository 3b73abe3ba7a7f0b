"""The planner's estimate of memory, against what training takes."""

import ctypes
import gc
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from nnunetv2.training.loss.dice import get_tp_fp_fn_tn

from nnunetv2_swipe.network.backbones import InstanceNorm
from nnunetv2_swipe.network.swipe_net import SwIPENet
from nnunetv2_swipe.planners import memory as planners_memory
from nnunetv2_swipe.planners.memory import GIB, _LiveTensors, fitting_batch_size, training_memory
from nnunetv2_swipe.precision import AMP_VARIABLE
from nnunetv2_swipe.training.losses import SwIPELoss
from nnunetv2_swipe.training.point_sampling import sample_points

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from measure import PeakMemory

PLAIN = {"backbone": "PlainConvEncoder", "features_per_stage": (64, 96), "neck_features": 64, "embedding_dim": 128}
RES2NET = {"features_per_stage": (128, 160), "neck_features": 32, "embedding_dim": 128, "strides": ((4, 4), (2, 2))}
SHAPES = {
    "small patches": ((40, 56, 40), 3, PLAIN | {"patch_size": (2, 2, 2), "n_points": 2048}),
    "large patches": ((64, 64, 64), 2, PLAIN | {"patch_size": (8, 8, 8), "n_points": 4096}),
    "many points": ((48, 48, 48), 1, PLAIN | {"n_points": 16384, "patch_decoder_features": (256, 256)}),
    "2D": ((256, 256), 4, RES2NET | {"patch_size": (32, 32), "n_points": 2048}),
    "2D, large": ((512, 320), 2, RES2NET | {"patch_size": (16, 16), "n_points": 1024}),
    "2D, many points": ((128, 128), 4, RES2NET | {"n_points": 16384, "patch_decoder_features": (256, 256, 256)}),
}


def measured(config, crop, batch_size):
    """Bytes of main memory that two steps add, the libraries being warm; in a process of its own."""
    label = F.interpolate(torch.randint(3, (batch_size, 1, *[-(-n // 8) for n in crop])).float(), size=crop).short()

    def train(batch_size, size):
        network, loss = SwIPENet(config, 1, 3), SwIPELoss(config, num_classes=3)
        optimizer = torch.optim.AdamW(network.parameters())
        for _ in range(2):
            x = torch.randn(batch_size, network.expected_channels, *size)
            box = (slice(batch_size), slice(None), *[slice(n) for n in size])
            sample = sample_points(label[box], config, num_classes=3)
            optimizer.zero_grad(set_to_none=True)
            loss.points(network(x, sample.points, sample.neighbours), sample).backward()
            optimizer.step()

    train(1, [min(n, 32) for n in crop])
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else what the first training has left would be used again
    with PeakMemory(torch.device("cpu")) as memory:
        train(batch_size, crop)
    return memory.added


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is measured on Linux only")
@pytest.mark.parametrize(("crop", "batch_size", "changes"), SHAPES.values(), ids=SHAPES)
def test_estimate_is_within_a_quarter_of_what_training_takes(tiny_config, crop, batch_size, changes):
    config = tiny_config(len(crop), **changes)
    estimate = training_memory(config, crop, batch_size, channels=1, num_classes=3, amp="off")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        needed = pool.submit(measured, config, crop, batch_size).result()
    print(f"\n{crop}, batch {batch_size}: estimated {estimate / GIB:.3f} GiB, measured {needed / GIB:.3f} GiB")
    assert needed > 0.1 * GIB  # otherwise what the interpreter does would count
    assert estimate == pytest.approx(needed, rel=0.25)


def test_estimate_allocates_nothing_and_leaves_the_precision_alone(tiny_config, monkeypatch):
    monkeypatch.setenv(AMP_VARIABLE, "off")
    config = tiny_config(patch_size=(8, 8, 8))
    assert training_memory(config, (1024, 1024, 1024), 64, channels=4, num_classes=3) > 1000 * GIB
    assert torch.zeros(2).sum().item() == 0  # tensors are real again


@pytest.mark.parametrize(("dims", "crop"), [(2, (64, 64)), (3, (16, 32, 32))])
@pytest.mark.parametrize("changes", [{"regions": True}, {"n_spo": 0}, {"image_decoder_features": []}])
def test_any_plan_is_estimated(tiny_config, dims, crop, changes):
    small, large = (
        training_memory(tiny_config(dims, **changes), crop, batch, channels=2, num_classes=5) for batch in (2, 8)
    )
    assert 0 < small < large < 4 * small


def test_half_precision_takes_less(tiny_config):
    half, single = (
        training_memory(tiny_config(), (64, 64, 64), 2, channels=1, num_classes=3, amp=amp) for amp in ("bf16", "off")
    )
    assert 0.4 * single < half < 0.8 * single


def test_memory_is_a_line_over_the_batch_size(tiny_config):
    config, crop, options = tiny_config(), (32, 32, 32), {"channels": 1, "num_classes": 3}
    two, four, eight, many = (training_memory(config, crop, b, **options) for b in (2, 4, 8, 811))
    assert two + 3 * (four - two) == pytest.approx(eight, rel=0.02)
    assert two + 404.5 * (four - two) == pytest.approx(many, rel=0.02)


def test_the_work_of_an_estimate_does_not_grow_with_the_batch(tiny_config, monkeypatch):
    """The CPU's way of normalising takes an operation for each sample of each layer: hours for a batch of 811."""
    monkeypatch.setattr(InstanceNorm, "by_sample", lambda *_: pytest.fail("sample by sample"))
    training_memory(tiny_config(2), (32, 32), 811, channels=1, num_classes=3)


def test_a_batch_is_found_by_three_estimates(tiny_config, monkeypatch):
    estimates = []

    def estimate(*arguments, **options):
        estimates.append(training_memory(*arguments, **options))
        return estimates[-1]

    monkeypatch.setattr(planners_memory, "training_memory", estimate)
    config, crop, options = tiny_config(2), (32, 32), {"channels": 1, "num_classes": 3}
    target = training_memory(config, crop, 100, **options) + 1
    batch_size, needed = fitting_batch_size(config, crop, 811, target, **options)
    assert 99 <= batch_size <= 100
    assert needed == estimates[-1] <= target
    assert len(estimates) == 3


def test_batch_is_reduced_until_it_fits(tiny_config):
    config, crop, options = tiny_config(), (32, 32, 32), {"channels": 1, "num_classes": 3}
    needed = {b: training_memory(config, crop, b, **options) for b in (2, 5, 6)}
    assert fitting_batch_size(config, crop, 6, needed[6], **options) == (6, needed[6])
    batch_size, memory = fitting_batch_size(config, crop, 12, needed[6], **options)
    assert batch_size in (5, 6)
    assert memory == needed[batch_size] <= needed[6]
    # nnU-Net's least: what does not fit either is told
    assert fitting_batch_size(config, crop, 6, 1.0, **options) == (2, needed[2])


@pytest.mark.parametrize(("regions", "n_tensors"), [(False, 8), (True, 11)])
def test_online_validation_holds_as_many_dense_tensors_as_are_counted(tiny_config, regions, n_tensors):
    """As nnU-Net's `validation_step` calls it."""
    size = (1, 20, 16, 16, 16)
    with _LiveTensors() as live:
        output = torch.zeros(size)
        if regions:
            predicted, target = (output.sigmoid() > 0.5).long(), torch.zeros(size, dtype=torch.int16)
        else:
            predicted, target = torch.zeros(size, dtype=torch.float16), torch.zeros(1, 1, *size[2:])
        get_tp_fp_fn_tn(predicted, target, axes=[0, 2, 3, 4])
    assert live.peak == pytest.approx(4 * n_tensors * output.numel(), rel=0.07)  # and the target
    config, crop = tiny_config(regions=regions), (32, 32, 32)
    few, many = (training_memory(config, crop, 1, channels=1, num_classes=k) for k in (20, 120))
    assert many - few > 4 * n_tensors * 100 * 32**3
